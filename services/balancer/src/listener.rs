//! The public listeners: one thread with its own runtime per core.

use crate::Shared;
use chassis::lifecycle::Lifecycle;
use std::{io, net::TcpListener, sync::Arc};

/// The sockets of one core: bound with SO_REUSEPORT, non-blocking.
#[derive(Debug, Default)]
pub struct Sockets {
    pub http: Option<TcpListener>,
    pub https: Option<TcpListener>,
}

/// The running cores.
#[derive(Debug)]
pub struct Cores {}

impl Cores {
    /// Returns when every connection has ended after `Draining` (at most `config.drain` later, or at `Stopping`), and the logs are written.
    pub async fn drained(self) {
        unimplemented!()
    }
}

/// Starts one named thread per entry of `sockets`.
pub fn spawn_cores(_shared: &Arc<Shared>, _sockets: Vec<Sockets>, _lifecycle: &Lifecycle) -> io::Result<Cores> {
    unimplemented!()
}
