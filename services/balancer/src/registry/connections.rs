//! How many connections the registry has. In: connections whose handshake is done. Out: the same, each with a place
//! that it gives back when it ends; those without a place are closed. An instance that opens one connection after
//! another must not take the descriptors of everybody else.

use chassis::identity::{Incoming, PeerInfo};
use futures_util::{Stream, StreamExt as _, future};
use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

const EACH_MAX: u32 = 8;
const ALL_MAX: u32 = 8192;

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    each: HashMap<String, u32>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Connections {
    counts: Arc<Mutex<Counts>>,
}

impl Connections {
    /// Lets through what has a place, and what is an error.
    pub(crate) fn counted(
        self,
        incoming: impl Stream<Item = io::Result<Incoming>>,
    ) -> impl Stream<Item = io::Result<Counted>> {
        incoming.filter_map(move |incoming| {
            future::ready(match incoming {
                Ok(io) => self.admit(io).map(Ok),
                Err(error) => Some(Err(error)),
            })
        })
    }

    fn admit(&self, io: Incoming) -> Option<Counted> {
        let PeerInfo { address, peer } = io.connect_info();
        let instance = peer.map(|peer| peer.instance).unwrap_or_default();
        let place = self.take(&instance);
        if place.is_none() {
            tracing::warn!(instance, %address, "connection to the registry closed: too many");
        }
        Some(Counted { io, _place: place? })
    }

    fn take(&self, instance: &str) -> Option<Place> {
        let mut counts = self.lock();
        let each = counts.each.get(instance).copied().unwrap_or(0);
        if counts.all >= ALL_MAX || each >= EACH_MAX {
            return None;
        }
        counts.all += 1;
        counts.each.insert(instance.to_owned(), each + 1);
        Some(Place { connections: self.clone(), instance: instance.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Place {
    connections: Connections,
    instance: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.connections.lock();
        counts.all -= 1;
        if let Some(each) = counts.each.get_mut(&self.instance) {
            *each -= 1;
            if *each == 0 {
                counts.each.remove(&self.instance);
            }
        }
    }
}

/// A connection with a place.
pub(crate) struct Counted {
    io: Incoming,
    _place: Place,
}

impl Connected for Counted {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_has_so_many_places_and_gets_them_back() {
        let connections = Connections::default();
        let mut places: Vec<_> = (0..EACH_MAX).map(|_| connections.take("greedy").unwrap()).collect();
        assert!(connections.take("greedy").is_none());
        assert!(connections.take("modest").is_some());
        places.pop();
        assert!(connections.take("greedy").is_some());
        drop(places);
        assert!(connections.lock().each.is_empty());
        assert_eq!(connections.lock().all, 0);
    }
}
