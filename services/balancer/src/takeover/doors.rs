//! Second descriptors of every listening socket, for whoever takes over. In: the sockets, once bound. Out: copies of them.
//! Closed as soon as this process begins to drain: a socket that is open and from which nobody accepts would swallow
//! clients.

use std::{
    fs::File,
    io,
    net::TcpListener,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Every listening socket of a process.
#[derive(Debug)]
pub(crate) struct Opened {
    /// One per core; none where it is off.
    pub(crate) http: Vec<TcpListener>,
    pub(crate) https: Vec<TcpListener>,
    pub(crate) control: TcpListener,
    pub(crate) admin: Option<TcpListener>,
}

/// What goes over: the sockets, and the lock of the identity, which says that it is in use.
#[derive(Debug)]
pub(crate) struct Estate {
    pub(crate) opened: Opened,
    pub(crate) lock: File,
}

impl Opened {
    /// The same sockets under other descriptors.
    pub(crate) fn copies(&self) -> io::Result<Self> {
        let all = |sockets: &[TcpListener]| sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>();
        Ok(Self {
            http: all(&self.http)?,
            https: all(&self.https)?,
            control: self.control.try_clone()?,
            admin: self.admin.as_ref().map(TcpListener::try_clone).transpose()?,
        })
    }

    /// In the order in which they go over.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let public = self.http.iter().chain(&self.https);
        public.chain([&self.control]).chain(&self.admin).map(|socket| socket.as_fd()).collect()
    }
}

/// `None` before everything is bound, and from the drain on.
#[derive(Debug, Default)]
pub(crate) struct Doors(Mutex<Option<Opened>>);

impl Doors {
    pub(crate) fn open(&self, opened: Opened) {
        *self.lock() = Some(opened);
    }

    /// Whoever drains first calls it; again does nothing.
    pub(crate) fn close(&self) {
        drop(self.lock().take());
    }

    /// Copies of copies: sending them may take its time.
    pub(super) fn copies(&self) -> io::Result<Opened> {
        self.lock().as_ref().ok_or_else(|| io::Error::other("the sockets are closed already"))?.copies()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        // put in and taken out whole
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
