//! An app: its endpoints and the one queue of requests that wait for a free permit. Requests come in from every core
//! and go out with a `Permit`; the control plane says which workers there are. Decides nothing itself (`dispatch`
//! does): it adds the mutex, the clock and the waking up. Nothing is awaited inside the mutex.

use crate::{
    client::Client,
    dispatch::{Dispatch, NoRoom, Queued, Room},
    endpoint::{Endpoint, EndpointId, Node, WorkerView},
    metrics::AppMetrics,
    queue::Ticket,
    reject::Reject,
    retry::Budget,
};
use arc_swap::ArcSwap;
use chassis::config::Percent;
use rand::{SeedableRng, rngs::SmallRng};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

pub use crate::dispatch::{EndpointView, NodeView, Why};

/// Bounds of every app's queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many requests may wait per app.
    pub queue_length: usize,
    /// How much of it one client may fill while another one waits.
    pub client_share: Percent,
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

/// Every app this balancer has ever heard of, from its configuration or a registration.
#[derive(Debug)]
pub struct Apps {
    limits: Limits,
    /// Swapped whole: apps are made rarely and looked up often.
    by_name: ArcSwap<BTreeMap<Arc<str>, Arc<App>>>,
}

impl Apps {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, by_name: ArcSwap::default() })
    }

    /// The app of that name, made if there is none yet.
    pub fn obtain(&self, name: &str) -> Arc<App> {
        if let Some(app) = self.find(name) {
            return app;
        }
        let new = Arc::new(App::new(name, self.limits));
        self.by_name.rcu(|apps| {
            let mut apps = BTreeMap::clone(apps);
            apps.entry(Arc::clone(&new.name)).or_insert_with(|| Arc::clone(&new));
            apps
        });
        self.find(name).expect("it was just put in, and apps are never removed")
    }

    pub fn find(&self, name: &str) -> Option<Arc<App>> {
        self.by_name.load().get(name).cloned()
    }

    /// In the order of their names.
    pub fn all(&self) -> Vec<Arc<App>> {
        self.by_name.load().values().cloned().collect()
    }
}

#[derive(Debug)]
struct State {
    dispatch: Dispatch<oneshot::Sender<Permit>>,
    budget: Budget,
    rng: SmallRng,
}

/// A named application.
#[derive(Debug)]
pub struct App {
    name: Arc<str>,
    limits: Limits,
    state: Mutex<State>,
    changed: Notify,
    /// Notified when a request waits where none did.
    waiting: Notify,
    started: Instant,
    pub metrics: AppMetrics,
}

