//! How long a position stays empty after its worker died: comes in how long the worker had been ready, goes out a pause.
//! Pure: it starts nothing and reads no clock.
//!
//! One death is answered at once, because most of them are single. A worker that keeps dying is given twice the time
//! after each death, up to half a minute, so that a program that exits at once does not eat the machine that it
//! shares with the node's other work. A good run is forgiven everything.

use std::time::Duration;

/// The pause after the second death in a row.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);

/// A run of this length is a good one, and one of twice the last pause if that is more.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// The deaths in a row of one position.
#[derive(Debug, Default)]
pub(crate) struct CrashLoop {
    deaths: u32,
}

impl CrashLoop {
    /// The pause before the next start, after a worker that was ready for `ready_for`, or never.
    pub(crate) fn pause(&mut self, ready_for: Option<Duration>) -> Duration {
        let good = GOOD_RUN.max(2 * pause_after(self.deaths));
        if ready_for.is_some_and(|ready_for| ready_for >= good) {
            self.deaths = 0;
        }
        // one that was never ready will hardly be so at once
        self.deaths += if ready_for.is_none() && self.deaths == 0 { 2 } else { 1 };
        pause_after(self.deaths)
    }
}

fn pause_after(deaths: u32) -> Duration {
    match deaths {
        0 | 1 => Duration::ZERO,
        more => FIRST.saturating_mul(2_u32.saturating_pow(more - 2)).min(LONGEST),
    }
}

#[cfg(test)]
mod tests {
    use super::{CrashLoop, GOOD_RUN, LONGEST};
    use proptest::prelude::*;
    use std::time::Duration;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn one_death_is_answered_at_once_and_the_next_ones_ever_later() {
        let mut crashes = CrashLoop::default();
        let pauses: Vec<_> = (0..5).map(|_| crashes.pause(Some(ms(5)))).collect();
        assert_eq!(pauses, [ms(0), ms(100), ms(200), ms(400), ms(800)]);
    }

    #[test]
    fn a_worker_that_was_never_ready_waits_from_the_first_time_on() {
        let mut crashes = CrashLoop::default();
        let pauses: Vec<_> = (0..3).map(|_| crashes.pause(None)).collect();
        assert_eq!(pauses, [ms(100), ms(200), ms(400)]);
    }

    #[test]
    fn a_good_run_is_forgiven_everything() {
        let mut crashes = CrashLoop::default();
        for _ in 0..40 {
            assert!(crashes.pause(None) <= LONGEST);
        }
        assert_eq!(crashes.pause(Some(GOOD_RUN)), LONGEST, "ten seconds are no good run after a pause of thirty");
        assert_eq!(crashes.pause(Some(2 * LONGEST)), ms(0));
        assert_eq!(crashes.pause(Some(ms(5))), ms(100));
    }

    proptest! {
        #[test]
        fn no_run_of_deaths_spins_or_waits_too_long(
            runs in prop::collection::vec(prop::option::of(0_u64..9_000), 2..200),
        ) {
            // no good run among them
            let mut crashes = CrashLoop::default();
            let pauses: Vec<_> = runs.into_iter().map(|run| crashes.pause(run.map(ms))).collect();
            prop_assert!(pauses.iter().all(|pause| *pause <= LONGEST));
            prop_assert!(pauses[1..].iter().all(|pause| *pause >= ms(100)));
            prop_assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        }
    }
}
