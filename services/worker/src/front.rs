//! The HTTP/1.1 front of a worker: come in connections from balancers, go out requests to the application, one per slot,
//! and its answers. It never queues: what it cannot run at once it refuses, in a way that the balancer may take elsewhere.
//!
//! A request's way: the pass (403 without it), draining (503), a slot (503), the application under its time limit (504,
//! and its future is dropped) with panics caught (500), and the answer's body, which holds the slot until it has ended.

use crate::{
    Placement,
    answer::{Answer, request_id},
    slots::{Slot, Slots},
    socket::{Open, Socket},
};
use axum::{Router, body::Body};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::worker::Configure;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use subtle::ConstantTimeEq;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::ServiceExt;

/// Every header of ours begins so.
const OURS: &str = "servery-";

/// Most connections of a worker at once. Balancers keep a few idle ones per core; tunnels count too.
const MOST_CONNECTIONS: usize = 8192;

/// How long a connection may be idle, or a request's head take. Balancers close idle connections long before, so that
/// a request never meets a connection that we are just closing.
const IDLE: Duration = Duration::from_secs(300);

/// A balancer has checked the number of a client's fields and added its own to them.
const MOST_FIELDS: usize = 256;

/// How long idle connections stay open after draining began: a request that is on its way meets a refusal that says
/// "elsewhere", not a closed connection.
const DRAIN_LINGER: Duration = Duration::from_millis(100);

/// Time to wait where accepting failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections of a worker share.
pub(crate) struct Front {
    router: Router,
    placement: Placement,
    /// The node's pass as the header carries it; empty: none is asked for.
    pass: Vec<u8>,
    /// To the response head; zero: no limit.
    limit: Duration,
    pub(crate) slots: Arc<Slots>,
    open: Arc<Open>,
    draining: watch::Sender<bool>,
    denials: Mutex<Denials>,
}

/// Keeps the log readable when somebody knocks without a pass.
#[derive(Debug, Default)]
struct Denials {
    logged: Option<Instant>,
    unlogged: u64,
}

impl Front {
    pub(crate) fn new(configure: &Configure, router: Router) -> Arc<Self> {
        Arc::new(Self {
            router,
            placement: Placement::new(configure),
            pass: lower_hex(&configure.pass),
            limit: Duration::from_millis(configure.timeout_ms.into()),
            slots: Slots::new(configure.capacity),
            open: Open::new(),
            draining: watch::Sender::new(false),
            denials: Mutex::default(),
        })
    }

    /// Refuses new requests from now on and lets idle connections go.
    pub(crate) fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Until no connection is open any more, tunnels included.
    pub(crate) async fn empty(&self) {
        self.open.none().await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.open.count()
    }

    /// Accepts until it is dropped, which ends every connection that is left.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if self.open.count() < MOST_CONNECTIONS => match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(Arc::clone(&self).serve(stream, peer));
                    }
                    Err(error) if died_in_the_backlog(&error) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections just now");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if ended.is_err_and(|error| error.is_panic()) {
                        tracing::error!("the application panicked while its answer was being sent: the answer is cut");
                    }
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        // answers are written whole; waiting for more would only delay them
        let _ = stream.set_nodelay(true);
        let tunnel = Arc::new(AtomicBool::new(false));
        let socket = Socket::new(stream, &self.open, Arc::clone(&tunnel));
        let service = service_fn(|request| Arc::clone(&self).answer(request, peer, Arc::clone(&tunnel)));
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_headers(MOST_FIELDS)
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades()
        );
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.drain_lingered() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended with a fault");
        }
    }

    async fn drain_lingered(&self) {
        // the sender is ours and lives, so this cannot fail
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
        sleep(DRAIN_LINGER).await;
    }

    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
        tunnel: Arc<AtomicBool>,
    ) -> Result<Response<Body>, Infallible> {
        if !self.admits(request.headers()) {
            self.slots.denied();
            self.log_denial(peer);
            return Ok(Answer::Denied.response(request.headers()));
        }
        if *self.draining.borrow() {
            self.slots.refused();
            return Ok(Answer::Draining.response(request.headers()));
        }
        let Some(mut slot) = self.slots.take() else {
            self.slots.refused();
            return Ok(Answer::Busy.response(request.headers()));
        };
        strip_ours(request.headers_mut());
        request.extensions_mut().insert(self.placement.clone());
        let is_connect = request.method() == Method::CONNECT;

        let mut response = self.ask(request).await;

        let status = response.status();
        slot.answered(status);
        strip_ours(response.headers_mut());
        if status == StatusCode::SWITCHING_PROTOCOLS || is_connect && status.is_success() {
            tunnel.store(true, Ordering::Release);
        } else if *self.draining.borrow() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Body::new(Held { body, slot: Some(slot) })))
    }

    /// The application's answer, or ours in its place.
    async fn ask(&self, request: Request<Incoming>) -> Response<Body> {
        // for the two answers below only
        let method = request.method().clone();
        let uri = request.uri().clone();
        let mut headers = HeaderMap::new();
        if let Some(id) = request.headers().get("x-request-id") {
            headers.insert("x-request-id", id.clone());
        }
        let asked = AssertUnwindSafe(self.router.clone().oneshot(request.map(Body::new))).catch_unwind();
        let answered = if self.limit.is_zero() { Ok(asked.await) } else { timeout(self.limit, asked).await };
        match answered {
            Ok(Ok(Ok(response))) => response,
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(_)) => {
                tracing::error!(%method, path = uri.path(), request_id = request_id(&headers), "the application panicked");
                Answer::Panicked.response(&headers)
            }
            Err(_) => {
                let limit = self.limit;
                tracing::warn!(%method, path = uri.path(), request_id = request_id(&headers), ?limit, "no answer in time");
                Answer::TimedOut.response(&headers)
            }
        }
    }

    /// Whether the one pass is there and right, in a time that does not tell how much of it is right.
    fn admits(&self, headers: &HeaderMap) -> bool {
        if self.pass.is_empty() {
            return true;
        }
        let mut given = headers.get_all(proto::PASS_HEADER).iter();
        match (given.next(), given.next()) {
            (Some(given), None) => given.as_bytes().ct_eq(&self.pass).into(),
            _ => false,
        }
    }

    /// Once a second at most, with how many there were.
    fn log_denial(&self, peer: SocketAddr) {
        let now = Instant::now();
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        denials.unlogged += 1;
        if denials.logged.is_none_or(|logged| now.duration_since(logged) >= Duration::from_secs(1)) {
            tracing::warn!(%peer, requests = denials.unlogged, "refused requests without the node's pass");
            *denials = Denials { logged: Some(now), unlogged: 0 };
        }
    }
}

/// Removes every header that only Servery's own processes may say.
fn strip_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

/// The peer gave up before we accepted: says nothing about the listener.
fn died_in_the_backlog(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn lower_hex(bytes: &[u8]) -> Vec<u8> {
    let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// A body that holds its request's slot until it has ended, failed or been dropped.
struct Held {
    body: Body,
    slot: Option<Slot>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.slot = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
