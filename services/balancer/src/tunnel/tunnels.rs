//! The tunnels of one client's connection. In: those whose 101 or 200 is about to be passed on. Out: each runs to its end;
//! what is left when the connection's task is dropped, ends with it. Over HTTP/1.1 all of the connection becomes one, once
//! hyper has let go of it; over HTTP/2 each is a stream, and a task beside the connection's.

use super::Tunnel;
use crate::record::Record;
use http::Version;
use std::cell::{Cell, RefCell};
use tokio::task::JoinSet;

/// Of one connection, at once. Its streams are no limit: when a client has ended and then reset one, nothing tells for a while
/// that nobody waits for the worker's last words.
const MOST: usize = 128;

#[derive(Default)]
pub(crate) struct Tunnels {
    whole: Cell<Option<(Tunnel, Box<Record>)>>,
    /// `None` before the first one.
    streams: RefCell<Option<JoinSet<()>>>,
}

impl Tunnels {
    pub(crate) fn begin(&self, tunnel: Tunnel, record: Box<Record>) {
        if record.version < Version::HTTP_2 {
            self.whole.set(Some((tunnel, record)));
        } else {
            self.streams.borrow_mut().get_or_insert_default().spawn_local(tunnel.run(record));
        }
    }

    pub(crate) fn are_full(&self) -> bool {
        let mut streams = self.streams.borrow_mut();
        let Some(streams) = &mut *streams else { return false };
        while streams.try_join_next().is_some() {}
        streams.len() >= MOST
    }

    /// After the last request: to the end of all of them. None begins any more.
    pub(crate) async fn run(&self) {
        if let Some((tunnel, record)) = self.whole.take() {
            tunnel.run(record).await;
        }
        let Some(mut streams) = self.streams.take() else { return };
        while streams.join_next().await.is_some() {}
    }
}
