//! A client of the cluster: comes in requests, goes out answers, over kept-alive HTTP/1.1 connections or one HTTP/2 connection,
//! plain or with TLS that trusts one root only.
//!
//! Never repeats a request by itself and follows no redirect: a failure is the caller's to count. A connection that was idle for
//! long is not used again, so that a server's right to close idle connections is never mistaken for a failed request.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Raw, tls};

/// A connection idle for longer is dropped instead of used; well under any server's idle limit.
const IDLE_LIMIT: Duration = Duration::from_secs(2);

/// Limit on one request in all, unless told otherwise.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// What requests carry.
pub type Body = BoxBody<Bytes, io::Error>;

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body that is fed piece by piece and ends when the feed is dropped; one piece may wait.
pub fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (feed, pieces) = mpsc::channel(1);
    let frames = ReceiverStream::new(pieces).map(|piece| Ok(Frame::data(piece)));
    (feed, StreamBody::new(frames).boxed())
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Http1, Self::Http2];

    fn alpn(self) -> Vec<u8> {
        match self {
            Self::Http1 => b"http/1.1".to_vec(),
            Self::Http2 => b"h2".to_vec(),
        }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header's text; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} {:?} is no JSON", self.status, self.text()))
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    V12,
    V13,
}

/// How a TLS connection began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub version: TlsVersion,
    pub resumed: bool,
}

/// A client of one listener.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    authority: String,
    protocol: Protocol,
    tls: Option<Arc<ClientConfig>>,
    limit: Duration,
    idle: Mutex<Vec<Idle>>,
    shared: tokio::sync::Mutex<Option<Connection<http2::SendRequest<Body>>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection<http1::SendRequest<Body>>,
    since: Instant,
}

/// A sender and the task that moves its bytes, which ends with it.
#[derive(Debug)]
struct Connection<S> {
    sender: S,
    task: Option<JoinHandle<()>>,
}

impl<S> Connection<S> {
    fn new(sender: S, driver: impl Future<Output = hyper::Result<()>> + Send + 'static) -> Self {
        Self { sender, task: Some(tokio::spawn(async { drop(driver.await) })) }
    }

    /// Lets it finish what it carries.
    fn retire(mut self) {
        drop(self.task.take());
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A response whose body is still on its way; the connection lives as long as this does.
#[derive(Debug)]
pub struct Open {
    pub response: Response<Incoming>,
    connection: Option<Connection<http1::SendRequest<Body>>>,
}

impl Open {
    /// The next piece of the body; `None` at its end. Trailers are passed over.
    pub async fn piece(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            match self.response.body_mut().frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Everything up to the end of the body.
    pub async fn rest(&mut self) -> anyhow::Result<Bytes> {
        Ok(self.response.body_mut().collect().await?.to_bytes())
    }
}

impl Client {
    /// Speaks plain HTTP with `address`.
    pub fn plain(address: SocketAddr, protocol: Protocol) -> Self {
        Self::new(address, &format!("localhost:{}", address.port()), protocol, None)
    }

    /// Speaks HTTPS with `address`, asks for `localhost`, trusts only the certificates in the PEM file `root`.
    pub fn trusting(root: &Path, address: SocketAddr, protocol: Protocol) -> anyhow::Result<Self> {
        Self::with_tls_versions(root, address, protocol, rustls::DEFAULT_VERSIONS)
    }

    /// As [`Client::trusting`] over HTTP/1.1, with this version of TLS only.
    pub fn with_tls_version(root: &Path, address: SocketAddr, version: TlsVersion) -> anyhow::Result<Self> {
        let only = match version {
            TlsVersion::V12 => &rustls::version::TLS12,
            TlsVersion::V13 => &rustls::version::TLS13,
        };
        Self::with_tls_versions(root, address, Protocol::Http1, &[only])
    }

    fn with_tls_versions(
        root: &Path,
        address: SocketAddr,
        protocol: Protocol,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(root).with_context(|| format!("read {}", root.display()))? {
            roots.add(certificate?)?;
        }
        ensure!(!roots.is_empty(), "no certificate in {}", root.display());
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.alpn()];
        Ok(Self::new(address, &format!("localhost:{}", address.port()), protocol, Some(Arc::new(config))))
    }

    /// One TLS connection of its own, with one HTTP/1.1 request so that tickets arrive: its version, and whether it resumed
    /// a session that an earlier call began.
    pub async fn handshake(&self) -> anyhow::Result<Handshake> {
        ensure!(self.protocol == Protocol::Http1, "only HTTP/1.1 is simple enough to be sent by hand");
        tokio::time::timeout(self.limit, async {
            let mut stream = self.tls_over(TcpStream::connect(self.address).await?).await?;
            let request = format!("GET /hello HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.authority);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            let session = stream.get_ref().1;
            let version = match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => TlsVersion::V12,
                Some(ProtocolVersion::TLSv1_3) => TlsVersion::V13,
                other => bail!("the server agreed to {other:?}"),
            };
            Ok(Handshake { version, resumed: session.handshake_kind() == Some(HandshakeKind::Resumed) })
        })
        .await
        .unwrap_or_else(|_| bail!("no answer within {:?}", self.limit))
    }

    /// A TLS connection of its own that says whatever it is told.
    pub async fn raw(&self) -> anyhow::Result<Raw> {
        Ok(Raw::over(self.stream().await?))
    }

    /// The same for a client of somebody else's.
    pub async fn stream(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.tls_over(stream).await
    }

    /// A WebSocket, as raw bytes behind its handshake: a connection of its own over HTTP/1.1, a stream of the one connection
    /// over HTTP/2 (RFC 8441), on which something has to have been answered before.
    pub async fn websocket(&self, path: &str) -> anyhow::Result<Raw> {
        if self.protocol == Protocol::Http2 {
            let mut request = self.request("CONNECT", path, empty())?;
            request.headers_mut().insert(http::header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
            let response = self.open(request).await?.response;
            ensure!(response.status() == StatusCode::OK, "{}", response.status());
            return Ok(Raw::over(TokioIo::new(hyper::upgrade::on(response).await?)));
        }
        let mut raw = self.raw().await?;
        let (host, key) = (&self.authority, "dGhlIHNhbXBsZSBub25jZQ==");
        raw.send(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        ))
        .await?;
        let head = raw.until("\r\n\r\n").await?;
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(raw)
    }

    fn new(address: SocketAddr, authority: &str, protocol: Protocol, tls: Option<Arc<ClientConfig>>) -> Self {
        Self {
            address,
            authority: authority.to_owned(),
            protocol,
            tls,
            limit: REQUEST_LIMIT,
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
        }
    }

    /// The same client asking for another host, in SNI and in the request.
    #[must_use]
    pub fn asking_for(mut self, authority: &str) -> Self {
        authority.clone_into(&mut self.authority);
        self
    }

    /// The same client with another limit on one request.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// A GET and its whole answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(self.request("GET", path, empty())?).await
    }

    /// A request for this client's host, to be refined by the caller.
    pub fn request(&self, method: &str, path: &str, body: Body) -> anyhow::Result<Request<Body>> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(self.authority.as_str()).path_and_query(path).build()?;
        Ok(Request::builder().method(method).uri(uri).body(body)?)
    }

