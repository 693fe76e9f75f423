//! The balancer's view of one worker, and of the node it belongs to. Plain data: who may use it is decided in `dispatch`.

use crate::{config::UpstreamProtocol, fields, foreign::Foreign};
use http::{HeaderMap, HeaderValue, uri::Scheme};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// How much longer than a worker's own limit we wait for it: it answers first where it still can, and where it cannot
/// the client has our answer within a second of the limit.
const GRACE: Duration = Duration::from_millis(750);
/// A worker keeps idle connections for 300 s; we close ours long before, so that no request meets a closing one.
const KEPT: Duration = Duration::from_secs(60);

/// One live registration of an app-server, or one address of a fixed upstream.
#[derive(Debug)]
pub struct Node {
    /// From its certificate; of a fixed upstream, what the configuration calls it.
    pub instance: String,
    /// Where its stream comes from.
    pub address: SocketAddr,
    pub server: Server,
    /// Its workers' own limit to a response head, and between two parts of a body, where it is known.
    pub timeout: Option<Duration>,
}

/// What sort of server a node is, and so how its workers are spoken with.
#[derive(Clone, Debug)]
pub enum Server {
    /// An app-server of this cluster. Its workers want to see the pass with every request: lower-case hexadecimal, marked
    /// sensitive so that nothing prints it.
    App { pass: HeaderValue },
    /// Any HTTP server that the configuration names. It knows nothing of us and tells us nothing.
    Foreign(Arc<Foreign>),
}

impl Server {
    /// The very same one: a restarted app-server has a new pass, and a foreign one whose settings changed is another.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::App { pass }, Self::App { pass: other }) => pass == other,
            (Self::Foreign(foreign), Self::Foreign(other)) => Arc::ptr_eq(foreign, other),
            (Self::App { .. }, Self::Foreign(_)) | (Self::Foreign(_), Self::App { .. }) => false,
        }
    }
}

impl Node {
    /// An app-server with this pass.
    pub fn new(instance: String, address: SocketAddr, pass: &[u8]) -> Self {
        let mut text = String::with_capacity(pass.len() * 2);
        for byte in pass {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).expect("four bits are a hexadecimal digit"));
            }
        }
        let mut pass = HeaderValue::try_from(text).expect("hexadecimal digits are a field value");
        pass.set_sensitive(true);
        Self { instance, address, server: Server::App { pass }, timeout: None }
    }

    /// It reports: which slots are free again after their request has left, which of its workers died, that it refuses a
    /// request. What a server that does not report says with fields of ours means nothing.
    pub fn reports(&self) -> bool {
        matches!(self.server, Server::App { .. })
    }

    /// Requests to it are streams of connections that they share.
    pub fn speaks_http2(&self) -> bool {
        matches!(&self.server, Server::Foreign(foreign) if foreign.protocol == UpstreamProtocol::Http2)
    }

    /// What its own URL begins with.
    pub fn scheme(&self) -> Scheme {
        match &self.server {
            Server::Foreign(foreign) if foreign.security.is_some() => Scheme::HTTPS,
            Server::Foreign(_) | Server::App { .. } => Scheme::HTTP,
        }
    }

    /// How long a connection to it may be idle and still be used.
    pub fn keeps(&self) -> Duration {
        match &self.server {
            Server::App { .. } => KEPT,
            Server::Foreign(foreign) => foreign.keepalive,
        }
    }

    /// Adds what it wants to see in a request on the connection of this name.
    pub fn sign(&self, headers: &mut HeaderMap, connection: &HeaderValue) {
        match &self.server {
            Server::App { pass } => {
                headers.insert(fields::SERVERY_PASS, pass.clone());
                headers.insert(fields::SERVERY_CONNECTION, connection.clone());
            }
            Server::Foreign(foreign) => foreign.sign(headers),
        }
    }

    /// How long its workers may be silent, and never longer than `most`.
    pub fn patience(&self, most: Duration) -> Duration {
        self.timeout.map_or(most, |timeout| most.min(timeout.saturating_add(GRACE)))
    }
}

/// What a worker is doing, as its node reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    Starting,
    Ready,
    Draining,
    /// Says nothing: it takes nothing new, keeps what it has, and may come back as the same worker.
    Stalled,
}

impl WorkerState {
    pub const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Stalled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stalled => "stalled",
        }
    }
}

/// One worker as its node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    pub position: u32,
    pub generation: u64,
    pub address: SocketAddr,
    pub state: WorkerState,
    pub pid: u32,
    /// Slots in all.
    pub capacity: u32,
    /// How many requests this balancer may have in flight here.
    pub grant: u32,
    pub busy: u32,
    pub served: u64,
    pub restarts: u32,
    /// When it was reported.
    pub age: Duration,
    /// Resident.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millicores: u32,
    /// The position's restarts by cause. Shared, because views of a worker are copied with every report.
    pub restarts_by_cause: Arc<BTreeMap<String, u32>>,
    /// Slots occupied by requests of ours whose connection has ended.
    pub orphaned: u32,
    /// How long a request occupies its slot, where it is known.
    pub service: Option<Duration>,
    /// Requests that wait in the worker for its next free slot.
    pub on_deck: u32,
}

