//! An app: its endpoints and the one queue of requests that wait for a free permit. Requests come in from every core
//! and go out with a `Permit`; the control plane says which workers there are. Decides nothing itself (`dispatch`
//! does): it adds the mutex, the clock and the waking up. Nothing is awaited inside the mutex.

use crate::{
    client::Client,
    dispatch::{Class, Dispatch, NoRoom, Over, Queued, Request, Room, Ticket, Yielded},
    endpoint::{EndpointId, Node, WorkerView},
    metrics::AppMetrics,
    reject::Reject,
    retry::Budget,
};
use chassis::config::Percent;
use rand::{SeedableRng, rngs::SmallRng};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

mod apps;
mod permit;
mod retries;
mod standing;

pub use crate::dispatch::{EndpointView, NodeView, Why};
pub use apps::Apps;
pub use permit::Permit;

use permit::Returned;

/// Workers with fewer slots than this are too precious for slow clients.
const FEW_SLOTS: u32 = 64;

/// Who asks for a permit.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub client: Client,
    pub class: Class,
}

impl From<Client> for Asker {
    fn from(client: Client) -> Self {
        Self { client, class: Class::default() }
    }
}

/// Bounds of every app's queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many requests may wait per app.
    pub queue_length: usize,
    /// How much of it one client may fill while another one waits.
    pub client_share: Percent,
    /// How many of the permits one client may hold while it stands still and another one waits.
    pub stalled_share: Percent,
    /// For how long.
    pub queue_deadline: Duration,
}

impl Limits {
    fn room(self) -> Room {
        let all = u32::try_from(self.queue_length).unwrap_or(u32::MAX);
        let client = usize::try_from(self.client_share.of(all)).unwrap_or(usize::MAX);
        Room { all: self.queue_length, client }
    }
}

/// More than five centuries are five centuries.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What comes to somebody who waits: a permit, or why there is none.
type Waiting = oneshot::Sender<Result<Permit, Reject>>;

#[derive(Debug)]
struct State {
    dispatch: Dispatch<Waiting>,
    budget: Budget,
    rng: SmallRng,
}

/// A named application.
#[derive(Debug)]
pub struct App {
    name: Arc<str>,
    /// In nanoseconds.
    queue_deadline: AtomicU64,
    state: Mutex<State>,
    few_slots: AtomicBool,
    changed: Notify,
    /// Notified when a request waits where none did.
    waiting: Notify,
    started: Instant,
    pub metrics: AppMetrics,
}

