//! Who is registered. In: admitted registrations, their reports, their ends, the list of denied instances. Out: the
//! apps' endpoints and the route table, always in step with who is here. One mutex orders it all; it is held for
//! moments and never across an await, and a request never takes it.

use super::{
    admission::{DeclaredRoute, Registration},
    declared::{Declared, Taken},
    refusal::Refusal,
    session::End,
};
use crate::{
    Shared,
    app::App,
    dispatch::Class,
    endpoint::{Node, WorkerView},
    route::{HostPattern, Prefix, Route, Table, Target},
};
use chassis::config::Network;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::sync::{oneshot, watch};

/// Nodes of one balancer. A balancer with more would spend its time on their heartbeats.
const NODES_MAX: usize = 4096;
/// Streams of one instance that are open at the same time, registered or not: an old one, its successor, and room for
/// those whose end has not been noticed.
const STREAMS_MAX: u32 = 4;

/// Everybody who is registered, and what they declared.
#[derive(Debug)]
pub(crate) struct Directory {
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    /// Counts registrations.
    registrations: watch::Sender<u64>,
}

/// A declared route, as it goes over to a process that takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) app: String,
    pub(crate) host: HostPattern,
    pub(crate) prefix: Prefix,
    pub(crate) strip_prefix: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// By instance.
    members: HashMap<String, Member>,
    /// By instance: open streams.
    streams: HashMap<String, u32>,
    declared: Declared,
    denied: HashSet<String>,
    numbers: u64,
    /// Nodes are sent away, and requests that are here still go to their workers.
    frozen: bool,
}

/// One live registration.
#[derive(Debug)]
struct Member {
    /// Tells it from an older one of the same instance.
    number: u64,
    app: Arc<App>,
    /// Ends its session.
    end: oneshot::Sender<End>,
    leaving: bool,
    since: SystemTime,
}

/// A live registration, for the status page.
#[derive(Clone, Debug)]
pub(crate) struct MemberView {
    pub(crate) instance: String,
    pub(crate) leaving: bool,
    pub(crate) since: SystemTime,
}

