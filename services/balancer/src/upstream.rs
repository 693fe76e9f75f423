//! One core's connections to workers. In: an endpoint. Out: a connection that is ready for one request, kept from
//! before or dialled now. A connection serves one request at a time and comes back when its response was read to the
//! end; anything else closes it. The newest is used first, so that the others can get old and be closed. Where a server speaks HTTP/2
//! it is a stream of one that others use too (`streams`), with the same life.

mod streams;

pub(crate) use streams::{Ending, ending};

use crate::{
    Shared,
    endpoint::{Endpoint, Server},
    foreign::Secured,
    reject::Reject,
    source::RequestBody,
};
use futures_util::future::Either;
use http::{HeaderValue, Request, Response, uri::Scheme};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use proto::alarm::Alarm;
use std::{cell::RefCell, collections::HashMap, io, sync::Arc, time::Duration};
use streams::{Stream, Streams};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Idle connections per endpoint. More are in use at a time only when more permits than this are held.
const KEPT: usize = 64;
/// Longest response head. (Its fields are limited by hyper to 100; another number costs it 5 %.)
const HEAD: u32 = 64 * 1024;
/// Read buffer of a connection.
const BUFFER: usize = 64 * 1024;

/// A connection to a worker; closed when dropped. In a box, as each request hands it on from one place to another a dozen
/// times.
#[derive(Debug)]
pub struct Connection {
    carrier: Carrier,
    pub(crate) number: u64,
    /// The number as every request on it carries it.
    pub(crate) name: HeaderValue,
    endpoint: Arc<Endpoint>,
    /// It has served a request before.
    pub(crate) reused: bool,
    idle_since: Instant,
    /// For whoever waits for an answer.
    pub(crate) alarm: Alarm,
}

#[derive(Debug)]
enum Carrier {
    /// All of an HTTP/1.1 connection.
    Whole { sender: http1::SendRequest<RequestBody>, task: JoinHandle<()> },
    /// A part of one of HTTP/2.
    Stream(Stream),
}

impl Connection {
    /// A stream goes on where others have been before.
    fn of(stream: Stream, endpoint: &Arc<Endpoint>, now: Instant) -> Box<Self> {
        let (number, name, reused) = (stream.number(), stream.name(), stream.is_proven());
        let (carrier, endpoint) = (Carrier::Stream(stream), Arc::clone(endpoint));
        let alarm = Alarm::default();
        Box::new(Self { carrier, number, name, endpoint, reused, idle_since: now, alarm })
    }

    /// The one request that there is room for now. The error has it still where nothing of it was sent.
    pub(crate) fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        match &mut self.carrier {
            Carrier::Whole { sender, .. } => Either::Left(sender.try_send_request(request)),
            Carrier::Stream(stream) => {
                streams::prepare(&mut request, self.endpoint.node.scheme());
                Either::Right(stream.sender().try_send_request(request))
            }
        }
    }

    /// Whether there is room for the next one.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.carrier {
            Carrier::Whole { sender, .. } => sender.is_ready(),
            Carrier::Stream(_) => true,
        }
    }

    /// There never will be.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.carrier {
            Carrier::Whole { sender, .. } => sender.is_closed(),
            Carrier::Stream(_) => false,
        }
    }

    /// Waits until there is.
    pub(crate) async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.carrier {
            Carrier::Whole { sender, .. } => sender.ready().await,
            Carrier::Stream(_) => Ok(()),
        }
    }

    /// Open as far as anybody knows, and not idle for so long that the other side may be about to close it.
    fn is_usable(&self, now: Instant) -> bool {
        self.is_ready() && now.saturating_duration_since(self.idle_since) < self.endpoint.node.keeps()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Carrier::Whole { task, .. } = &self.carrier {
            task.abort();
        }
    }
}

/// The idle connections of one core.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// By the endpoint's place in memory, which stays its own as long as it is in here.
    #[expect(clippy::vec_box, reason = "who takes one out goes on with the box")]
    idle: RefCell<HashMap<*const Endpoint, Vec<Box<Connection>>>>,
    streams: Streams,
}

