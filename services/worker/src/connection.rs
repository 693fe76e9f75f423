//! One connection from its accept to its end: come in its bytes, go out requests, in the order in which they are asked. It
//! knows who is on the other side, how long a silence may last, and when a worker that drains lets go.

use crate::{
    accept::Accepted,
    conversation::Conversation,
    front::Front,
    guarded::Guarded,
    limits::Limits,
    proxy_protocol,
    slots::Slot,
    socket::{Socket, Times},
    stream::Stream,
};
use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How long a balancer's connection may be idle. Balancers close idle connections long before, so that a request never
/// meets a connection that we are just closing.
const IDLE: Duration = Duration::from_secs(300);

/// How long idle connections of balancers stay open after draining began: a request that is on its way meets a refusal
/// that says "elsewhere", not a closed connection.
const DRAIN_LINGER: Duration = Duration::from_millis(100);

/// How long a worker that another one follows keeps a client's idle connection at most. Its next request is answered, and
/// says that the connection closes; a close at once could cross it on its way, and the client would not know its fate.
const FOLLOWED_LINGER: Duration = Duration::from_secs(10);

/// How long a new connection of a client keeps a slot for its first request, which comes with it or right behind it. Short,
/// because whoever opens connections and says nothing keeps others from these slots meanwhile.
const RESERVATION: Duration = Duration::from_millis(5);

/// A balancer gives up a client that takes nothing after between one and two of its own limits; we do so later, lest it
/// look like our fault.
const BALANCERS_PATIENCE: u32 = 3;

impl Front {
    /// One connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, accepted: Accepted) {
        let Accepted { mut stream, peer, mut slot, counted } = accepted;
        let reserved_until = Instant::now() + RESERVATION;
        stream.set_nodelay();
        let Some((peer, read_ahead)) = self.introduce(&mut stream, peer, &mut slot, reserved_until).await else {
            return;
        };
        let hop = self.edge.as_ref().map(|edge| edge.hop(peer));
        let conversation = Conversation::new(hop, slot);
        let socket = Socket::new(stream, Arc::clone(&conversation), self.times(), counted).with_read_ahead(read_ahead);
        // a balancer has seen to it already
        let socket = Guarded::new(socket, Arc::clone(&conversation), self.stands_alone());
        let service = service_fn(|request| Arc::clone(&self).answer(request, peer, Arc::clone(&conversation)));
        let mut builder = http1::Builder::new();
        // the socket keeps the time, with nothing to arm for each request
        builder.header_read_timeout(None);
        builder.keep_alive(self.edge.as_ref().is_none_or(|edge| !edge.keepalive.is_zero()));
        self.limits.apply(&mut builder);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service).with_upgrades());
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.attend(&conversation, reserved_until) => connection.await,
        };
        if let Err(error) = ended {
            // among them the requests that hyper has refused by itself: too large, or no HTTP
            tracing::debug!(?peer, %error, "a connection ended with a fault");
        }
    }

    /// Whom a connection speaks for, and what was read to learn it. `None`: it is not let in.
    async fn introduce(
        &self,
        stream: &mut Stream,
        peer: Option<SocketAddr>,
        slot: &mut Option<Slot>,
        reserved_until: Instant,
    ) -> Option<(Option<SocketAddr>, Bytes)> {
        let Some((edge, versions)) = self.edge.as_ref().and_then(|edge| Some((edge, edge.proxy_protocol?))) else {
            return Some((peer, Bytes::new()));
        };
        if !edge.is_proxy(peer) {
            if let Some(connections) = self.strangers.tell(1, Instant::now()) {
                tracing::warn!(?peer, connections, "closed: it may not speak the PROXY protocol");
            }
            return None;
        }
        let mut reading = pin!(timeout(self.limits.header, proxy_protocol::read(stream, versions)));
        let given_up = async {
            sleep_until(reserved_until).await;
            *slot = None;
            self.drained().await;
        };
        let read = tokio::select! {
            read = &mut reading => read,
            () = given_up => return None,
        };
        let problem = match read {
            Ok(Ok(preamble)) => return Some((preamble.source.or(peer), preamble.rest)),
            Ok(Err(problem)) => problem.to_string(),
            Err(_) => "the header has not arrived in time".to_owned(),
        };
        if let Some(connections) = self.strangers.tell(1, Instant::now()) {
            tracing::warn!(?peer, connections, problem, "closed: a connection must begin with the PROXY protocol");
        }
        None
    }

    /// Ends the reservation of a connection when it is time, and the connection itself once the worker drains.
    async fn attend(&self, conversation: &Conversation, reserved_until: Instant) {
        if self.stands_alone() {
            // until then nobody is idle: the first request is on its way
            sleep_until(reserved_until).await;
            drop(conversation.take_reserved());
            self.drained().await;
            if let Some(edge) = &self.edge
                && !self.is_last()
            {
                // one that is idle for longer is closed anyway
                sleep(edge.keepalive.min(FOLLOWED_LINGER)).await;
            }
        } else {
            self.drained().await;
            sleep(DRAIN_LINGER).await;
        }
        conversation.leave();
    }

    fn times(&self) -> Times {
        let Limits { header, stall, .. } = self.limits;
        match &self.edge {
            Some(edge) => Times { first: header, idle: edge.keepalive, header, taking: stall },
            None => Times { first: IDLE, idle: IDLE, header, taking: stall.saturating_mul(BALANCERS_PATIENCE) },
        }
    }
}
