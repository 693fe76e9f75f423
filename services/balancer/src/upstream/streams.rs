//! One core's HTTP/2 connections to servers that speak it (gRPC does). In: an endpoint, a request as HTTP/1.1 has it. Out: a
//! stream of its own on a connection that others use too. Who leaves early resets the stream and nothing else.
//!
//! There are as many connections to a server as its streams need: the next one is dialled when all are full, by one request
//! while the others wait for it.

use super::{HEAD, name};
use crate::{endpoint::Endpoint, executor::LocalExecutor, reject::Reject, source::RequestBody};
use http::{
    HeaderValue, Request, Uri, Version, header,
    uri::{Authority, Scheme},
};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    error::Error as _,
    future::poll_fn,
    mem,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Mutex,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

/// Streams of one connection, where its server does not want fewer.
const STREAMS: usize = 100;
/// How much a server may send on a stream before a client has taken it. A connection has room for all of them, so that no
/// slow client stands in the way of others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 100;
/// How much of a request is buffered per stream.
const SEND_BUFFER: usize = 64 * 1024;
/// A server with streams is asked this often whether it is there, and has as long to answer.
const PING: Duration = Duration::from_secs(20);

/// By the endpoint's place in memory, which stays its own as long as it is in here.
#[derive(Debug, Default)]
pub(super) struct Streams(RefCell<HashMap<*const Endpoint, Rc<Server>>>);

#[derive(Debug)]
struct Server {
    endpoint: Arc<Endpoint>,
    connections: RefCell<Vec<Rc<Shared>>>,
    /// Held by the one who dials.
    dialling: Mutex<()>,
}

/// A connection; closed when neither the pool nor a stream has it.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<RequestBody>,
    _task: AbortOnDropHandle<()>,
    number: u64,
    name: HeaderValue,
    open: Cell<usize>,
    /// Open ones at most.
    most: Rc<Cell<usize>>,
    /// An answer has come over it.
    proven: Cell<bool>,
    idle_since: Cell<Instant>,
}

impl Shared {
    fn is_usable(&self, keeps: Duration, now: Instant) -> bool {
        let fresh = self.open.get() > 0 || now.saturating_duration_since(self.idle_since.get()) < keeps;
        fresh && !self.sender.is_closed()
    }
}

/// A place for one request.
#[derive(Debug)]
pub(super) struct Stream(Rc<Shared>);

impl Stream {
    fn begin(shared: &Rc<Shared>) -> Self {
        shared.open.set(shared.open.get() + 1);
        Self(Rc::clone(shared))
    }

    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    pub(super) fn name(&self) -> HeaderValue {
        self.0.name.clone()
    }

    pub(super) fn is_proven(&self) -> bool {
        self.0.proven.get()
    }

    pub(super) fn prove(&self) {
        self.0.proven.set(true);
    }

    pub(super) fn sender(&self) -> SendRequest<RequestBody> {
        self.0.sender.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

impl Streams {
    /// A stream of a connection that is there, the one with the most of them: so the others can get old and be closed.
    pub(super) fn take(&self, endpoint: &Arc<Endpoint>, now: Instant) -> Option<Stream> {
        let servers = self.0.borrow();
        let connections = servers.get(&Arc::as_ptr(endpoint))?.connections.borrow();
        let free = |shared: &&Rc<Shared>| {
            shared.open.get() < shared.most.get() && shared.is_usable(endpoint.node.keeps(), now)
        };
        connections.iter().filter(free).max_by_key(|shared| shared.open.get()).map(Stream::begin)
    }

    /// A stream of a new connection, or of one that somebody else has dialled meanwhile.
    pub(super) async fn dial<S>(
        &self,
        endpoint: &Arc<Endpoint>,
        connect: impl AsyncFnOnce() -> Result<(S, u64), Reject>,
    ) -> Result<Stream, Reject>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let server = self.server(endpoint);
        let _turn = server.dialling.lock().await;
        if let Some(stream) = self.take(endpoint, Instant::now()) {
            return Ok(stream);
        }
        let (stream, number) = connect().await?;
        let shared = Rc::new(speak(stream, number).await?);
        // it may have been forgotten meanwhile
        self.server(endpoint).connections.borrow_mut().push(Rc::clone(&shared));
        Ok(Stream::begin(&shared))
    }

    fn server(&self, endpoint: &Arc<Endpoint>) -> Rc<Server> {
        let mut servers = self.0.borrow_mut();
        let server = servers.entry(Arc::as_ptr(endpoint)).or_insert_with(|| {
            let (connections, dialling) = Default::default();
            Rc::new(Server { endpoint: Arc::clone(endpoint), connections, dialling })
        });
        Rc::clone(server)
    }

    /// Nobody else gets a stream of its connections; the open ones go on.
    pub(super) fn forget(&self, endpoint: &Arc<Endpoint>) {
        if let Some(server) = self.0.borrow().get(&Arc::as_ptr(endpoint)) {
            server.connections.borrow_mut().clear();
        }
    }

    pub(super) fn sweep(&self, now: Instant) {
        self.0.borrow_mut().retain(|_, server| {
            let (gone, keeps) = (server.endpoint.is_gone(), server.endpoint.node.keeps());
            server.connections.borrow_mut().retain(|shared| !gone && shared.is_usable(keeps, now));
            // one that is being dialled is somebody's
            !server.connections.borrow().is_empty() || Rc::strong_count(server) > 1
        });
    }
}

async fn speak<S>(stream: S, number: u64) -> Result<Shared, Reject>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reject::ConnectRefused)?;
    let most = Rc::new(Cell::new(STREAMS));
    let wanted = Rc::clone(&most);
    let task = tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        // its errors reach the requests, or nobody is concerned
        let _ = poll_fn(|cx| {
            wanted.set(connection.current_max_send_streams().clamp(1, STREAMS));
            connection.as_mut().poll(cx)
        })
        .await;
    });
    Ok(Shared {
        sender,
        _task: AbortOnDropHandle::new(task),
        number,
        name: name(number),
        open: Cell::default(),
        most,
        proven: Cell::default(),
        idle_since: Cell::new(Instant::now()),
    })
}

/// Makes a request one of HTTP/2: whom it is for stands in its target, and nothing in it is about a connection (RFC 9113,
/// sections 8.2.2 and 8.3.1).
pub(super) fn prepare(request: &mut Request<RequestBody>, scheme: Scheme) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::CONNECTION);
    let host = request.headers_mut().remove(header::HOST);
    let mut target = mem::take(request.uri_mut()).into_parts();
    target.scheme = Some(scheme);
    target.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // every request has a host and a path by now
    if let Ok(target) = Uri::from_parts(target) {
        *request.uri_mut() = target;
    }
}

/// How a server has ended a stream of its own accord. The first two it has surely not looked at (RFC 9113, section 8.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It takes no more streams for the moment.
    Refused,
    /// It takes no more on this connection. The streams that it has looked at live on.
    GoneAway,
    /// It wants no more of this one, and the connection is as good as before.
    Reset,
}

/// `None`: the connection broke, or there was none.
pub(crate) fn ending(error: &hyper::Error) -> Option<Ending> {
    let error = error.source()?.downcast_ref::<h2::Error>().filter(|error| error.is_remote())?;
    Some(match error.reason() {
        _ if error.is_go_away() => Ending::GoneAway,
        Some(h2::Reason::REFUSED_STREAM) => Ending::Refused,
        Some(_) | None => Ending::Reset,
    })
}
