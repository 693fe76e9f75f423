//! What comes to the queue, and what it is answered. Plain data.

use super::{Class, Ticket};
use crate::{client::Client, endpoint::EndpointId};
use tokio::time::Instant;

/// There was no room; the waiter comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum NoRoom<W> {
    /// In the whole queue.
    Queue(W),
    /// In this client's share of it, and another client waits.
    Client(W),
    /// There is, but by its deadline its turn would not have come.
    Late(W),
}

/// Who waits.
#[derive(Debug)]
pub struct Request<'a, W> {
    pub waiter: W,
    pub client: Client,
    pub class: Class,
    /// Endpoints tried already, each named once.
    pub tried: &'a [EndpointId],
    /// It had a permit before: it goes to the head, and is not counted against the room.
    pub comes_back: bool,
    pub deadline: Instant,
}

/// A waiter's place.
#[derive(Debug, PartialEq, Eq)]
pub struct Queued<W> {
    pub ticket: Ticket,
    /// Who had to leave for it: `Client`, the youngest of the client that had more than its share of a full queue; `Late`,
    /// when the newest go first, the one that would have been served last.
    pub displaced: Option<NoRoom<W>>,
}

/// How many may wait.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub all: usize,
    /// Of one client, while another one waits.
    pub client: usize,
}
