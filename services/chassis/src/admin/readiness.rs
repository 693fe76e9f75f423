//! Why a process is not ready. In: latches, each held for one reason. Out: the reasons of those still held. It knows
//! nothing of the phase of the process: the admin listener adds that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ready when no latch is held. Clones share the latches.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    latches: Arc<Mutex<Latches>>,
}

#[derive(Debug, Default)]
struct Latches {
    made: u64,
    /// By the number of the latch, so that reasons come in the order in which latches were made.
    held: BTreeMap<u64, &'static str>,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// A latch that is held for `reason`, such as "no certificates yet".
    pub fn latch(&self, reason: &'static str) -> Latch {
        let mut latches = self.lock();
        latches.made += 1;
        let number = latches.made;
        latches.held.insert(number, reason);
        drop(latches);
        Latch { readiness: self.clone(), number, reason }
    }

    pub fn is_ready(&self) -> bool {
        self.lock().held.is_empty()
    }

    pub fn reasons(&self) -> Vec<&'static str> {
        self.lock().held.values().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Latches> {
        // Every change is a single insert or remove: a panic elsewhere cannot leave half of one.
        self.latches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reason not to be ready, until it is released or dropped.
#[derive(Debug)]
pub struct Latch {
    readiness: Readiness,
    number: u64,
    reason: &'static str,
}

impl Latch {
    pub fn release(&self) {
        self.readiness.lock().held.remove(&self.number);
    }

    /// Makes the process unready again, for the same reason.
    pub fn hold(&self) {
        self.readiness.lock().held.insert(self.number, self.reason);
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_no_latch_is_held() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let first = readiness.latch("first");
        let second = readiness.latch("second");
        assert_eq!(readiness.reasons(), ["first", "second"]);
        first.release();
        assert_eq!(readiness.reasons(), ["second"]);
        first.hold();
        drop(second);
        assert_eq!(readiness.reasons(), ["first"]);
        first.release();
        assert!(readiness.is_ready());
    }
}
