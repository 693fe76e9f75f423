//! HTTP, the client's side. In: a stream that speaks HTTP/1.1 or HTTP/2. Out: for every request exactly one answer,
//! and one record of it. What every request goes through, in this order: the checks on its head, the redirect to
//! HTTPS, the route, the cleaning of its fields, the queue and the worker (`forward`).
//!
//! Limits: the head's bytes, fields and time, HTTP/2's streams and resets, the body's bytes and time. Of HTTP/1.1 hyper
//! gets to see only what `strict` lets through, so that every request is answered, counted and logged by us.

mod executor;
mod target;

use crate::{
    accesslog::Format,
    body::Body,
    edge::Edge,
    farewell, fields,
    forward::{Answer, Head, forward},
    hops,
    host::{self, Host},
    leash::Leash,
    origin::{Hop, Origin},
    patience::Patient,
    record::Record,
    redirect,
    reject::Reject,
    route::Target,
    source::{BodyLimits, RequestSource, Sender},
    strict::{Answering, Strict, Turn},
    trace::Trace,
    trailers,
    tunnel::{Tunnel, Tunnels, Wish},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{
    body::Incoming,
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

use executor::LocalExecutor;

/// Header fields of a request. hyper's own limit for HTTP/1.1; HTTP/2 has none, so we count.
const FIELDS: usize = 100;
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
    http2: http2::Builder<LocalExecutor>,
    executor: LocalExecutor,
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
        let executor = LocalExecutor::default();
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
                    self.executor.leash.replace(Some(Rc::clone(&leash)));
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
                            // Closed now, an idle connection might meet its client's next request on the way. Where another
                            // process serves there is time: the next answer says that it is the last.
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

/// One request. Dropped when the client leaves: then everything it holds is given back, and the record says so.
async fn handle(
    edge: Rc<Edge>,
    hop: &Hop,
    redirect_to: Option<u16>,
    mut request: Request<Incoming>,
    (answering, leash): (Option<Answering>, Rc<Leash>),
    tunnels: &Tunnels,
) -> Response<Body> {
    let wish = Wish::of(&mut request, &edge, tunnels);
    let (head, incoming) = request.into_parts();
    let config = edge.shared.config.load();
    let origin = hop.origin(&head.headers, &config.trusted_proxies);
    let debug = head.headers.contains_key(fields::SERVERY_DEBUG)
        && config.debug_networks.iter().any(|network| network.contains(origin.client));
    let style = config.access_log_style;
    drop(config);
    let id = fields::believed_id(&head.headers, hop.trusted).unwrap_or_else(|| edge.request_id());
    let mut record =
        Record::begin(&edge, style, id, origin.client, (head.method.clone(), head.uri.clone(), head.version));
    if style.format == Format::Combined {
        record.referer = head.headers.get(header::REFERER).cloned();
        record.user_agent = head.headers.get(header::USER_AGENT).cloned();
    }
    record.trace = Trace::of(&head.headers);
    record.answering = answering;
    record.leash = Some(leash);
    let answered = answer(&edge, (hop, &origin), redirect_to, (head, incoming), wish, &mut record).await;
    let (mut response, tunnel) = match answered {
        Ok(answered) => answered,
        Err(reject) => {
            record.reject = Some(reject);
            let id = record.id.to_str().expect("ids are made of visible characters");
            let busy = record.app.as_ref().filter(|_| reject.is_for_now());
            let retry_after = busy.map_or(Duration::ZERO, |app| app.retry_after());
            (reject.response(id, record.version, retry_after), None)
        }
    };
    response.headers_mut().entry(fields::X_REQUEST_ID).or_insert_with(|| record.id.clone());
    if let Some(value) = debug.then(|| record.debug()).flatten() {
        response.headers_mut().insert(fields::SERVERY_DEBUG, value);
    }
    if record.version < Version::HTTP_2 && tunnel.is_none() && edge.shared.taken_over.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = response.status().as_u16();
    let head_only = record.method == Method::HEAD;
    match tunnel {
        Some(tunnel) => {
            if let Some(answering) = &record.answering {
                answering.switch();
            }
            tunnels.begin(tunnel, record);
        }
        None => response.body_mut().attach(record, head_only),
    }
    response
}

async fn answer(
    edge: &Rc<Edge>,
    (hop, origin): (&Hop, &Origin),
    redirect_to: Option<u16>,
    (mut head, incoming): (Parts, Incoming),
    wish: Option<Wish>,
    record: &mut Record,
) -> Result<(Response<Body>, Option<Tunnel>), Reject> {
    if head.headers.len() > FIELDS {
        return Err(Reject::TooManyFields);
    }
    let value = host::of_request(&head)?;
    record.host = Some(value.clone());
    let text = value.to_str().map_err(|_| Reject::BadHost)?;
    let host = Host::parse(text).ok_or(Reject::BadHost)?;
    if let Some(response) = hops::ends_here(&mut head)? {
        return Ok((response, None));
    }
    // of HTTP/1.1 no such target has come so far
    if head.version >= Version::HTTP_2 && !head.uri.path_and_query().is_some_and(|target| target.as_str().is_ascii()) {
        return Err(Reject::BadTarget);
    }
    // a trusted proxy may have taken off the TLS
    if let Some(port) = redirect_to.filter(|_| origin.scheme != "https") {
        return Ok((redirect::to_https(&host, &head.uri, port), None));
    }
    // the one snapshot of this request
    let routes = edge.shared.routes.load();
    let route = routes.lookup(&host.name, head.uri.path()).map(Arc::clone);
    // before the first node has come, or while others may come back, "not found" would be a lie
    let known = !routes.is_empty() && edge.shared.settled.load(Ordering::Relaxed);
    let route = route.ok_or(if known { Reject::NoRoute } else { Reject::NoEndpoint })?;
    drop(routes);
    let app = match &route.target {
        Target::App(app) => app,
        Target::Redirect(to) => return Ok((redirect::along(to, &route.prefix, &head.uri), None)),
    };
    record.app = Some(Arc::clone(app));

    let config = edge.shared.config.load();
    let limits = BodyLimits { bytes: config.max_body.as_u64(), stall: config.body_timeout };
    drop(config);
    let length = http_body::Body::size_hint(&incoming).exact();
    let body = RequestSource::new(incoming, Sender::new(edge, record.client.into(), app), limits, &edge.buffers)?;
    record.body.clone_from(&body);

    let uri = target::of_route(&head.uri, &route)?;
    let headers = &mut head.headers;
    let trailers = trailers::are_wanted(headers);
    fields::clean_request(headers, hop.trusted);
    if length.is_some() {
        headers.remove(header::TRAILER);
    } else {
        trailers::announce(headers);
    }
    fields::say_length(headers, length);
    fields::join_cookies(headers);
    let stripped = route.strip_prefix.then(|| route.prefix.as_str()).filter(|prefix| *prefix != "/");
    hop.forward(headers, origin, &value, host.port, stripped);
    hops::say_via(headers, head.version);
    headers.insert(header::HOST, value.clone());
    headers.insert(fields::X_REQUEST_ID, record.id.clone());
    let client = record.trace.is_some();
    let trace = record.trace.get_or_insert_with(|| edge.trace());
    trace.pass_on(headers, edge.random(), client);
    let (upgrade, admitted) = wish.map(|wish| wish.admit(&edge.shared)).transpose()?.unzip();
    if let Some(asked) = &upgrade {
        asked.ask(headers);
    } else if trailers {
        trailers::ask(headers);
    }
    let connects = head.method == Method::CONNECT;
    // what is asked so over HTTP/2 is a GET over HTTP/1.1
    let method = if connects { Method::GET } else { head.method };
    let head = Head { method, uri, headers: head.headers, upgrade, trailers };
    match (forward(edge, app, route.class, &head, body, record).await?, admitted) {
        (Answer::Switched(response, agreed), Some(admitted)) => Ok((response, Some(admitted.begin(edge, app, agreed)))),
        // not without having been asked
        (Answer::Switched(..), None) => Err(Reject::BadResponse),
        // to CONNECT any 2xx says that the tunnel is there
        (Answer::Whole(response), _) if connects && response.status().is_success() => {
            response.into_body().spend().await;
            Err(Reject::BadResponse)
        }
        (Answer::Whole(response), _) => Ok((response, None)),
    }
}

#[cfg(test)]
mod tests;
