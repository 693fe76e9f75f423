//! Who gets which permit: the endpoints of one app, how many permits of each are held, and who waits. Pure: the
//! generator and the time are passed in, there is no clock, no task and no lock here; `app` puts one mutex around it.
//!
//! The laws, which the property test at the end holds it to, after every operation followed by `handover` until it
//! has nothing more to hand over:
//! - permits are conserved: what is held is what was handed out and neither given back nor settled;
//! - no endpoint holds more than its grant and its deck, unless the grant was lowered under permits held already;
//! - no permit is free while a request waits that may use it, so a newcomer that finds a free one overtakes nobody;
//! - nobody who waits is lost.
//!
//! In reading order: `seats` (with `seat` and `health`) has the endpoints, `owing` the permits whose slots may still be
//! busy, `line` those who wait, `reserves` what is kept for some of them, `margin` what no client takes alone, `stalled` whose
//! places they may get, `load` how long they will have to, `yielding` what other balancers get of it.

mod class;
mod companions;
mod health;
mod held;
mod line;
mod load;
mod margin;
mod owing;
mod request;
mod reserves;
mod seat;
mod seats;
mod stalled;
mod view;
mod yielding;

pub use class::{Class, Priority};
pub use health::Reason;
pub use held::{Ended, Held, Why};
pub use line::Ticket;
pub use request::{NoRoom, Queued, Request, Room};
pub use stalled::StallTicket;
pub use view::{EndpointView, NodeView, Over, Yielded};

use crate::{
    client::Client,
    endpoint::{Endpoint, EndpointId, Node, WorkerView},
};
use line::{Line, Waiter};
use load::Load;
use margin::Margin;
use owing::Owing;
use rand::{Rng, RngExt};
use reserves::Reserves;
use seats::Seats;
use stalled::Stalled;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Between two comparisons of the endpoints.
const COMPARE: Duration = Duration::from_secs(1);

/// Who has a request waiting asks for one of so many of the slots that other balancers have, ...
const ASK_PART: u64 = 6;
/// ... but for no more than these, or than wait: what is asked and comes too late has to go back.
const ASK_MOST: u64 = 8;

/// Generic over what waits, so that the property test and a simulator run the code that ships.
#[derive(Debug)]
pub struct Dispatch<W> {
    seats: Seats,
    owing: Owing,
    line: Line<W>,
    reserves: Reserves,
    margin: Margin,
    stalled: Stalled,
    load: Load,
    compared: Option<Instant>,
}

impl<W> Dispatch<W> {
    /// `room`: for newcomers. `reserves`: permits that only requests of these classes may use.
    pub fn new(room: Room, reserves: &[u32]) -> Self {
        Self {
            seats: Seats::default(),
            owing: Owing::default(),
            line: Line::new(room),
            reserves: Reserves::new(reserves),
            margin: Margin::default(),
            stalled: Stalled::default(),
            load: Load::default(),
            compared: None,
        }
    }

    /// Another room for newcomers, other reserves. Who waits and what is held stays.
    pub fn retune(&mut self, room: Room, reserves: &[u32]) {
        self.line.set_room(room);
        self.reserves.resize(reserves);
    }

