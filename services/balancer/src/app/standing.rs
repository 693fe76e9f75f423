//! Clients that stand still while they hold permits of an app. In: from every core, which exchanges do. Out: a call to those
//! whose place somebody else needs. What is right is decided in `dispatch::stalled`.

use super::App;
use crate::{client::Client, dispatch::StallTicket, stalls::Cut};
use std::sync::Arc;
use tokio::time::Instant;

impl App {
    /// An exchange that holds a permit has stood still since then, because of its client. `cut` is called when somebody else
    /// needs its place.
    pub(crate) fn stall(&self, client: Client, since: Instant, cut: Arc<Cut>) -> StallTicket {
        let (ticket, cuts) = {
            let mut state = self.lock();
            (state.dispatch.stall(client, since, cut), state.dispatch.preempt())
        };
        cuts.iter().for_each(|cut| cut.call());
        ticket
    }

    /// It moves again, or is over.
    pub(crate) fn unstall(&self, ticket: StallTicket) {
        self.lock().dispatch.unstall(ticket);
    }
}
