//! Permits that were dropped while their slot may still be busy, by the number of the connection that will tell. In: what
//! becomes unsettled, the names that workers report, the time. Out: which permits are free again. Pure.
//!
//! A name may come before the permit is dropped: the worker's word takes another way than the connection's end. So names
//! that nobody owes yet are kept for a while.

use super::Held;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// A worker that is alive has seen the end of a connection long before, and has told of it: after this time its count of
/// orphaned slots is believed. It is silent for 3 s before it counts as stalled.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// Names that nobody owes; the rest is forgotten, and `GRACE` mends it.
const EARLY: usize = 4096;

/// An unsettled permit.
#[derive(Debug)]
struct Owed {
    held: Held,
    since: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Owing {
    by_number: HashMap<u64, Owed>,
    /// By number, which node named it and when.
    early: HashMap<u64, (String, Instant)>,
    /// The early names in the order in which they came; some have been used by now.
    order: VecDeque<u64>,
}

impl Owing {
    /// False when the worker, of this node, has named the number before: then the permit is free.
    pub(super) fn owe(&mut self, number: u64, instance: &str, held: Held, now: Instant) -> bool {
        if self.early.remove(&number).is_some_and(|(named_by, _)| named_by == instance) {
            return false;
        }
        self.by_number.insert(number, Owed { held, since: now });
        true
    }

    /// The permit of this number.
    pub(super) fn get(&self, number: u64) -> Option<Held> {
        self.by_number.get(&number).map(|owed| owed.held)
    }

    /// A node has named a number that nobody owes.
    pub(super) fn named(&mut self, number: u64, instance: &str, now: Instant) {
        if self.early.insert(number, (instance.to_owned(), now)).is_none() {
            self.order.push_back(number);
            if self.order.len() > EARLY
                && let Some(oldest) = self.order.pop_front()
            {
                self.early.remove(&oldest);
            }
        }
    }

    /// The oldest `most` of these numbers that have been owed for longer than the grace.
    pub(super) fn overdue(&mut self, numbers: &[u64], most: usize, now: Instant) -> Vec<(u64, Held)> {
        let old = |owed: &Owed| now.saturating_duration_since(owed.since) >= GRACE;
        let mut overdue: Vec<(Instant, u64)> = numbers
            .iter()
            .filter_map(|number| Some((self.by_number.get(number).filter(|owed| old(owed))?.since, *number)))
            .collect();
        overdue.sort_unstable();
        overdue.truncate(most);
        overdue.into_iter().filter_map(|(_, number)| Some((number, self.by_number.remove(&number)?.held))).collect()
    }

    /// Whatever its age: nothing of it runs any more.
    pub(super) fn forgive(&mut self, number: u64) -> Option<Held> {
        self.by_number.remove(&number).map(|owed| owed.held)
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.by_number.values().map(|owed| &owed.held)
    }

    /// Forgets the names that nobody has asked for in time.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some(number) = self.order.front() {
            match self.early.get(number) {
                Some((_, since)) if now.saturating_duration_since(*since) < GRACE => return,
                Some(_) | None => {
                    self.early.remove(number);
                    self.order.pop_front();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dispatch::Class, endpoint::EndpointId};

    fn held(seat: u32, since: Instant) -> Held {
        Held { id: EndpointId { number: 1, seat }, class: Class::default(), counted: None, since, waited: false }
    }

    #[test]
    fn a_permit_comes_back_when_its_number_is_named_before_or_after() {
        let (mut owing, now) = (Owing::default(), Instant::now());
        assert!(owing.owe(7, "a", held(1, now), now));
        assert_eq!(owing.get(7).unwrap().id.seat, 1);
        assert!(owing.forgive(7).is_some() && owing.get(7).is_none());
        owing.named(8, "a", now);
        assert!(!owing.owe(8, "a", held(2, now), now));
        assert!(owing.owe(8, "a", held(2, now), now), "a name counts once");
        owing.named(9, "b", now);
        assert!(owing.owe(9, "a", held(2, now), now), "a node names its own only");
    }

    #[test]
    fn the_oldest_are_overdue_first_and_none_before_the_grace() {
        let (mut owing, now) = (Owing::default(), Instant::now());
        for number in 0..3 {
            assert!(owing.owe(number, "a", held(1, now), now + GRACE / 10 * u32::try_from(number).unwrap()));
        }
        assert!(owing.overdue(&[0, 1, 2], 3, now + GRACE / 2).is_empty());
        let freed = owing.overdue(&[2, 1, 0], 2, now + 2 * GRACE);
        assert_eq!(freed.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
        assert!(owing.forgive(2).is_some() && owing.forgive(2).is_none());
    }

    #[test]
    fn names_that_nobody_owes_are_bounded_in_number_and_time() {
        let (mut owing, now) = (Owing::default(), Instant::now());
        for number in 0..2 * EARLY as u64 {
            owing.named(number, "a", now);
        }
        assert_eq!((owing.early.len(), owing.order.len()), (EARLY, EARLY));
        owing.sweep(now + GRACE);
        assert_eq!((owing.early.len(), owing.order.len()), (0, 0));
    }
}
