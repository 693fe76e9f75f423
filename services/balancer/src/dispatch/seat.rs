//! One endpoint as the dispatcher sees it: what its node reports, what is held of it, how it is. Out: how many permits it
//! has to give, and on which level it stands beside the others. Pure.

use super::{
    Ended,
    health::{Health, Reason},
};
use crate::endpoint::{Endpoint, WorkerState, WorkerView};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Requests that may wait on deck in one worker: with four in flight its next one is always there already.
const DECK: u32 = 4;
/// A worker whose requests take longer gets them only into a free slot.
const DECK_SERVICE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Seat {
    pub(super) endpoint: Arc<Endpoint>,
    /// As last reported.
    pub(super) worker: WorkerView,
    /// Permits that are out, the unsettled ones with them.
    pub(super) held: u32,
    /// The numbers of the connections whose permits are unsettled.
    pub(super) unsettled: Vec<u64>,
    /// In the node's newest report.
    pub(super) listed: bool,
    /// In rotation: listed, ready, with a grant, at a node that stays.
    pub(super) open: bool,
    pub(super) health: Health,
    /// What `health` allows, as of the last time that it was asked.
    pub(super) allowed: u32,
    /// It refused a request, and has answered none since: nothing is sent ahead of a free slot.
    pub(super) crowded: bool,
    /// Its grant was lowered, and more is held than that: what comes back stays back.
    pub(super) yielding: bool,
}

/// What one seat adds to the sums of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) open: usize,
    /// With at least one permit that may be out.
    pub(super) usable: usize,
    /// In rotation but ejected, or on probation.
    pub(super) out: usize,
    pub(super) limit: u64,
    pub(super) free: u64,
    /// Slots that other balancers have been granted, ...
    pub(super) elsewhere: u64,
    /// ... and of these the ones that nobody uses, as far as the node has told.
    pub(super) idle: u64,
}

impl Seat {
    pub(super) fn new(endpoint: Endpoint, worker: &WorkerView) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
            worker: worker.clone(),
            held: 0,
            unsettled: Vec::new(),
            listed: true,
            open: false,
            health: Health::default(),
            allowed: u32::MAX,
            crowded: false,
            yielding: false,
        }
    }

    /// Permits that may be out.
    pub(super) fn limit(&self) -> u32 {
        if self.open { self.worker.grant.min(self.allowed) } else { 0 }
    }

    /// Among those with a free permit.
    pub(super) fn free_level(&self) -> Option<u32> {
        (self.held < self.limit()).then_some(self.held)
    }

    /// Among those that are full and take requests on deck.
    pub(super) fn deck_level(&self) -> Option<u32> {
        let fast = self.worker.service.is_some_and(|service| service < DECK_SERVICE);
        let (limit, grant) = (self.limit(), self.worker.grant);
        let steady = self.health.is_well() && !self.crowded && !self.yielding && self.unsettled.is_empty();
        if !fast || !steady || limit == 0 || self.held < limit {
            return None;
        }
        // where the slots are shared with other balancers, so is the deck
        let part = (DECK * grant / self.worker.capacity.max(1)).max(1);
        let ahead = self.held - limit;
        (ahead < part).then_some(ahead)
    }

    /// What an attempt says of the endpoint, an answer at this pace. True when it ejects it.
    pub(super) fn judge(&mut self, ended: Ended, pace: f64, may_eject: bool, now: Instant) -> bool {
        match ended {
            Ended::Busy => self.crowded = true,
            Ended::Answered(_) => self.crowded = false,
            Ended::Unjudged | Ended::Failed => {}
        }
        let ejects = self.health.observe(ended, pace, now) && may_eject && self.open;
        if ejects {
            self.health.eject(Reason::Failures, now);
        }
        ejects
    }

    /// Asks the health how many permits may be out.
    pub(super) fn ask(&mut self, now: Instant) {
        let well = self.health.is_well();
        self.allowed = if well { u32::MAX } else { self.health.allowed(self.worker.grant, now) };
    }

    pub(super) fn tally(&self) -> Tally {
        let limit = self.limit();
        let ready = self.listed && self.worker.state == WorkerState::Ready;
        let elsewhere = if ready { self.worker.capacity.saturating_sub(self.worker.grant) } else { 0 };
        let unused = self.worker.capacity.saturating_sub(self.worker.busy.max(self.held));
        Tally {
            open: usize::from(self.open),
            usable: usize::from(limit > 0),
            out: usize::from(self.open && self.health.is_out()),
            limit: limit.into(),
            free: limit.saturating_sub(self.held).into(),
            elsewhere: elsewhere.into(),
            idle: elsewhere.min(unused).into(),
        }
    }
}

impl Tally {
    /// One seat adds something else now.
    pub(super) fn replace(&mut self, before: Self, after: Self) {
        let change = |sum: &mut usize, before, after| *sum = *sum + after - before;
        let change_permits = |sum: &mut u64, before, after| *sum = *sum + after - before;
        change(&mut self.open, before.open, after.open);
        change(&mut self.usable, before.usable, after.usable);
        change(&mut self.out, before.out, after.out);
        change_permits(&mut self.limit, before.limit, after.limit);
        change_permits(&mut self.free, before.free, after.free);
        change_permits(&mut self.elsewhere, before.elsewhere, after.elsewhere);
        change_permits(&mut self.idle, before.idle, after.idle);
    }
}
