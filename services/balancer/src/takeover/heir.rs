//! The new balancer's side. In: the data directory of the running one, its sockets. Out: listening sockets to serve
//! with, once this process is ready and the old one has let go. Every failure before that leaves the old one as it was.

use super::{
    PROMPT, READY, SOCKET, Short,
    doors::{Estate, Opened},
    giver::is_ours,
    parcel,
};
use crate::{Config, registry::Inherited};
use chassis::{admin::Readiness, listen::ListenAddr};
use std::{
    io,
    net::TcpListener,
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

/// How long this process may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// Why the running balancer was not taken over.
#[derive(Debug, Error)]
pub(crate) enum TakeoverError {
    #[error(
        "no balancer answers at {path}: {source}. Is one running, and is this its data directory? Without one, start \
         without --takeover"
    )]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("the takeover socket belongs to another user: take over as the user that the running balancer has")]
    Foreign,
    #[error("the running balancer did not hand its sockets over: {0}")]
    Parcel(#[source] io::Error),
    #[error(
        "{key} is {configured} here and {bound} in the running balancer: a takeover changes no address, a restart does"
    )]
    Address { key: &'static str, configured: ListenAddr, bound: String },
    #[error("not ready after {} s, so the running balancer goes on: {}", READY_LIMIT.as_secs(), .0)]
    Late(String),
    #[error("the running balancer ended while this one became ready: {0}")]
    Gone(#[source] io::Error),
}

/// What the running balancer has given, until it is told that it may go.
#[derive(Debug)]
pub(crate) struct Inheritance {
    pub(crate) estate: Estate,
    pub(crate) routes: Vec<Inherited>,
    stream: UnixStream,
}

impl Inheritance {
    /// Asks the balancer that runs with this data directory.
    pub(crate) async fn ask(data: &Path) -> Result<Self, TakeoverError> {
        let unreachable = |source| TakeoverError::Unreachable { path: data.join(SOCKET), source };
        let short = Short::of(data).map_err(unreachable)?;
        let stream = UnixStream::connect(short.join(SOCKET)).await.map_err(unreachable)?;
        if !is_ours(&stream) {
            return Err(TakeoverError::Foreign);
        }
        let received = tokio::task::spawn_blocking(move || -> io::Result<(StdStream, Estate, Vec<Inherited>)> {
            let stream = stream.into_std()?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(PROMPT))?;
            let (estate, routes) = parcel::receive(&stream)?;
            stream.set_nonblocking(true)?;
            Ok((stream, estate, routes))
        });
        let received = received.await.map_err(io::Error::other).and_then(|received| received);
        let (stream, estate, routes) = received.map_err(TakeoverError::Parcel)?;
        let stream = UnixStream::from_std(stream).map_err(TakeoverError::Parcel)?;
        Ok(Self { estate, routes, stream })
    }

    /// The addresses that are configured here must be those of the sockets.
    pub(crate) fn check(&self, config: &Config) -> Result<(), TakeoverError> {
        let Opened { http, https, control, admin } = &self.estate.opened;
        for (key, configured, socket) in [
            ("balancer.http", config.http, http.first()),
            ("balancer.https", config.https, https.first()),
            ("balancer.control", config.control, Some(control)),
            ("balancer.admin", config.admin, admin.as_ref()),
        ] {
            if !fits(configured, socket) {
                let address = socket.and_then(|socket| socket.local_addr().ok());
                let bound = address.map_or_else(|| "off".to_owned(), |address| address.to_string());
                return Err(TakeoverError::Address { key, configured, bound });
            }
        }
        Ok(())
    }

    /// Waits until this process is ready, tells the running one so, and waits until that has let go.
    pub(crate) async fn take(mut self, readiness: &Readiness) -> Result<(), TakeoverError> {
        let deadline = Instant::now() + READY_LIMIT;
        while !readiness.is_ready() {
            if Instant::now() >= deadline {
                return Err(TakeoverError::Late(readiness.reasons().join(", ")));
            }
            sleep(LOOK).await;
        }
        self.stream.write_u8(READY).await.map_err(TakeoverError::Gone)?;
        // A process that ends now has let go as well; one that hangs has heard the word, and accepts beside us at worst.
        let _ = timeout(PROMPT, self.stream.read_u8()).await;
        Ok(())
    }
}

/// Whether binding this address would have given this socket.
fn fits(configured: ListenAddr, socket: Option<&TcpListener>) -> bool {
    let bound = socket.and_then(|socket| socket.local_addr().ok());
    match (configured, bound) {
        (ListenAddr::Off, None) => socket.is_none(),
        (ListenAddr::All(port), Some(bound)) => bound.ip().is_unspecified() && (port == 0 || port == bound.port()),
        (ListenAddr::At(at), Some(bound)) => at.ip() == bound.ip() && (at.port() == 0 || at.port() == bound.port()),
        (ListenAddr::Off, Some(_)) | (ListenAddr::All(_) | ListenAddr::At(_), None) => false,
    }
}
