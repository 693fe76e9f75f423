//! A worker that clients reach by themselves: who gets its slots, how long connections live, and how it ends.

use super::*;
use proto::worker::{Edge, Limits};

pub(super) fn alone(capacity: u32, limit: Duration) -> Configure {
    let edge = Edge { keepalive_ms: 20_000, ..Edge::default() };
    Configure { pass: Vec::new(), edge: Some(edge), ..configure(capacity, limit) }
}

fn closes(response: &Response<Incoming>) -> bool {
    response.headers().get("connection").is_some_and(|value| value == "close")
}

#[tokio::test]
async fn a_client_is_served_without_a_pass_and_cannot_say_who_it_is() {
    let fields = |headers: HeaderMap| async move {
        let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let names = ["x-forwarded-for", "x-forwarded-host", "servery-pass", "x-forwarded-proto"];
        format!("{} {}", names.map(text).join(" "), text("x-request-id").len())
    };
    let worker = Worker::start_as(Router::new().route("/", get(fields)), alone(1, PATIENCE)).await;
    let mut request = request("/");
    request.headers_mut().insert("x-forwarded-for", "1.2.3.4".parse().unwrap());
    let response = send(&mut connect(worker.address).await, request).await;
    assert_eq!(text(response).await, "127.0.0.1 test  http 32");

    let without_host = Request::builder().uri("/").body(Full::default()).unwrap();
    let response = send(&mut connect(worker.address).await, without_host).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(closes(&response) && refused(&response).is_none());
}

#[tokio::test]
async fn connections_at_the_same_time_go_to_workers_that_are_free() {
    let gate = Gate::default();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut workers = Vec::new();
    for _ in 0..3 {
        let listener = Listener::new(socket.try_clone().unwrap().into()).unwrap();
        workers.push(Worker::start_on(listener, address, gate.router(), alone(1, PATIENCE)).await);
    }
    let mut answers = Vec::new();
    for _ in 0..3 {
        let mut client = connect(address).await;
        answers.push(tokio::spawn(async move { text(send(&mut client, request("/held")).await).await }));
    }
    // all at once, so each is in a worker of its own
    for _ in 0..3 {
        timeout(PATIENCE, gate.entered.notified()).await.unwrap();
    }
    for worker in &mut workers {
        worker.heartbeat(|sum| sum.busy == 1).await;
    }
    for _ in 0..3 {
        gate.open.notify_one();
    }
    for answer in answers {
        assert_eq!(answer.await.unwrap(), "held");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_holds_no_slot_for_long() {
    let mut worker = Worker::start_as(Gate::default().router(), alone(1, PATIENCE)).await;
    // accepted first, because it came first: the only slot is its own
    let mut silent = TcpStream::connect(worker.address).await.unwrap();
    silent.write_all(b"GET / HT").await.unwrap();
    assert_eq!(text(send(&mut connect(worker.address).await, request("/")).await).await, "hello");
    worker.heartbeat(|sum| sum.busy == 0).await;
    silent.write_all(b"TP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, silent.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn a_request_on_an_open_connection_waits_for_a_slot() {
    let gate = Gate::default();
    let mut worker = Worker::start_as(gate.router(), alone(1, PATIENCE)).await;
    let mut first = connect(worker.address).await;
    assert_eq!(text(send(&mut first, request("/")).await).await, "hello");
    let mut second = connect(worker.address).await;
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");

    let held = tokio::spawn(async move { text(send(&mut first, request("/held")).await).await });
    gate.entered.notified().await;
    let waits = tokio::spawn(async move { text(send(&mut second, request("/")).await).await });
    worker.heartbeat(|sum| sum.waiting == 1 && sum.busy == 1).await;
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
    assert_eq!(waits.await.unwrap(), "hello");
}

#[tokio::test]
async fn a_client_is_told_when_no_slot_becomes_free_in_time() {
    // parts come more often than the limit, and the slot is held for as long as they come
    let parts = || async {
        let parts = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, Error>(Bytes::from_static(b"part")), ()))
        });
        Body::from_stream(parts)
    };
    let router = Gate::default().router().route("/parts", get(parts));
    let worker = Worker::start_as(router, alone(1, Duration::from_millis(200))).await;
    let (mut first, mut second) = (connect(worker.address).await, connect(worker.address).await);
    assert_eq!(text(send(&mut first, request("/")).await).await, "hello");
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
    let streamed = send(&mut first, request("/parts")).await;
    let crowded = send(&mut second, request("/")).await;
    assert_eq!((crowded.status(), refused(&crowded)), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert_eq!(crowded.headers()["retry-after"], "1");
    text(crowded).await;
    drop((streamed, first));
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
}