impl Directory {
    /// Nobody is registered. The configured routes of `shared` beat declared ones.
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, inner: Mutex::default(), registrations: watch::Sender::new(0) })
    }

    /// Where workers may be besides at their node's own address, as of now.
    pub(crate) fn advertised_networks(&self) -> Vec<Network> {
        self.shared.config.load().advertised_networks.clone()
    }

    /// A place for one more stream of this instance.
    pub(crate) fn open(self: &Arc<Self>, instance: &str) -> Result<Stream, Refusal> {
        let mut inner = self.lock();
        if inner.streams.values().map(|count| *count as usize).sum::<usize>() >= 2 * NODES_MAX {
            return Err(Refusal::Full("on this balancer"));
        }
        let count = inner.streams.entry(instance.to_owned()).or_default();
        if *count >= STREAMS_MAX {
            return Err(Refusal::Full("of this instance"));
        }
        *count += 1;
        Ok(Stream { directory: Arc::clone(self), instance: instance.to_owned() })
    }

    /// Takes a node in. An older registration of the same instance ends, and its endpoints go on under this one.
    pub(crate) fn register(self: &Arc<Self>, registration: Registration) -> Result<Lease, Refusal> {
        let Registration { node, app, routes, workers, .. } = registration;
        let mut inner = self.lock();
        let instance = node.instance.clone();
        if inner.denied.contains(&instance) {
            return Err(Refusal::Denied);
        }
        if inner.members.len() >= NODES_MAX && !inner.members.contains_key(&instance) {
            return Err(Refusal::Full("on this balancer"));
        }
        let Inner { members, declared, numbers, .. } = &mut *inner;
        // A node that changes its app does not keep its old one alive.
        let live = |app: &str| members.iter().any(|(name, member)| *name != instance && member.app.name() == app);
        let changed = declared
            .declare(&app, routes, live)
            .map_err(|Taken { prefix, holder }| Refusal::Taken { prefix, holder })?;
        if changed {
            self.publish(declared);
        }
        *numbers += 1;
        let number = *numbers;
        let (end, ended) = oneshot::channel();
        let app = self.shared.apps.obtain(&app);
        let member = Member { number, app: Arc::clone(&app), end, leaving: false, since: SystemTime::now() };
        if let Some(old) = members.insert(instance, member) {
            if !Arc::ptr_eq(&old.app, &app) {
                old.app.remove_node(&node.instance);
            }
            // The session may have just ended by itself.
            let _ = old.end.send(End::Superseded);
        }
        let node = Arc::new(node);
        app.apply(&node, &workers);
        drop(inner);
        self.registrations.send_modify(|count| *count += 1);
        Ok(Lease { directory: Arc::clone(self), number, node, app, ended })
    }

    /// From now on these instances, and no others, are kept out. Those that are in are ended.
    pub(crate) fn deny(&self, denied: HashSet<String>) {
        let mut inner = self.lock();
        inner.denied = denied;
        let Inner { members, denied, .. } = &mut *inner;
        for (instance, member) in members.extract_if(|instance, _| denied.contains(instance)) {
            // Here and now: the session hears of it a moment later.
            member.app.remove_node(&instance);
            let _ = member.end.send(End::Denied);
        }
        drop(inner);
    }

    /// Every declared route.
    pub(crate) fn legacy(&self) -> Vec<Inherited> {
        let inner = self.lock();
        let routes = inner.declared.iter().map(|(app, DeclaredRoute { host, prefix, strip_prefix })| Inherited {
            app: app.to_owned(),
            host: host.clone(),
            prefix: prefix.clone(),
            strip_prefix: *strip_prefix,
        });
        routes.collect()
    }

    /// The declared routes of the process that is taken over: requests for them wait for the first node.
    pub(crate) fn inherit(&self, routes: Vec<Inherited>) {
        let mut by_app: BTreeMap<String, Vec<DeclaredRoute>> = BTreeMap::new();
        for Inherited { app, host, prefix, strip_prefix } in routes {
            by_app.entry(app).or_default().push(DeclaredRoute { host, prefix, strip_prefix });
        }
        let mut inner = self.lock();
        for (app, routes) in by_app {
            // nobody is live yet, so nobody's route can be taken
            let _ = inner.declared.declare(&app, routes, |_| false);
        }
        self.publish(&inner.declared);
    }

    /// From now on the end of a registration takes no endpoint away: what is here still is served by the workers that
    /// are known now.
    pub(crate) fn freeze(&self) {
        self.lock().frozen = true;
    }

    /// The configured routes are others now.
    pub(crate) fn republish(&self) {
        self.publish(&self.lock().declared);
    }

    /// Changes with every registration.
    pub(crate) fn registrations(&self) -> watch::Receiver<u64> {
        self.registrations.subscribe()
    }

    /// Sorted by instance.
    pub(crate) fn members(&self) -> Vec<MemberView> {
        let inner = self.lock();
        let members = inner.members.iter().map(|(instance, member)| MemberView {
            instance: instance.clone(),
            leaving: member.leaving,
            since: member.since,
        });
        let mut members: Vec<_> = members.collect();
        drop(inner);
        members.sort_by(|one, other| one.instance.cmp(&other.instance));
        members
    }

    fn publish(&self, declared: &Declared) {
        let declared: Vec<Route> = declared
            .iter()
            .map(|(app, route)| Route {
                host: route.host.clone(),
                prefix: route.prefix.clone(),
                target: Target::App(self.shared.apps.obtain(app)),
                strip_prefix: route.strip_prefix,
                class: Class::default(),
            })
            .collect();
        self.shared.routes.store(Arc::new(Table::new(&self.shared.configured(), &declared)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is a few inserts of plain data; nothing in between can panic but a broken invariant of `app`.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open stream of an instance, until dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    directory: Arc<Directory>,
    instance: String,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.directory.lock();
        if let Some(count) = inner.streams.get_mut(&self.instance) {
            *count -= 1;
            if *count == 0 {
                inner.streams.remove(&self.instance);
            }
        }
    }
}

/// A registration's right to exist. Dropped, its node is out of rotation at once, unless a newer registration of the
/// instance has taken over.
#[derive(Debug)]
pub(crate) struct Lease {
    directory: Arc<Directory>,
    number: u64,
    node: Arc<Node>,
    app: Arc<App>,
    /// Says why when somebody else ends it.
    ended: oneshot::Receiver<End>,
}

impl Lease {
    pub(crate) fn app(&self) -> &Arc<App> {
        &self.app
    }

    pub(crate) fn instance(&self) -> &str {
        &self.node.instance
    }

    /// Returns when a newer registration, or a denial, ends this one.
    pub(crate) async fn ended(&mut self) -> End {
        // The sender lives as long as the member, which is either this lease's or was ended with a word.
        (&mut self.ended).await.unwrap_or(End::Superseded)
    }

    /// The node's newest report; one that a newer registration has overtaken counts for nothing.
    pub(crate) fn apply(&self, workers: &[WorkerView]) {
        let inner = self.directory.lock();
        if self.is_current(&inner) {
            self.app.apply(&self.node, workers);
        }
    }

    /// The node wants to go: nothing new for it.
    pub(crate) fn leave(&self) {
        let mut inner = self.directory.lock();
        if self.is_current(&inner) {
            self.app.drain_node(self.instance());
            if let Some(member) = inner.members.get_mut(self.instance()) {
                member.leaving = true;
            }
        }
    }

    fn is_current(&self, inner: &Inner) -> bool {
        inner.members.get(self.instance()).is_some_and(|member| member.number == self.number)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.directory.lock();
        if self.is_current(&inner) && !inner.frozen {
            inner.members.remove(self.instance());
            self.app.remove_node(self.instance());
        }
    }
}
