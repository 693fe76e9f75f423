//! Connections that are settled, on their way to whom they belong to. In: their numbers, as workers name them; out: each
//! once, to the balancer whose upper half it has. Pure.

use std::collections::{BTreeMap, VecDeque};

/// Names that may wait for one balancer, or for one that is not known yet. A balancer has a way to do without.
const NAMES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Names {
    /// By upper half.
    queues: BTreeMap<u32, VecDeque<u64>>,
    /// Of nobody that is known.
    early: VecDeque<u64>,
}

impl Names {
    /// `true`: somebody has to be told. `awaited`: it may belong to a balancer that has not said what its numbers are.
    pub(super) fn name(&mut self, number: u64, awaited: bool) -> bool {
        // the upper half is what is left
        let half = (number >> 32) as u32;
        let known = self.queues.get_mut(&half);
        let is_known = known.is_some();
        let queue = match known {
            Some(queue) => queue,
            None if awaited => &mut self.early,
            None => return false,
        };
        if queue.len() < NAMES_MAX {
            queue.push_back(number);
        }
        is_known
    }

    /// From now on these are a balancer's, and so are those that came too early. `true`: there are some.
    pub(super) fn claim(&mut self, half: u32) -> bool {
        if half == 0 {
            return false;
        }
        let own = |number: &u64| (number >> 32) as u32 == half;
        let (theirs, rest) = self.early.iter().partition::<VecDeque<u64>, _>(|number| own(number));
        self.early = rest;
        let queue = self.queues.entry(half).or_default();
        queue.extend(theirs);
        queue.truncate(NAMES_MAX);
        !queue.is_empty()
    }

    /// The balancer is gone. `awaited`: perhaps not for long.
    pub(super) fn disown(&mut self, half: u32, awaited: bool) {
        let names = self.queues.remove(&half).unwrap_or_default();
        for number in names.into_iter().filter(|_| awaited) {
            self.name(number, true);
        }
    }

    /// Nobody can be expected any more.
    pub(super) fn forget_early(&mut self) {
        self.early.clear();
    }

    pub(super) fn has(&self, half: u32) -> bool {
        self.queues.get(&half).is_some_and(|queue| !queue.is_empty())
    }

    pub(super) fn take(&mut self, half: u32) -> Vec<u64> {
        self.queues.get_mut(&half).map(|queue| queue.drain(..).collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{NAMES_MAX, Names};

    fn number(half: u32, count: u32) -> u64 {
        u64::from(half) << 32 | u64::from(count)
    }

    #[test]
    fn each_name_goes_once_to_the_balancer_it_belongs_to() {
        let mut names = Names::default();
        assert!(!names.claim(7) && !names.claim(8));
        assert!(names.name(number(7, 1), false) && names.name(number(8, 1), false) && names.name(number(7, 2), false));
        assert!(!names.name(number(9, 1), false), "a stranger's");
        assert_eq!(names.take(7), [number(7, 1), number(7, 2)]);
        assert!(!names.has(7) && names.has(8));
        assert!(names.take(7).is_empty() && names.take(9).is_empty());
    }

    #[test]
    fn a_name_that_comes_before_the_balancer_has_said_who_it_is_waits_for_it() {
        let mut names = Names::default();
        assert!(!names.name(number(7, 1), true) && !names.name(number(8, 1), true));
        assert!(names.claim(7));
        assert_eq!(names.take(7), [number(7, 1)]);
        names.forget_early();
        assert!(!names.claim(8), "it was not expected any more");
    }

    #[test]
    fn a_balancer_that_comes_back_finds_what_it_has_not_been_told() {
        let mut names = Names::default();
        names.claim(7);
        names.name(number(7, 1), false);
        names.disown(7, true);
        assert!(names.claim(7));
        names.disown(7, false);
        assert!(!names.claim(7));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut names = Names::default();
        names.claim(7);
        for count in 0..2 * NAMES_MAX as u32 {
            names.name(number(7, count), true);
            names.name(number(8, count), true);
        }
        names.claim(8);
        assert_eq!((names.take(7).len(), names.take(8).len()), (NAMES_MAX, NAMES_MAX));
    }

    #[test]
    fn a_balancer_without_numbers_has_no_names() {
        let mut names = Names::default();
        assert!(!names.name(number(0, 1), true));
        assert!(!names.claim(0) && !names.has(0) && names.take(0).is_empty());
    }
}
