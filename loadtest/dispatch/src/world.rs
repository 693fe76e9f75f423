//! The world of a run: requests that travel, workers that serve them, and the calendar. A policy decides where a request
//! goes and is told what comes of it; it sends messages of its own through the same calendar.

use crate::{
    calendar::{Calendar, Time},
    outcome::Outcome,
    scenario::{Arrival, Arrivals, Scenario},
};
use std::{collections::VecDeque, time::Duration};

/// A request in the world; a number is used again when its request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u32);

impl RequestId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Decides where requests go.
pub trait Policy {
    /// What its parts say to each other.
    type Message;

    /// Before the first request.
    fn begin(&mut self, _: &mut World<Self::Message>) {}

    /// A request has come to its balancer.
    fn arrive(&mut self, request: RequestId, world: &mut World<Self::Message>);

    /// Its balancer has the response. The request is gone after this.
    fn answered(&mut self, request: RequestId, worker: usize, world: &mut World<Self::Message>);

    /// Its balancer has it back: it waited for a slot for too long. Only where workers have a deck.
    fn refused(&mut self, _: RequestId, _: usize, _: &mut World<Self::Message>) {}

    /// At the worker: a request has come in, and has begun where a slot was free.
    fn reached(&mut self, _: usize, _: &mut World<Self::Message>) {}

    /// At the worker: a request has ended, and the next one of its queue has begun, if there is one.
    fn freed(&mut self, _: usize, _: &mut World<Self::Message>) {}

    /// A message has come to where it was sent.
    fn hear(&mut self, _: Self::Message, _: &mut World<Self::Message>) {}

    /// At the end.
    fn close(&mut self, _: &mut Outcome) {}
}

/// What may wait at a worker for its next free slot.
#[derive(Clone, Copy, Debug)]
pub struct Deck {
    pub places: usize,
    pub patience: Duration,
}

#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub balancer: usize,
    pub arrived: Time,
    /// To a worker, the last time.
    pub sent: Time,
    /// There.
    reached: Time,
    work: Duration,
}

#[derive(Debug)]
pub struct Worker {
    pub capacity: u32,
    /// What is served now.
    running: Vec<RequestId>,
    queue: VecDeque<RequestId>,
    factor: f64,
    /// How long a request occupies its slot: a moving average with a weight of 1/16, as the real worker keeps it.
    service: Option<Duration>,
}

impl Worker {
    /// Requests that are here.
    pub fn load(&self) -> usize {
        self.running.len() + self.queue.len()
    }

    pub fn running(&self) -> &[RequestId] {
        &self.running
    }

    pub fn on_deck(&self) -> usize {
        self.queue.len()
    }

    pub fn service(&self) -> Option<Duration> {
        self.service
    }
}

#[derive(Debug)]
enum Event<M> {
    Arrival(Arrival),
    Reaches(RequestId, u32),
    /// It has waited at the worker for as long as it may, if it still does.
    Patience(RequestId, u32, Time),
    Ends(RequestId, u32),
    Answered(RequestId, u32),
    Refused(RequestId, u32),
    Message(M),
}

#[derive(Debug)]
pub struct World<M> {
    calendar: Calendar<Event<M>>,
    network: Duration,
    requests: Vec<Request>,
    vacant: Vec<RequestId>,
    workers: Vec<Worker>,
    deck: Option<Deck>,
    arrivals: Arrivals,
    arrived: u64,
    outcome: Outcome,
    counted_from: Time,
}

/// Long after the last arrival: a policy that has lost a request would otherwise run for ever.
const AFTERMATH: Duration = Duration::from_secs(600);

/// Runs `policy` from the first arrival until every request is done. `deck` is none where a worker's queue has no end.
pub fn run<P: Policy>(scenario: &Scenario, deck: Option<Deck>, policy: &mut P) -> Outcome {
    let workers = (0..scenario.workers_in_all()).map(|worker| Worker {
        capacity: scenario.slots,
        running: Vec::new(),
        queue: VecDeque::new(),
        factor: scenario.factor(worker),
        service: None,
    });
    let mut world = World {
        calendar: Calendar::default(),
        network: scenario.network,
        requests: Vec::new(),
        vacant: Vec::new(),
        workers: workers.collect(),
        deck,
        arrivals: Arrivals::new(scenario),
        arrived: 0,
        outcome: Outcome::new(scenario.workers_in_all()),
        counted_from: Time::START + scenario.warmup,
    };
    policy.begin(&mut world);
    let mut more = world.expect();
    let end = Time::START + scenario.duration + AFTERMATH;
    while more || world.in_the_world() > 0 {
        let Some(event) = world.calendar.turn() else { break };
        if world.now() > end {
            break;
        }
        if let Event::Arrival(arrival) = event {
            more = world.expect();
            let request = world.admit(arrival);
            policy.arrive(request, &mut world);
        } else {
            world.happen(event, policy);
        }
    }
    world.outcome.arrived = world.arrived;
    world.outcome.left = world.in_the_world();
    policy.close(&mut world.outcome);
    world.outcome
}

