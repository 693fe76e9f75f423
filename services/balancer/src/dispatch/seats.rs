//! The endpoints of one app and the permits of each. In: what nodes report, what is taken and given back, how attempts
//! ended, the time. Out: an endpoint with a free permit, an idle one first, or one that takes a request on deck. It knows
//! nobody who waits. Pure: the generator is passed in.
//!
//! Costs: endpoints with a free permit sit in one bucket per number of permits held, so a pick is the lowest bucket
//! that is not empty and one random number; a release moves one endpoint one bucket down. Neither depends on the
//! number of endpoints.

mod members;

use super::{
    Ended,
    health::{Reason, Usual, is_outlier},
    seat::{Seat, Tally},
};
use crate::{endpoint::EndpointId, levels::Levels};
use members::Member;
use rand::Rng;
use std::collections::BTreeMap;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Seats {
    /// `None` in a vacant seat.
    seats: Vec<Option<Seat>>,
    vacant: Vec<u32>,
    numbers: u64,
    nodes: BTreeMap<String, Member>,
    /// Endpoints with a free permit, by the number held.
    free: Levels,
    /// Full endpoints that take requests on deck, by their number.
    deck: Levels,
    sum: Tally,
    held: u64,
    unsettled: u64,
    usual: Usual,
    /// Not well.
    ailing: Vec<u32>,
    /// Ejections so far, by reason.
    ejections: [u64; 2],
    /// Nodes where others lack something.
    lacked: usize,
}

impl Seats {
    /// A permit of an endpoint that holds the fewest, if one is free; equals at random. The endpoints in `exclude` (each
    /// named once) are passed over as long as another one is usable.
    pub(super) fn take(&mut self, exclude: &[EndpointId], rng: &mut impl Rng) -> Option<u32> {
        self.take_from(|seats| &seats.free, exclude, rng)
    }

    /// The same of an endpoint that is full, where nothing is free and its next slot will be soon.
    pub(super) fn take_on_deck(&mut self, exclude: &[EndpointId], rng: &mut impl Rng) -> Option<u32> {
        if self.sum.free > 0 { None } else { self.take_from(|seats| &seats.deck, exclude, rng) }
    }

    fn take_from(&mut self, levels: fn(&Self) -> &Levels, exclude: &[EndpointId], rng: &mut impl Rng) -> Option<u32> {
        let exclude = self.in_force(exclude);
        let index = levels(self).pick(rng, |seat| !exclude.iter().any(|id| self.names(*id, seat)))?;
        self.change(index, |seat| seat.held += 1);
        self.held += 1;
        self.at(index).endpoint.count_pick();
        Some(index)
    }

    /// Whether `take` would find something, ...
    pub(super) fn has(&self, exclude: &[EndpointId]) -> bool {
        self.any(&self.free, exclude)
    }

    /// ... and `take_on_deck`.
    pub(super) fn has_on_deck(&self, exclude: &[EndpointId]) -> bool {
        self.sum.free == 0 && self.any(&self.deck, exclude)
    }

    fn any(&self, levels: &Levels, exclude: &[EndpointId]) -> bool {
        let exclude = self.in_force(exclude);
        levels.any(|seat| !exclude.iter().any(|id| self.names(*id, seat)))
    }

    /// A permit comes back from an attempt that ended so. Returns true when a control task may be waiting for this: the
    /// endpoint is out of rotation, or its grant was lowered.
    pub(super) fn give_back(&mut self, id: EndpointId, ended: Ended, now: Instant) -> bool {
        let seat = self.seat(id).expect("an endpoint keeps its seat while a permit of it is held");
        let watched = !seat.open || seat.yielding;
        self.held -= 1;
        self.end(id.seat, ended, now, |seat| {
            seat.held -= 1;
            seat.yielding &= seat.held > seat.worker.grant;
        });
        self.vacate_if_done(id.seat);
        watched
    }

    /// An attempt ended so, and the permit of its connection stays out.
    pub(super) fn unsettle(&mut self, id: EndpointId, number: u64, ended: Ended, now: Instant) {
        self.unsettled += 1;
        self.end(id.seat, ended, now, |seat| seat.unsettled.push(number));
    }

    /// It is free again: to be given back.
    pub(super) fn settled(&mut self, id: EndpointId, number: u64) {
        self.unsettled -= 1;
        self.change(id.seat, |seat| seat.unsettled.retain(|other| *other != number));
    }

    /// Changes a seat where an attempt has ended, and what is known of its health.
    fn end(&mut self, index: u32, ended: Ended, now: Instant, change: impl FnOnce(&mut Seat)) {
        let may_eject = self.may_eject();
        let pace = if let Ended::Answered(took) = ended { self.usual.see(took) } else { 1.0 };
        let (mut ejected, mut ails) = (false, false);
        self.change(index, |seat| {
            change(seat);
            let was_well = seat.health.is_well();
            ejected = seat.judge(ended, pace, may_eject, now);
            ails = !was_well || ejected;
        });
        self.ejections[Reason::Failures as usize] += u64::from(ejected);
        if ails {
            self.refresh(index, now);
        }
    }

