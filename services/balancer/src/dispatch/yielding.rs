//! What is given back to a node because other balancers lack it. In: what nodes say of that, and each permit that comes
//! back. Out: the permits that are not needed here, or not as much: those are the node's again in that moment. Pure.
//!
//! Over all balancers this is to be like one queue, in which everybody waits equally long. So who has to wait less here than
//! elsewhere gives, the more often the greater the difference is: all that come back where nobody waits, one in three where
//! they wait twice as long as here. All or nothing would overshoot, because everybody hears of the same lack. What is less
//! than [`PATIENCE`] and a quarter is no difference, or two balancers that have equally much would exchange permits again
//! and again.

use super::{Dispatch, Yielded};
use crate::endpoint::EndpointId;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// How much longer others must have to wait than those here.
const PATIENCE: Duration = Duration::from_millis(5);

/// Of one node.
#[derive(Debug, Default)]
pub(super) struct Lack {
    /// What others lack there.
    permits: u32,
    /// How long their requests have to wait.
    wait: Duration,
    /// What of a permit is owed to them: given when it is a whole one. Less than 1.
    credit: f64,
    /// Given back since the newest report, and not said yet.
    yielded: VecDeque<Yielded>,
}

impl Lack {
    pub(super) fn is_any(&self) -> bool {
        self.permits > 0
    }

    /// What the newest report says.
    pub(super) fn renew(&mut self, permits: u32, wait: Duration) {
        (self.permits, self.wait) = (permits, wait);
    }

    /// A report grants anew what was given back and not said.
    pub(super) fn overrule(&mut self) {
        self.yielded.clear();
    }

    /// Whether a permit that has come back is theirs, where requests have to wait for so long here; `None`: nobody waits.
    pub(super) fn comes_before(&mut self, own: Option<Duration>) -> bool {
        let Some(own) = own else { return self.is_any() };
        if !self.is_any() || self.wait <= own + PATIENCE.max(own / 4) {
            return false;
        }
        let (own, theirs) = (own.as_secs_f64(), self.wait.as_secs_f64());
        self.credit += (theirs - own) / (theirs + own);
        let whole = self.credit >= 1.0;
        self.credit -= f64::from(u8::from(whole));
        whole
    }

    pub(super) fn give(&mut self, yielded: Yielded) {
        self.permits -= yielded.permits.min(self.permits);
        self.yielded.push_back(yielded);
    }

    pub(super) fn take(&mut self) -> Vec<Yielded> {
        self.yielded.drain(..).collect()
    }
}

impl<W> Dispatch<W> {
    /// The node says, with its newest report, what other balancers lack there. True when something is given back.
    pub fn lack(&mut self, instance: &str, permits: u32, wait: Duration, now: Instant) -> bool {
        self.seats.renew_lack(instance, permits, wait);
        let free: Vec<EndpointId> = if permits > 0 { self.seats.free_of(instance) } else { Vec::new() };
        let mut any = false;
        for id in free {
            // of a worker with many slots more than one may be free
            while self.yield_of(id, now) {
                any = true;
            }
        }
        any
    }

    /// What was given back to the node since it was asked for the last time.
    pub fn take_yielded(&mut self, instance: &str) -> Vec<Yielded> {
        self.seats.take_yielded(instance)
    }

    /// Gives a free permit of this endpoint back if others come first.
    pub(super) fn yield_of(&mut self, id: EndpointId, now: Instant) -> bool {
        // without this permit: it is not held any more
        let own = self.expected_wait(now);
        self.seats.give_up(id, own)
    }
}