#[tokio::test]
async fn an_idle_connection_lives_as_long_as_it_is_kept_alive() {
    let mut configure = alone(1, PATIENCE);
    configure.edge.as_mut().unwrap().keepalive_ms = 100;
    let worker = Worker::start_as(Gate::default().router(), configure.clone()).await;
    let mut kept = connect(worker.address).await;
    for _ in 0..2 {
        assert_eq!(text(send(&mut kept, request("/")).await).await, "hello");
    }
    assert!(timeout(PATIENCE, closed(&mut kept)).await.is_ok());

    configure.edge.as_mut().unwrap().keepalive_ms = 0;
    let worker = Worker::start_as(Gate::default().router(), configure).await;
    let once = send(&mut connect(worker.address).await, request("/")).await;
    assert!(closes(&once));
}

async fn closed(sender: &mut SendRequest<Full<Bytes>>) {
    while sender.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_worker_that_drains_serves_what_is_there_and_nobody_is_told_to_go_elsewhere() {
    let gate = Gate::default();
    let mut worker = Worker::start_as(gate.router(), alone(4, PATIENCE)).await;
    let mut idle = connect(worker.address).await;
    assert_eq!(text(send(&mut idle, request("/")).await).await, "hello");
    let mut busy = connect(worker.address).await;
    let held = tokio::spawn(async move {
        let response = send(&mut busy, request("/held")).await;
        (closes(&response), text(response).await)
    });
    gate.entered.notified().await;
    // accepted, and its next request has begun when the order comes
    let mut crossing = TcpStream::connect(worker.address).await.unwrap();
    crossing.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    while !answer.ends_with("hello") {
        answer.push(char::from(crossing.read_u8().await.unwrap()));
    }
    crossing.write_all(b"GET / HT").await.unwrap();
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000, last: true })).await;
    timeout(PATIENCE, closed(&mut idle)).await.unwrap();
    crossing.write_all(b"TP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, crossing.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("servery-refused"), "{answer}");

    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), (true, "held".to_owned()));
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn a_worker_that_is_followed_closes_no_connection_without_telling_its_client_first() {
    let mut worker = Worker::start_as(Gate::default().router(), alone(4, PATIENCE)).await;
    let mut idle = connect(worker.address).await;
    assert_eq!(text(send(&mut idle, request("/")).await).await, "hello");
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000, last: false })).await;
    let mut told = false;
    while !told {
        // the order may come while a request is on its way: then the next one is told
        idle.ready().await.expect("open until it is told");
        let response = send(&mut idle, request("/")).await;
        told = closes(&response);
        assert_eq!(text(response).await, "hello");
    }
    timeout(PATIENCE, closed(&mut idle)).await.unwrap();
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn a_unix_socket_is_served_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let fields = |headers: HeaderMap| async move {
        format!("{:?} {:?}", headers.get("x-forwarded-for"), headers["x-forwarded-proto"])
    };
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let listener = Listener::new(socket.into()).unwrap();
    let router = Router::new().route("/", get(fields));
    let _worker = Worker::start_on(listener, nowhere, router, alone(1, PATIENCE)).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto: https\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("None \"https\""), "{answer}");
}

#[tokio::test]
async fn a_head_that_does_not_arrive_is_answered_and_a_connection_without_one_is_closed() {
    let limits = Limits { header_ms: 50, ..Limits::default() };
    let worker =
        Worker::start_as(Gate::default().router(), Configure { limits: Some(limits), ..alone(1, PATIENCE) }).await;
    for (sent, answered) in [("", ""), ("GET / HTTP/1.1\r\nhost:", "HTTP/1.1 408 ")] {
        let mut stream = TcpStream::connect(worker.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with(answered) && answer.is_empty() == answered.is_empty(), "{answer}");
    }
    assert_eq!(text(send(&mut connect(worker.address).await, request("/")).await).await, "hello");
}

#[tokio::test]
async fn an_answer_on_its_way_is_cut_neither_by_draining_nor_for_idleness() {
    const LARGE: usize = 32 << 20;
    for drains in [true, false] {
        let mut configure = alone(1, PATIENCE);
        configure.edge.as_mut().unwrap().keepalive_ms = 50;
        // in one part, which hyper takes whole: the application has nothing to do with the rest
        let router = Router::new().route("/", get(|| async { vec![b'x'; LARGE] }));
        let mut worker = Worker::start_as(router, configure).await;
        let mut client = connect(worker.address).await;
        let response = send(&mut client, request("/")).await;
        worker.heartbeat(|sum| sum.served == 1 && sum.busy == 0).await;
        if drains {
            worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000, last: false })).await;
        }
        // longer than an idle connection lives
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(text(response).await.len(), LARGE);
    }
}
