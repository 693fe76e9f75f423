//! What balancers are told of the others. In: what everybody lacks and how long its requests have to wait; out: for each,
//! what the others lack. A balancer that knows gives back what it does not need, or needs less, in the moment in which it
//! does not.
//!
//! A permit on its way serves nobody: the slot is idle from the holder's word to the other's next request. So of the wait
//! that the holder is told [`CONSENT`] times that way is taken off, by the round trips that the node sees: the slower the
//! messages are, the more has to be gained by a move. A permit that nobody waits for is given in any case.

use super::{Lack, Ledger};
use std::time::{Duration, Instant};

/// A difference in how long somebody has to wait that is worth a report.
const NEWS: Duration = Duration::from_millis(20);

/// How many times the way of a permit a wait must be longer. By simulation with reports that are 25 ms late: 1 gives a p99
/// wait of more than 5 x the ideal's, 10 of about 3 x, near what balancers have that exchange nothing; 20 and 40 change
/// little. With messages of 0.3 ms any of these gives the same.
const CONSENT: u32 = 10;

/// A lack as it lasts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lacking {
    permits: u32,
    /// As long ago as the wait is.
    since: Option<Instant>,
    /// Of a permit, to where it is lacked.
    way: Duration,
}

impl Lacking {
    pub(super) fn at(self, now: Instant) -> Lack {
        let wait = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Lack { permits: self.permits, wait: wait.saturating_sub(self.way * CONSENT) }
    }

    /// Whether it is news to somebody who was told of the other. Another way alone is none: it is measured by reports, and
    /// each would be news for the next one.
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
        // the longest wait, and for its own balancer the next one
        let lacking = lacks.iter().enumerate().filter(|(_, lack)| **lack > 0).map(|(place, _)| place);
        let mut longest: Vec<(Option<Instant>, usize, Duration)> =
            lacking.map(|place| (self.accounts[place].since, place, self.accounts[place].round_trip)).collect();
        longest.sort_unstable();
        longest.truncate(2);
        for (place, account) in self.accounts.iter_mut().enumerate() {
            let permits = all - lacks[place].min(all);
            let has_some = account.lines.iter().any(|line| line.target() > 0);
            account.lack = if account.yields && has_some && permits > 0 {
                let other = longest.iter().find(|(_, other, _)| *other != place);
                let (since, round_trip) =
                    other.map_or((None, Duration::ZERO), |(since, _, round_trip)| (*since, *round_trip));
                // from the holder here, and from here to the other
                Lacking { permits, since, way: (account.round_trip + round_trip) / 2 }
            } else {
                Lacking::default()
            };
        }
    }
}
