//! A client's connection. In: a stream that speaks HTTP/1.1 or HTTP/2. Out: its requests, each handed to `http::handle`,
//! and what they are answered. What one connection can make us hold or do is limited here: the head's bytes, fields and
//! time, HTTP/2's streams and resets. Of HTTP/1.1 hyper gets to see only what `strict` lets through, so that every
//! request is answered, counted and logged by us.

use super::{FIELDS, handle, leashed::LeashedExecutor};
use crate::{
    edge::Edge,
    farewell,
    leash::Leash,
    origin::Hop,
    patience::Patient,
    reject::Reject,
    strict::{Strict, Turn},
    tunnel::Tunnels,
};
use http::{HeaderValue, StatusCode, header};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::framing::Limits;
use std::{
    cell::Cell,
    convert::Infallible,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
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
const HEADER_LIST: u32 = 32 * 1024;
/// Requests in flight on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// Streams that were reset before we saw them (Rapid Reset, CVE-2023-44487), ...
const RESETS_PENDING: usize = 20;
/// ... and that we had to reset because of the client (MadeYouReset, CVE-2025-8671).
const RESETS_OURS: usize = 256;
/// How much a client may send on a stream, and on a connection, before a worker has taken it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of a response is buffered per HTTP/2 stream.
const SEND_BUFFER: usize = 64 * 1024;
/// An HTTP/2 client is asked this often whether it is there, and has as long to answer.
const PING: Duration = Duration::from_secs(20);
/// The preface that opens an HTTP/2 connection.
const PREFACE: usize = 24;

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
        http1.timer(TokioTimer::new()).max_header_size(HEAD).max_buf_size(BUFFER);
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
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // what a connection is told of its limits, it keeps
        let config = self.edge.shared.config.load_full();
        let stream = Patient::new(stream, config.body_timeout);
        let hop = Rc::new(Hop::new(peer, self.scheme, &config.trusted_proxies));
        let redirect_to = self.redirect_to.map(|port| config.public_https_port.unwrap_or(port));
        let mut http1 = self.http1.clone();
        http1.header_read_timeout(config.header_timeout);
        let any = Cell::new(false);
        let served = Cell::new(0_usize);
        // HTTP/2 has had as many requests as it may
        let worn = Notify::new();
        let tunnels: Rc<Tunnels> = Rc::default();
        let turn = Arc::<Turn>::default();
        let mut remains = None;
        let leash = Rc::new(Leash::new(config.body_timeout));
        let service = service_fn(|request| {
            any.set(true);
            served.set(served.get() + 1);
            let last = config.requests_per_connection.is_some_and(|most| served.get() >= most.get());
            if last {
                worn.notify_one();
            }
            let answering = (protocol == Protocol::Http1).then(|| turn.begin());
            let leash = match protocol {
                Protocol::Http1 => Rc::clone(&leash),
                Protocol::Http2 => {
                    let leash = Rc::new(Leash::new(config.body_timeout));
                    self.executor.lead(&leash);
                    leash
                }
            };
            let (edge, hop) = (Rc::clone(&self.edge), Rc::clone(&hop));
            let tunnels = Rc::clone(&tunnels);
            async move {
                // not a part of the connection, which keeps room for one even while it is idle
                let mut response =
                    Box::pin(handle(edge, &hop, redirect_to, request, (answering, leash), &tunnels)).await;
                if last && protocol == Protocol::Http1 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    // said, so that the client sends nothing more that would be lost
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let ended = match protocol {
            Protocol::Http1 => {
                let (stream, left) = Strict::new(stream, FRAME, &turn);
                remains = Some(left);
                // it came in just before the listener closed: answer its one request
                http1.keep_alive(!draining.is_cancelled());
                let connection = http1.serve_connection(TokioIo::new(stream), service);
                let mut connection = Box::pin(connection.with_upgrades());
                let serving = async {
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => ended,
                        () = draining.cancelled(), if !draining.is_cancelled() => {
                            // Closed now, an idle connection might meet its client's next request on the way. Where
                            // another process serves there is time: the next answer says that it is the last.
                            if !self.edge.shared.taken_over.load(Ordering::Relaxed) {
                                connection.as_mut().graceful_shutdown();
                            }
                            connection.await
                        }
                    }
                };
                tokio::select! {
                    biased;
                    ended = serving => ended,
                    // in the middle of an answer: there is nothing more to say
                    () = leash.stopped() => return,
                }
            }
            Protocol::Http2 => {
                let stream = stream.with_opening(PREFACE, config.header_timeout);
                let mut connection = Box::pin(self.http2.serve_connection(TokioIo::new(stream), service));
                let over = async {
                    tokio::select! {
                        () = draining.cancelled() => {}
                        () = worn.notified() => {}
                    }
                };
                tokio::select! {
                    biased;
                    ended = connection.as_mut() => ended,
                    () = over => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        Box::pin(tunnels.run()).await;
        let left = remains.and_then(|remains| remains.take());
        let told = match left {
            Some(left) => Box::pin(farewell::part(&self.edge, &hop, left, &ended)).await,
            None => false,
        };
        if let Err(error) = ended {
            let metrics = &self.edge.metrics;
            if told {
                // and counted with its line in the log
            } else if error.is_parse_too_large() {
                metrics.count_reject(Reject::HeadTooLarge);
            } else if error.is_parse() {
                metrics.count_reject(Reject::Malformed);
            } else if error.is_timeout() && !any.get() {
                // after a request it is only an idle connection that hyper closes by the same timer
                metrics.count_reject(Reject::HeaderTimeout);
            }
            tracing::debug!(%peer, %error, "a client's connection ended early");
        }
    }
}
