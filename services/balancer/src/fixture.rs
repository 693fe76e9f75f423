//! For the tests over sockets: a data plane on ports of its own, workers that do what a test says byte by byte, and
//! clients that do the same. Every wait ends with the test's failure after a while, none is a sleep.

use crate::{
    Config, Shared,
    accesslog::Place,
    app::App,
    dispatch::Class,
    endpoint::{Node, WorkerView},
    listener::{self, Cores, Sockets},
    route::{HostPattern, Prefix, Route, Table, Target},
    tls::CertificateSet,
};
use bytes::Bytes;
use chassis::{
    config::{Layers, Reader},
    lifecycle::{Lifecycle, Phase},
    listen::ListenAddr,
};
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Fails the test when it takes too long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("this should have happened by now")
}

/// Waits until it is so, without a notification to wait for.
pub(crate) async fn eventually(mut so: impl FnMut() -> bool) {
    soon(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn views(workers: &[(SocketAddr, u32)], capacity: u32) -> Vec<WorkerView> {
    let ready = |(position, (address, grant)): (u32, &(SocketAddr, u32))| WorkerView {
        capacity,
        ..WorkerView::ready(position, *address, *grant)
    };
    (0..).zip(workers).map(ready).collect()
}

/// A running data plane: two cores, plain HTTP at `http`, TLS at `https`.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) app: Arc<App>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) lifecycle: Lifecycle,
    cores: Option<Cores>,
    log: Log,
}

impl Plane {
    /// `settings`: lines of the section `[balancer]`. Routes everything to one app, over plain HTTP too.
    pub(crate) fn start(settings: &str) -> Self {
        Self::start_with(settings, None)
    }

    pub(crate) fn start_with(settings: &str, https_port: Option<u16>) -> Self {
        let text = format!("[balancer]\n{settings}\n");
        let layers = Layers::from_text("test", &text, [], Vec::new());
        let mut reader = Reader::new(&layers);
        let config = Config::read(&mut reader);
        reader.finish().unwrap();
        let shared = Shared::new(config, https_port, CertificateSet::self_signed().unwrap());
        let app = shared.apps.obtain("demo");
        let lifecycle = Lifecycle::new();
        let anywhere = ListenAddr::At(([127, 0, 0, 1], 0).into());
        let (http, https) = (anywhere.bind_reuseport(2).unwrap(), anywhere.bind_reuseport(2).unwrap());
        let addresses = (http[0].local_addr().unwrap(), https[0].local_addr().unwrap());
        let sockets = http.into_iter().zip(https);
        let sockets = sockets.map(|(http, https)| Sockets { http: Some(http), https: Some(https) }).collect();
        let log = Log::default();
        let off = shared.config.load().access_log == Place::Off;
        let out: Option<Box<dyn Write + Send>> = if off { None } else { Some(Box::new(log.clone())) };
        let cores = listener::spawn_cores_logging_to(out, &shared, sockets, &lifecycle).unwrap();
        let plane = Self { shared, app, http: addresses.0, https: addresses.1, lifecycle, cores: Some(cores), log };
        plane.route("", "/", false);
        plane
    }

    /// This one route to the app.
    pub(crate) fn route(&self, host: &str, prefix: &str, strip_prefix: bool) {
        let target = Target::App(Arc::clone(&self.app));
        let (host, prefix) = (HostPattern::parse(host).unwrap(), Prefix::parse(prefix).unwrap());
        self.shared
            .routes
            .store(Arc::new(Table::new(&[Route { host, prefix, target, strip_prefix, class: Class::default() }], &[])));
    }

    /// These are the app's workers now, each with that many permits.
    pub(crate) fn workers(&self, workers: &[(SocketAddr, u32)]) {
        self.reports(None, &views(workers, 256));
    }

    /// The same, and they have no more slots than permits.
    pub(crate) fn narrow_workers(&self, workers: &[(SocketAddr, u32)]) {
        let slots = workers.iter().map(|(_, grant)| *grant).max();
        self.reports(None, &views(workers, slots.unwrap_or(1)));
    }

    /// The whole truth about the app's one node and its workers, whose own limit is `timeout`.
    pub(crate) fn reports(&self, timeout: Option<Duration>, workers: &[WorkerView]) {
        let node = Node::new("node-1".to_owned(), ([127, 0, 0, 1], 1).into(), &[0xab, 0xcd]);
        self.app.apply(&Arc::new(Node { timeout, ..node }), workers);
    }

    /// One worker that does what the test says.
    pub(crate) async fn worker(&self) -> Worker {
        let worker = Worker::start().await;
        self.workers(&[(worker.address, 8)]);
        worker
    }

    pub(crate) async fn client(&self) -> Peer {
        Peer(TcpStream::connect(self.http).await.unwrap())
    }

    /// An HTTP/2 client over TLS.
    pub(crate) async fn http2(&self) -> SendRequest<BoxBody<Bytes, io::Error>> {
        let stream = self.tls(&[b"h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        sender
    }

    /// A TLS client that trusts exactly the certificate in use.
    pub(crate) async fn tls(&self, alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.tls_after(b"", alpn).await
    }

    /// The same, after these bytes.
    pub(crate) async fn tls_after(&self, first: &[u8], alpn: &[&[u8]]) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        let certificates = self.shared.certificates.load_full();
        roots.add(certificates.entries()[0].key.end_entity_cert().unwrap().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut stream = TcpStream::connect(self.https).await.unwrap();
        stream.write_all(first).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
    }

    /// The permits held now.
    pub(crate) fn held(&self) -> u64 {
        self.app.view().in_flight
    }

    /// The permits whose request is over and whose slot may be busy.
    pub(crate) fn unsettled(&self) -> u64 {
        self.app.view().unsettled
    }

    /// The node says that nothing runs any more of the connection a request with this head came over.
    pub(crate) fn settle(&self, head: &str) {
        self.app.settle("node-1", &[number(head)]);
    }

    /// Drains, and returns the lines of the access log.
    pub(crate) async fn finish(mut self) -> Vec<serde_json::Value> {
        self.lifecycle.advance(Phase::Draining);
        soon(self.cores.take().unwrap().drained()).await.unwrap();
        self.log()
    }

    /// As [`Self::finish`], for lines of another format.
    pub(crate) async fn finish_text(mut self) -> String {
        self.lifecycle.advance(Phase::Draining);
        soon(self.cores.take().unwrap().drained()).await.unwrap();
        String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines of the access log, complete once the cores have ended.
    pub(crate) fn log(&self) -> Vec<serde_json::Value> {
        let log = self.log.0.lock().unwrap();
        let lines = String::from_utf8(log.clone()).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn take_cores(&mut self) -> Cores {
        self.cores.take().unwrap()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.lifecycle.advance(Phase::Stopping);
    }
}

/// The number of the connection a request came over, as its head says.
pub(crate) fn number(head: &str) -> u64 {
    let text = head.lines().find_map(|line| line.strip_prefix("servery-connection: ")).expect("a number");
    assert_eq!(text.len(), 16);
    u64::from_str_radix(text, 16).unwrap()
}

/// A worker's socket.
#[derive(Debug)]
pub(crate) struct Worker {
    socket: TcpListener,
    pub(crate) address: SocketAddr,
}

impl Worker {
    pub(crate) async fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        Self { socket, address }
    }

    pub(crate) async fn accept(&self) -> Peer {
        Peer(soon(self.socket.accept()).await.unwrap().0)
    }

    /// Nobody connects, as far as the kernel knows.
    pub(crate) async fn expect_nobody(&self) {
        assert!(futures_util::FutureExt::now_or_never(self.socket.accept()).is_none(), "somebody connected");
    }
}

/// An address where nobody listens, and nobody can as long as this lives.
#[derive(Debug)]
pub(crate) struct Nobody(socket2::Socket);

impl Nobody {
    pub(crate) fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }
}

/// One end of a connection, byte by byte.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) TcpStream);

impl Peer {
    pub(crate) async fn send(&mut self, bytes: &str) {
        soon(self.0.write_all(bytes.as_bytes())).await.unwrap();
    }

    /// Reads until what was read ends with `end`.
    pub(crate) async fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            let byte = soon(self.0.read_u8()).await;
            let byte = byte.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&text)));
            text.push(byte);
        }
        String::from_utf8(text).unwrap()
    }

    /// A head, with its final empty line, in lower case.
    pub(crate) async fn head(&mut self) -> String {
        self.read_until("\r\n\r\n").await.to_ascii_lowercase()
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        soon(self.0.read_exact(&mut bytes)).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Everything until the other side closes, or resets.
    pub(crate) async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // a reset is an end too
        drop(soon(self.0.read_to_end(&mut bytes)).await);
        String::from_utf8(bytes).unwrap()
    }

    /// Reads a request's head and answers it with 200 and this body.
    pub(crate) async fn answer(&mut self, body: &str) -> String {
        let head = self.head().await;
        self.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
        head
    }

    /// Sends a request without a body and reads the answer's head and body.
    pub(crate) async fn get(&mut self, path: &str) -> (String, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        self.response().await
    }

    pub(crate) async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let body = self.exactly(length.parse().unwrap()).await;
        (head, body)
    }
}
