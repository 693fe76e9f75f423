//! Who gets which permit: the endpoints of one app, how many permits of each are held, and who waits. Pure: the
//! generator is passed in, there is no clock, no task and no lock here; `app` puts one mutex around it.
//!
//! The laws, which the property test at the end holds it to, after every operation followed by `handover` until it
//! has nothing more to hand over:
//! - permits are conserved: what is held is what was handed out and not released;
//! - no endpoint holds more than its grant, unless the grant was lowered under permits held already;
//! - no permit is free while a request waits that may use it, so a newcomer that finds a free one overtakes nobody;
//! - nobody who waits is lost.
//!
//! Costs: endpoints with a free permit sit in one bucket per number of permits held, so a pick is the lowest bucket
//! that is not empty and one random number; a release moves one endpoint one bucket down. Neither depends on the
//! number of endpoints.

use crate::{
    client::Client,
    endpoint::{Endpoint, EndpointId, Node, WorkerState, WorkerView},
    levels::Levels,
    queue::{Queue, Ticket},
};
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

/// Why a request was given to this endpoint and not to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing of this balancer's was there.
    Idle,
    /// None was idle; nowhere was less.
    LeastBusy,
    /// The request waited, and this one became free first.
    Queued,
}

impl Why {
    /// In the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::LeastBusy => "least_busy",
            Self::Queued => "queued",
        }
    }
}

/// There was no room; the waiter comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum NoRoom<W> {
    /// In the whole queue.
    Queue(W),
    /// In this client's share of it, and another client waits.
    Client(W),
}

/// A waiter's place.
#[derive(Debug, PartialEq, Eq)]
pub struct Queued<W> {
    pub ticket: Ticket,
    /// Who had to leave for it: the youngest of the client that had more than its share of a full queue.
    pub displaced: Option<W>,
}

/// How many may wait.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub all: usize,
    /// Of one client, while another one waits.
    pub client: usize,
}

#[derive(Debug)]
struct Seat {
    endpoint: Arc<Endpoint>,
    /// As last reported.
    worker: WorkerView,
    held: u32,
    /// In the node's newest report.
    listed: bool,
    /// In rotation: listed, ready, with a grant, at a node that stays.
    open: bool,
}

#[derive(Debug)]
struct Member {
    node: Arc<Node>,
    live: bool,
    draining: bool,
    seats: Vec<u32>,
}

#[derive(Debug)]
struct Waiter<W> {
    waiter: W,
    client: Client,
    /// It had a permit before.
    comes_back: bool,
    /// Endpoints tried already: not again as long as another one is in rotation. Empty for newcomers.
    exclude: Vec<EndpointId>,
}

/// One node and its endpoints, for `App::view`.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub node: Arc<Node>,
    /// Asked to leave, by itself or by us.
    pub draining: bool,
    pub endpoints: Vec<EndpointView>,
}

#[derive(Clone, Debug)]
pub struct EndpointView {
    pub worker: WorkerView,
    /// Permits held by this balancer's requests.
    pub held: u32,
    /// Requests given to this endpoint since it was first reported.
    pub picked: u64,
}

/// Generic over what waits, so that the property test and a simulator run the code that ships.
#[derive(Debug)]
pub struct Dispatch<W> {
    /// `None` in a vacant seat.
    seats: Vec<Option<Seat>>,
    vacant: Vec<u32>,
    numbers: u64,
    nodes: BTreeMap<String, Member>,
    free: Levels,
    open: usize,
    held: u64,
    queue: Queue<Waiter<W>>,
    /// Who waits, how often. Empty while nobody does.
    clients: HashMap<Client, usize>,
    room: Room,
}

impl<W> Dispatch<W> {
    /// `room`: for newcomers.
    pub fn new(room: Room) -> Self {
        Self {
            seats: Vec::new(),
            vacant: Vec::new(),
            numbers: 0,
            nodes: BTreeMap::new(),
            free: Levels::default(),
            open: 0,
            held: 0,
            queue: Queue::default(),
            clients: HashMap::new(),
            room,
        }
    }

    /// A permit of an endpoint that holds the fewest, if one is free; equals at random. The endpoints in `exclude`
    /// (each named once) are passed over as long as another one is in rotation.
    pub fn pick(&mut self, exclude: &[EndpointId], rng: &mut impl Rng) -> Option<Arc<Endpoint>> {
        let exclude = self.in_force(exclude);
        let seat = self.free.pick(rng, |seat| !exclude.iter().any(|id| self.names(*id, seat)))?;
        let seat = self.change(seat, |seat| seat.held += 1);
        let endpoint = Arc::clone(&self.seats[seat as usize].as_ref().expect("a picked seat is taken").endpoint);
        endpoint.count_pick();
        self.held += 1;
        Some(endpoint)
    }

    /// Why `pick` has just given this endpoint.
    pub fn why(&self, picked: EndpointId) -> Why {
        if self.seat(picked).is_some_and(|seat| seat.held <= 1) { Why::Idle } else { Why::LeastBusy }
    }

