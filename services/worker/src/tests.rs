//! A whole worker in the test's process: its listening socket and its control socket are the test's, so every test is
//! the supervisor and the balancer.

use crate::{Error, Placement, control::serve_on, frames::Frames, stream::Listener};
use axum::{
    Router,
    body::Body,
    extract::ws::WebSocketUpgrade,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use proto::worker::{
    Configure, Drain, FromSupervisor, FromWorker, Heartbeat, Stop, from_supervisor::Message as Order,
    from_worker::Message as News,
};
use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::codec::Framed;

const PASS: [u8; 3] = [0x0a, 0xff, 0x10];
const PASS_TEXT: &str = "0aff10";

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker that runs in a task.
struct Worker {
    address: SocketAddr,
    control: Framed<UnixStream, Frames<FromWorker, FromSupervisor>>,
    ended: JoinHandle<Result<(), Error>>,
}

/// A listening socket as a supervisor makes it.
fn listener() -> (Listener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Listener::new(listener.into()).unwrap(), address)
}

/// What a supervisor of a node behind a balancer says.
fn configure(capacity: u32, limit: Duration) -> Configure {
    Configure {
        protocol_version: proto::PROTOCOL_VERSION,
        pass: PASS.to_vec(),
        capacity,
        timeout_ms: u32::try_from(limit.as_millis()).unwrap(),
        app: "demo".to_owned(),
        node: "node-1".to_owned(),
        position: 3,
        generation: 2,
        ..Configure::default()
    }
}

impl Worker {
    async fn start(router: Router, capacity: u32, limit: Duration) -> Self {
        Self::start_as(router, configure(capacity, limit)).await
    }

    async fn start_as(router: Router, configure: Configure) -> Self {
        let (listener, address) = listener();
        Self::start_on(listener, address, router, configure).await
    }

    async fn start_on(listener: Listener, address: SocketAddr, router: Router, configure: Configure) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ended = tokio::spawn(serve_on(listener, theirs, router));
        let mut worker = Self { address, control: Framed::new(ours, Frames::new()), ended };
        let capacity = configure.capacity;
        worker.order(Order::Configure(configure)).await;
        let News::Ready(ready) = worker.news().await else { panic!("Ready comes first") };
        assert_eq!((ready.capacity, ready.protocol_version), (capacity, proto::PROTOCOL_VERSION));
        worker
    }

    async fn order(&mut self, order: Order) {
        self.control.send(FromSupervisor { message: Some(order) }).await.unwrap();
    }

    async fn news(&mut self) -> News {
        let news = timeout(PATIENCE, self.control.next()).await.expect("news in time");
        news.expect("an open control socket").expect("a message").message.expect("a known message")
    }

    /// The first heartbeat that is as wanted; adds the counts of those before it.
    async fn heartbeat(&mut self, wanted: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        let (mut sum, start) = (Heartbeat::default(), tokio::time::Instant::now());
        loop {
            assert!(start.elapsed() < PATIENCE, "no such heartbeat in time: {sum:?}");
            if let News::Heartbeat(next) = self.news().await {
                sum.codes.extend(next.codes);
                sum.denied += next.denied;
                sum.refused += next.refused;
                sum.settled.extend(next.settled);
                (sum.busy, sum.served, sum.waiting) = (next.busy, next.served, next.waiting);
                (sum.presences, sum.service_us) = (next.presences, next.service_us);
                if let Some(next) = next.durations {
                    let mut durations = sum.durations.take().unwrap_or_default();
                    durations.counts.resize(next.counts.len(), 0);
                    durations.counts.iter_mut().zip(&next.counts).for_each(|(sum, next)| *sum += next);
                    durations.sum_s += next.sum_s;
                    sum.durations = Some(durations);
                }
                if wanted(&sum) {
                    return sum;
                }
            }
        }
    }

    async fn end(self) -> Result<(), Error> {
        timeout(PATIENCE, self.ended).await.expect("an end in time").unwrap()
    }
}

/// One connection of a balancer.
async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().uri(path).header("host", "test").header("servery-pass", PASS_TEXT);
    request.body(Full::default()).unwrap()
}

async fn send(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Response<Incoming> {
    timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
    timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time").unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let bytes = timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn refused(response: &Response<Incoming>) -> Option<&str> {
    response.headers().get("servery-refused").map(|value| value.to_str().unwrap())
}

/// A handler that waits until it is let go, and tells when it was entered and when it was dropped.
#[derive(Clone, Default)]
struct Gate {
    entered: Arc<Notify>,
    open: Arc<Notify>,
    left: Arc<Notify>,
}

struct Leaves(Arc<Notify>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Gate {
    fn router(&self) -> Router {
        let gate = self.clone();
        let held = move || {
            let gate = gate.clone();
            async move {
                let _leaves = Leaves(Arc::clone(&gate.left));
                gate.entered.notify_one();
                gate.open.notified().await;
                "held"
            }
        };
        Router::new().route("/held", get(held)).route("/", get(|| async { "hello" }))
    }
}

mod alone;
mod backlog;
mod balanced;
mod control;
mod deck;
mod draining;
mod framing;
mod numbers;
mod proxied;
mod slow;
