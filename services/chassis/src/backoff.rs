//! How long to wait before the next try at a peer: comes in a first delay and a cap, goes out one jittered delay per
//! failure. It never sleeps and reads no clock; whoever waits does that.
//!
//! The ceiling doubles with every failure until it meets the cap, and each delay is drawn evenly below the ceiling
//! (full jitter), so that many nodes that lost the same peer do not come back in step. A delay is never shorter than
//! half of the first one: without that floor one draw in many is next to nothing, and a peer that refuses at once
//! would be hammered.

use rand::{Rng, RngExt};
use std::time::Duration;

/// Jittered exponential delays, starting over with [`Backoff::reset`].
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    /// What the next delay is drawn below.
    ceiling: Duration,
}

impl Backoff {
    /// The delays lie between `first / 2` and `cap`; a cap below `first` counts as `first`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap: cap.max(first), ceiling: first }
    }

    /// The delay before the next try, after one more failure.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let drawn = self.ceiling.mul_f64(rng.random::<f64>());
        self.ceiling = self.ceiling.saturating_mul(2).min(self.cap);
        drawn.max(self.first / 2)
    }

    /// As [`Self::next`], drawn by the thread's own generator. In a future that is sent between threads call this one: it
    /// keeps the generator out of it.
    pub fn pause(&mut self) -> Duration {
        self.next(&mut rand::rng())
    }

    /// The peer answered: the next failure waits as the first one did.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};
    use std::time::Duration;

    proptest! {
        #[test]
        fn every_delay_lies_between_half_of_the_first_and_the_cap(
            first_ms in 0_u64..10_000, cap_ms in 0_u64..100_000, tries in 1_usize..80, seed: u64,
        ) {
            let (first, cap) = (Duration::from_millis(first_ms), Duration::from_millis(cap_ms));
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(first, cap);
            for n in 0..tries {
                let delay = backoff.next(&mut rng);
                prop_assert!(delay >= first / 2);
                prop_assert!(delay <= cap.max(first));
                let doubled = 2_u32.checked_pow(n as u32).map_or(Duration::MAX, |times| first.saturating_mul(times));
                prop_assert!(delay <= doubled, "try {n} waits {delay:?}");
            }
        }

        #[test]
        fn after_a_reset_the_delay_is_no_longer_than_the_first(seed: u64, tries in 1_usize..40) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
            for _ in 0..tries {
                backoff.next(&mut rng);
            }
            backoff.reset();
            prop_assert!(backoff.next(&mut rng) <= Duration::from_millis(50));
        }
    }

    #[test]
    fn the_delays_are_spread_and_reach_the_cap() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let late: Vec<Duration> = (0..200).map(|_| backoff.next(&mut rng)).skip(10).collect();
        let above = late.iter().filter(|delay| **delay > Duration::from_millis(400)).count();
        let below = late.iter().filter(|delay| **delay < Duration::from_millis(100)).count();
        assert!(above > 10 && below > 10, "{above} late, {below} early of {}", late.len());
    }

    #[test]
    fn the_longest_durations_do_not_overflow() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_secs(u64::MAX / 4), Duration::MAX);
        for _ in 0..100 {
            backoff.next(&mut rng);
        }
    }
}
