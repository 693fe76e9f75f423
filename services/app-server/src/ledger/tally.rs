//! A number for each worker. In: numbers; out: the same by worker, 0 where there is none.

use super::WorkerKey;

/// Small and copied often, so a sorted list.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally(Vec<(WorkerKey, u32)>);

impl Tally {
    pub(super) fn of(&self, worker: WorkerKey) -> u32 {
        self.0.binary_search_by_key(&worker, |(key, _)| *key).map_or(0, |at| self.0[at].1)
    }

    /// Makes the number at least this.
    pub(super) fn raise(&mut self, worker: WorkerKey, least: u32) {
        match self.0.binary_search_by_key(&worker, |(key, _)| *key) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(least),
            Err(at) => self.0.insert(at, (worker, least)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WorkerKey, u32)> {
        self.0.iter().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives every number another one; what becomes 0 is gone.
    pub(super) fn revise(&mut self, mut new: impl FnMut(WorkerKey, u32) -> u32) {
        self.0.retain_mut(|(worker, number)| {
            *number = new(*worker, *number);
            *number > 0
        });
    }
}

impl FromIterator<(WorkerKey, u32)> for Tally {
    fn from_iter<I: IntoIterator<Item = (WorkerKey, u32)>>(numbers: I) -> Self {
        let mut numbers: Vec<_> = numbers.into_iter().collect();
        numbers.sort_unstable();
        Self(numbers)
    }
}
