//! Clients that take nothing of their answers, or send nothing of their bodies, while they hold permits that others need.

use super::*;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use tokio::net::TcpSocket;

/// Permits of the one worker; a client's share of them is one.
const PERMITS: u32 = 2;
const LARGE: usize = 64 * 1024 * 1024;

async fn start(settings: &str) -> (Plane, Worker) {
    let plane = Plane::start(settings);
    let worker = Worker::start().await;
    plane.workers(&[(worker.address, PERMITS)]);
    (plane, worker)
}

/// A client with an address of its own.
async fn client_at(last: u8, http: SocketAddr) -> Peer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, last], 0).into()).unwrap();
    Peer(socket.connect(http).await.unwrap())
}

/// Answers with more than anybody keeps, until the other side closes.
async fn pour(mut upstream: Peer) {
    upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n")).await;
    let chunk = "x".repeat(64 * 1024);
    while upstream.0.write_all(chunk.as_bytes()).await.is_ok() {}
}

fn reasons(log: &[serde_json::Value]) -> Vec<&str> {
    let mut reasons: Vec<_> = log.iter().filter_map(|line| line["reject"].as_str()).collect();
    reasons.sort_unstable();
    reasons
}

/// Requests that hold every permit and take nothing of what is poured; the heads that the worker has seen.
async fn take_nothing(plane: &Plane, worker: &Worker) -> (Vec<Peer>, Vec<String>) {
    let (mut clients, mut heads) = (Vec::new(), Vec::new());
    for _ in 0..PERMITS {
        let mut client = client_at(1, plane.http).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        heads.push(upstream.head().await);
        tokio::spawn(pour(upstream));
        clients.push(client);
    }
    (clients, heads)
}

/// Somebody else's request is answered, once the permit that it needs is settled.
async fn others_are_served(plane: &Plane, worker: &Worker, heads: &[String]) {
    let mut other = client_at(2, plane.http).await;
    other.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| plane.unsettled() == 1).await;
    assert_eq!(plane.held(), u64::from(PERMITS) - 1, "one place for one request");
    heads.iter().for_each(|head| plane.settle(head));
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    assert_eq!(other.response().await.1, "ok");
}

async fn answers_that_nobody_takes_make_room(plane: Plane, worker: &Worker) {
    let (clients, heads) = take_nothing(&plane, worker).await;
    others_are_served(&plane, worker, &heads).await;
    drop(clients);
    eventually(|| plane.held() == 0).await;
    assert_eq!(reasons(&plane.finish().await), ["client_gone", "stalled_share"]);
}

#[tokio::test]
async fn who_takes_nothing_of_its_answers_makes_room_for_others() {
    let (plane, worker) = start("").await;
    answers_that_nobody_takes_make_room(plane, &worker).await;
}

#[tokio::test]
async fn where_answers_are_read_ahead_too() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.narrow_workers(&[(worker.address, PERMITS)]);
    answers_that_nobody_takes_make_room(plane, &worker).await;
}

#[tokio::test]
async fn who_sends_nothing_of_its_body_is_told_that_others_needed_the_place() {
    let (plane, worker) = start("").await;
    let (mut clients, mut heads) = (Vec::new(), Vec::new());
    for _ in 0..PERMITS {
        let mut client = client_at(1, plane.http).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").await;
        let mut upstream = worker.accept().await;
        heads.push(upstream.head().await);
        clients.push((client, upstream));
    }
    others_are_served(&plane, &worker, &heads).await;
    let (head, body) = clients[0].0.response().await;
    assert_eq!(status(&head), "429");
    assert!(head.contains("retry-after: ") && head.contains("connection: close\r\n"), "{head}");
    assert!(body.contains("stood still"), "{body}");
    let (clients, upstreams): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
    drop(clients);
    eventually(|| plane.held() == 0).await;
    drop(upstreams);
    assert_eq!(reasons(&plane.finish().await), ["bad_body", "stalled_share"]);
}

#[tokio::test]
async fn who_moves_keeps_its_places() {
    let (plane, worker) = start("").await;
    let mut clients = Vec::new();
    for _ in 0..PERMITS {
        let mut client = client_at(1, plane.http).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1600\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        clients.push((client, upstream));
    }
    let mut other = client_at(2, plane.http).await;
    other.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // 2 KB in a second, for more than three times as long as one may stand still
    let part = "x".repeat(100);
    for _ in 0..16 {
        for (client, upstream) in &mut clients {
            client.send(&part).await;
            assert_eq!(upstream.exactly(100).await, part);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (client, upstream) in &mut clients {
        upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(client.response().await.1, "ok");
    }
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    assert_eq!(other.response().await.1, "ok");
    drop((clients, other));
    assert!(reasons(&plane.finish().await).is_empty());
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
    let (plane, worker) = start("body_timeout = \"300ms\"").await;
    let stream = TokioIo::new(plane.tls(&[b"h2"]).await);
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut http2, connection) = builder.initial_stream_window_size(0).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut get = || tokio::spawn(http2.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    // one whose answer goes on, and one whose answer is complete and holds nothing but the stream
    let (large, mut upstream) = (get(), worker.accept().await);
    let head = upstream.head().await;
    tokio::spawn(pour(upstream));
    let (small, mut upstream) = (get(), worker.accept().await);
    upstream.head().await;
    upstream.send(OK).await;
    for response in [large, small] {
        let response = soon(response).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert!(soon(response.into_body().collect()).await.is_err(), "it is reset");
    }
    eventually(|| plane.held() == 0).await;
    plane.settle(&head);
    let last = get();
    upstream.head().await;
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(soon(last).await.unwrap().unwrap().status(), 204);
    assert_eq!(reasons(&plane.finish().await), ["response_stall", "response_stall"]);
}
