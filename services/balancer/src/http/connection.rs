//! A client's connection. In: a stream that speaks HTTP/1.1 or HTTP/2. Out: its requests, each handed to `http::handle`,
//! and what they are answered. What one connection can make us hold or do is limited here: the head's bytes, fields and
//! time, HTTP/2's streams and resets. Of HTTP/1.1 hyper gets to see only what `strict` lets through, so that every
//! request is answered, counted and logged by us.

use super::{
    FIELDS,
    leashed::LeashedExecutor,
    visit::{Ended, Visit, Waiting},
};
use crate::{
    edge::Edge, farewell, frames::Counting, idle::Readable, leash::Leash, origin::Hop, patience::Patient,
    reject::Reject, strict::Strict,
};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::framing::Limits;
use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Bytes of an HTTP/1.1 head. The buffer's own limit is no limit: a single read may overshoot it.
const HEAD: usize = 32 * 1024;
/// Bytes of a request line.
const LINE: usize = 16 * 1024;
/// HTTP/1.1 heads are held to the same numbers before hyper sees them.
const FRAME: Limits = Limits { line: LINE, head: HEAD, fields: FIELDS };
/// Bytes that are buffered of a body that is not read yet.
const BUFFER: usize = 64 * 1024;
/// Bytes of an HTTP/2 head, counted as RFC 9113 section 6.5.2 does: 32 per field on top.
const HEADER_LIST: u32 = 16 * 1024;
/// Requests in flight on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// Streams that were reset before we saw them (Rapid Reset, CVE-2023-44487), ...
const RESETS_PENDING: usize = 20;
/// ... and that we had to reset because of the client (MadeYouReset, CVE-2025-8671).
const RESETS_OURS: usize = 20;
/// How much a client may send on a stream, and on a connection, before a worker has taken it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of a response is buffered per HTTP/2 stream.
const SEND_BUFFER: usize = 32 * 1024;
/// An HTTP/2 client is asked this often whether it is there, and has as long to answer.
const PING: Duration = Duration::from_secs(20);
/// The preface that opens an HTTP/2 connection.
const PREFACE: usize = 24;
/// How long a client that was told to go may go on asking, and take to read what it is owed.
const LEAVING: Duration = Duration::from_secs(5);

/// How one listener serves, on one core.
#[derive(Debug)]
pub struct Server {
    pub(crate) edge: Rc<Edge>,
    scheme: &'static str,
    /// Redirects everything to HTTPS: to this port, unless the configuration names another.
    redirect_to: Option<u16>,
    http1: http1::Builder,
    http2: http2::Builder<LeashedExecutor>,
    executor: LeashedExecutor,
}

