//! What balancers are told of the others. In: what everybody lacks and for how long; out: for each, what the others lack.
//! A balancer that knows gives back what it does not need in the moment in which it does not.

use super::{Lack, Ledger};
use std::time::{Duration, Instant};

/// A difference in how long somebody has waited that is worth a report.
const NEWS: Duration = Duration::from_millis(20);

/// A lack as it lasts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lacking {
    permits: u32,
    /// When the first of the requests began to wait.
    since: Option<Instant>,
}

impl Lacking {
    pub(super) fn at(self, now: Instant) -> Lack {
        let head = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Lack { permits: self.permits, head }
    }

    /// Whether it is news to somebody who was told of the other.
    pub(super) fn differs(self, told: Self) -> bool {
        let moved = match (self.since, told.since) {
            (Some(since), Some(told)) => since.max(told) - since.min(told) >= NEWS,
            _ => false,
        };
        self.permits != told.permits || moved
    }
}

impl Ledger {
    pub(super) fn tell_lacks(&mut self, now: Instant) {
        let lacks: Vec<u32> = self.accounts.iter().map(|account| account.unmet(&self.books, now)).collect();
        let all: u32 = lacks.iter().fold(0, |sum, lack| sum.saturating_add(*lack));
        // the oldest head, and for its own balancer the next one
        let lacking = lacks.iter().enumerate().filter(|(_, lack)| **lack > 0).map(|(place, _)| place);
        let mut heads: Vec<(Option<Instant>, usize)> =
            lacking.map(|place| (self.accounts[place].head, place)).collect();
        heads.sort_unstable();
        heads.truncate(2);
        for (place, account) in self.accounts.iter_mut().enumerate() {
            let permits = all - lacks[place].min(all);
            let has_some = account.lines.iter().any(|line| line.target() > 0);
            account.lack = if account.yields && has_some && permits > 0 {
                let head = heads.iter().find(|(_, other)| *other != place);
                Lacking { permits, since: head.and_then(|(since, _)| *since) }
            } else {
                Lacking::default()
            };
        }
    }
}