impl WorkerView {
    /// A fresh worker of which nothing else is known, ready for as many requests as it is granted.
    pub fn ready(position: u32, address: SocketAddr, grant: u32) -> Self {
        Self {
            position,
            generation: 1,
            address,
            state: WorkerState::Ready,
            pid: 1,
            capacity: grant.max(1),
            grant,
            busy: 0,
            served: 0,
            restarts: 0,
            age: Duration::ZERO,
            memory_bytes: 0,
            cpu_millicores: 0,
            restarts_by_cause: Arc::default(),
            orphaned: 0,
            service: None,
            on_deck: 0,
        }
    }
}

/// Names an endpoint within its app; never used twice, because `number` only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    pub(crate) number: u64,
    /// Where the dispatcher keeps it.
    pub(crate) seat: u32,
}

/// What a request needs to know of the worker it goes to.
#[derive(Debug)]
pub struct Endpoint {
    pub id: EndpointId,
    pub position: u32,
    pub generation: u64,
    pub address: SocketAddr,
    pub node: Arc<Node>,
    gone: AtomicBool,
    /// It is gone because its node is.
    lost: AtomicBool,
    /// Notified when it is gone.
    went: Notify,
    picked: AtomicU64,
}

impl Endpoint {
    pub fn new(id: EndpointId, node: &Arc<Node>, worker: &WorkerView) -> Self {
        Self {
            id,
            position: worker.position,
            generation: worker.generation,
            address: worker.address,
            node: Arc::clone(node),
            gone: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            went: Notify::new(),
            picked: AtomicU64::new(0),
        }
    }

    /// True while nothing can be sent here, so that kept connections may be closed.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Returns when nothing can be sent here any more.
    pub async fn gone(&self) {
        loop {
            let mut went = pin!(self.went.notified());
            went.as_mut().enable();
            if self.is_gone() {
                return;
            }
            went.await;
        }
    }

    /// True for a worker that is gone because its node's stream is: whether it died by itself nobody knows.
    pub fn is_lost(&self) -> bool {
        self.is_gone() && self.lost.load(Ordering::Relaxed)
    }

    /// A worker that vanished with its node's stream may be listed again when the node is back. `node_is_live`: the
    /// node itself says that it has gone.
    pub(crate) fn list(&self, listed: bool, node_is_live: bool) {
        if listed {
            self.gone.store(false, Ordering::Relaxed);
        } else if !self.is_gone() {
            self.lost.store(!node_is_live, Ordering::Relaxed);
            self.gone.store(true, Ordering::Release);
            self.went.notify_waiters();
        }
    }

    /// Requests that were given to this endpoint.
    pub fn picked(&self) -> u64 {
        self.picked.load(Ordering::Relaxed)
    }

    pub(crate) fn count_pick(&self) {
        self.picked.fetch_add(1, Ordering::Relaxed);
    }

    /// True for the same process behind the same socket: a restarted node may count its generations from the start
    /// again, but has a new pass.
    pub fn is(&self, node: &Node, worker: &WorkerView) -> bool {
        self.position == worker.position
            && self.generation == worker.generation
            && self.address == worker.address
            && self.node.instance == node.instance
            && self.node.server.is(&node.server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn a_workers_own_limit_is_given_less_than_a_second_more_and_never_more_than_ours() {
        let second = Duration::from_secs(1);
        let node = |timeout| Node { timeout, ..Node::new("node-1".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass") };
        assert_eq!(node(None).patience(60 * second), 60 * second);
        assert_eq!(node(Some(60 * second)).patience(60 * second), 60 * second);
        assert_eq!(node(Some(Duration::MAX)).patience(60 * second), 60 * second);
        let patience = node(Some(2 * second)).patience(60 * second);
        assert!(patience > 2 * second && patience < 3 * second, "{patience:?}");
    }

    #[tokio::test]
    async fn who_waits_for_the_end_of_an_endpoint_is_told_even_when_it_is_over() {
        let node = Arc::new(Node::new("node-1".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"));
        let worker = WorkerView::ready(0, ([127, 0, 0, 1], 9000).into(), 1);
        let endpoint = Endpoint::new(EndpointId { number: 1, seat: 0 }, &node, &worker);
        let mut gone = Box::pin(endpoint.gone());
        assert!((&mut gone).now_or_never().is_none());
        endpoint.list(true, true);
        assert!((&mut gone).now_or_never().is_none());
        endpoint.list(false, false);
        gone.await;
        endpoint.gone().await;
        assert!(endpoint.is_lost());
        endpoint.list(true, true);
        assert!(endpoint.gone().now_or_never().is_none(), "it is back");
        endpoint.list(false, true);
        endpoint.list(false, false);
        assert!(!endpoint.is_lost(), "it had gone before its node did");
    }
}