impl<M> World<M> {
    pub fn now(&self) -> Time {
        self.calendar.now()
    }

    pub fn request(&self, request: RequestId) -> &Request {
        &self.requests[request.index()]
    }

    pub fn worker(&self, worker: usize) -> &Worker {
        &self.workers[worker]
    }

    pub fn outcome(&mut self) -> &mut Outcome {
        &mut self.outcome
    }

    /// One way, of a request.
    pub fn network(&self) -> Duration {
        self.network
    }

    /// The request leaves its balancer for a worker.
    pub fn send(&mut self, request: RequestId, worker: usize) {
        let now = self.now();
        self.requests[request.index()].sent = now;
        self.calendar.at(now + self.network, Event::Reaches(request, number(worker)));
    }

    /// The balancer answers the request itself.
    pub fn shed(&mut self, request: RequestId) {
        self.outcome.shed += 1;
        self.vacant.push(request);
    }

    pub fn say(&mut self, after: Duration, message: M) {
        self.calendar.at(self.now() + after, Event::Message(message));
    }

    fn expect(&mut self) -> bool {
        let Some(arrival) = self.arrivals.next() else { return false };
        self.calendar.at(arrival.at, Event::Arrival(arrival));
        true
    }

    fn in_the_world(&self) -> u64 {
        self.arrived - self.outcome.served - self.outcome.shed
    }

    fn admit(&mut self, arrival: Arrival) -> RequestId {
        self.arrived += 1;
        let Arrival { at, balancer, work } = arrival;
        let request = Request { balancer, arrived: at, sent: at, reached: at, work };
        match self.vacant.pop() {
            Some(id) => {
                self.requests[id.index()] = request;
                id
            }
            None => {
                self.requests.push(request);
                RequestId(number(self.requests.len() - 1))
            }
        }
    }

    fn happen<P: Policy<Message = M>>(&mut self, event: Event<M>, policy: &mut P) {
        match event {
            Event::Arrival(_) => unreachable!("the loop takes arrivals"),
            Event::Reaches(request, worker) => {
                self.reach(request, worker);
                policy.reached(worker as usize, self);
            }
            Event::Patience(request, worker, reached) => self.lose_patience(request, worker, reached),
            Event::Ends(request, worker) => {
                self.end(request, worker);
                policy.freed(worker as usize, self);
            }
            Event::Answered(request, worker) => {
                self.outcome.served += 1;
                policy.answered(request, worker as usize, self);
                self.vacant.push(request);
            }
            Event::Refused(request, worker) => policy.refused(request, worker as usize, self),
            Event::Message(message) => policy.hear(message, self),
        }
    }

    fn reach(&mut self, request: RequestId, worker: u32) {
        let now = self.now();
        self.requests[request.index()].reached = now;
        let there = &mut self.workers[worker as usize];
        if there.running.len() < there.capacity as usize {
            self.start(request, worker);
            return;
        }
        self.outcome.queued_at_workers += 1;
        let Some(deck) = self.deck else {
            there.queue.push_back(request);
            return;
        };
        if there.queue.len() < deck.places {
            there.queue.push_back(request);
            self.calendar.at(now + deck.patience, Event::Patience(request, worker, now));
        } else {
            self.refuse(request, worker);
        }
    }

    fn lose_patience(&mut self, request: RequestId, worker: u32, reached: Time) {
        // the number may belong to another request by now, or to the same one on its second visit
        if self.requests[request.index()].reached != reached {
            return;
        }
        let queue = &mut self.workers[worker as usize].queue;
        if let Some(at) = queue.iter().position(|waiting| *waiting == request) {
            queue.remove(at);
            self.refuse(request, worker);
        }
    }

    fn refuse(&mut self, request: RequestId, worker: u32) {
        self.outcome.refused += 1;
        self.calendar.at(self.now() + self.network, Event::Refused(request, worker));
    }

    fn start(&mut self, request: RequestId, worker: u32) {
        let now = self.now();
        let Request { arrived, work, .. } = self.requests[request.index()];
        let there = &mut self.workers[worker as usize];
        there.running.push(request);
        let service = work.mul_f64(there.factor);
        let average = there.service.unwrap_or(service);
        there.service = Some((average * 15 + service) / 16);
        if arrived >= self.counted_from {
            let wait = (now - arrived).saturating_sub(self.network);
            self.outcome.count(worker as usize, wait, service);
        }
        self.calendar.at(now + service, Event::Ends(request, worker));
    }

    fn end(&mut self, request: RequestId, worker: u32) {
        let there = &mut self.workers[worker as usize];
        there.running.retain(|running| *running != request);
        let next = there.queue.pop_front();
        self.calendar.at(self.now() + self.network, Event::Answered(request, worker));
        if let Some(next) = next {
            self.start(next, worker);
        }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("no cluster has four billion workers, and no run so many requests at once")
}
