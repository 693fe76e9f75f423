//! What is given back to a node because other balancers lack it. In: what nodes say of that, and each permit that comes
//! back. Out: the permits that are not needed here, or not as much: those are the node's again in that moment. Pure.
//!
//! Over all balancers this is one queue: a permit goes where the request waits that has waited longest. The difference has
//! to be more than [`PATIENCE`] and a quarter, or two balancers that have equally much would exchange it again and again.

use super::{Dispatch, Yielded};
use crate::endpoint::EndpointId;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// How much longer others must have waited than the first one here.
const PATIENCE: Duration = Duration::from_millis(20);

/// Of one node.
#[derive(Debug, Default)]
pub(super) struct Lack {
    /// What others lack there.
    permits: u32,
    /// When the first of their requests began to wait.
    since: Option<Instant>,
    /// Given back since the newest report, and not said yet.
    yielded: VecDeque<Yielded>,
}

impl Lack {
    pub(super) fn is_any(&self) -> bool {
        self.permits > 0
    }

    /// What the newest report says.
    pub(super) fn renew(&mut self, permits: u32, head: Duration, now: Instant) {
        (self.permits, self.since) = (permits, now.checked_sub(head).or(Some(now)));
    }

    /// A report grants anew what was given back and not said.
    pub(super) fn overrule(&mut self) {
        self.yielded.clear();
    }

    /// Whether it comes before somebody here who has waited for so long; `None`: nobody waits.
    pub(super) fn comes_before(&self, own: Option<Duration>, now: Instant) -> bool {
        let theirs = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.permits > 0 && own.is_none_or(|own| theirs > own + PATIENCE.max(own / 4))
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
    pub fn lack(&mut self, instance: &str, permits: u32, head: Duration, now: Instant) -> bool {
        self.seats.renew_lack(instance, permits, head, now);
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
        let own = self.line.oldest().map(|since| now.saturating_duration_since(since));
        self.seats.give_up(id, own, now)
    }
}
