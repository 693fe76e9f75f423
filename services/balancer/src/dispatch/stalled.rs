//! Exchanges that hold a permit while their client stands still: it takes nothing of its answer, or sends nothing of its
//! request's body. In: which do and which have ended that. Out: which of them have to make room. Pure.
//!
//! A client may hold every permit that way as long as nobody else wants one. A request of somebody else that has to wait takes
//! the place of the exchange that has stood still for longest, of the clients that have more such places than their share;
//! and it goes before the requests of these clients. Nobody who moves loses anything.

use super::Dispatch;
use crate::{client::Client, stalls::Cut};
use chassis::config::Percent;
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};
use tokio::time::Instant;

/// An exchange that stands still, for taking it out again. In the order in which they are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StallTicket {
    since: Instant,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Stalled {
    share: Percent,
    /// Those that were not asked for their place, the oldest first.
    standing: BTreeMap<StallTicket, (Client, Arc<Cut>)>,
    /// Whose they are, how many of each. Empty while nobody stands still.
    clients: HashMap<Client, usize>,
    /// Asked for their place, and still there.
    leaving: usize,
    numbers: u64,
}

impl Default for Stalled {
    fn default() -> Self {
        Self { share: Percent(50), standing: BTreeMap::new(), clients: HashMap::new(), leaving: 0, numbers: 0 }
    }
}

impl Stalled {
    fn add(&mut self, client: Client, since: Instant, cut: Arc<Cut>) -> StallTicket {
        self.numbers += 1;
        let ticket = StallTicket { since, number: self.numbers };
        *self.clients.entry(client).or_default() += 1;
        self.standing.insert(ticket, (client, cut));
        ticket
    }

    fn remove(&mut self, ticket: StallTicket) {
        match self.standing.remove(&ticket) {
            Some((client, _)) => self.uncount(client),
            None => self.leaving -= 1,
        }
    }

    fn uncount(&mut self, client: Client) {
        if let Entry::Occupied(mut count) = self.clients.entry(client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// How many of so many permits a client may hold that way while others wait. At least one.
    fn most(&self, permits: u64) -> usize {
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        usize::try_from(self.share.of(permits)).unwrap_or(usize::MAX)
    }

    fn greedy(&self, permits: u64) -> impl Iterator<Item = Client> {
        let most = self.most(permits);
        self.clients.iter().filter(move |(_, count)| **count > most).map(|(client, _)| *client)
    }

    /// The oldest one of a greedy client has to leave.
    fn cut(&mut self, permits: u64) -> Option<Arc<Cut>> {
        let most = self.most(permits);
        let is_greedy = |client| self.clients.get(client).is_some_and(|count| *count > most);
        let ticket = *self.standing.iter().find(|(_, (client, _))| is_greedy(client))?.0;
        let (client, cut) = self.standing.remove(&ticket)?;
        self.uncount(client);
        self.leaving += 1;
        Some(cut)
    }
}

impl<W> Dispatch<W> {
    /// How many of the permits a client may hold while it stands still and others wait.
    pub fn set_stalled_share(&mut self, share: Percent) {
        self.stalled.share = share;
    }

    /// An exchange that holds a permit has stood still since then.
    pub(crate) fn stall(&mut self, client: Client, since: Instant, cut: Arc<Cut>) -> StallTicket {
        self.stalled.add(client, since, cut)
    }

    /// It moves again, or is over. Once for each ticket.
    pub(crate) fn unstall(&mut self, ticket: StallTicket) {
        self.stalled.remove(ticket);
    }

    /// Who has to leave, so that no request waits because of a client that stands still, but its own. To be called when one
    /// has to wait, and when more stand still. What is about to come back is not asked for twice.
    pub(crate) fn preempt(&mut self) -> Vec<Arc<Cut>> {
        if self.stalled.clients.is_empty() {
            return Vec::new();
        }
        let permits = self.seats.sum().limit;
        let waiting = self.line.len() - self.passed_over();
        let coming = self.stalled.leaving + usize::try_from(self.unsettled()).unwrap_or(usize::MAX);
        let needed = waiting.saturating_sub(coming);
        std::iter::from_fn(|| self.stalled.cut(permits)).take(needed).collect()
    }

    /// Whether requests of this client are passed over while others wait.
    pub(super) fn is_greedy(&self, client: Client) -> bool {
        let count = self.stalled.clients.get(&client);
        count.is_some_and(|count| *count > self.stalled.most(self.seats.sum().limit))
    }

    /// All clients of which that is so.
    pub(super) fn greedy(&self) -> impl Iterator<Item = Client> {
        self.stalled.greedy(self.seats.sum().limit)
    }
}