    /// Sends a request and takes its whole answer.
    pub async fn send(&self, request: Request<Body>) -> anyhow::Result<Answer> {
        tokio::time::timeout(self.limit, async {
            let open = self.open(request).await?;
            let (head, body) = open.response.into_parts();
            let body = body.collect().await.context("read the body")?.to_bytes();
            if let Some(connection) = open.connection {
                self.keep(connection);
            }
            Ok(Answer { status: head.status, version: head.version, headers: head.headers, body })
        })
        .await
        .unwrap_or_else(|_| bail!("no whole answer within {:?}", self.limit))
    }

    /// Sends a request and takes the head of its answer. No limit but the caller's.
    pub async fn open(&self, mut request: Request<Body>) -> anyhow::Result<Open> {
        match self.protocol {
            Protocol::Http1 => {
                let mut connection = match self.reusable() {
                    Some(connection) => connection,
                    None => self.dial_http1().await?,
                };
                let host = self.authority.parse()?;
                request.headers_mut().entry(http::header::HOST).or_insert(host);
                *request.uri_mut() = request.uri().path_and_query().context("a path")?.as_str().parse()?;
                let response = connection.sender.send_request(request).await.context("HTTP/1.1 request")?;
                Ok(Open { response, connection: Some(connection) })
            }
            Protocol::Http2 => {
                let mut sender = self.shared_sender().await?;
                let response = sender.send_request(request).await.context("HTTP/2 request")?;
                Ok(Open { response, connection: None })
            }
        }
    }

    fn reusable(&self) -> Option<Connection<http1::SendRequest<Body>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| kept.since.elapsed() < IDLE_LIMIT && kept.connection.sender.is_ready());
        idle.pop().map(|kept| kept.connection)
    }

    fn keep(&self, connection: Connection<http1::SendRequest<Body>>) {
        if !connection.sender.is_closed() {
            let kept = Idle { connection, since: Instant::now() };
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(kept);
        }
    }

    async fn dial_http1(&self) -> anyhow::Result<Connection<http1::SendRequest<Body>>> {
        let stream = TcpStream::connect(self.address).await.with_context(|| format!("connect {}", self.address))?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => {
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
                Ok(Connection::new(sender, driver.with_upgrades()))
            }
            Some(_) => {
                let stream = self.tls_over(stream).await?;
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
                Ok(Connection::new(sender, driver.with_upgrades()))
            }
        }
    }

    async fn shared_sender(&self) -> anyhow::Result<http2::SendRequest<Body>> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = &mut *shared
            && !connection.sender.is_closed()
            && connection.sender.ready().await.is_ok()
        {
            return Ok(connection.sender.clone());
        }
        let stream = TcpStream::connect(self.address).await.with_context(|| format!("connect {}", self.address))?;
        stream.set_nodelay(true)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 22);
        let fresh = if self.tls.is_some() {
            let (sender, driver) = builder.handshake(TokioIo::new(self.tls_over(stream).await?)).await?;
            Connection::new(sender, driver)
        } else {
            let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
            Connection::new(sender, driver)
        };
        let sender = fresh.sender.clone();
        // One that was told to go away may still carry answers.
        if let Some(old) = shared.replace(fresh) {
            old.retire();
        }
        Ok(sender)
    }

    async fn tls_over(&self, stream: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        let config = self.tls.as_ref().context("a TLS client")?;
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.context("TLS handshake")?;
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        ensure!(agreed == Some(self.protocol.alpn()), "the server agreed to {agreed:?}, not {:?}", self.protocol);
        Ok(stream)
    }
}
