//! An app: its endpoints, and the one queue of requests that wait for a free permit.

use crate::endpoint::{Node, WorkerView};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Bounds of every app's queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub queue_length: usize,
    pub queue_deadline: Duration,
}

/// Every app this balancer has ever heard of: from its configuration or a registration.
#[derive(Debug)]
pub struct Apps {}

impl Apps {
    pub fn new(_limits: Limits) -> Arc<Self> {
        unimplemented!()
    }

    /// The app of that name, made if there is none yet.
    pub fn obtain(&self, _name: &str) -> Arc<App> {
        unimplemented!()
    }

    pub fn find(&self, _name: &str) -> Option<Arc<App>> {
        unimplemented!()
    }

    /// In the order of their names.
    pub fn all(&self) -> Vec<Arc<App>> {
        unimplemented!()
    }
}

/// A named application.
#[derive(Debug)]
pub struct App {
    name: Arc<str>,
    changed: Notify,
}

impl App {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole truth about one node's workers: what is not listed is gone. Permits held are carried over by
    /// (instance, position, generation); a vanished, starting or draining worker takes nothing new. A newer
    /// registration of the same instance takes the older one's endpoints over.
    pub fn apply(&self, _node: &Arc<Node>, _workers: &[WorkerView]) {
        unimplemented!()
    }

    /// The node is leaving: nothing new for its workers.
    pub fn drain_node(&self, _instance: &str) {
        unimplemented!()
    }

    /// The node's stream ended: its workers are out of rotation at once, and forgotten. Requests in flight go on.
    pub fn remove_node(&self, _instance: &str) {
        unimplemented!()
    }

    /// Requests of ours at the node now, also at workers it has ceased to report.
    pub fn in_flight(&self, _instance: &str) -> u32 {
        unimplemented!()
    }

    /// True when no worker of the node has more requests of ours than the newest report grants.
    pub fn within_grants(&self, _instance: &str) -> bool {
        unimplemented!()
    }

    /// Notified (`notify_waiters`) when `in_flight` or `within_grants` may have become what a control task waits for.
    /// Make the `notified()` future, and `enable` it, before looking.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    pub fn view(&self) -> AppView {
        unimplemented!()
    }
}

/// A picture of an app for the status page and the metrics: nodes by instance, workers by position and generation.
#[derive(Clone, Debug)]
pub struct AppView {
    pub name: Arc<str>,
    pub queue_depth: usize,
    pub in_flight: u64,
    pub nodes: Vec<NodeView>,
}

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
}
