//! Where workers listen: comes in an address for each, or one socket for all, goes out a worker's share of it; and when a
//! worker is dead, a refusal that can be tried elsewhere for whoever still comes to a socket that was its own.

use crate::process::bind;
use chassis::listen::ListenAddr;
use servery_worker::supervision::refuse_gone;
use std::{
    collections::VecDeque,
    io,
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// Most connections of one dead worker that are answered at the same time; the others wait in the kernel.
const GONE_AT_ONCE: usize = 256;

/// Where workers listen.
#[derive(Debug)]
pub(crate) enum Sockets {
    /// Each at an address of its own: the first ones bound already, so that an address in use is an error at the start.
    Own { first: ListenAddr, bound: Mutex<VecDeque<TcpListener>> },
    /// All at the same one, where clients come; until it is closed.
    Shared(Mutex<Option<OwnedFd>>),
}

/// A worker's listening socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Own(TcpListener),
    Shared(OwnedFd),
}

impl Sockets {
    /// Addresses of their own for this many workers, and for those after them.
    pub(crate) fn own(first: ListenAddr, workers: u32) -> io::Result<Self> {
        let bound = (0..workers).map(|_| bind(first)).collect::<io::Result<_>>()?;
        Ok(Self::Own { first, bound: Mutex::new(bound) })
    }

    /// One for all of them.
    pub(crate) fn shared(socket: OwnedFd) -> Self {
        Self::Shared(Mutex::new(Some(socket)))
    }

    /// For the next worker.
    pub(crate) fn next(&self) -> io::Result<Socket> {
        match self {
            Self::Own { first, bound } => {
                let bound = bound.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                bound.map_or_else(|| bind(*first), Ok).map(Socket::Own)
            }
            Self::Shared(socket) => {
                let socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
                let socket = socket.as_ref().ok_or_else(|| io::Error::other("the node's socket is closed"))?;
                socket.try_clone().map(Socket::Shared)
            }
        }
    }

    /// Lets go of a shared socket, so that it closes with the last worker that has it.
    pub(crate) fn close(&self) {
        if let Self::Shared(socket) = self {
            socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

impl Socket {
    /// 0 where it is not the worker's own.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Own(socket) => socket.local_addr().map_or(0, |address| address.port()),
            Self::Shared(_) => 0,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(socket) => socket.as_fd(),
            Self::Shared(socket) => socket.as_fd(),
        }
    }
}

/// Answers whoever comes to the socket of a dead worker, for a while.
pub(crate) async fn refuse_all(socket: TcpListener, for_long: Duration) {
    let until = Instant::now() + for_long;
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the socket of a dead worker cannot be answered");
            return;
        }
    };
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if answering.len() < GONE_AT_ONCE => match accepted {
                Ok((stream, _)) => {
                    answering.spawn(refuse_gone(stream));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept for a dead worker");
                    sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = answering.join_next() => {}
            () = sleep_until(until) => break,
        }
    }
    drop(listener);
    while answering.join_next().await.is_some() {}
}
