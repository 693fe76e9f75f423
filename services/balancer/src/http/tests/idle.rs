//! Connections on which nothing happens: how long they may stay, and what they may hold.

use super::*;
use crate::{
    accesslog::AccessLog,
    edge::Edge,
    http::{Protocol, Server},
};
use std::{pin::pin, rc::Rc, sync::Arc};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
/// Longer than it takes until a connection is taken down to what it needs to wait.
const QUIET: Duration = Duration::from_millis(400);

/// A worker that answers every request.
async fn obliging(plane: &Plane) {
    let worker = plane.worker().await;
    tokio::spawn(async move {
        loop {
            let mut upstream = worker.accept().await;
            tokio::spawn(async move {
                loop {
                    upstream.answer("ok").await;
                }
            });
        }
    });
}

async fn served(client: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    soon(client.write_all(REQUEST.as_bytes())).await.unwrap();
    answered(client).await;
}

async fn answered(client: &mut (impl AsyncReadExt + Unpin)) {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        answer.push(soon(client.read_u8()).await.unwrap());
    }
}

/// Until the other side has said that it wants no more.
async fn told_to_go(http2: &mut hyper::client::conn::http2::SendRequest<BoxBody<Bytes, io::Error>>) {
    soon(async {
        while http2.ready().await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_goes_on_after_nothing_has_happened_for_a_while() {
    // less than the last pause: it is for heads only
    let plane = Plane::start("header_timeout = \"1s\"");
    obliging(&plane).await;
    let mut plain = TcpStream::connect(plane.http).await.unwrap();
    let mut secure = plane.tls(&[b"http/1.1"]).await;
    for _ in 0..3 {
        served(&mut plain).await;
        served(&mut plain).await;
        served(&mut secure).await;
        sleep(QUIET).await;
    }
    sleep(Duration::from_millis(1200)).await;
    served(&mut secure).await;
    // a head that begins after a pause has its time, and no more
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    sleep(QUIET / 4).await;
    plain.write_all(b"\r\n").await.unwrap();
    answered(&mut plain).await;
    soon(secure.write_all(b"GET / HTTP/1.1\r\n")).await.unwrap();
    let mut answer = Vec::new();
    soon(secure.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_connection_is_closed_that_was_idle_for_too_long() {
    let plane = Plane::start("keepalive_timeout = \"1500ms\"");
    obliging(&plane).await;
    let mut client = plane.client().await;
    served(&mut client.0).await;
    let mut http2 = plane.http2().await;
    let response = soon(http2.send_request(Request::get("https://localhost/").body(empty()).unwrap())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    let begun = std::time::Instant::now();
    assert_eq!(client.rest().await, "");
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    told_to_go(&mut http2).await;
}

#[tokio::test]
async fn who_has_been_idle_longest_goes_when_all_hold_too_much() {
    // room for two that have said nothing, on each of two cores
    let plane = Plane::start("idle_memory = \"8KiB\"\nthreads = 2");
    obliging(&plane).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(plane.client().await);
    }
    let mut newest = silent.pop().unwrap();
    served(&mut newest.0).await;
    // all but four at most
    let mut ends: futures_util::stream::FuturesUnordered<_> =
        silent.iter_mut().map(|client| client.0.read_u8()).collect();
    for _ in 0..15 {
        assert!(soon(ends.next()).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn an_http2_connection_goes_only_when_it_is_idle() {
    // room for one, on each of two cores
    let plane = Plane::start("idle_memory = \"1KiB\"\nthreads = 2");
    let worker = plane.worker().await;
    let mut http2 = plane.http2().await;
    let asked = tokio::spawn(http2.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(plane.client().await);
        sleep(Duration::from_millis(100)).await;
    }
    upstream.send(OK).await;
    let response = soon(asked).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    // by now it has been for a while
    sleep(Duration::from_millis(1500)).await;
    for _ in 0..20 {
        silent.push(plane.client().await);
    }
    told_to_go(&mut http2).await;
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_a_new_one() {
    let plane = Plane::start("max_connections = 20");
    let worker = plane.worker().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(plane.client().await);
    }
    for _ in 0..10 {
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(client.response().await.1, "ok");
    }
}

#[tokio::test]
async fn what_is_asked_on_a_connection_just_when_it_has_to_go_is_answered_as_its_last_request() {
    let plane = Plane::start("");
    plane.route("elsewhere.example", "/", false);
    // a core of the test's own, so that nothing happens between two of its lines
    let edge = Rc::new(Edge::new(Arc::clone(&plane.shared), AccessLog::new(None)));
    let server = Server::new(&edge, "http", None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let draining = CancellationToken::new();
    let mut serving = pin!(server.serve(stream, peer, Protocol::Http1, &draining));
    let first = async {
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        sleep(QUIET).await;
    };
    tokio::select! {
        () = serving.as_mut() => panic!("it was closed at once"),
        () = soon(first) => {}
    }
    assert_eq!(client.try_write(REQUEST.as_bytes()).unwrap(), REQUEST.len());
    edge.idle.make_room();
    soon(serving).await;
    let mut rest = String::new();
    soon(client.read_to_string(&mut rest)).await.unwrap();
    let (_, last) = rest.split_once("HTTP/1.1 404").expect("a second answer");
    assert!(last.contains("connection: close\r\n"), "{last}");
}
