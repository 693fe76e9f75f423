//! How a worker comes to its connections. Behind a balancer, whose socket is this worker's alone: all of them, at once.
//! Alone, where all workers of the node share one socket: only while it has a free slot, which the connection gets at
//! once, and after those that have nothing to do. It does not serve them.

use crate::{
    front::Front,
    slots::Slot,
    stream::{Listener, Stream},
};
use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    task::{JoinError, JoinSet},
    time::sleep,
};

/// Most connections of a worker at once. Balancers keep a few idle ones per core; tunnels count too.
const MOST_CONNECTIONS: usize = 8192;

/// Time to wait where accepting failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The head start of workers that have nothing to do, as Puma gives it.
const HEAD_START: Duration = Duration::from_millis(1);

/// After a head start a worker takes one connection for so many free slots, and at least one: one with many slots
/// would otherwise take a thousand connections a second at most.
const FREE_PER_CONNECTION: usize = 32;

/// A connection that is new.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    /// `None`: over a Unix socket.
    pub(crate) peer: Option<SocketAddr>,
    /// For its first request.
    pub(crate) slot: Option<Slot>,
}

/// The listening socket, and how many connections may still be taken before others get a head start again.
#[derive(Debug)]
struct Door {
    listener: Listener,
    admitted: usize,
}

impl Front {
    /// Accepts until it is dropped, which ends every connection that is left.
    pub(crate) async fn accept(self: Arc<Self>, listener: Listener) {
        let mut connections = JoinSet::new();
        {
            // kept while connections end, so that no head start begins anew
            let mut next = pin!(Door { listener, admitted: 0 }.next(&self));
            loop {
                tokio::select! {
                    (door, accepted) = &mut next => {
                        connections.spawn(Arc::clone(&self).serve(accepted));
                        next.set(door.next(&self));
                    }
                    Some(ended) = connections.join_next() => log_end(ended),
                    // the other workers take what comes
                    () = self.drained(), if self.stands_alone() => break,
                }
            }
        }
        while let Some(ended) = connections.join_next().await {
            log_end(ended);
        }
    }
}

impl Door {
    /// The next connection, and the door for the one after it.
    async fn next(mut self, front: &Front) -> (Self, Accepted) {
        loop {
            front.open.fewer_than(MOST_CONNECTIONS).await;
            if front.stands_alone() {
                front.slots.one_free().await;
            }
            match self.try_next(front).await {
                Ok(Some(accepted)) => return (self, accepted),
                Ok(None) => {}
                Err(error) if died_in_the_backlog(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections just now");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// `None`: another worker was faster, or the last slot has gone meanwhile.
    async fn try_next(&mut self, front: &Front) -> io::Result<Option<Accepted>> {
        let mut ready = self.listener.readable().await?;
        if front.stands_alone() && front.slots.busy() > 0 && self.admitted == 0 {
            sleep(HEAD_START).await;
            self.admitted = (front.slots.free() / FREE_PER_CONNECTION).max(1);
        }
        if front.stands_alone() && !front.slots.has_free() {
            return Ok(None);
        }
        self.admitted = self.admitted.saturating_sub(1);
        let Some(accepted) = self.listener.accept(&mut ready) else { return Ok(None) };
        let (stream, peer) = accepted?;
        let slot = if front.stands_alone() { front.slots.take() } else { None };
        Ok(Some(Accepted { stream, peer, slot }))
    }
}

fn log_end(ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("the application panicked while its answer was being sent: the answer is cut");
    }
}

/// The peer gave up before we accepted: says nothing about the listener.
fn died_in_the_backlog(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
