//! The registry: where nodes offer their workers. In: mutual TLS connections of nodes. Out: the apps' endpoints and
//! routes, through `directory`; to each node its Welcome, acknowledgements and Left. It never dials anybody, and
//! believes of a node only what its certificate says and what harms nobody else.
//!
//! In reading order: `session` (one stream), `admission` (may this Hello come in?), `directory` (who is here),
//! `declared` (whose routes), `demand` (what it hears of the queue), `refusal`, `connections`.

mod admission;
mod connections;
mod declared;
pub mod demand;
mod directory;
mod refusal;
mod session;

pub(crate) use directory::{Directory, Inherited, MemberView};
pub(crate) use session::Terms;

use chassis::identity::{ClientAuth, PeerInfo};
use connections::Connections;
use proto::registry::{
    FromBalancer, FromNode,
    registry_server::{self, RegistryServer},
};
use refusal::Refusal;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// No message that is within all other bounds is longer.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// What we have to say at any moment is one word and a last one.
const OUTBOX: usize = 2;
/// A peer whose packets are dropped is noticed by its silence; these pings notice connections without a stream.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(4);
/// Streams of one connection; a node has one.
const STREAMS_MAX: u32 = 4;
/// For the last words when this balancer stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serves until `terms.stopping` is cancelled, then until every session has ended.
pub(crate) async fn serve(listener: TcpListener, terms: Terms) -> Result<(), tonic::transport::Error> {
    let sessions = TaskTracker::new();
    let stopping = terms.stopping.clone();
    // Dropped with this future, so that no session outlives it.
    let _guard = stopping.clone().drop_guard();
    let incoming = Connections::default().counted(terms.identity.incoming(listener, ClientAuth::Required));
    let service = Service { terms: Arc::new(terms), sessions: sessions.clone() };
    let server = Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_LIMIT))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(RegistryServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let serving = server.serve_with_incoming_shutdown(incoming, stopping.clone().cancelled_owned());
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = stopping.cancelled() => {}
    }
    sessions.close();
    // A peer that does not read its last word does not hold the process.
    let _ = timeout(LAST_WORDS, async { tokio::join!(serving, sessions.wait()) }).await;
    Ok(())
}

struct Service {
    terms: Arc<Terms>,
    sessions: TaskTracker,
}

#[tonic::async_trait]
impl registry_server::Registry for Service {
    type RegisterStream = ReceiverStream<Result<FromBalancer, Status>>;

    /// Answers at once: the peer may wait for the stream to open before it says Hello.
    async fn register(&self, request: Request<Streaming<FromNode>>) -> Result<Response<Self::RegisterStream>, Status> {
        let info = request.extensions().get::<PeerInfo>().cloned();
        let Some(PeerInfo { address, peer }) = info else {
            return Err(refuse(&Refusal::NoCertificate, "", SocketAddr::from(([0, 0, 0, 0], 0))));
        };
        let instance = peer.as_ref().map(|peer| peer.instance.clone()).unwrap_or_default();
        let admitted = session::may_speak(peer.as_ref(), &self.terms.identity.peer().cluster, SystemTime::now())
            .and_then(|peer| Ok((self.terms.directory.open(&peer.instance)?, peer)));
        let (place, peer) = admitted.map_err(|refusal| refuse(&refusal, &instance, address))?;
        let (outbound, words) = mpsc::channel(OUTBOX);
        let terms = Arc::clone(&self.terms);
        self.sessions.spawn(async move {
            session::run(&terms, &peer, address, request.into_inner(), outbound).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(words)))
    }
}

fn refuse(refusal: &Refusal, instance: &str, address: SocketAddr) -> Status {
    session::refused(refusal, instance, address);
    refusal.status()
}

#[cfg(test)]
mod tests;
