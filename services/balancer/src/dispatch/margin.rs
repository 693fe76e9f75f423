//! The last part of an app's permits, which no client takes alone. In: how many are free of how many, who takes one and who
//! gives it back. Out: who gets no more of them. Pure.
//!
//! To know what each client holds would cost every request a look at a table. So permits are counted only where no more than a
//! quarter of many is free, and a client gets three quarters of that quarter: whatever it took before, one permit in sixteen is
//! left to others.

use super::{Dispatch, seat::Tally};
use crate::client::Client;
use std::collections::{HashMap, hash_map::Entry};

/// With fewer permits one client may have them all: what is left of them would be next to nothing.
const PERMITS: u64 = 64;
/// Who has fewer counted ones is not full, however few permits there are.
const MANY: u64 = most(PERMITS);

/// How many counted ones of so many permits a client may have.
const fn most(permits: u64) -> u64 {
    3 * permits / 16
}

/// Whether permits that are taken now are counted.
fn is_narrow(sum: Tally) -> bool {
    sum.limit >= PERMITS && 4 * sum.free <= sum.limit
}

#[derive(Debug, Default)]
pub(super) struct Margin {
    /// Who has counted permits, how many of them. Empty while none is out.
    counts: HashMap<Client, u64>,
    /// Of these the few with `MANY`: nobody else is full.
    many: Vec<Client>,
}

impl Margin {
    /// The client takes a permit where these were there. Says for whom it counts, until it is given back.
    pub(super) fn take(&mut self, client: Client, before: Tally) -> Option<Client> {
        if !is_narrow(before) {
            return None;
        }
        let count = self.counts.entry(client).or_default();
        *count += 1;
        if *count == MANY {
            self.many.push(client);
        }
        Some(client)
    }

    pub(super) fn give_back(&mut self, counted: Option<Client>) {
        let Some(client) = counted else { return };
        let Entry::Occupied(mut count) = self.counts.entry(client) else { return };
        if *count.get() == MANY {
            self.many.retain(|other| *other != client);
        }
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }

    /// Whether the client gets none of those that are free.
    pub(super) fn is_full(&self, client: Client, sum: Tally) -> bool {
        is_narrow(sum) && self.counts.get(&client).is_some_and(|count| *count >= most(sum.limit))
    }

    /// All clients that get none.
    pub(super) fn full(&self, sum: Tally) -> impl Iterator<Item = Client> {
        self.many.iter().copied().filter(move |client| self.is_full(*client, sum))
    }

    /// Whether no counted permit is out.
    pub(super) fn is_whole(&self) -> bool {
        self.counts.is_empty()
    }
}

impl<W> Dispatch<W> {
    /// How many of those who wait a newcomer of this client goes before.
    pub(super) fn overtaken(&self, client: Client) -> usize {
        let is_last = self.is_greedy(client) || self.margin.is_full(client, self.seats.sum());
        if is_last { 0 } else { self.passed_over() }
    }

    /// How many requests wait that are passed over while those of other clients wait.
    pub(super) fn passed_over(&self) -> usize {
        let full = self.margin.full(self.seats.sum()).filter(|client| !self.is_greedy(*client));
        self.greedy().chain(full).map(|client| self.line.of(client)).sum()
    }

    /// Whether more than one of those who wait may get a permit because one has come back: where its client may have more of
    /// the last ones again, and others may have any of them.
    pub fn may_free_more(&self) -> bool {
        !self.margin.is_whole()
    }
}