impl Pool {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, idle: RefCell::default(), streams: Streams::default() }
    }

    /// The connection that became idle last, if one is still open, and not for too long.
    pub fn take(&self, endpoint: &Arc<Endpoint>, now: Instant) -> Option<Box<Connection>> {
        if endpoint.node.speaks_http2() {
            return self.streams.take(endpoint, now).map(|stream| Connection::of(stream, endpoint, now));
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&Arc::as_ptr(endpoint))?;
        while let Some(connection) = connections.pop() {
            if connection.is_usable(now) {
                return Some(connection);
            }
        }
        None
    }

    /// Closes the idle connections to an endpoint; nothing new goes over the others.
    pub fn forget(&self, endpoint: &Arc<Endpoint>) {
        self.streams.forget(endpoint);
        self.idle.borrow_mut().remove(&Arc::as_ptr(endpoint));
    }

    /// A connection whose last response was read to the end.
    pub fn put(&self, mut connection: Box<Connection>, now: Instant) {
        if let Carrier::Stream(stream) = &connection.carrier {
            stream.prove();
            return;
        }
        if connection.endpoint.is_gone() || !connection.is_ready() {
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
    pub async fn dial(&self, endpoint: &Arc<Endpoint>) -> Result<Box<Connection>, Reject> {
        let limit = self.shared.config.load().connect_timeout;
        if endpoint.node.speaks_http2() {
            let dialled = timeout(limit, self.dial_stream(endpoint)).await.map_err(|_| Reject::ConnectTimeout)?;
            return Ok(Connection::of(dialled?, endpoint, Instant::now()));
        }
        let connected = timeout(limit, connect(endpoint)).await.map_err(|_| Reject::ConnectTimeout)?;
        match connected? {
            Connected::Plain(stream) => self.speak(endpoint, stream).await,
            Connected::Secured(stream) => self.speak(endpoint, *stream).await,
        }
    }

    async fn dial_stream(&self, endpoint: &Arc<Endpoint>) -> Result<Stream, Reject> {
        let number = || self.shared.number_connection();
        if endpoint.node.scheme() == Scheme::HTTP {
            return self.streams.dial(endpoint, async || Ok((reached(endpoint).await?, number()))).await;
        }
        let secured = async || match connect(endpoint).await? {
            Connected::Secured(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Ok((*stream, number())),
            Connected::Secured(_) | Connected::Plain(_) => Err(Reject::UpstreamTls),
        };
        self.streams.dial(endpoint, secured).await
    }

    async fn speak<S>(&self, endpoint: &Arc<Endpoint>, stream: S) -> Result<Box<Connection>, Reject>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER).max_header_size(HEAD as usize);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reject::ConnectRefused)?;
        let task = tokio::task::spawn_local(async move {
            // its errors reach the request, or nobody is concerned
            drop(connection.with_upgrades().await);
        });
        let endpoint = Arc::clone(endpoint);
        let number = self.shared.number_connection();
        let name = name(number);
        let carrier = Carrier::Whole { sender, task };
        let (idle_since, alarm) = (Instant::now(), Alarm::default());
        Ok(Box::new(Connection { carrier, number, name, endpoint, reused: false, idle_since, alarm }))
    }

    /// Closes what is too old, closed by the worker, or belongs to an endpoint that is gone.
    pub fn sweep(&self, now: Instant) {
        self.streams.sweep(now);
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
    let stream = reached(endpoint).await?;
    let Server::Foreign(foreign) = &endpoint.node.server else { return Ok(Connected::Plain(stream)) };
    let Some(security) = &foreign.security else { return Ok(Connected::Plain(stream)) };
    let secured = security.secure(stream).await.map_err(|error| {
        tracing::debug!(%error, node = endpoint.node.instance, "TLS with an upstream failed");
        Reject::UpstreamTls
    })?;
    Ok(Connected::Secured(Box::new(secured)))
}

async fn reached(endpoint: &Endpoint) -> Result<TcpStream, Reject> {
    reach(endpoint).await.map_err(|error| {
        tracing::debug!(%error, address = %endpoint.address, "a worker cannot be reached");
        if error.kind() == io::ErrorKind::TimedOut { Reject::ConnectTimeout } else { Reject::ConnectRefused }
    })
}

async fn reach(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(endpoint.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
