use crate::fixture::{Plane, eventually, soon};
use bytes::Bytes;
use chassis::lifecycle::Phase;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use std::time::Duration;
use tokio::{io::AsyncReadExt, net::TcpStream};

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight_and_takes_nothing_new() {
    let mut plane = Plane::start("");
    let worker = plane.worker().await;
    let mut idle = plane.client().await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    worker.accept().await.answer("").await;
    idle.response().await;

    let mut busy = plane.client().await;
    busy.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let mut http2 = plane.http2().await;
    let request =
        || Request::get("https://localhost/").body(Empty::<Bytes>::new().map_err(|e| match e {}).boxed()).unwrap();
    let in_flight = tokio::spawn(http2.send_request(request()));
    let mut upstream2 = worker.accept().await;
    upstream2.head().await;

    let ended = plane.take_cores();
    plane.lifecycle.advance(Phase::Draining);
    assert_eq!(idle.rest().await, "", "an idle connection is closed at once");
    // a closed listener refuses
    soon(async { while TcpStream::connect(plane.http).await.is_ok() {} }).await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (head, body) = busy.response().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), busy.rest().await.as_str()), ("ok", ""));
    upstream2.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let response = soon(in_flight).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert!(soon(http2.send_request(request())).await.is_err(), "GOAWAY");
    soon(ended.drained()).await.unwrap();
    assert_eq!(plane.held(), 0);
}

#[tokio::test]
async fn a_drain_is_over_when_its_time_is() {
    let mut plane = Plane::start("drain = \"100ms\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let ended = plane.take_cores();
    plane.lifecycle.advance(Phase::Draining);
    soon(ended.drained()).await.unwrap();
    assert_eq!(client.rest().await, "");
    assert_eq!(upstream.rest().await, "");
    assert_eq!(plane.held(), 0);
    assert_eq!(plane.log()[0]["reject"], "drained");
}

#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let mut plane = Plane::start("drain = \"1h\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let ended = plane.take_cores();
    plane.lifecycle.advance(Phase::Draining);
    plane.lifecycle.advance(Phase::Stopping);
    soon(ended.drained()).await.unwrap();
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_slot_while_the_others_are_in_use() {
    let plane = Plane::start("max_connections = 2");
    let worker = plane.worker().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        open.push((client, upstream));
    }
    let mut third = plane.client().await;
    third.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let waited = tokio::time::timeout(Duration::from_millis(200), worker.accept()).await;
    assert!(waited.is_err(), "it is not served yet");
    open.pop();
    worker.accept().await.answer("now").await;
    assert_eq!(third.response().await.1, "now");
}

#[tokio::test]
async fn a_handshake_has_a_deadline_and_old_protocols_none_at_all() {
    let plane = Plane::start("handshake_timeout = \"100ms\"");
    let mut silent = TcpStream::connect(plane.https).await.unwrap();
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap_or(0), 0);
    let stream = plane.tls(&[]).await;
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    drop(stream);
    eventually(|| plane.held() == 0).await;
}
