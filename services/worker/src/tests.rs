//! A whole worker in the test's process: its listening socket and its control socket are the test's, so every test is
//! the supervisor and the balancer.

use crate::{Error, Placement, control::serve_on, frames::Frames};
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
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
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

impl Worker {
    async fn start(router: Router, capacity: u32, limit: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ended = tokio::spawn(serve_on(listener, theirs, router));
        let mut worker = Self { address, control: Framed::new(ours, Frames::new()), ended };
        let configure = Configure {
            protocol_version: proto::PROTOCOL_VERSION,
            pass: PASS.to_vec(),
            capacity,
            timeout_ms: u32::try_from(limit.as_millis()).unwrap(),
            app: "demo".to_owned(),
            node: "node-1".to_owned(),
            position: 3,
            generation: 2,
        };
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
        let mut sum = Heartbeat::default();
        loop {
            if let News::Heartbeat(next) = self.news().await {
                sum.codes.extend(next.codes);
                sum.denied += next.denied;
                sum.refused += next.refused;
                (sum.busy, sum.served) = (next.busy, next.served);
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

#[tokio::test]
async fn a_request_with_the_pass_reaches_the_application_without_it() {
    let router = Router::new().route(
        "/",
        get(|placement: Placement, headers: HeaderMap| async move {
            let ours = headers.keys().any(|name| name.as_str().starts_with("servery-"));
            let body =
                format!("{} {} {} {} {ours}", placement.app, placement.node, placement.position, placement.generation);
            ([("servery-refused", "busy"), ("servery-anything", "x"), ("x-mine", "y")], body)
        }),
    );
    let worker = Worker::start(router, 4, PATIENCE).await;
    let response = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(refused(&response).is_none() && !response.headers().contains_key("servery-anything"));
    assert!(response.headers().contains_key("x-mine"));
    assert_eq!(text(response).await, "demo node-1 3 2 false");
}

#[tokio::test]
async fn a_request_without_the_one_right_pass_reaches_nobody_and_is_counted() {
    let reached = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&reached);
    let router = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { "reached" }
    });
    let mut worker = Worker::start(router, 4, PATIENCE).await;
    for passes in
        [&[][..], &[""], &["0aff11"], &["0AFF10"], &["0aff1000"], &[PASS_TEXT, PASS_TEXT], &["0aff11", PASS_TEXT]]
    {
        let mut request = request("/");
        request.headers_mut().remove("servery-pass");
        request.headers_mut().insert("x-request-id", "id-1".parse().unwrap());
        for pass in passes {
            request.headers_mut().append("servery-pass", pass.parse().unwrap());
        }
        let response = send(&mut connect(worker.address).await, request).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{passes:?}");
        assert!(refused(&response).is_none());
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert!(text(response).await.contains(r#""request_id":"id-1""#));
    }
    worker.heartbeat(|sum| sum.denied == 7).await;
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_over_capacity_is_refused_and_the_next_one_after_an_end_is_not() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut first = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut first, request("/held")).await).await });
    gate.entered.notified().await;
    worker.heartbeat(|sum| sum.busy == 1).await;

    let mut second = connect(worker.address).await;
    let busy = send(&mut second, request("/")).await;
    assert_eq!((busy.status(), refused(&busy)), (StatusCode::SERVICE_UNAVAILABLE, Some("busy")));
    text(busy).await;

    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
    // the connection that was refused serves on, and the slot is free before the end of the answer is seen
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
    let sum = worker.heartbeat(|sum| sum.served == 2 && sum.busy == 0).await;
    assert_eq!(sum.refused, 1);
}

