//! A permit that is out: why it went where it did, to whom, and what its attempt said in the end. Plain data.

use super::Class;
use crate::{client::Client, endpoint::EndpointId};
use std::time::Duration;
use tokio::time::Instant;

/// Why a request was given to this endpoint and not to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing of this balancer's was there.
    Idle,
    /// None was idle; nowhere was less.
    LeastBusy,
    /// Nothing was free anywhere, and here the next slot will be soon.
    OnDeck,
    /// The request waited, and this one became free first.
    Queued,
    /// The endpoint was ejected, and this request shows whether it is well again.
    Probe,
}

impl Why {
    /// In the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::LeastBusy => "least_busy",
            Self::OnDeck => "on_deck",
            Self::Queued => "queued",
            Self::Probe => "probe",
        }
    }
}

/// What an attempt says of the endpoint it went to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Nothing: the client left, say.
    #[default]
    Unjudged,
    /// A response head came after so long, counted from the permit.
    Answered(Duration),
    /// The worker refused it because its slots were busy for too long.
    Busy,
    /// The endpoint's fault: it could not be reached, broke the connection, did not answer in time, answered nonsense.
    Failed,
}

/// A permit that is out.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub id: EndpointId,
    pub class: Class,
    /// For whom it counts as one of the last ones.
    pub counted: Option<Client>,
    /// When it was handed out, ...
    pub since: Instant,
    /// ... to a request that had waited for it.
    pub waited: bool,
}