impl App {
    fn new(name: &str, limits: Limits, reserves: &[u32]) -> Self {
        let mut dispatch = Dispatch::new(limits.room(), reserves);
        dispatch.set_stalled_share(limits.stalled_share);
        Self {
            name: name.into(),
            queue_deadline: AtomicU64::new(nanoseconds(limits.queue_deadline)),
            state: Mutex::new(State { dispatch, budget: Budget::default(), rng: SmallRng::from_rng(&mut rand::rng()) }),
            few_slots: AtomicBool::new(false),
            changed: Notify::new(),
            waiting: Notify::new(),
            started: Instant::now(),
            metrics: AppMetrics::register(name),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a request may wait here.
    pub fn queue_deadline(&self) -> Duration {
        Duration::from_nanos(self.queue_deadline.load(Ordering::Relaxed))
    }

    // The control plane's side

    /// Other limits for those who come from now on, other reserves. Who waits keeps place and deadline.
    fn retune(self: &Arc<Self>, limits: Limits, reserves: &[u32]) {
        self.queue_deadline.store(nanoseconds(limits.queue_deadline), Ordering::Relaxed);
        self.change(|dispatch, _| {
            dispatch.retune(limits.room(), reserves);
            dispatch.set_stalled_share(limits.stalled_share);
        });
    }

    /// The whole truth about one node's workers: what is not listed is gone. Permits held are carried over by
    /// (instance, position, generation); only a ready worker takes anything new. A newer
    /// registration of the same instance takes the older one's endpoints over.
    pub fn apply(self: &Arc<Self>, node: &Arc<Node>, workers: &[WorkerView]) {
        self.change(|dispatch, now| {
            dispatch.apply(node, workers, now);
            let few = dispatch.widest().is_some_and(|widest| widest < FEW_SLOTS);
            self.few_slots.store(few, Ordering::Relaxed);
        });
    }

    /// Nothing of these connections of ours runs in the node's workers any more.
    pub fn settle(self: &Arc<Self>, instance: &str, connections: &[u64]) {
        self.change(|dispatch, now| dispatch.settle(instance, connections, now));
    }

    /// With its newest report the node says that other balancers lack so many permits there, whose requests have to wait for
    /// so long. What is not needed here, or less, is given back.
    pub fn lack(&self, instance: &str, permits: u32, wait: Duration) {
        if self.lock().dispatch.lack(instance, permits, wait, Instant::now()) {
            self.changed.notify_waiters();
        }
    }

    /// What was given back to the node since it was asked for the last time.
    pub fn take_yielded(&self, instance: &str) -> Vec<Yielded> {
        self.lock().dispatch.take_yielded(instance)
    }

    /// The node is leaving: nothing new for its workers.
    pub fn drain_node(self: &Arc<Self>, instance: &str) {
        self.change(|dispatch, _| dispatch.drain_node(instance));
    }

    /// The node's stream ended: its workers are out of rotation at once, and forgotten. Requests in flight go on.
    pub fn remove_node(self: &Arc<Self>, instance: &str) {
        self.change(|dispatch, _| dispatch.remove_node(instance));
    }

    /// Requests of ours at the node now, also at workers it has ceased to report.
    pub fn in_flight(&self, instance: &str) -> u32 {
        self.lock().dispatch.in_flight(instance)
    }

    /// The workers in the node's newest report that have more requests of ours than they were lowered to.
    pub fn over(&self, instance: &str) -> Vec<Over> {
        self.lock().dispatch.over(instance)
    }

    /// Notified (`notify_waiters`) when `in_flight` or `over` may have become what a control task waits for.
    /// Make the `notified()` future, and `enable` it, before looking.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Requests that wait now.
    pub fn queue_depth(&self) -> usize {
        self.lock().dispatch.queue_depth()
    }

    /// What this balancer asks of the node beyond what it was granted (`None`: other balancers have nothing there), and
    /// how long a request that came now would wait.
    pub fn wanted(&self, instance: &str, now: Instant) -> (Option<u32>, Duration) {
        let mut state = self.lock();
        let State { dispatch, rng, .. } = &mut *state;
        (dispatch.wanted(instance, rng), dispatch.expected_wait(now).unwrap_or_default())
    }

    /// Its workers have so few slots that a slow client must not hold one: bodies are read ahead, in both directions.
    pub fn has_few_slots(&self) -> bool {
        self.few_slots.load(Ordering::Relaxed)
    }

    /// When a client that was turned away should come again.
    pub fn retry_after(&self) -> Duration {
        self.lock().dispatch.retry_after()
    }

    /// Notified (`notify_waiters`) when a request waits where none did. As with `changed`: first `enable`, then look.
    pub fn waiting(&self) -> &Notify {
        &self.waiting
    }

    pub fn view(&self) -> AppView {
        let second = self.second(Instant::now());
        let mut state = self.lock();
        AppView {
            name: Arc::clone(&self.name),
            queue_depth: state.dispatch.queue_depth(),
            in_flight: state.dispatch.held() - state.dispatch.unsettled(),
            unsettled: state.dispatch.unsettled(),
            ejections: state.dispatch.ejections(),
            retry_budget: state.budget.balance(second),
            nodes: state.dispatch.nodes(),
        }
    }

    // The data plane's side

    /// A permit for a request, at once or after its turn in the queue. `tried`: where earlier attempts of the same
    /// request went; each endpoint named once. Cancel safe: who leaves is out of the queue, and a permit that was on
    /// its way goes to the next.
    pub async fn acquire(
        self: &Arc<Self>,
        asker: Asker,
        tried: &[EndpointId],
        comes_back: bool,
        now: Instant,
        deadline: Instant,
    ) -> Result<Permit, Reject> {
        let (receiver, place, first, displaced, cuts) = {
            let mut state = self.lock();
            let State { dispatch, budget, rng } = &mut *state;
            if !comes_back {
                budget.deposit(self.second(now));
            }
            let Asker { client, class } = asker;
            if let Some((endpoint, held, why)) = dispatch.pick(client, class, tried, now, rng) {
                return Ok(Permit::new(self, endpoint, held, why));
            }
            let (waiter, receiver) = oneshot::channel();
            let request = Request { waiter, client, class, tried, comes_back, deadline };
            let Queued { ticket, displaced } = dispatch.enqueue(request, now).map_err(|refused| match refused {
                NoRoom::Queue(_) => Reject::QueueFull,
                NoRoom::Client(_) => Reject::ClientShare,
                NoRoom::Late(_) => Reject::Overload,
            })?;
            let first = dispatch.queue_depth() == 1;
            (receiver, Place { app: self, ticket }, first, displaced, dispatch.preempt())
        };
        cuts.iter().for_each(|cut| cut.call());
        if let Some(displaced) = displaced {
            let (waiter, reject) = match displaced {
                NoRoom::Client(waiter) => (waiter, Reject::ClientShare),
                NoRoom::Queue(waiter) | NoRoom::Late(waiter) => (waiter, Reject::Overload),
            };
            // it may have left in this moment
            drop(waiter.send(Err(reject)));
        }
        if first {
            self.waiting.notify_waiters();
        }
        let mut receiver = receiver;
        match timeout_at(deadline, &mut receiver).await {
            Ok(Ok(answer)) => answer,
            // the sender lives in the queue until it is used, or taken out by `place`
            Ok(Err(_)) => Err(Reject::Overload),
            Err(_) => {
                let has_endpoints = self.lock().dispatch.has_endpoints();
                drop(place);
                let late = if has_endpoints { Reject::QueueDeadline } else { Reject::NoEndpoint };
                // it may have come in the last moment
                receiver.try_recv().unwrap_or(Err(late))
            }
        }
    }

    fn give_back(self: &Arc<Self>, permit: &Returned) {
        let now = Instant::now();
        let mut returned = Some(*permit);
        loop {
            let (watched, handover, more) = {
                let mut state = self.lock();
                let State { dispatch, rng, .. } = &mut *state;
                let watched = returned.take().is_some_and(|Returned { held, begun, ended }| match begun {
                    Some(connection) => dispatch.unsettle(held, connection, ended, now),
                    None => dispatch.release(held, ended, now),
                });
                (watched, dispatch.handover(now, rng), dispatch.may_free_more())
            };
            if watched {
                self.changed.notify_waiters();
            }
            let Some((waiter, endpoint, held)) = handover else { return };
            // A waiter may have left between the handover and its waking up: then the permit is ours again.
            if let Err(Ok(permit)) = waiter.send(Ok(Permit::new(self, endpoint, held, Why::Queued))) {
                returned = permit.take_back();
            }
            if returned.is_none() && !more {
                return;
            }
        }
    }

    fn turn(self: &Arc<Self>, now: Instant) {
        let mut shed = Vec::new();
        self.hand_over_after(|dispatch, _| {
            dispatch.turn(now);
            shed.extend(std::iter::from_fn(|| dispatch.shed(now)));
        });
        for waiter in shed {
            // it may have left in this moment
            drop(waiter.send(Err(Reject::Overload)));
        }
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Dispatch<Waiting>, Instant)) {
        self.hand_over_after(change);
        self.changed.notify_waiters();
    }

    fn hand_over_after(self: &Arc<Self>, change: impl FnOnce(&mut Dispatch<Waiting>, Instant)) {
        let now = Instant::now();
        let mut handovers = Vec::new();
        {
            let mut state = self.lock();
            let State { dispatch, rng, .. } = &mut *state;
            change(dispatch, now);
            while let Some(handover) = dispatch.handover(now, rng) {
                handovers.push(handover);
            }
        }
        for (waiter, endpoint, held) in handovers {
            // a waiter that has left drops the permit, which goes to the next
            drop(waiter.send(Ok(Permit::new(self, endpoint, held, Why::Queued))));
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs()
    }

    /// What is inside is plain data, and `dispatch` panics only where its own invariants are broken.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; given up when dropped.
struct Place<'a> {
    app: &'a Arc<App>,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let waiter = self.app.lock().dispatch.leave(self.ticket);
        drop(waiter);
    }
}

/// A picture of an app for the status page and the metrics.
#[derive(Clone, Debug)]
pub struct AppView {
    pub name: Arc<str>,
    pub queue_depth: usize,
    /// Permits of requests, also at nodes that are gone.
    pub in_flight: u64,
    /// Permits whose request is over, and whose slot may be busy.
    pub unsettled: u64,
    /// So far, by `Reason`.
    pub ejections: [u64; 2],
    /// Retries that could be made now.
    pub retry_budget: f64,
    /// By instance; workers by position and generation.
    pub nodes: Vec<NodeView>,
}

#[cfg(test)]
mod tests;