    /// A permit of an endpoint that holds the fewest, if one is free that this client and class may have; equals at
    /// random. The endpoints in `tried` are passed over as long as another one is usable. Where nothing is free, a place
    /// on the shortest deck.
    pub fn pick(
        &mut self,
        client: Client,
        class: Class,
        tried: &[EndpointId],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<(Arc<Endpoint>, Held, Why)> {
        let before = self.seats.sum();
        let may_have = self.may_have(class) && !self.margin.is_full(client, before);
        let free = if may_have { self.seats.take(tried, rng) } else { None };
        let (index, on_deck) = match free {
            Some(index) => (index, false),
            None => (self.seats.take_on_deck(tried, rng)?, true),
        };
        self.reserves.take(class.reserve);
        let counted = self.margin.take(client, before);
        let seat = self.seats.at(index);
        let why = match (on_deck, seat.health.is_probing(), seat.held) {
            (true, ..) => Why::OnDeck,
            (false, true, _) => Why::Probe,
            (false, false, 1) => Why::Idle,
            (false, false, _) => Why::LeastBusy,
        };
        let held = Held { id: seat.endpoint.id, class, counted, since: now, waited: false };
        Some((Arc::clone(&seat.endpoint), held, why))
    }

    /// Waits for a permit, after `pick` had none.
    ///
    /// A client may fill the queue while nobody else waits. As soon as another one does, it gets nothing beyond its share,
    /// and where the queue is full it makes room for clients that have less. Who could not be served by its deadline
    /// is told so at once, unless the newest go first: then the oldest are.
    pub fn enqueue(&mut self, request: Request<'_, W>, now: Instant) -> Result<Queued<W>, NoRoom<W>> {
        let Request { waiter, client, class, tried, comes_back, deadline } = request;
        self.judge(now);
        let mut displaced = None;
        if !comes_back {
            let newest_first = self.load.newest_first();
            let ahead = self.line.ahead(class.priority).saturating_sub(self.overtaken(client));
            let wait = self.load.expected_wait(ahead + 1, self.seats.held());
            if !newest_first && wait.is_some_and(|wait| now + wait > deadline) {
                self.load.lost();
                return Err(NoRoom::Late(waiter));
            }
            match self.line.room_for(client, class.priority, newest_first) {
                Ok(None) => {}
                Ok(Some(NoRoom::Client(ticket))) => displaced = self.leave(ticket).map(NoRoom::Client),
                Ok(Some(NoRoom::Queue(ticket) | NoRoom::Late(ticket))) => {
                    displaced = self.leave(ticket).map(NoRoom::Late);
                }
                Err(refused) => {
                    self.load.lost();
                    return Err(match refused {
                        NoRoom::Client(()) => NoRoom::Client(waiter),
                        NoRoom::Queue(()) | NoRoom::Late(()) => NoRoom::Queue(waiter),
                    });
                }
            }
        }
        let exclude = tried.to_vec();
        let ticket = self.line.push(Waiter { waiter, client, class, comes_back, exclude, since: now, deadline });
        Ok(Queued { ticket, displaced })
    }

    /// The waiter gave up; `None` when it was handed a permit before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let waiter = self.line.remove(ticket)?;
        self.load.lost();
        Some(waiter.waiter)
    }

    /// A permit comes back, and its slot is free. Returns true when a control task may be waiting for this: the
    /// endpoint's node is leaving, or its grant was lowered.
    pub fn release(&mut self, held: Held, ended: Ended, now: Instant) -> bool {
        self.learn(held, ended, now);
        self.uncount(held);
        let watched = self.seats.give_back(held.id, ended, now);
        self.seats.is_lacked() && self.yield_of(held.id, now) || watched
    }

    /// A permit was dropped while its slot may still be busy: it stays out until the worker names the connection, or is
    /// gone. As `release`, where it was named already.
    pub fn unsettle(&mut self, held: Held, connection: u64, ended: Ended, now: Instant) -> bool {
        let instance = self.seats.instance(held.id);
        if !self.owing.owe(connection, instance, held, now) {
            return self.release(held, ended, now);
        }
        self.learn(held, ended, now);
        self.seats.unsettle(held.id, connection, ended, now);
        false
    }

    /// What an attempt tells of the load. One that was given up tells nothing of how long a slot is needed.
    fn learn(&mut self, held: Held, ended: Ended, now: Instant) {
        match ended {
            Ended::Answered(_) | Ended::Failed => {
                self.load.held_for(now.saturating_duration_since(held.since));
                if held.waited {
                    self.load.served();
                }
            }
            // its client left when its turn had come at last
            Ended::Unjudged if held.waited => self.load.lost(),
            Ended::Unjudged | Ended::Busy => {}
        }
    }

    /// The node says that nothing of these connections runs in its workers any more.
    pub fn settle(&mut self, instance: &str, connections: &[u64], now: Instant) {
        for connection in connections {
            match self.owing.get(*connection) {
                Some(held) if self.seats.instance(held.id) == instance => {
                    self.owing.forgive(*connection);
                    self.free(*connection, held, now);
                }
                // nobody names what is another's
                Some(_) => {}
                None => self.owing.named(*connection, instance, now),
            }
        }
    }