/// The protocol the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Server {
    /// `redirect_to`: the bound port of HTTPS, for the plain listener beside it.
    pub fn new(edge: &Rc<Edge>, scheme: &'static str, redirect_to: Option<u16>) -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(None).max_header_size(HEAD).max_buf_size(BUFFER);
        let executor = LeashedExecutor::default();
        let mut http2 = http2::Builder::new(executor.clone());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(HEADER_LIST)
            .max_pending_accept_reset_streams(RESETS_PENDING)
            .max_local_error_reset_streams(RESETS_OURS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .enable_connect_protocol();
        Self { edge: Rc::clone(edge), scheme, redirect_to, http1, http2, executor }
    }

    /// Serves one connection to its end. Once `draining`, requests in flight are answered and no more taken:
    /// `Connection: close`, or GOAWAY.
    pub async fn serve<S>(
        &self,
        stream: S,
        peer: std::net::SocketAddr,
        protocol: Protocol,
        draining: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    {
        // what a connection is told of its limits, it keeps
        let config = self.edge.shared.config.load_full();
        let stream = Patient::new(stream, config.body_timeout);
        let visit = Visit {
            edge: &self.edge,
            hop: Rc::new(Hop::new(peer, self.scheme, &config.trusted_proxies)),
            redirect_to: self.redirect_to.map(|port| config.public_https_port.unwrap_or(port)),
            config,
            turn: Arc::default(),
            served: Cell::new(0),
            since: Cell::new(Instant::now()),
            worn: Notify::new(),
            leaving: Cell::new(false),
            tunnels: Rc::default(),
            draining,
        };
        match protocol {
            Protocol::Http1 => self.serve_http1(stream, &visit).await,
            Protocol::Http2 => self.serve_http2(stream, &visit).await,
        }
    }

    /// hyper is there only while there is something to do: it keeps room for what may come.
    async fn serve_http1<S>(&self, mut stream: Patient<S>, visit: &Visit<'_>)
    where
        S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    {
        let (ended, left) = loop {
            if !visit.wait(&stream).await {
                return;
            }
            let before = visit.served.get();
            let (strict, remains) = Strict::new(stream, FRAME, &visit.turn);
            let leash = visit.leash();
            let ended = Box::pin(self.requests(strict, visit, &leash)).await;
            // in the middle of an answer: there is nothing more to say
            if leash.reason().is_some() {
                return;
            }
            // what says nothing, such as empty records of TLS, buys no time
            if visit.served.get() != before {
                visit.since.set(Instant::now());
            }
            if ended.is_some() {
                Box::pin(visit.tunnels.run()).await;
            }
            match (ended, remains.take()) {
                (Some(ended), left) => break (ended, left),
                (None, Some(left)) => stream = left.stream,
                (None, None) => return,
            }
        };
        let told = match left {
            Some(left) => Box::pin(farewell::part(visit.edge, &visit.hop, left, &ended)).await,
            None => false,
        };
        if !told && let Ended::Http(Err(error)) = ended {
            visit.complain(&error);
        }
    }

    /// HTTP/1.1, until it ends, or (`None`) for as long as the client has something to say, or until the leash ends it.
    async fn requests<S>(&self, stream: Strict<Patient<S>>, visit: &Visit<'_>, leash: &Rc<Leash>) -> Option<Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| visit.request(request, Protocol::Http1, Rc::clone(leash)));
        let mut http1 = self.http1.clone();
        // it came in just before the listener closed: answer its one request
        http1.keep_alive(!visit.draining.is_cancelled());
        let connection = http1.serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection.with_upgrades());
        let mut waiting = Waiting::new(&visit.turn, visit.edge.idle.after(), visit.config.header_timeout);
        tokio::select! {
            biased;
            ended = poll_fn(|cx| waiting.poll(connection.as_mut(), cx)) => return ended,
            () = leash.stopped() => return None,
            () = visit.draining.cancelled(), if !visit.draining.is_cancelled() => {}
        }
        // Closed now, an idle connection might meet its client's next request on the way. Where another process serves there
        // is time: the next answer says that it is the last.
        if !visit.edge.shared.taken_over.load(Ordering::Relaxed) {
            connection.as_mut().graceful_shutdown();
        }
        tokio::select! {
            biased;
            ended = poll_fn(|cx| waiting.poll(connection.as_mut(), cx)) => ended,
            () = leash.stopped() => None,
        }
    }

    async fn serve_http2<S>(&self, stream: Patient<S>, visit: &Visit<'_>)
    where
        S: AsyncRead + AsyncWrite + Readable + Unpin + Send + 'static,
    {
        if !visit.wait(&stream).await {
            return;
        }
        let calm = Arc::<AtomicBool>::default();
        let stream = Counting::new(stream.with_opening(PREFACE, visit.config.header_timeout), &visit.turn, &calm);
        let service = service_fn(|request| {
            let leash = visit.leash();
            self.executor.lead(&leash);
            visit.request(request, Protocol::Http2, leash)
        });
        let mut connection = Box::pin(self.http2.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => Some(ended),
            () = visit.draining.cancelled() => None,
            () = visit.worn.notified() => None,
            () = visit.idled() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                visit.leave(connection.as_mut(), LEAVING).await
            }
        };
        drop(connection);
        Box::pin(visit.tunnels.run()).await;
        if calm.load(Ordering::Relaxed) {
            self.edge.metrics.count_reject(Reject::FrameFlood);
            tracing::debug!(peer = %visit.hop.peer, "closed: too many frames that carry nothing");
        } else if let Err(error) = ended {
            visit.complain(&error);
        }
    }
}
