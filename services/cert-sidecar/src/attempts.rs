//! How often one address may fail, to enrol or to get certificates. In: an address and a moment. Out: whether this
//! failure is answered and logged as one, or cut short. Pure. It never stands in the way of a good token: whoever holds
//! one is asked for nothing here, so that a broken neighbour behind the same address keeps nobody out.
//!
//! A secret has 256 bits and cannot be guessed at any rate; what is bounded is the noise.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Failures at once before an address is cut short, and the time that forgives one.
const BURST: u32 = 60;
const FORGIVEN_AFTER: Duration = Duration::from_secs(1);
/// Addresses remembered. Beyond it, strangers share one place.
const ADDRESSES_MAX: usize = 4096;

/// Failures that are not forgiven yet, by address.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    addresses: HashMap<IpAddr, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    since: Instant,
}

/// What a failure is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Heard,
    /// From here on the address is cut short; say so once.
    LastHeard,
    CutShort,
}

impl Failures {
    fn forgive(&mut self, now: Instant) {
        let forgiven = now.saturating_duration_since(self.since).as_secs() / FORGIVEN_AFTER.as_secs();
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(forgiven);
        self.since = if self.count == 0 { now } else { self.since + FORGIVEN_AFTER * forgiven };
    }
}

impl Attempts {
    /// One more failure.
    pub(crate) fn fail(&mut self, address: IpAddr, now: Instant) -> Verdict {
        let mut place = network(address);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&place) {
            self.addresses.retain(|_, failures| {
                failures.forgive(now);
                failures.count > 0
            });
            if self.addresses.len() >= ADDRESSES_MAX {
                place = Ipv6Addr::UNSPECIFIED.into();
            }
        }
        let failures = self.addresses.entry(place).or_insert(Failures { count: 0, since: now });
        failures.forgive(now);
        if failures.count >= BURST {
            return Verdict::CutShort;
        }
        failures.count += 1;
        if failures.count == BURST { Verdict::LastHeard } else { Verdict::Heard }
    }
}

/// Whoever has one IPv6 address has the whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_keeps_failing_is_cut_short_until_it_pauses() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        let bad = address("192.0.2.1");
        for _ in 1..BURST {
            assert_eq!(attempts.fail(bad, now), Verdict::Heard);
        }
        assert_eq!(attempts.fail(bad, now), Verdict::LastHeard);
        assert_eq!(attempts.fail(bad, now), Verdict::CutShort);
        assert_eq!(attempts.fail(address("192.0.2.2"), now), Verdict::Heard);
        assert_eq!(attempts.fail(bad, now + FORGIVEN_AFTER / 2), Verdict::CutShort);
        assert_eq!(attempts.fail(bad, now + FORGIVEN_AFTER), Verdict::LastHeard);
        assert_eq!(attempts.fail(bad, now + FORGIVEN_AFTER * (BURST + 1)), Verdict::Heard);
    }

    #[test]
    fn a_whole_ipv6_network_counts_as_one_and_memory_is_bounded() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for host in 0..BURST {
            attempts.fail(address(&format!("2001:db8::{host:x}")), now);
        }
        assert_eq!(attempts.fail(address("2001:db8::ffff"), now), Verdict::CutShort);
        for net in 0..10_000_u32 {
            attempts.fail(IpAddr::V4(net.into()), now);
        }
        assert!(attempts.addresses.len() <= ADDRESSES_MAX + 1);
        // When the flood is over, it is forgotten.
        attempts.fail(address("192.0.2.1"), now + Duration::from_secs(10_000));
        assert_eq!(attempts.addresses.len(), 1);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_is_heard_than_the_burst_and_what_was_forgiven(
            pauses in proptest::collection::vec(0_u64..3_000, 1..400),
        ) {
            let (mut attempts, start) = (Attempts::default(), Instant::now());
            let (mut now, mut heard) = (start, 0);
            for pause in pauses {
                now += Duration::from_millis(pause);
                heard += u64::from(attempts.fail(address("192.0.2.1"), now) != Verdict::CutShort);
            }
            prop_assert!(heard <= u64::from(BURST) + now.duration_since(start).as_secs());
        }
    }
}
