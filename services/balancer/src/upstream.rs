//! One core's connections to workers. In: an endpoint. Out: a connection that is ready for one request, kept from
//! before or dialled now. A connection serves one request at a time and comes back when its response was read to the
//! end; anything else closes it. The newest is used first, so that the others can get old and be closed.

use crate::{
    Shared,
    endpoint::{Endpoint, Server},
    foreign::Secured,
    reject::Reject,
    source::RequestBody,
};
use http::HeaderValue;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{cell::RefCell, collections::HashMap, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Idle connections per endpoint. More are in use at a time only when more permits than this are held.
const KEPT: usize = 64;
/// Longest response head. (Its fields are limited by hyper to 100; another number costs it 5 %.)
const HEAD: usize = 64 * 1024;
/// Read buffer of a connection.
const BUFFER: usize = 64 * 1024;

/// A connection to a worker; closed when dropped.
#[derive(Debug)]
pub struct Connection {
    pub(crate) sender: SendRequest<RequestBody>,
    pub(crate) number: u64,
    /// The number as every request on it carries it.
    pub(crate) name: HeaderValue,
    task: JoinHandle<()>,
    endpoint: Arc<Endpoint>,
    /// It has served a request before.
    pub(crate) reused: bool,
    idle_since: Instant,
}

impl Connection {
    /// Open as far as anybody knows, and not idle for so long that the other side may be about to close it.
    fn is_usable(&self, now: Instant) -> bool {
        self.sender.is_ready() && now.saturating_duration_since(self.idle_since) < self.endpoint.node.keeps()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The idle connections of one core.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// By the endpoint's place in memory, which stays its own as long as it is in here.
    idle: RefCell<HashMap<*const Endpoint, Vec<Connection>>>,
}

impl Pool {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, idle: RefCell::default() }
    }

    /// The connection that became idle last, if one is still open, and not for too long.
    pub fn take(&self, endpoint: &Arc<Endpoint>, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&Arc::as_ptr(endpoint))?;
        while let Some(connection) = connections.pop() {
            if connection.is_usable(now) {
                return Some(connection);
            }
        }
        None
    }

    /// Closes the idle connections to an endpoint.
    pub fn forget(&self, endpoint: &Arc<Endpoint>) {
        self.idle.borrow_mut().remove(&Arc::as_ptr(endpoint));
    }

    /// A connection whose last response was read to the end.
    pub fn put(&self, mut connection: Connection, now: Instant) {
        if connection.endpoint.is_gone() || !connection.sender.is_ready() {
            return;
        }
        connection.reused = true;
        connection.idle_since = now;
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(Arc::as_ptr(&connection.endpoint)).or_default();
        if connections.len() < KEPT {
            connections.push(connection);
        }
    }

    /// A new connection. Nothing was sent when this fails.
    pub async fn dial(&self, endpoint: &Arc<Endpoint>) -> Result<Connection, Reject> {
        let limit = self.shared.config.load().connect_timeout;
        let connected = timeout(limit, connect(endpoint)).await.map_err(|_| Reject::ConnectTimeout)?;
        match connected? {
            Connected::Plain(stream) => self.speak(endpoint, stream).await,
            Connected::Secured(stream) => self.speak(endpoint, *stream).await,
        }
    }

    async fn speak<S>(&self, endpoint: &Arc<Endpoint>, stream: S) -> Result<Connection, Reject>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).max_header_size(HEAD);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reject::ConnectRefused)?;
        let task = tokio::task::spawn_local(async move {
            // its errors reach the request, or nobody is concerned
            drop(connection.with_upgrades().await);
        });
        let endpoint = Arc::clone(endpoint);
        let number = self.shared.number_connection();
        let name = name(number);
        Ok(Connection { sender, number, name, task, endpoint, reused: false, idle_since: Instant::now() })
    }

    /// Closes what is too old, closed by the worker, or belongs to an endpoint that is gone.
    pub fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| connection.is_usable(now) && !connection.endpoint.is_gone());
            !connections.is_empty()
        });
    }

    /// Sweeps for ever.
    pub async fn keep_swept(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.sweep(Instant::now());
        }
    }
}

/// 16 lower-case hexadecimal digits.
fn name(number: u64) -> HeaderValue {
    HeaderValue::try_from(format!("{number:016x}")).expect("hexadecimal digits are a field value")
}

/// A connection before its first request.
enum Connected {
    Plain(TcpStream),
    Secured(Box<Secured>),
}

async fn connect(endpoint: &Endpoint) -> Result<Connected, Reject> {
    let stream = reach(endpoint).await.map_err(|error| {
        tracing::debug!(%error, address = %endpoint.address, "a worker cannot be reached");
        if error.kind() == io::ErrorKind::TimedOut { Reject::ConnectTimeout } else { Reject::ConnectRefused }
    })?;
    let Server::Foreign(foreign) = &endpoint.node.server else { return Ok(Connected::Plain(stream)) };
    let Some(security) = &foreign.security else { return Ok(Connected::Plain(stream)) };
    let secured = security.secure(stream).await.map_err(|error| {
        tracing::debug!(%error, node = endpoint.node.instance, "TLS with an upstream failed");
        Reject::UpstreamTls
    })?;
    Ok(Connected::Secured(Box::new(secured)))
}

async fn reach(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(endpoint.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