    /// Waits for a permit, after `pick` had none. A request that comes back from an attempt goes to the head, and is
    /// not counted against the room: it was admitted before.
    ///
    /// A client may fill the queue while nobody else waits. As soon as another one does, it gets nothing beyond its share,
    /// and where the queue is full it makes room for clients that have less.
    pub fn enqueue(
        &mut self,
        waiter: W,
        client: Client,
        exclude: &[EndpointId],
        comes_back: bool,
    ) -> Result<Queued<W>, NoRoom<W>> {
        let mut displaced = None;
        if !comes_back {
            let own = self.clients.get(&client).copied().unwrap_or(0);
            if own >= self.room.client && self.queue.len() > own {
                return Err(NoRoom::Client(waiter));
            }
            if self.queue.len() >= self.room.all {
                let greedy = if own < self.room.client { self.youngest_of_the_greediest() } else { None };
                let Some(ticket) = greedy else { return Err(NoRoom::Queue(waiter)) };
                displaced = self.leave(ticket);
            }
        }
        *self.clients.entry(client).or_default() += 1;
        let waiter = Waiter { waiter, client, comes_back, exclude: exclude.to_vec() };
        let ticket = if comes_back { self.queue.push_front(waiter) } else { self.queue.push_back(waiter) };
        Ok(Queued { ticket, displaced })
    }

    /// The newest request of the client that has the most here, if that is more than its share. Looks at everybody who
    /// waits: only a queue that one client has filled pays for this.
    fn youngest_of_the_greediest(&self) -> Option<Ticket> {
        let (client, count) = self.clients.iter().max_by_key(|(client, count)| (**count, **client))?;
        let newcomers = || self.queue.iter().filter(|(_, waiter)| waiter.client == *client && !waiter.comes_back);
        if *count > self.room.client { newcomers().last().map(|(ticket, _)| ticket) } else { None }
    }

