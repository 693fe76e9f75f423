//! What a node hears of its app's queue. In: the queue's length and what is wanted of the node, looked at by a timer, and
//! the time. Out: what to say, and when to look again. Pure; the session asks it and sends.
//!
//! Nothing of this is paid by a request that finds a free worker. The first one that has to wait wakes the sessions of
//! its app. How much waits is for those who add workers: they hear of it 50 ms later, so that a queue that is empty again by
//! then is no demand, and then every 250 ms. What is wanted of a node that other balancers share is asked at once, because
//! a request waits for it, and every 5 ms while any does.

use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at the length. The most that a beginning or an end of demand is late.
const LOOK: Duration = Duration::from_millis(50);
/// Between two lengths, neither of them 0.
const TELL: Duration = Duration::from_millis(250);
/// Between two looks at what is wanted, ...
const ASK: Duration = Duration::from_millis(5);
/// ... and between two equal answers to the same report: the wait gets longer.
const REMIND: Duration = Duration::from_millis(50);

/// What the node is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Requests that wait.
    pub waiting: u32,
    /// Permits wanted of this node beyond those granted.
    pub wanted: u32,
    /// How long a request that came now would wait.
    pub wait: Duration,
    /// The newest report that was known: what is wanted is beyond the grants of that one.
    pub sequence: u64,
}

/// One node's knowledge of its app's queue.
#[derive(Debug, Default)]
pub struct Demand {
    /// What the node was told last; at first it believes that nothing waits.
    told: Said,
    told_waiting_at: Option<Instant>,
    told_wanted_at: Option<Instant>,
    /// What it is to be told now.
    owed: Option<Said>,
    look_at: Option<Instant>,
    ask_at: Option<Instant>,
}

impl Demand {
    /// Something may be waiting: see to it that somebody looks.
    pub fn notice(&mut self, waiting: u32, now: Instant) {
        if waiting > 0 {
            self.look_at.get_or_insert(now + LOOK);
            self.ask_at.get_or_insert(now);
        }
    }

    /// When `look` is due; `None` while nothing waits that the node does not know of.
    pub fn look_at(&self) -> Option<Instant> {
        self.look_at.into_iter().chain(self.ask_at).min()
    }

    /// So many wait now, the next one for as long as `wait`, and of this node so many permits are `wanted` beyond what its
    /// report `sequence` grants; `None`: other balancers have none to give.
    pub fn look(&mut self, waiting: u32, wanted: Option<u32>, wait: Duration, sequence: u64, now: Instant) {
        let mut said = Said { wait, sequence, ..self.owed.unwrap_or(self.told) };
        if self.look_at.is_some_and(|at| at <= now) {
            let begins_or_ends = (waiting == 0) != (self.told.waiting == 0);
            let due = self.told_waiting_at.is_none_or(|at| now.duration_since(at) >= TELL);
            said.waiting = if begins_or_ends || due { waiting } else { self.told.waiting };
            self.look_at = (waiting > 0 || self.told.waiting > 0).then(|| now + LOOK);
        }
        let mut reminds = false;
        if self.ask_at.is_some_and(|at| at <= now) {
            let permits = wanted.unwrap_or_default();
            // as many as before, beyond other grants, are others
            let anew = sequence != self.told.sequence;
            let long_ago = || self.told_wanted_at.is_none_or(|at| now.duration_since(at) >= REMIND);
            reminds = permits > 0 && (anew || long_ago());
            said.wanted = permits;
            let pause = if wanted.is_some() || self.told.wanted > 0 { ASK } else { LOOK };
            self.ask_at = (waiting > 0 || permits > 0 || self.told.wanted > 0).then(|| now + pause);
        }
        let differs = (said.waiting, said.wanted) != (self.told.waiting, self.told.wanted);
        self.owed = (differs || reminds).then_some(said);
    }

    /// What the node is to be told now.
    pub fn owed(&self) -> Option<Said> {
        self.owed
    }

    /// The node was told.
    pub fn told(&mut self, said: Said, now: Instant) {
        if said.waiting != self.told.waiting {
            self.told_waiting_at = Some(now);
        }
        self.told_wanted_at = Some(now);
        self.told = said;
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
        demand.look(waiting, None, Duration::ZERO, 1, now);
        let owed = demand.owed()?;
        demand.told(owed, now);
        Some(owed.waiting)
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
        let owed = |demand: &Demand| demand.owed().map(|said| said.waiting);
        demand.notice(5, now);
        demand.look(5, None, LOOK, 1, now + LOOK);
        assert_eq!(owed(&demand), Some(5));
        demand.look(9, None, LOOK, 1, now + 2 * LOOK);
        assert_eq!(owed(&demand), Some(9));
        demand.look(0, None, Duration::ZERO, 1, now + 3 * LOOK);
        assert_eq!(owed(&demand), None, "the node never knew");
    }

    /// Milliseconds, permits and wait of what is said when, at each of these milliseconds, so much is wanted.
    fn asked(wanted: impl Fn(u64) -> u32, until: u64) -> Vec<(u64, u32, u64)> {
        asked_knowing(wanted, |_| 1, until)
    }

    /// `known`: the report that the balancer has.
    fn asked_knowing(wanted: impl Fn(u64) -> u32, known: impl Fn(u64) -> u64, until: u64) -> Vec<(u64, u32, u64)> {
        let (start, mut demand) = (Instant::now(), Demand::default());
        let mut said = Vec::new();
        for ms in 0..until {
            let now = start + Duration::from_millis(ms);
            demand.notice(wanted(ms), now);
            if demand.look_at().is_some_and(|at| at <= now) {
                demand.look(0, Some(wanted(ms)), Duration::from_millis(ms), known(ms), now);
            }
            if let Some(owed) = demand.owed() {
                demand.told(owed, now);
                said.push((ms, owed.wanted, u64::try_from(owed.wait.as_millis()).unwrap()));
            }
        }
        said
    }

    #[test]
    fn what_is_wanted_is_asked_at_once_and_taken_back_soon() {
        let wanted = |ms| if (100..112).contains(&ms) { 2 } else { 0 };
        assert_eq!(asked(wanted, 10_000), [(100, 2, 100), (115, 0, 115)]);
    }

    #[test]
    fn a_want_that_lasts_is_asked_again_with_its_longer_wait() {
        assert_eq!(asked(|_| 1, 120), [(0, 1, 0), (50, 1, 50), (100, 1, 100)]);
    }

    #[test]
    fn as_many_as_before_beyond_other_grants_are_asked_anew() {
        let known = |ms| if ms < 22 { 1 } else { 2 };
        assert_eq!(asked_knowing(|_| 1, known, 60), [(0, 1, 0), (25, 1, 25)]);
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