    fn free(&mut self, connection: u64, held: Held, now: Instant) {
        self.seats.settled(held.id, connection);
        self.uncount(held);
        self.seats.give_back(held.id, Ended::Unjudged, now);
        if self.seats.is_lacked() {
            self.yield_of(held.id, now);
        }
    }

    /// A permit is not held any more by whom it was counted for.
    fn uncount(&mut self, held: Held) {
        self.reserves.give_back(held.class.reserve);
        self.margin.give_back(held.counted);
    }

    /// The next waiter with the permit it was waiting for; call until `None`, whenever a permit may have become free.
    pub fn handover(&mut self, now: Instant, rng: &mut impl Rng) -> Option<(W, Arc<Endpoint>, Held)> {
        if self.line.is_empty() {
            return None;
        }
        let ticket = self.next(now)?;
        let Waiter { waiter, client, exclude, class, .. } = self.line.remove(ticket).expect("the ticket was just read");
        let picked = self.pick(client, class, &exclude, now, rng);
        let (endpoint, held, _) = picked.expect("a permit for this waiter was just seen");
        Some((waiter, endpoint, Held { waited: true, ..held }))
    }

    /// Who is next of those for whom there is a permit.
    fn next(&mut self, now: Instant) -> Option<Ticket> {
        let nobody = Class::default();
        let full: Vec<Client> = self.margin.full(self.seats.sum()).collect();
        let all_full = !full.is_empty() && self.line.of_all(&full) == self.line.len();
        let free_for_some = (self.may_have(nobody) || self.line.has_reserved()) && !all_full;
        if !free_for_some && !self.seats.has_on_deck(&[]) {
            return None;
        }
        self.judge(now);
        // Only requests that come back exclude anything, and they are at the head: this looks past few. With reserves, and
        // where the last permits are free, it looks past those that may not have what is left.
        let next = self.line.next(self.load.newest_first());
        let fits = |waiter: &Waiter<W>| {
            let may_have = self.may_have(waiter.class) && !full.contains(&waiter.client);
            may_have && self.seats.has(&waiter.exclude) || self.seats.has_on_deck(&waiter.exclude)
        };
        let is_last = |client| full.contains(&client) || self.is_greedy(client);
        let mut fitting = next.filter(|(_, waiter)| fits(waiter));
        let (first, waiter) = fitting.next()?;
        if !is_last(waiter.client) {
            return Some(first);
        }
        Some(fitting.find(|(_, waiter)| !is_last(waiter.client)).map_or(first, |(ticket, _)| ticket))
    }

    /// Whether something is free that this class may have.
    fn may_have(&self, class: Class) -> bool {
        let sum = self.seats.sum();
        self.reserves.admit(class.reserve, sum.free, sum.limit)
    }

    fn judge(&mut self, now: Instant) {
        self.load.judge(self.line.oldest().map(|since| now.saturating_duration_since(since)));
    }

    /// While the newest go first: the oldest one, when it cannot be served by its deadline any more even if nobody else
    /// came. Call until `None`.
    pub fn shed(&mut self, now: Instant) -> Option<W> {
        self.judge(now);
        let last = self.line.last().filter(|_| self.load.newest_first())?;
        let wait = self.load.expected_wait(self.line.len(), self.seats.held())?;
        let late = self.line.get(last).is_some_and(|waiter| now + wait > waiter.deadline);
        if late { self.leave(last) } else { None }
    }

    /// Time has passed: to be called every 100 ms or so.
    pub fn turn(&mut self, now: Instant) {
        let compare = self.compared.is_none_or(|at| now.saturating_duration_since(at) >= COMPARE);
        if compare {
            self.compared = Some(now);
        }
        self.seats.turn(compare, now);
        self.owing.sweep(now);
        for instance in self.seats.lost_nodes() {
            self.forgive(&instance, now);
        }
    }

    /// The whole truth about one node's workers: what is not listed is gone.
    pub fn apply(&mut self, node: &Arc<Node>, workers: &[WorkerView], now: Instant) {
        self.seats.apply(node, workers);
        self.forgive(&node.instance, now);
    }