#[tokio::test]
async fn a_slot_is_held_until_the_body_has_ended() {
    let (frames, receive) = mpsc::channel::<Bytes>(1);
    let receive = Arc::new(tokio::sync::Mutex::new(receive));
    let router = Router::new()
        .route(
            "/stream",
            get(move || async move {
                let receive = receive.lock_owned().await;
                let frames = futures_util::stream::unfold(receive, |mut receive| async {
                    let bytes = receive.recv().await?;
                    Some((Ok::<_, Error>(http_body::Frame::data(bytes)), receive))
                });
                Body::new(StreamBody::new(frames))
            }),
        )
        .route("/", get(|| async { "hello" }));
    let mut worker = Worker::start(router, 1, PATIENCE).await;
    let (mut first, mut second) = (connect(worker.address).await, connect(worker.address).await);
    let mut streamed = send(&mut first, request("/stream")).await;
    frames.send(Bytes::from_static(b"part")).await.unwrap();
    let part = timeout(PATIENCE, streamed.body_mut().frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(part.into_data().unwrap(), "part");
    let busy = send(&mut second, request("/")).await;
    assert_eq!(refused(&busy), Some("busy"));
    text(busy).await;
    drop(frames);
    assert_eq!(text(streamed).await, "");
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
    worker.heartbeat(|sum| sum.busy == 0 && sum.served == 2).await;
}

#[tokio::test]
async fn a_balancer_that_leaves_frees_the_slot() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream
        .write_all(format!("GET /held HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    gate.entered.notified().await;
    drop(stream);
    gate.left.notified().await;
    let sum = worker.heartbeat(|sum| sum.served == 1 && sum.busy == 0).await;
    assert!(sum.codes.is_empty(), "nobody was answered: {:?}", sum.codes);
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_dropped_and_answered_for() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, Duration::from_millis(50)).await;
    let mut sender = connect(worker.address).await;
    let late = send(&mut sender, request("/held")).await;
    assert_eq!((late.status(), refused(&late)), (StatusCode::GATEWAY_TIMEOUT, None));
    text(late).await;
    timeout(PATIENCE, gate.left.notified()).await.expect("the handler's future is dropped");
    assert_eq!(text(send(&mut sender, request("/")).await).await, "hello");
    let sum = worker.heartbeat(|sum| sum.served == 2).await;
    assert_eq!(sum.codes.iter().map(|code| (code.code_class, code.count)).collect::<Vec<_>>().len(), 2);
}

#[tokio::test]
async fn a_handler_that_panics_harms_no_other_request() {
    let gate = Gate::default();
    let panics = || async {
        let broken: Result<&str, &str> = "no number".parse::<u32>().map(|_| "one").map_err(|_| "part of the test");
        broken.expect("this panic is")
    };
    let worker = Worker::start(gate.router().route("/panic", get(panics)), 4, PATIENCE).await;
    let mut neighbour = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut neighbour, request("/held")).await).await });
    gate.entered.notified().await;
    let mut sender = connect(worker.address).await;
    let failed = send(&mut sender, request("/panic")).await;
    assert_eq!((failed.status(), refused(&failed)), (StatusCode::INTERNAL_SERVER_ERROR, None));
    assert!(!text(failed).await.contains("part of the test"));
    assert_eq!(text(send(&mut sender, request("/")).await).await, "hello");
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
}

#[tokio::test]
async fn draining_finishes_what_runs_refuses_what_comes_and_ends() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 4, PATIENCE).await;
    let mut busy = connect(worker.address).await;
    let held = tokio::spawn(async move {
        let response = send(&mut busy, request("/held")).await;
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        (text(response).await, closes)
    });
    gate.entered.notified().await;
    let mut idle = connect(worker.address).await;
    assert_eq!(text(send(&mut idle, request("/")).await).await, "hello");

    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    // an idle connection is closed, a request that crosses it on the way is refused
    while !idle.is_closed() {
        if timeout(PATIENCE, idle.ready()).await.unwrap().is_err() {
            break;
        }
        let Ok(crossing) = idle.send_request(request("/")).await else { break };
        if let Some(reason) = refused(&crossing) {
            assert_eq!((reason, crossing.status()), ("draining", StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(crossing.headers()["connection"], "close");
        }
        text(crossing).await;
    }
    let new = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(refused(&new), Some("draining"));
    text(new).await;
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), ("held".to_owned(), true));
    loop {
        if let News::Drained(_) = worker.news().await {
            break;
        }
    }
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn draining_without_connections_ends_at_once() {
    let mut worker = Worker::start(Router::new(), 4, PATIENCE).await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    assert!(timeout(Duration::from_secs(5), worker.end()).await.expect("at once").is_ok());
}

#[tokio::test]
async fn draining_cuts_what_does_not_end_in_time() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 4, PATIENCE).await;
    let mut busy = connect(worker.address).await;
    let held = tokio::spawn(async move { busy.send_request(request("/held")).await });
    gate.entered.notified().await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 50 })).await;
    assert!(worker.end().await.is_ok());
    assert!(held.await.unwrap().is_err(), "the request was cut, not answered");
}