    /// Time has passed: ejections end, slow starts go on, and once in a while endpoints are compared.
    pub(super) fn turn(&mut self, compare: bool, now: Instant) {
        for index in std::mem::take(&mut self.ailing) {
            if self.seats[index as usize].is_some() {
                self.change(index, |seat| seat.health.turn(now));
                self.refresh(index, now);
            }
        }
        if compare {
            self.compare(now);
        }
    }

    /// Ejects who is much slower than the middle one of all. Servers of fixed upstreams may be as different as they like: how
    /// much each gets was said by who weighted them.
    fn compare(&mut self, now: Instant) {
        let open = |seat: &&mut Seat| seat.open && seat.endpoint.node.reports();
        let paces: Vec<(u32, f64)> = (0..)
            .zip(&mut self.seats)
            .filter_map(|(index, seat)| Some((index, seat.as_mut().filter(open)?.health.take_pace()?)))
            .collect();
        let mut sorted: Vec<f64> = paces.iter().map(|(_, pace)| *pace).collect();
        // of two it is the faster one: a median that is the slow one's own would never tell
        let Some(middle) = sorted.len().checked_sub(1).map(|last| last / 2) else { return };
        let of_all = *sorted.select_nth_unstable_by(middle, f64::total_cmp).1;
        for (index, pace) in paces {
            if is_outlier(pace, of_all, self.usual.seconds()) && self.may_eject() {
                self.change(index, |seat| seat.health.eject(Reason::Latency, now));
                self.ejections[Reason::Latency as usize] += 1;
                self.refresh(index, now);
            }
        }
    }

    /// Never the last one, and never more than half of all: then it is not the endpoints.
    fn may_eject(&self) -> bool {
        2 * (self.sum.out + 1) <= self.sum.open
    }

    pub(super) fn sum(&self) -> Tally {
        self.sum
    }

    /// Permits held in all.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn unsettled_in_all(&self) -> u64 {
        self.unsettled
    }

    pub(super) fn ejections(&self) -> [u64; 2] {
        self.ejections
    }

    /// The most slots that a worker in rotation has.
    pub(super) fn widest(&self) -> Option<u32> {
        let ready = self.seats.iter().flatten().filter(|seat| seat.listed);
        ready.map(|seat| seat.worker.capacity).max()
    }

    pub(super) fn at(&self, index: u32) -> &Seat {
        self.seats[index as usize].as_ref().expect("only taken seats are named")
    }

    /// The node of an endpoint of which a permit is held.
    pub(super) fn instance(&self, id: EndpointId) -> &str {
        let seat = self.seat(id).expect("an endpoint keeps its seat while a permit of it is held");
        &seat.endpoint.node.instance
    }

    pub(super) fn seat(&self, id: EndpointId) -> Option<&Seat> {
        self.seats.get(id.seat as usize)?.as_ref().filter(|seat| seat.endpoint.id == id)
    }

    /// What of `exclude` counts: all of it while another endpoint is usable, otherwise nothing.
    fn in_force<'a>(&self, exclude: &'a [EndpointId]) -> &'a [EndpointId] {
        if exclude.is_empty() {
            return exclude;
        }
        let usable = exclude.iter().filter(|id| self.seat(**id).is_some_and(|seat| seat.limit() > 0)).count();
        if usable < self.sum.usable { exclude } else { &[] }
    }

    fn names(&self, id: EndpointId, seat: u32) -> bool {
        id.seat == seat && self.seat(id).is_some()
    }

    /// Changes a seat, and its place among the others with it.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Seat)) {
        let seat = self.seats[index as usize].as_mut().expect("only taken seats are changed");
        let before = seat.tally();
        change(seat);
        self.account(index, before);
    }

    /// Brings the sums and levels in line with a seat that has changed.
    fn account(&mut self, index: u32, before: Tally) {
        let seat = self.at(index);
        let (after, free, deck) = (seat.tally(), seat.free_level(), seat.deck_level());
        self.sum.replace(before, after);
        self.free.place(index, free);
        self.deck.place(index, deck);
    }

    /// Asks a seat's health again.
    fn refresh(&mut self, index: u32, now: Instant) {
        self.change(index, |seat| seat.ask(now));
        if !self.at(index).health.is_well() && !self.ailing.contains(&index) {
            self.ailing.push(index);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().flatten()
    }

    #[cfg(test)]
    pub(super) fn is_vacant(&self) -> bool {
        self.nodes.is_empty() && self.vacant.len() == self.seats.len()
    }
}
