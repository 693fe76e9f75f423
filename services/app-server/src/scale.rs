//! How many workers there should be: come in how many requests wait and how busy the workers are, goes out one more, one
//! fewer, or nothing. Pure: `now` is an argument.
//!
//! More come quickly, because somebody is waiting; fewer come slowly, because a worker that is missing in the next wave
//! costs more than one that is idle.

use std::time::Duration;
use tokio::time::Instant;

/// Requests wait for so long before a worker is added, and again before the next one.
const PRESSED: Duration = Duration::from_millis(250);

/// It is quiet for so long before the first worker is taken away.
const QUIET: Duration = Duration::from_secs(10);

/// And for so long before each further one.
const STILL_QUIET: Duration = Duration::from_secs(2);

/// What there is to do and who does it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    /// Requests that wait for a slot.
    pub(crate) waiting: u64,
    /// Of the workers that are ready.
    pub(crate) busy: u64,
    pub(crate) slots: u64,
    /// One that was added is not ready yet: what it will change is not seen.
    pub(crate) starting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    More,
    Fewer,
}

/// Between how many, and since when it is as it is.
#[derive(Debug)]
pub(crate) struct Scaler {
    least: u32,
    /// `None`: the number is nobody's business but the operator's.
    most: Option<u32>,
    pressed_since: Option<Instant>,
    quiet_until: Option<Instant>,
}

impl Scaler {
    /// Never more than `least` where `most` is not above it.
    pub(crate) fn new(least: u32, most: u32) -> Self {
        Self { least, most: (most > least).then_some(most), pressed_since: None, quiet_until: None }
    }

    /// Somebody has asked for another number of workers: that is the least from now on.
    pub(crate) fn rebase(&mut self, least: u32) {
        self.least = least;
    }

    /// False where the number is the operator's alone: then nobody has to look.
    pub(crate) fn scales(&self) -> bool {
        self.most.is_some()
    }

    /// Asked a few times a second.
    pub(crate) fn decide(&mut self, workers: u32, load: Load, now: Instant) -> Option<Change> {
        let most = self.most?;
        if load.waiting > 0 {
            self.quiet_until = None;
            let since = *self.pressed_since.get_or_insert(now);
            let long = now.saturating_duration_since(since) >= PRESSED;
            if load.starting || !long || workers >= most {
                return None;
            }
            self.pressed_since = Some(now);
            return Some(Change::More);
        }
        self.pressed_since = None;
        if workers <= self.least || !fits(workers, load) {
            self.quiet_until = None;
            return None;
        }
        let until = *self.quiet_until.get_or_insert(now + QUIET);
        (now >= until).then(|| {
            self.quiet_until = Some(now + STILL_QUIET);
            Change::Fewer
        })
    }
}

/// Whether one worker fewer would still be no more than half busy.
fn fits(workers: u32, load: Load) -> bool {
    let left = load.slots * u64::from(workers.saturating_sub(1)) / u64::from(workers.max(1));
    2 * load.busy <= left
}

#[cfg(test)]
mod tests {
    use super::{Change, Load, PRESSED, QUIET, STILL_QUIET, Scaler};
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    fn load(waiting: u64, busy: u64, slots: u64) -> Load {
        Load { waiting, busy, slots, starting: false }
    }

    #[test]
    fn workers_are_added_one_by_one_while_requests_wait() {
        let mut scaler = Scaler::new(1, 3);
        let start = Instant::now();
        assert_eq!(scaler.decide(1, load(5, 1, 1), start), None, "it may be over in a moment");
        assert_eq!(scaler.decide(1, load(5, 1, 1), start + PRESSED), Some(Change::More));
        let starting = Load { starting: true, ..load(5, 1, 1) };
        assert_eq!(scaler.decide(2, starting, start + 3 * PRESSED), None, "the last one is not there yet");
        assert_eq!(scaler.decide(2, load(5, 2, 2), start + 3 * PRESSED), Some(Change::More));
        assert_eq!(scaler.decide(3, load(5, 3, 3), start + 9 * PRESSED), None, "there are as many as may be");
    }

    #[test]
    fn a_moment_without_a_waiting_request_starts_the_clock_anew() {
        let mut scaler = Scaler::new(1, 3);
        let start = Instant::now();
        scaler.decide(1, load(1, 1, 1), start);
        scaler.decide(1, load(0, 1, 1), start + PRESSED / 2);
        assert_eq!(scaler.decide(1, load(1, 1, 1), start + PRESSED), None);
    }

    #[test]
    fn workers_are_taken_away_when_it_has_been_quiet() {
        let mut scaler = Scaler::new(1, 3);
        let start = Instant::now();
        assert_eq!(scaler.decide(3, load(0, 0, 3), start), None);
        assert_eq!(scaler.decide(3, load(0, 0, 3), start + QUIET), Some(Change::Fewer));
        assert_eq!(scaler.decide(2, load(0, 0, 2), start + QUIET), None);
        assert_eq!(scaler.decide(2, load(0, 0, 2), start + QUIET + STILL_QUIET), Some(Change::Fewer));
        assert_eq!(scaler.decide(1, load(0, 0, 1), start + 9 * QUIET), None, "never below what was asked for");
    }

    #[test]
    fn an_operator_who_takes_a_worker_away_is_not_overruled_unless_more_were_allowed() {
        let start = Instant::now();
        for (most, wanted) in [(3, None), (4, Some(Change::More))] {
            let mut scaler = Scaler::new(3, most);
            scaler.rebase(2);
            scaler.decide(2, load(5, 2, 2), start);
            assert_eq!(scaler.decide(2, load(5, 2, 2), start + PRESSED), wanted);
            assert_eq!(scaler.scales(), wanted.is_some());
        }
    }

    #[test]
    fn busy_workers_stay() {
        let mut scaler = Scaler::new(1, 3);
        let start = Instant::now();
        for second in 0..100 {
            assert_eq!(scaler.decide(3, load(0, 2, 3), start + Duration::from_secs(second)), None);
        }
    }

    proptest! {
        #[test]
        fn the_number_stays_within_its_bounds(
            steps in prop::collection::vec((0_u64..3, 0_u64..6, 0_u64..4000), 1..300), least in 1_u32..4, more in 0_u32..4,
        ) {
            let mut scaler = Scaler::new(least, least + more);
            let (mut workers, mut now) = (least, Instant::now());
            for (waiting, busy, pause) in steps {
                now += Duration::from_millis(pause);
                match scaler.decide(workers, load(waiting, busy, workers.into()), now) {
                    Some(Change::More) => workers += 1,
                    Some(Change::Fewer) => workers -= 1,
                    None => {}
                }
                prop_assert!((least..=least + more).contains(&workers));
            }
        }
    }
}