    /// Frees what is unsettled at the node and cannot be busy: its worker has ended, or counts fewer orphaned slots.
    fn forgive(&mut self, instance: &str, now: Instant) {
        for (numbers, orphaned) in self.seats.unsettled(instance) {
            let freed = match orphaned {
                None => {
                    let owed = numbers.iter().filter_map(|number| Some((*number, self.owing.forgive(*number)?)));
                    owed.collect()
                }
                Some(orphaned) => {
                    let most = numbers.len().saturating_sub(usize::try_from(orphaned).unwrap_or(usize::MAX));
                    self.owing.overdue(&numbers, most, now)
                }
            };
            for (number, held) in freed {
                self.free(number, held, now);
            }
        }
    }

    /// Nothing new for this node's workers.
    pub fn drain_node(&mut self, instance: &str) {
        self.seats.drain_node(instance);
    }

    /// Forgets the node and its workers, but for those with permits held.
    pub fn remove_node(&mut self, instance: &str) {
        self.seats.remove_node(instance);
    }

    /// Permits of requests at the node, also of workers it has ceased to report.
    pub fn in_flight(&self, instance: &str) -> u32 {
        self.seats.in_flight(instance)
    }

    /// The workers in the node's newest report that have more permits held than they were lowered to.
    pub fn over(&self, instance: &str) -> Vec<Over> {
        self.seats.over(instance)
    }

    /// Permits that this balancer should ask of the node, beyond those that it has: its part of what waits, by the slots
    /// there that other balancers have and do not use, and where those are not enough, by the ones that they use. Rounded
    /// at random, so that of many nodes just enough are asked. `None`: other balancers have none there.
    ///
    /// Of many slots more are asked than wait: whichever ends first will do.
    pub fn wanted(&self, instance: &str, rng: &mut impl Rng) -> Option<u32> {
        let (here, everywhere) = (self.seats.sum_of(instance), self.seats.sum());
        if here.elsewhere == 0 {
            return None;
        }
        let waiting = match u64::try_from(self.line.len()).unwrap_or(u64::MAX) {
            0 => 0,
            waiting => waiting.max((everywhere.elsewhere / ASK_PART).min(ASK_MOST)),
        };
        let (from_idle, from_busy) = (waiting.min(everywhere.idle), waiting.saturating_sub(everywhere.idle));
        let mut part = |of: u64, here: u64, everywhere: u64| {
            let (of, everywhere) = (of.min(everywhere), everywhere.max(1));
            of * here / everywhere + u64::from(rng.random_range(0..everywhere) < of * here % everywhere)
        };
        let idle = part(from_idle, here.idle, everywhere.idle);
        let busy = part(from_busy, here.elsewhere - here.idle, everywhere.elsewhere - everywhere.idle);
        Some(u32::try_from(idle + busy).unwrap_or(u32::MAX))
    }

    /// How long a request that came now would wait; as long as nobody can know, how long the first one has waited. `None`:
    /// nobody waits.
    pub fn expected_wait(&self, now: Instant) -> Option<Duration> {
        let oldest = now.saturating_duration_since(self.line.oldest()?);
        // who has no slot at all waits at least as long as with one
        let held = self.seats.held().max(1);
        Some(self.load.expected_wait(self.line.len(), held).unwrap_or(oldest))
    }

    /// When a client that was turned away should come again.
    pub fn retry_after(&self) -> Duration {
        self.load.retry_after(self.line.len(), self.seats.held())
    }

    /// Whether anything is in rotation.
    pub fn has_endpoints(&self) -> bool {
        let sum = self.seats.sum();
        // or it is the others' turn to use it
        sum.open > 0 || sum.elsewhere > 0
    }

    /// The most slots that one of the workers has.
    pub fn widest(&self) -> Option<u32> {
        self.seats.widest()
    }

    pub fn queue_depth(&self) -> usize {
        self.line.len()
    }

    /// Permits held in all, the unsettled ones with them.
    pub fn held(&self) -> u64 {
        self.seats.held()
    }

    /// Of those, the ones whose request is over and whose slot may be busy.
    pub fn unsettled(&self) -> u64 {
        self.seats.unsettled_in_all()
    }

    /// Ejections so far, by `Reason`.
    pub fn ejections(&self) -> [u64; 2] {
        self.seats.ejections()
    }

    /// The live nodes, by instance.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.seats.nodes()
    }
}

#[cfg(test)]
mod tests;
