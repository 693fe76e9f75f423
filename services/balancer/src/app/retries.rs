//! What a request that failed may do: whether it may try again, and where rather not. Out of the app's state under its
//! lock; what is right is decided in `retry` and `dispatch::companions`.

use super::App;
use crate::endpoint::{Endpoint, EndpointId};
use tokio::time::Instant;

impl App {
    /// Takes one retry out of the budget, if there is one.
    pub fn withdraw_retry(&self, now: Instant) -> bool {
        let second = self.second(now);
        self.lock().budget.withdraw(second)
    }

    /// The workers beside one that a request was lost at, where there are others.
    pub fn companions(&self, endpoint: &Endpoint) -> Vec<EndpointId> {
        self.lock().dispatch.companions(&endpoint.node.instance)
    }
}