    /// The waiter gave up; `None` when it was handed a permit before.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        self.take_out(ticket).map(|waiter| waiter.waiter)
    }

    fn take_out(&mut self, ticket: Ticket) -> Option<Waiter<W>> {
        let waiter = self.queue.remove(ticket)?;
        if let Entry::Occupied(mut count) = self.clients.entry(waiter.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(waiter)
    }

    /// A permit comes back. Returns true when a control task may be waiting for this: the endpoint's node is leaving,
    /// or more is held here than granted.
    pub fn release(&mut self, id: EndpointId) -> bool {
        let seat = self.seat(id).expect("an endpoint keeps its seat while a permit of it is held");
        let watched = !seat.open || seat.held > seat.worker.grant;
        self.held -= 1;
        self.change(id.seat, |seat| seat.held -= 1);
        self.vacate_if_done(id.seat);
        watched
    }

    /// The next waiter with the permit it was waiting for; call until `None`, whenever a permit may have become free.
    pub fn handover(&mut self, rng: &mut impl Rng) -> Option<(W, Arc<Endpoint>)> {
        if self.queue.is_empty() || self.free.is_empty() {
            return None;
        }
        // Only requests that come back exclude anything, and they are at the head: this looks past few.
        let ticket = self.queue.iter().find_map(|(ticket, waiter)| {
            let exclude = self.in_force(&waiter.exclude);
            self.free.any(|seat| !exclude.iter().any(|id| self.names(*id, seat))).then_some(ticket)
        })?;
        let Waiter { waiter, exclude, .. } = self.take_out(ticket).expect("the ticket was just read");
        let endpoint = self.pick(&exclude, rng).expect("a free permit for this waiter was just seen");
        Some((waiter, endpoint))
    }

    /// The whole truth about one node's workers: what is not listed is gone.
    pub fn apply(&mut self, node: &Arc<Node>, workers: &[WorkerView]) {
        let member = self.nodes.entry(node.instance.clone()).or_insert_with(|| Member {
            node: Arc::clone(node),
            live: true,
            draining: false,
            seats: Vec::new(),
        });
        if !Arc::ptr_eq(&member.node, node) {
            member.node = Arc::clone(node);
            member.draining = false;
        }
        member.live = true;
        let mut seats = std::mem::take(&mut member.seats);
        let mut listed = vec![false; seats.len()];
        for worker in workers {
            let known = seats.iter().position(|seat| {
                self.seats[*seat as usize].as_ref().is_some_and(|seat| seat.endpoint.is(node, worker))
            });
            match known {
                Some(at) => {
                    listed[at] = true;
                    self.seats[seats[at] as usize].as_mut().expect("a member's seat is taken").worker = worker.clone();
                }
                None => {
                    seats.push(self.sit(node, worker));
                    listed.push(true);
                }
            }
        }
        for (seat, listed) in seats.iter().zip(listed) {
            self.seats[*seat as usize].as_mut().expect("a member's seat is taken").listed = listed;
        }
        self.nodes.get_mut(&node.instance).expect("the member was just there").seats = seats;
        self.review(&node.instance);
    }

    /// Nothing new for this node's workers.
    pub fn drain_node(&mut self, instance: &str) {
        if let Some(member) = self.nodes.get_mut(instance) {
            member.draining = true;
            self.review(instance);
        }
    }

    /// Forgets the node and its workers, but for those with permits held.
    pub fn remove_node(&mut self, instance: &str) {
        let Some(member) = self.nodes.get_mut(instance) else { return };
        member.live = false;
        for seat in &member.seats {
            self.seats[*seat as usize].as_mut().expect("a member's seat is taken").listed = false;
        }
        self.review(instance);
    }

    /// Permits held at the node, also of workers it has ceased to report.
    pub fn in_flight(&self, instance: &str) -> u32 {
        self.seats_of(instance).map(|seat| seat.held).sum()
    }

    /// True when no worker in the node's newest report has more permits held than it grants.
    pub fn within_grants(&self, instance: &str) -> bool {
        self.seats_of(instance).all(|seat| !seat.listed || seat.held <= seat.worker.grant)
    }

    /// Whether anything is in rotation.
    pub fn has_endpoints(&self) -> bool {
        self.open > 0
    }

    pub fn queue_depth(&self) -> usize {
        self.queue.len()
    }

    /// Permits held in all.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The live nodes, by instance.
    pub fn nodes(&self) -> Vec<NodeView> {
        let live = self.nodes.values().filter(|member| member.live);
        live.map(|member| {
            let mut endpoints: Vec<EndpointView> = member
                .seats
                .iter()
                .filter_map(|seat| self.seats[*seat as usize].as_ref())
                .filter(|seat| seat.listed || seat.held > 0)
                .map(|seat| EndpointView {
                    worker: seat.worker.clone(),
                    held: seat.held,
                    picked: seat.endpoint.picked(),
                })
                .collect();
            endpoints.sort_by_key(|endpoint| (endpoint.worker.position, endpoint.worker.generation));
            NodeView { node: Arc::clone(&member.node), draining: member.draining, endpoints }
        })
        .collect()
    }

    /// What of `exclude` counts: all of it while another endpoint is in rotation, otherwise nothing.
    fn in_force<'a>(&self, exclude: &'a [EndpointId]) -> &'a [EndpointId] {
        let open = exclude.iter().filter(|id| self.seat(**id).is_some_and(|seat| seat.open)).count();
        if open < self.open { exclude } else { &[] }
    }

    fn names(&self, id: EndpointId, seat: u32) -> bool {
        id.seat == seat && self.seat(id).is_some()
    }

    fn seat(&self, id: EndpointId) -> Option<&Seat> {
        self.seats.get(id.seat as usize)?.as_ref().filter(|seat| seat.endpoint.id == id)
    }

    fn seats_of(&self, instance: &str) -> impl Iterator<Item = &Seat> {
        let seats = self.nodes.get(instance).map_or(&[][..], |member| &member.seats);
        seats.iter().filter_map(|seat| self.seats[*seat as usize].as_ref())
    }

    /// Gives a new endpoint a seat, out of rotation until `review`.
    fn sit(&mut self, node: &Arc<Node>, worker: &WorkerView) -> u32 {
        let seat = self.vacant.pop().unwrap_or_else(|| {
            self.seats.push(None);
            u32::try_from(self.seats.len() - 1).expect("the registry bounds nodes and workers far below this")
        });
        self.numbers += 1;
        let endpoint = Arc::new(Endpoint::new(EndpointId { number: self.numbers, seat }, node, worker));
        self.seats[seat as usize] = Some(Seat { endpoint, worker: worker.clone(), held: 0, listed: true, open: false });
        seat
    }

    /// Changes a seat and moves it to the bucket where it belongs then.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Seat)) -> u32 {
        let seat = self.seats[index as usize].as_mut().expect("only taken seats are changed");
        change(seat);
        let level = (seat.open && seat.held < seat.worker.grant).then_some(seat.held);
        self.free.place(index, level);
        index
    }

    /// Brings a node's seats in line with what is known of the node, and clears those that nobody needs.
    fn review(&mut self, instance: &str) {
        let Some(member) = self.nodes.get(instance) else { return };
        let (live, stays) = (member.live, member.live && !member.draining);
        for index in member.seats.clone() {
            let seat = self.seats[index as usize].as_ref().expect("a member's seat is taken");
            let ready = seat.worker.state == WorkerState::Ready && seat.worker.grant > 0;
            let (was, open) = (seat.open, stays && seat.listed && ready);
            seat.endpoint.list(seat.listed, live);
            self.change(index, |seat| seat.open = open);
            self.open = self.open + usize::from(open) - usize::from(was);
            self.vacate_if_done(index);
        }
        if self.nodes.get(instance).is_some_and(|member| !member.live && member.seats.is_empty()) {
            self.nodes.remove(instance);
        }
    }

    fn vacate_if_done(&mut self, index: u32) {
        let Some(seat) = self.seats[index as usize].take_if(|seat| !seat.listed && seat.held == 0) else { return };
        self.vacant.push(index);
        let instance = &seat.endpoint.node.instance;
        if let Some(member) = self.nodes.get_mut(instance) {
            member.seats.retain(|other| *other != index);
            if !member.live && member.seats.is_empty() {
                self.nodes.remove(instance);
            }
        }
    }
}

#[cfg(test)]
mod tests;
