//! The balancer's view of one worker, and of the node it belongs to. Plain data: who may use it is decided in `dispatch`.

use http::HeaderValue;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// One live registration of an app-server.
#[derive(Debug)]
pub struct Node {
    /// From its certificate.
    pub instance: String,
    /// Where its stream comes from.
    pub address: SocketAddr,
    /// What its workers want to see with every request: lower-case hexadecimal, marked sensitive so that nothing prints it.
    pub pass: HeaderValue,
}

impl Node {
    pub fn new(instance: String, address: SocketAddr, pass: &[u8]) -> Self {
        let mut text = String::with_capacity(pass.len() * 2);
        for byte in pass {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).expect("four bits are a hexadecimal digit"));
            }
        }
        let mut pass = HeaderValue::try_from(text).expect("hexadecimal digits are a field value");
        pass.set_sensitive(true);
        Self { instance, address, pass }
    }
}

/// What a worker is doing, as its node reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerState {
    Starting,
    Ready,
    Draining,
}

impl WorkerState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
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
            picked: AtomicU64::new(0),
        }
    }

    /// True while nothing can be sent here, so that kept connections may be closed.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// A worker that vanished with its node's stream may be listed again when the node is back.
    pub(crate) fn list(&self, listed: bool) {
        self.gone.store(!listed, Ordering::Relaxed);
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
            && self.node.pass == node.pass
    }
}
