//! The accepting side. In: a listener. Out: connections whose handshake is done, each with the name that its other end
//! has proved, for `tonic::transport::Server::serve_with_incoming`.
//!
//! Handshakes run in parallel and take the newest identity each. How many there are, how many of one address, how long
//! each may take and how many connections live at a time is bounded, so that strangers cost little and cannot keep
//! members out for longer than a handshake. A connection ends with its peer's certificate; one without a certificate
//! has half a minute for the one call that needs none. Errors of single connections never reach the caller.

use super::{Identity, PeerId, tls};
use futures_util::{Stream, stream::unfold};
use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

/// From the accepted connection to the end of its handshake.
const DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes at a time, in all and of one address. A whole cluster on one machine has one address.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKES_OF_ONE_MAX: usize = 64;
/// Connections at a time; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 4096;
/// Of these without a certificate; more are refused.
const STRANGERS_MAX: usize = 256;
/// A stranger's whole connection: one enrolment.
const STRANGER_LIFE: Duration = Duration::from_secs(30);
/// The services end a stream when its peer's certificate expires, with a reason; this is for what is left after that.
const EXPIRY_GRACE: Duration = Duration::from_secs(2);
/// After an accept failed for our own lack of descriptors: at once it would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// At most one line about refused handshakes in this time; the rest is counted in the next.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_millis(100);

/// Whether a client must have a certificate. One that it presents is verified either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// Enrolment: who has none yet may come in without.
    Optional,
}

/// Who is at the other end; in every tonic request's extensions.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    pub address: SocketAddr,
    /// `None` only with [`ClientAuth::Optional`].
    pub peer: Option<PeerId>,
}

/// A connection whose handshake is done.
pub struct Incoming {
    tls: TlsStream<TcpStream>,
    info: PeerInfo,
    /// When the other end's right to be here is over.
    end: Pin<Box<Sleep>>,
    _places: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
}

/// Connections whose handshake is done, for ever.
pub(super) fn incoming(
    identity: Identity,
    listener: TcpListener,
    clients: ClientAuth,
) -> impl Stream<Item = io::Result<Incoming>> + Send + use<> {
    let door = Door {
        identity,
        listener,
        clients,
        places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
        addresses: Addresses::default(),
        handshakes: JoinSet::new(),
        unlogged: 0,
        logged: None,
    };
    unfold(door, |mut door| async move {
        let next = door.next().await;
        Some((Ok(next), door))
    })
}

struct Door {
    identity: Identity,
    listener: TcpListener,
    clients: ClientAuth,
    places: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    addresses: Addresses,
    handshakes: JoinSet<Result<Incoming, Refused>>,
    /// Refusals since the last line about one.
    unlogged: u64,
    logged: Option<Instant>,
}

/// Why somebody did not come in.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("the handshake took longer than {DEADLINE:?}")]
    TimedOut,
    /// A port scanner, a probe, or a client that did not trust us.
    #[error("it went away during the handshake: {0}")]
    Gone(io::Error),
    #[error("{}", tls::explain(.0))]
    Tls(rustls::Error),
    #[error("too many handshakes from this address at a time")]
    TooMany,
    #[error("too many connections without a certificate at a time")]
    Strangers,
}

#[derive(Debug)]
struct Refused {
    address: SocketAddr,
    reason: Reason,
}

impl Door {
    async fn next(&mut self) -> Incoming {
        loop {
            let room = self.handshakes.len() < HANDSHAKES_MAX;
            tokio::select! {
                Some(joined) = self.handshakes.join_next() => match joined {
                    Ok(Ok(incoming)) => {
                        self.count("accepted");
                        return incoming;
                    }
                    Ok(Err(refused)) => self.refuse(&refused),
                    Err(error) => tracing::error!(%error, "a handshake's task failed"),
                },
                (place, accepted) = accept(&self.listener, &self.places), if room => match accepted {
                    Ok((tcp, address)) => self.greet(tcp, address, place),
                    Err(error) => {
                        tracing::warn!(%error, "the control listener cannot accept");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn greet(&mut self, tcp: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let Some(counted) = self.addresses.count(address.ip()) else {
            return self.refuse(&Refused { address, reason: Reason::TooMany });
        };
        let config = tls::server_config(&self.identity.material(), self.clients);
        let strangers = self.strangers.clone();
        self.handshakes.spawn(async move {
            let shaken = timeout(DEADLINE, shake(tcp, config)).await.unwrap_or(Err(Reason::TimedOut));
            drop(counted);
            shaken.and_then(|tls| admit(tls, address, place, strangers)).map_err(|reason| Refused { address, reason })
        });
    }

    fn refuse(&mut self, refused: &Refused) {
        let Refused { address, reason } = refused;
        match reason {
            Reason::Gone(_) => {
                self.count("gone");
                return tracing::debug!(%address, %reason, "no handshake");
            }
            Reason::TimedOut => self.count("timed_out"),
            Reason::Tls(_) => self.count("refused"),
            Reason::TooMany | Reason::Strangers => self.count("too_many"),
        }
        let now = Instant::now();
        if self.logged.is_some_and(|last| now.duration_since(last) < REFUSALS_LOGGED_EVERY) {
            self.unlogged += 1;
            return;
        }
        tracing::warn!(%address, %reason, unlogged = self.unlogged, "control connection refused");
        (self.logged, self.unlogged) = (Some(now), 0);
    }

    fn count(&self, result: &'static str) {
        let role = self.identity.peer().role;
        metrics::counter!(format!("servery_{role}_control_handshakes_total"), "result" => result).increment(1);
    }
}

/// Takes a place first: connections beyond the limit wait in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (OwnedSemaphorePermit, io::Result<(TcpStream, SocketAddr)>) {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            // The client was gone before we came to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            accepted => return (place, accepted),
        }
    }
}

async fn shake(tcp: TcpStream, config: Arc<rustls::ServerConfig>) -> Result<TlsStream<TcpStream>, Reason> {
    tcp.set_nodelay(true).map_err(Reason::Gone)?;
    TlsAcceptor::from(config).accept(tcp).await.map_err(|error| match error.downcast::<rustls::Error>() {
        Ok(error) => Reason::Tls(error),
        Err(error) => Reason::Gone(error),
    })
}

fn admit(
    tls: TlsStream<TcpStream>,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
    strangers: Arc<Semaphore>,
) -> Result<Incoming, Reason> {
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    // The verifier has read the same name a moment ago, so no one with a certificate becomes a stranger here.
    let peer = leaf.and_then(|leaf| PeerId::from_certificate(leaf).ok());
    let (life, stranger) = match &peer {
        Some(peer) => (peer.not_after.duration_since(SystemTime::now()).unwrap_or_default() + EXPIRY_GRACE, None),
        None => (STRANGER_LIFE, Some(strangers.try_acquire_owned().map_err(|_| Reason::Strangers)?)),
    };
    let info = PeerInfo { address, peer };
    Ok(Incoming { tls, info, end: Box::pin(sleep(life)), _places: (place, stranger) })
}

/// Handshakes in progress, by address.
#[derive(Clone, Debug, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One handshake, until it is dropped.
#[derive(Debug)]
struct Counted {
    addresses: Addresses,
    ip: IpAddr,
}

impl Addresses {
    fn count(&self, ip: IpAddr) -> Option<Counted> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= HANDSHAKES_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Counted { addresses: self.clone(), ip })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Connected for Incoming {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.as_mut().poll(cx).is_ready() {
            let over =
                if self.info.peer.is_some() { "its certificate has expired" } else { "it did not enrol in time" };
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, over)));
        }
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