#[tokio::test]
async fn a_tunnel_is_not_counted_as_a_slot_but_waited_for() {
    let router = Router::new()
        .route(
            "/ws",
            get(|upgrade: WebSocketUpgrade| async {
                upgrade.on_upgrade(|mut socket| async move {
                    while let Some(Ok(message)) = socket.recv().await {
                        if socket.send(message).await.is_err() {
                            break;
                        }
                    }
                })
            }),
        )
        .route("/", get(|| async { "hello" }));
    let mut worker = Worker::start(router, 1, PATIENCE).await;
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    let head = format!(
        "GET /ws HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    assert_eq!(text(send(&mut connect(worker.address).await, request("/")).await).await, "hello");

    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    // refused, so draining has begun; the tunnel still carries an (unmasked length 2, masked by zero) message both ways
    let new = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(refused(&new), Some("draining"));
    stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, [0x81, 2, b'h', b'i']);
    assert!(!worker.ended.is_finished());
    drop(stream);
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn a_refusal_is_read_whole_by_a_peer_that_is_still_sending() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    drop(worker.heartbeat(|_| true).await);
    for _ in 0..20 {
        let Ok(mut stream) = TcpStream::connect(worker.address).await else { return };
        let head =
            format!("POST / HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\ncontent-length: 1000000\r\n\r\n");
        if stream.write_all(head.as_bytes()).await.is_err() {
            return; // drained already
        }
        let mut answer = Vec::new();
        let (mut read, mut write) = stream.split();
        let sending = async {
            let _ = write.write_all(&vec![b'x'; 1_000_000]).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = timeout(PATIENCE, read.read_to_end(&mut answer)) => { read.unwrap().unwrap(); }
            () = sending => {}
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("servery-refused: draining") && answer.ends_with("}\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_worker_ends_when_its_supervisor_says_so_or_is_gone() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    worker.order(Order::Stop(Stop {})).await;
    assert!(worker.end().await.is_ok());

    let Worker { control, ended, .. } = Worker::start(Router::new(), 1, PATIENCE).await;
    drop(control);
    assert!(matches!(timeout(PATIENCE, ended).await.unwrap().unwrap(), Err(Error::SupervisorGone)));
}

#[tokio::test]
async fn a_heartbeat_comes_every_second_also_when_nothing_happens() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    for _ in 0..3 {
        let news = timeout(Duration::from_secs(3), worker.news()).await.expect("a heartbeat");
        assert!(matches!(news, News::Heartbeat(_)));
    }
}

#[tokio::test]
async fn neighbouring_versions_work_together_and_farther_ones_say_so() {
    for (version, understood) in [(proto::PROTOCOL_VERSION + 1, true), (proto::PROTOCOL_VERSION + 2, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ended = tokio::spawn(serve_on(listener, theirs, Router::new()));
        let mut control: Framed<_, Frames<FromWorker, FromSupervisor>> = Framed::new(ours, Frames::new());
        let configure = Configure { protocol_version: version, capacity: 1, ..Configure::default() };
        control.send(FromSupervisor { message: Some(Order::Configure(configure)) }).await.unwrap();
        let answer = timeout(PATIENCE, control.next()).await.unwrap();
        assert_eq!(answer.is_some(), understood, "version {version}");
        drop(control);
        let error = timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap_err();
        assert_eq!(matches!(error, Error::Version { .. }), !understood, "{error}");
    }
}

/// Runs as a program of its own, started by the test below.
#[test]
fn a_program() {
    if std::env::var_os("STARTED_BY_HAND").is_some() {
        let code = crate::run(Router::new());
        // `ExitCode` shows its number to nobody but the system
        std::process::exit(if code == std::process::ExitCode::from(64) { 64 } else { 1 });
    }
}

#[test]
fn a_program_started_by_hand_says_what_to_run_instead() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::a_program", "--nocapture"]).env("STARTED_BY_HAND", "1");
    let output = command.env_remove("SERVERY_LISTEN_FD").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("servery app --exec"), "{said}");

    for (listen, control, problem) in [
        ("99", "98", "SERVERY_LISTEN_FD is 99"),
        ("x", "98", "not a descriptor"),
        ("2", "98", "standard"),
        ("99", "99", "same"),
    ] {
        command.env("SERVERY_LISTEN_FD", listen).env("SERVERY_CONTROL_FD", control);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(problem), "{said}");
    }
    let output = command.env("SERVERY_PARENT", "1").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("not its supervisor"), "{output:?}");
}
