//! A permit on its way: in, an endpoint that was picked; out, when it is dropped, what became of it. It decides nothing.

use super::App;
use crate::{
    dispatch::{Ended, Held, Why},
    endpoint::Endpoint,
};
use std::sync::Arc;

/// The right to occupy one slot of an endpoint, given back when dropped. Dropped between `begin` and `settle` it is
/// unsettled: the slot may still be busy, and nobody gets it before the worker says that it is free.
#[derive(Debug)]
pub struct Permit {
    app: Arc<App>,
    endpoint: Arc<Endpoint>,
    why: Why,
    /// `None` only after `take_back`.
    returned: Option<Returned>,
}

/// What is to be said of a permit when it comes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Returned {
    pub(super) held: Held,
    /// The connection on which a request may have reached the worker.
    pub(super) begun: Option<u64>,
    pub(super) ended: Ended,
}

impl Permit {
    pub(super) fn new(app: &Arc<App>, endpoint: Arc<Endpoint>, held: Held, why: Why) -> Self {
        let returned = Returned { held, begun: None, ended: Ended::default() };
        Self { app: Arc::clone(app), endpoint, why, returned: Some(returned) }
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Why it is this endpoint's.
    pub fn why(&self) -> Why {
        self.why
    }

    /// From now on the slot may be occupied, by what is sent on the connection of this number. Where nobody would ever tell
    /// that it is free again, it counts as free when the request has left.
    pub fn begin(&mut self, connection: u64) {
        if self.endpoint.node.reports() {
            self.change(|returned| returned.begun = Some(connection));
        }
    }

    /// The exchange on the connection ended cleanly, so the slot is free; or nothing was sent at all.
    pub fn settle(&mut self) {
        self.change(|returned| returned.begun = None);
    }

    /// What the attempt says of its endpoint. The last word counts.
    pub fn judge(&mut self, ended: Ended) {
        self.change(|returned| returned.ended = ended);
    }

    fn change(&mut self, change: impl FnOnce(&mut Returned)) {
        change(self.returned.as_mut().expect("only a permit that nobody has was taken back"));
    }

    pub(super) fn take_back(mut self) -> Option<Returned> {
        self.returned.take()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(returned) = &self.returned {
            self.app.give_back(returned);
        }
    }
}
