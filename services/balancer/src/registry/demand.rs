//! When a node hears how many requests of its app wait. In: the queue's length, looked at by a timer, and the time. Out:
//! what to say, and when to look again. Pure; the session asks it and sends.
//!
//! Nothing of this is paid by a request that finds a free worker. The first one that has to wait wakes the sessions of
//! its app; they look 50 ms later, so that a queue that is empty again by then is no demand, and then every 50 ms while
//! anything waits.

use std::time::Duration;
use tokio::time::Instant;

/// Between two looks. The most that a beginning or an end of demand is late.
const LOOK: Duration = Duration::from_millis(50);
/// Between two numbers, neither of them 0.
const TELL: Duration = Duration::from_millis(250);

/// One node's knowledge of its app's queue.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    /// What the node was told last; at first it believes that nothing waits.
    told: u32,
    told_at: Option<Instant>,
    /// What it is to be told now.
    owed: Option<u32>,
    look_at: Option<Instant>,
}

impl Demand {
    /// Something may be waiting: see to it that somebody looks.
    pub(crate) fn notice(&mut self, waiting: u32, now: Instant) {
        if waiting > 0 && self.look_at.is_none() {
            self.look_at = Some(now + LOOK);
        }
    }

    /// When `look` is due; `None` while nothing waits that the node does not know of.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// So many wait now.
    pub(crate) fn look(&mut self, waiting: u32, now: Instant) {
        let begins_or_ends = (waiting == 0) != (self.told == 0);
        let due = self.told_at.is_none_or(|at| now.duration_since(at) >= TELL);
        self.owed = (waiting != self.told && (begins_or_ends || due)).then_some(waiting);
        self.look_at = (waiting > 0 || self.told > 0).then(|| now + LOOK);
    }

    /// What the node is to be told now.
    pub(crate) fn owed(&self) -> Option<u32> {
        self.owed
    }

    /// The node was told.
    pub(crate) fn told(&mut self, waiting: u32, now: Instant) {
        self.told = waiting;
        self.told_at = Some(now);
        self.owed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Looks when it is due, and says what it owes at once.
    fn step(demand: &mut Demand, waiting: u32, now: Instant) -> Option<u32> {
        demand.notice(waiting, now);
        if demand.look_at()? > now {
            return None;
        }
        demand.look(waiting, now);
        let owed = demand.owed()?;
        demand.told(owed, now);
        Some(owed)
    }

    /// What is said about a queue that is so long at each of these milliseconds.
    fn said(queue: impl Fn(u64) -> u32, until: u64) -> Vec<(u64, u32)> {
        let (start, mut demand) = (Instant::now(), Demand::default());
        let at = |ms| start + Duration::from_millis(ms);
        (0..until).filter_map(|ms| Some((ms, step(&mut demand, queue(ms), at(ms))?))).collect()
    }

    #[test]
    fn a_queue_that_lasts_is_told_of_within_a_look_and_so_is_its_end() {
        let queue = |ms| if (100..520).contains(&ms) { 3 } else { 0 };
        assert_eq!(said(queue, 10_000), [(150, 3), (550, 0)]);
    }

    #[test]
    fn a_queue_that_comes_and_goes_at_once_is_no_demand() {
        assert_eq!(said(|ms| u32::from(ms % 71 == 7), 10_000), []);
    }

    #[test]
    fn a_number_that_changes_is_told_four_times_a_second() {
        let queue = |ms| u32::try_from(ms).unwrap() + 1;
        let said = said(queue, 1_000);
        assert_eq!(said, [(50, 51), (300, 301), (550, 551), (800, 801)]);
    }

    #[test]
    fn a_number_that_stays_is_told_once() {
        assert_eq!(said(|_| 7, 10_000), [(50, 7)]);
    }

    #[test]
    fn what_could_not_be_said_yet_is_overtaken_by_what_is_true() {
        let (now, mut demand) = (Instant::now(), Demand::default());
        demand.look(5, now);
        assert_eq!(demand.owed(), Some(5));
        demand.look(9, now + LOOK);
        assert_eq!(demand.owed(), Some(9));
        demand.look(0, now + 2 * LOOK);
        assert_eq!(demand.owed(), None, "the node never knew");
    }

    proptest! {
        /// Whatever the queue does, the node is not talked to death, and in the end it knows the truth.
        #[test]
        fn the_truth_comes_out_in_few_words(lengths in prop::collection::vec(0_u32..3, 1..40), last in 0_u32..3) {
            let queue = |ms: u64| usize::try_from(ms / 37).ok().and_then(|at| lengths.get(at).copied()).unwrap_or(last);
            let until = 37 * lengths.len() as u64 + 500;
            let said = said(queue, until);
            prop_assert_eq!(said.last().map_or(0, |(_, number)| *number), last);
            for pair in said.windows(2) {
                let [(one, before), (two, after)] = pair else { unreachable!() };
                prop_assert_ne!(before, after);
                let least = if *before > 0 && *after > 0 { 250 } else { 50 };
                prop_assert!(two - one >= least, "{:?}", said);
            }
        }
    }
}
