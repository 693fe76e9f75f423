//! When a worker with which nothing is wrong is replaced by a fresh one: come in what it has served, its age and its
//! memory, goes out whether it is due. Pure: it reads no clock and no /proc, and randomness is passed in.

use crate::{config::Recycling, metrics::Cause};
use rand::{Rng, RngExt as _};
use std::time::Duration;

/// What one worker is allowed, drawn when it starts. Without the jitter workers that started together would be replaced
/// together, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    requests: Option<u64>,
    lifetime: Option<Duration>,
    rss: Option<u64>,
    rss_hard: Option<u64>,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Replace it, the fresh one first.
    Replace(Cause),
    /// Kill it now: it endangers its neighbours.
    Kill(Cause),
}

impl Terms {
    pub(crate) fn draw(recycling: &Recycling, random: &mut impl Rng) -> Self {
        let requests = (recycling.max_requests > 0)
            .then(|| recycling.max_requests.saturating_add(random.random_range(0..=recycling.max_requests_jitter)));
        let lifetime = recycling.max_lifetime.map(|lifetime| lifetime.mul_f64(random.random_range(1.0..=1.1)));
        Self { requests, lifetime, rss: recycling.max_rss, rss_hard: recycling.max_rss_hard }
    }

    /// The worker holds so much when it has just started. More than it should hold is no reason to replace it then: the
    /// next one would be no better. False where that is so.
    pub(crate) fn begin_with(&mut self, rss: u64) -> bool {
        let sensible = self.rss.is_none_or(|limit| rss < limit);
        if !sensible {
            self.rss = None;
        }
        sensible
    }

    /// The gravest first.
    pub(crate) fn due(&self, served: u64, age: Duration, rss: u64) -> Option<Due> {
        if self.rss_hard.is_some_and(|limit| rss >= limit) {
            Some(Due::Kill(Cause::MaxRssHard))
        } else if self.rss.is_some_and(|limit| rss >= limit) {
            Some(Due::Replace(Cause::MaxRss))
        } else if self.requests.is_some_and(|limit| served >= limit) {
            Some(Due::Replace(Cause::MaxRequests))
        } else if self.lifetime.is_some_and(|limit| age >= limit) {
            Some(Due::Replace(Cause::MaxLifetime))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Terms};
    use crate::{config::Recycling, metrics::Cause};
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn all() -> Recycling {
        Recycling {
            max_requests: 100,
            max_requests_jitter: 0,
            max_lifetime: Some(HOUR),
            max_rss: Some(1000),
            max_rss_hard: Some(2000),
        }
    }

    #[test]
    fn each_limit_is_a_cause_of_its_own_and_memory_comes_first() {
        let terms = Terms::draw(&all(), &mut StdRng::seed_from_u64(1));
        assert_eq!(terms.due(99, HOUR / 2, 999), None);
        assert_eq!(terms.due(100, HOUR / 2, 999), Some(Due::Replace(Cause::MaxRequests)));
        assert_eq!(terms.due(99, 2 * HOUR, 999), Some(Due::Replace(Cause::MaxLifetime)));
        assert_eq!(terms.due(100, 2 * HOUR, 1000), Some(Due::Replace(Cause::MaxRss)));
        assert_eq!(terms.due(100, 2 * HOUR, 2000), Some(Due::Kill(Cause::MaxRssHard)));
    }

    #[test]
    fn a_limit_below_what_a_fresh_worker_holds_replaces_nothing() {
        let mut terms = Terms::draw(&all(), &mut StdRng::seed_from_u64(1));
        assert!(terms.begin_with(999));
        assert_eq!(terms.due(0, Duration::ZERO, 1000), Some(Due::Replace(Cause::MaxRss)));
        assert!(!terms.begin_with(1000));
        assert_eq!(terms.due(0, Duration::ZERO, 1000), None);
        assert_eq!(terms.due(0, Duration::ZERO, 2000), Some(Due::Kill(Cause::MaxRssHard)));
    }

    #[test]
    fn without_limits_a_worker_is_never_due() {
        let terms = Terms::draw(&Recycling::default(), &mut StdRng::seed_from_u64(1));
        assert_eq!(terms.due(u64::MAX, Duration::MAX, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn jitter_only_ever_adds(seed in any::<u64>(), jitter in 0_u64..50) {
            let recycling = Recycling { max_requests_jitter: jitter, ..all() };
            let terms = Terms::draw(&recycling, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(terms.due(99, Duration::ZERO, 0), None);
            prop_assert_eq!(terms.due(100 + jitter, Duration::ZERO, 0), Some(Due::Replace(Cause::MaxRequests)));
            prop_assert_eq!(terms.due(0, HOUR - Duration::from_secs(1), 0), None);
            prop_assert_eq!(terms.due(0, HOUR.mul_f64(1.11), 0), Some(Due::Replace(Cause::MaxLifetime)));
        }
    }
}