impl App {
    fn new(name: &str, limits: Limits) -> Self {
        Self {
            name: name.into(),
            limits,
            state: Mutex::new(State {
                dispatch: Dispatch::new(limits.room()),
                budget: Budget::default(),
                rng: SmallRng::from_rng(&mut rand::rng()),
            }),
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
        self.limits.queue_deadline
    }

    // The control plane's side

    /// The whole truth about one node's workers: what is not listed is gone. Permits held are carried over by
    /// (instance, position, generation); only a ready worker takes anything new. A newer
    /// registration of the same instance takes the older one's endpoints over.
    pub fn apply(self: &Arc<Self>, node: &Arc<Node>, workers: &[WorkerView]) {
        self.change(|dispatch| dispatch.apply(node, workers));
    }

    /// The node is leaving: nothing new for its workers.
    pub fn drain_node(self: &Arc<Self>, instance: &str) {
        self.change(|dispatch| dispatch.drain_node(instance));
    }

    /// The node's stream ended: its workers are out of rotation at once, and forgotten. Requests in flight go on.
    pub fn remove_node(self: &Arc<Self>, instance: &str) {
        self.change(|dispatch| dispatch.remove_node(instance));
    }

    /// Requests of ours at the node now, also at workers it has ceased to report.
    pub fn in_flight(&self, instance: &str) -> u32 {
        self.lock().dispatch.in_flight(instance)
    }

    /// True when no worker in the node's newest report has more requests of ours than it grants.
    pub fn within_grants(&self, instance: &str) -> bool {
        self.lock().dispatch.within_grants(instance)
    }

    /// Notified (`notify_waiters`) when `in_flight` or `within_grants` may have become what a control task waits for.
    /// Make the `notified()` future, and `enable` it, before looking.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Requests that wait now.
    pub fn queue_depth(&self) -> usize {
        self.lock().dispatch.queue_depth()
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
            in_flight: state.dispatch.held(),
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
        client: Client,
        tried: &[EndpointId],
        comes_back: bool,
        now: Instant,
        deadline: Instant,
    ) -> Result<Permit, Reject> {
        let (receiver, place, first, displaced) = {
            let mut state = self.lock();
            let State { dispatch, budget, rng } = &mut *state;
            if !comes_back {
                budget.deposit(self.second(now));
            }
            if let Some(endpoint) = dispatch.pick(tried, rng) {
                let why = dispatch.why(endpoint.id);
                return Ok(self.permit(endpoint, why));
            }
            let (sender, receiver) = oneshot::channel();
            let Queued { ticket, displaced } =
                dispatch.enqueue(sender, client, tried, comes_back).map_err(|refused| match refused {
                    NoRoom::Queue(_) => Reject::QueueFull,
                    NoRoom::Client(_) => Reject::ClientShare,
                })?;
            (receiver, Place { app: self, ticket }, dispatch.queue_depth() == 1, displaced)
        };
        // who is displaced hears it by the end of its channel
        drop(displaced);
        if first {
            self.waiting.notify_waiters();
        }
        let mut receiver = receiver;
        match timeout_at(deadline, &mut receiver).await {
            Ok(Ok(permit)) => Ok(permit),
            // the sender lives in the queue until it is used, taken out by `place`, or displaced
            Ok(Err(_)) => Err(Reject::ClientShare),
            Err(_) => {
                let has_endpoints = self.lock().dispatch.has_endpoints();
                drop(place);
                // it may have come in the last moment
                receiver.try_recv().map_err(|_| if has_endpoints { Reject::QueueDeadline } else { Reject::NoEndpoint })
            }
        }
    }

    /// Takes one retry out of the budget, if there is one.
    pub fn withdraw_retry(&self, now: Instant) -> bool {
        let second = self.second(now);
        self.lock().budget.withdraw(second)
    }

    fn release(self: &Arc<Self>, id: EndpointId) {
        let mut released = Some(id);
        // A waiter may have left between the handover and its waking up: then the permit is ours again.
        while let Some(id) = released.take() {
            let (watched, handover) = {
                let mut state = self.lock();
                let State { dispatch, rng, .. } = &mut *state;
                (dispatch.release(id), dispatch.handover(rng))
            };
            if watched {
                self.changed.notify_waiters();
            }
            if let Some((waiter, endpoint)) = handover
                && let Err(permit) = waiter.send(self.permit(endpoint, Why::Queued))
            {
                released = Some(permit.take_back());
            }
        }
    }

    fn change(self: &Arc<Self>, change: impl FnOnce(&mut Dispatch<oneshot::Sender<Permit>>)) {
        let mut handovers = Vec::new();
        {
            let mut state = self.lock();
            let State { dispatch, rng, .. } = &mut *state;
            change(dispatch);
            while let Some(handover) = dispatch.handover(rng) {
                handovers.push(handover);
            }
        }
        self.changed.notify_waiters();
        for (waiter, endpoint) in handovers {
            // a waiter that has left drops the permit, which goes to the next
            drop(waiter.send(self.permit(endpoint, Why::Queued)));
        }
    }

    fn permit(self: &Arc<Self>, endpoint: Arc<Endpoint>, why: Why) -> Permit {
        Permit { app: Arc::clone(self), endpoint: Some(endpoint), why }
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

/// The right to occupy one slot of an endpoint, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    app: Arc<App>,
    /// `None` only after `take_back`.
    endpoint: Option<Arc<Endpoint>>,
    why: Why,
}

impl Permit {
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.endpoint.as_ref().expect("only a permit that nobody has was taken back")
    }

    /// Why it is this endpoint's.
    pub fn why(&self) -> Why {
        self.why
    }

    fn take_back(mut self) -> EndpointId {
        self.endpoint.take().expect("a permit is taken back once").id
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            self.app.release(endpoint.id);
        }
    }
}

/// A picture of an app for the status page and the metrics.
#[derive(Clone, Debug)]
pub struct AppView {
    pub name: Arc<str>,
    pub queue_depth: usize,
    /// Permits held in all, also of nodes that are gone.
    pub in_flight: u64,
    /// Retries that could be made now.
    pub retry_budget: f64,
    /// By instance; workers by position and generation.
    pub nodes: Vec<NodeView>,
}

#[cfg(test)]
mod tests;
