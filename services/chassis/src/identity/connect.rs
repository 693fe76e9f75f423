//! The dialling side. In: an address and the role that should be there. Out: a gRPC channel over one connection whose
//! other end has proved that role, and its name. A channel never dials again by itself: the next connection might
//! lead to another instance, so whoever loses one dials anew and looks at the name.

use super::{Material, PeerId, Role, tls};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// From the first packet to the end of the handshake.
const DEADLINE: Duration = Duration::from_secs(5);
/// For the first packet to be answered, which needs no process of the other side. A dial that goes on asks ever more
/// rarely, so it is better begun anew: a peer that is reached again is to be found at once.
const ANSWERED: Duration = Duration::from_millis(1500);

/// How a peer is noticed that was cut off without a word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    /// It is asked when it has been silent for so long.
    pub(super) every: Duration,
    pub(super) answered: Duration,
}

/// For whoever can wait.
pub(super) const CALM: Pulse = Pulse { every: Duration::from_secs(2), answered: Duration::from_secs(4) };

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} did not answer within {DEADLINE:?}")]
    TimedOut(SocketAddr),
    #[error("cannot connect to {address}: {source}")]
    Unreachable { address: SocketAddr, source: io::Error },
    /// We do not trust it.
    #[error("who answers at {address} is not who it should be: {}", tls::explain(source))]
    Untrusted { address: SocketAddr, source: rustls::Error },
    /// It does not trust us, or does not speak TLS 1.3.
    #[error("the handshake with {address} failed: {source}")]
    Handshake { address: SocketAddr, source: rustls::Error },
    #[error("no HTTP/2 with {address}: {source}")]
    Http { address: SocketAddr, source: tonic::transport::Error },
}

impl ConnectError {
    /// Whether waiting is unlikely to help: somebody is there, but not the right one.
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Untrusted { .. })
    }
}

/// With our own certificate.
pub(super) async fn connect(
    material: &Material,
    address: SocketAddr,
    expect: Role,
    pulse: Pulse,
) -> Result<(Channel, PeerId), ConnectError> {
    opened(address, tls::client_config(material, expect), pulse).await
}

/// Connects under `config`, whose verifier decides who may answer.
pub(super) async fn open(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<(Channel, PeerId), ConnectError> {
    opened(address, config, CALM).await
}

async fn opened(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    pulse: Pulse,
) -> Result<(Channel, PeerId), ConnectError> {
    timeout(DEADLINE, dial(address, config, pulse)).await.map_err(|_| ConnectError::TimedOut(address))?
}

async fn dial(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    pulse: Pulse,
) -> Result<(Channel, PeerId), ConnectError> {
    let unreachable = |source| ConnectError::Unreachable { address, source };
    let silent = |_| unreachable(io::ErrorKind::TimedOut.into());
    let tcp = timeout(ANSWERED, TcpStream::connect(address)).await.map_err(silent)?.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let name = ServerName::IpAddress(address.ip().into());
    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| handshake_error(address, error))?;
    let leaf = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = leaf.map(PeerId::from_certificate).and_then(Result::ok);
    // The verifier has read the same name a moment ago.
    let peer = peer.ok_or_else(|| unreachable(io::ErrorKind::InvalidData.into()))?;
    let channel = channel(address, tls, pulse).await.map_err(|source| ConnectError::Http { address, source })?;
    Ok((channel, peer))
}

/// rustls hides in the I/O error.
fn handshake_error(address: SocketAddr, error: io::Error) -> ConnectError {
    match error.downcast::<rustls::Error>() {
        Ok(source @ rustls::Error::InvalidCertificate(_)) => ConnectError::Untrusted { address, source },
        Ok(source) => ConnectError::Handshake { address, source },
        Err(source) => ConnectError::Unreachable { address, source },
    }
}

async fn channel(
    address: SocketAddr,
    tls: TlsStream<TcpStream>,
    pulse: Pulse,
) -> Result<Channel, tonic::transport::Error> {
    let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build();
    let endpoint = Endpoint::from(uri.expect("an address is an authority"))
        .http2_keep_alive_interval(pulse.every)
        .keep_alive_timeout(pulse.answered)
        .keep_alive_while_idle(true);
    let once = Arc::new(Mutex::new(Some(tls)));
    let dialled = tower::service_fn(move |_: Uri| {
        let tls = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async {
            tls.map(TokioIo::new).ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection is lost"))
        }
    });
    endpoint.connect_with_connector(dialled).await
}
