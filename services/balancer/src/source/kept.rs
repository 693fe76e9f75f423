//! What is kept of a request's body. In: parts as they are received. Out: the same parts to the newest attempt, from the
//! first byte again as long as nothing was forgotten.

use crate::buffers::Share;
use bytes::Bytes;
use std::collections::VecDeque;

/// Received parts, in order.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) parts: VecDeque<Bytes>,
    /// How many of them the newest attempt has passed on.
    pub(super) passed: usize,
    /// They begin with the first byte. Otherwise they are only what the last attempt has yet to pass on.
    pub(super) whole: bool,
    pub(super) share: Share,
}

impl Kept {
    pub(super) fn push(&mut self, part: Bytes) {
        let part = self.share.keep(part);
        self.parts.push_back(part);
    }

    /// The next one for the newest attempt.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if self.whole {
            let part = self.parts.get(self.passed)?.clone();
            self.passed += 1;
            return Some(part);
        }
        let part = self.parts.pop_front()?;
        self.share.give_back(&part);
        Some(part)
    }

    /// What was passed on is not needed any more.
    pub(super) fn forget(&mut self) {
        self.whole = false;
        for part in self.parts.drain(..self.passed) {
            self.share.give_back(&part);
        }
        self.passed = 0;
    }
}
