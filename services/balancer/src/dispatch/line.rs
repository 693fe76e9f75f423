//! Those who wait for a permit: by priority, and within one in the order in which they came. In: who comes and who leaves.
//! Out: who is next, and who has to make room. Pure; whether there is a permit for the next one is not known here.

use super::{Class, NoRoom, Priority, Room};
use crate::{
    client::Client,
    endpoint::EndpointId,
    queue::{Queue, Ticket as Place},
};
use std::collections::{HashMap, hash_map::Entry};
use tokio::time::Instant;

/// A waiter's place, for leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    priority: Priority,
    place: Place,
}

#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub(super) waiter: W,
    pub(super) client: Client,
    pub(super) class: Class,
    /// It had a permit before.
    pub(super) comes_back: bool,
    /// Endpoints tried already: not again as long as another one is usable. Empty for newcomers.
    pub(super) exclude: Vec<EndpointId>,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

#[derive(Debug)]
pub(super) struct Line<W> {
    /// In the order of `Priority`.
    queues: [Queue<Waiter<W>>; 3],
    len: usize,
    /// Who waits, how often. Empty while nobody does.
    clients: HashMap<Client, usize>,
    /// Of those who wait, how many may use a reserve.
    reserved: usize,
    room: Room,
}

impl<W> Line<W> {
    pub(super) fn new(room: Room) -> Self {
        Self { queues: Default::default(), len: 0, clients: HashMap::new(), reserved: 0, room }
    }

    /// For newcomers: who is in the line stays.
    pub(super) fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many are served before a newcomer of this priority, when the oldest go first.
    pub(super) fn ahead(&self, priority: Priority) -> usize {
        self.queues[..=priority as usize].iter().map(Queue::len).sum()
    }

    /// True when somebody waits who may use a reserve.
    pub(super) fn has_reserved(&self) -> bool {
        self.reserved > 0
    }

    /// Since when the one waits who has waited longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| Some(queue.iter().next()?.1.since)).min()
    }

    /// How many of them are this client's.
    pub(super) fn of(&self, client: Client) -> usize {
        self.clients.get(&client).copied().unwrap_or(0)
    }

    /// How many are of these clients, each of which is named once.
    pub(super) fn of_all(&self, clients: &[Client]) -> usize {
        clients.iter().map(|client| self.of(*client)).sum()
    }

    /// Whether a newcomer fits in. `Ok(Some(_))`: only when this one leaves, for this reason.
    pub(super) fn room_for(
        &self,
        client: Client,
        priority: Priority,
        newest_first: bool,
    ) -> Result<Option<NoRoom<Ticket>>, NoRoom<()>> {
        let own = self.of(client);
        if own >= self.room.client && self.len > own {
            return Err(NoRoom::Client(()));
        }
        if self.len < self.room.all {
            return Ok(None);
        }
        let greedy = if own < self.room.client { self.youngest_of_the_greediest() } else { None };
        let last = || self.last().filter(|last| newest_first && last.priority >= priority);
        let leaves = greedy.map(NoRoom::Client).or_else(|| last().map(NoRoom::Late));
        leaves.map(Some).ok_or(NoRoom::Queue(()))
    }

    /// At the end, or, when it comes back from an attempt, at the head: it is older than everyone here.
    pub(super) fn push(&mut self, waiter: Waiter<W>) -> Ticket {
        let priority = waiter.class.priority;
        self.len += 1;
        *self.clients.entry(waiter.client).or_default() += 1;
        self.reserved += usize::from(waiter.class.reserve.is_some());
        let queue = &mut self.queues[priority as usize];
        let place = if waiter.comes_back { queue.push_front(waiter) } else { queue.push_back(waiter) };
        Ticket { priority, place }
    }

    /// `None` when the waiter is out already.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let waiter = self.queues[ticket.priority as usize].remove(ticket.place)?;
        self.len -= 1;
        self.reserved -= usize::from(waiter.class.reserve.is_some());
        if let Entry::Occupied(mut count) = self.clients.entry(waiter.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(waiter)
    }

    /// In the order in which they are served: who comes back before newcomers, a higher priority before a lower one.
    pub(super) fn next(&self, newest_first: bool) -> impl Iterator<Item = (Ticket, &Waiter<W>)> {
        Priority::ALL.into_iter().zip(&self.queues).flat_map(move |(priority, queue)| {
            let ticket = move |(place, waiter)| (Ticket { priority, place }, waiter);
            let turned = newest_first.then(|| {
                let back = queue.iter().take_while(|(_, waiter)| waiter.comes_back);
                back.chain(queue.iter_back().take_while(|(_, waiter)| !waiter.comes_back))
            });
            let straight = (!newest_first).then(|| queue.iter());
            turned.into_iter().flatten().chain(straight.into_iter().flatten()).map(ticket)
        })
    }

    /// The newcomer of the lowest priority that has waited longest: the last to be served when the newest go first.
    pub(super) fn last(&self) -> Option<Ticket> {
        Priority::ALL.into_iter().zip(&self.queues).rev().find_map(|(priority, queue)| {
            let (place, _) = queue.iter().find(|(_, waiter)| !waiter.comes_back)?;
            Some(Ticket { priority, place })
        })
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiter<W>> {
        self.queues[ticket.priority as usize].get(ticket.place)
    }

    /// The newest request of the client that has the most here, if that is more than its share. Looks at everybody who
    /// waits: only a queue that one client has filled pays for this.
    fn youngest_of_the_greediest(&self) -> Option<Ticket> {
        let (client, count) = self.clients.iter().max_by_key(|(client, count)| (**count, **client))?;
        if *count <= self.room.client {
            return None;
        }
        Priority::ALL.into_iter().zip(&self.queues).rev().find_map(|(priority, queue)| {
            let mut newest = queue.iter_back();
            let (place, _) = newest.find(|(_, waiter)| waiter.client == *client && !waiter.comes_back)?;
            Some(Ticket { priority, place })
        })
    }
}
