//! Over real sockets, with clients and workers that speak bytes.

use crate::fixture::{Peer, Plane, Worker, eventually, soon};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::{Method, Request, body::Frame};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

fn empty() -> BoxBody<Bytes, io::Error> {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(text: &'static str) -> BoxBody<Bytes, io::Error> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\nservery-refused: draining\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_worker_gets_one_clean_request_and_the_client_a_clean_answer() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client
        .send(
            "POST /a/b?c=d HTTP/1.1\r\nHost: Test.Example:8080\r\nConnection: keep-alive, x-private\r\nX-Private: 1\r\n\
             Servery-Pass: stolen\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: forged\r\nUpgrade: websocket\r\n\
             Accept: */*\r\nContent-Length: 3\r\n\r\nabc",
        )
        .await;
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    let mut lines: Vec<&str> = head.trim_end().lines().collect();
    assert_eq!(lines.remove(0), "post /a/b?c=d http/1.1");
    let id = lines.iter().position(|line| line.starts_with("x-request-id: ")).unwrap();
    let id = lines.remove(id).strip_prefix("x-request-id: ").unwrap().to_owned();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "accept: */*",
            "content-length: 3",
            "forwarded: for=127.0.0.1;host=\"test.example:8080\";proto=http",
            "host: test.example:8080",
            "servery-pass: abcd",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: test.example:8080",
            "x-forwarded-port: 8080",
            "x-forwarded-proto: http",
        ]
    );
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream
        .send(
            "HTTP/1.1 201 Created\r\nConnection: x-hop\r\nX-Hop: 1\r\nServery-Pass: leaked\r\nEtag: \"x\"\r\n\
             Content-Length: 2\r\n\r\nok",
        )
        .await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("http/1.1 201 created\r\n"), "{head}");
    assert!(head.contains("etag: \"x\"\r\n"));
    assert!(head.contains(&format!("x-request-id: {id}\r\n")));
    for gone in ["connection", "x-hop", "servery"] {
        assert!(!head.contains(gone), "{head}");
    }
    assert_eq!(body, "ok");
    eventually(|| plane.held() == 0).await;
    drop(client);
    let log = plane.finish().await;
    assert_eq!(log.len(), 1);
    let line = &log[0];
    assert_eq!(line["request_id"], id.as_str());
    assert_eq!(line["host"], "Test.Example:8080");
    assert_eq!((&line["method"], &line["path"]), (&"POST".into(), &"/a/b".into()));
    assert_eq!((&line["status"], &line["bytes_in"], &line["bytes_out"]), (&201.into(), &3.into(), &2.into()));
    assert_eq!((&line["app"], &line["node"], &line["worker"]), (&"demo".into(), &"node-1".into(), &0.into()));
    assert_eq!((&line["attempts"], &line["reject"]), (&1.into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    let mut upstream = None;
    for turn in 0..5 {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let upstream = match &mut upstream {
            Some(upstream) => upstream,
            None => upstream.insert(worker.accept().await),
        };
        upstream.answer(&format!("turn {turn}")).await;
        assert_eq!(client.response().await.1, format!("turn {turn}"));
    }
    worker.expect_nobody().await;
}

#[tokio::test]
async fn both_bodies_stream() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
    let mut upstream = worker.accept().await;
    assert!(upstream.head().await.contains("transfer-encoding: chunked"));
    assert_eq!(upstream.read_until("one\r\n").await, "3\r\none\r\n");
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    client.head().await;
    assert_eq!(client.read_until("first\r\n").await, "5\r\nfirst\r\n", "before the request has ended");
    client.send("3\r\ntwo\r\n0\r\n\r\n").await;
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(plane.held(), 1, "the permit is held until the response has ended");
    upstream.send("6\r\nsecond\r\n0\r\n\r\n").await;
    assert_eq!(client.read_until("0\r\n\r\n").await, "6\r\nsecond\r\n0\r\n\r\n");
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_worker_back() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let size = 64 * 1024 * 1024;
    upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
    let chunk = "x".repeat(64 * 1024);
    let mut sent = 0;
    // the kernel's buffers and ours, then no more
    while let Ok(()) = tokio::time::timeout(Duration::from_millis(300), upstream.send(&chunk)).await {
        sent += chunk.len();
        assert!(sent < size / 2, "it is not held back");
    }
    client.head().await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn heads_without_bodies_keep_their_length() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n").await;
    assert!(client.head().await.contains("content-length: 1234\r\n"));
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    upstream.head().await;
    upstream.send("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n").await;
    assert_eq!(status(&client.head().await), "304");
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    upstream.answer("still in step").await;
    assert_eq!(client.response().await.1, "still in step");
}

#[tokio::test]
async fn a_prefix_is_stripped_and_named() {
    let plane = Plane::start("");
    plane.route("*.example.org", "/flask", true);
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET /flask?x=1 HTTP/1.1\r\nhost: a.example.org\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    let head = upstream.answer("").await;
    assert!(head.starts_with("get /?x=1 http/1.1\r\n") && head.contains("x-forwarded-prefix: /flask\r\n"), "{head}");
    client.response().await;
    client.send("GET /flasks HTTP/1.1\r\nhost: a.example.org\r\n\r\n").await;
    assert_eq!(status(&client.response().await.0), "404");
}

#[tokio::test]
async fn a_worker_gets_exactly_one_well_framed_message_or_none() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\nname : value\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\nabc",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = plane.client().await;
        client.send(request).await;
        assert!(client.rest().await.starts_with("HTTP/1.1 400 "), "{request}");
    }
    worker.expect_nobody().await;
    let mut client = plane.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: 1\r\n\r\n",
        )
        .await;
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
}

#[tokio::test]
async fn before_the_first_route_is_known_nothing_is_said_to_be_not_found() {
    let plane = Plane::start("");
    plane.shared.routes.store(std::sync::Arc::default());
    let mut client = plane.client().await;
    let (head, _) = client.get("/").await;
    assert_eq!(status(&head), "503");
    assert!(head.contains("retry-after: 1\r\n"));
}

#[tokio::test]
async fn while_nodes_may_come_back_nothing_is_said_to_be_not_found() {
    let plane = Plane::start("");
    plane.route("", "/known", false);
    for (settled, wanted) in [(false, "503"), (true, "404")] {
        plane.shared.settled.store(settled, std::sync::atomic::Ordering::Relaxed);
        let mut client = plane.client().await;
        let (head, _) = client.get("/unknown").await;
        assert_eq!(status(&head), wanted);
    }
}

#[tokio::test]
async fn requests_that_name_no_host_are_refused_as_problem_json() {
    let plane = Plane::start("");
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "GET http://a@b/ HTTP/1.1\r\nhost: b\r\n\r\n",
    ] {
        let mut client = plane.client().await;
        client.send(request).await;
        let (head, body) = client.response().await;
        assert_eq!(status(&head), "400", "{request}");
        assert!(head.contains("content-type: application/problem+json"));
        assert!(head.contains("proxy-status: servery; error=http_request_error"));
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(head.contains(&format!("x-request-id: {}", problem["request_id"].as_str().unwrap())));
    }
    let mut client = plane.client().await;
    client.send("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n").await;
    assert_eq!(status(&client.response().await.0), "400");
    assert!(plane.finish().await.iter().all(|line| line["status"] == 400));
}

#[tokio::test]
async fn a_refusal_is_tried_elsewhere_with_its_whole_body() {
    let plane = Plane::start("");
    let (one, two) = (Worker::start().await, Worker::start().await);
    plane.workers(&[(one.address, 1), (two.address, 1)]);
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    let (mut refusing, other) = tokio::select! {
        peer = one.accept() => (peer, &two),
        peer = two.accept() => (peer, &one),
    };
    refusing.head().await;
    assert_eq!(refusing.exactly(3).await, "abc");
    refusing.send(REFUSED).await;
    let mut upstream = other.accept().await;
    assert!(upstream.head().await.contains("content-length: 6\r\n"));
    assert_eq!(upstream.exactly(3).await, "abc", "what the first one has had already");
    client.send("def").await;
    assert_eq!(upstream.exactly(3).await, "def");
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
    let log = plane.finish().await;
    assert_eq!((&log[0]["attempts"], &log[0]["status"]), (&2.into(), &200.into()));
}

#[tokio::test]
async fn one_worker_that_refuses_for_ever_ends_in_503() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let refuse = async {
        loop {
            let mut upstream = worker.accept().await;
            while upstream.0.peek(&mut [0; 1]).await.is_ok_and(|length| length > 0) {
                upstream.head().await;
                upstream.send(REFUSED).await;
            }
        }
    };
    let head = tokio::select! {
        () = refuse => unreachable!(),
        (head, _) = client.response() => head,
    };
    assert_eq!(status(&head), "503");
    assert!(head.contains("retry-after: 1\r\n") && head.contains("destination_unavailable"), "{head}");
}

/// An address where nobody listens.
async fn nobody() -> std::net::SocketAddr {
    Worker::start().await.address
}

#[tokio::test]
async fn a_worker_that_is_not_there_is_passed_over() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.workers(&[(nobody().await, 1), (nobody().await, 1), (worker.address, 1)]);
    let mut client = plane.client().await;
    let serve = tokio::spawn(async move {
        let mut upstream = worker.accept().await;
        for _ in 0..3 {
            upstream.head().await;
            upstream.send(OK).await;
        }
    });
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
        assert_eq!(client.response().await.1, "ok");
    }
    soon(serve).await.unwrap();
    plane.workers(&[(nobody().await, 1)]);
    let (head, _) = client.get("/").await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("connection_refused"));
}

#[tokio::test]
async fn a_reset_before_the_response_is_retried_only_when_idempotent() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    worker.accept().await.head().await; // and gone
    worker.accept().await.answer("again").await;
    assert_eq!(client.response().await.1, "again");
    // the second connection closed too: found out before the next request is written
    eventually(|| plane.held() == 0).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    drop(upstream);
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("connection_terminated"));
    worker.expect_nobody().await;
}

#[tokio::test]
async fn a_kept_connection_that_the_worker_closed_costs_no_request() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    for turn in ["one", "two", "three"] {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        let mut upstream = worker.accept().await;
        upstream.answer(turn).await;
        assert_eq!(client.response().await.1, turn);
        drop(upstream);
    }
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn a_worker_that_answers_no_http_is_a_502_and_is_not_asked_again() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("SSH-2.0-OpenSSH\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("http_protocol_error"));
    assert_eq!(upstream.rest().await, "");
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n").await;
    assert_eq!(status(&client.response().await.0), "502");
}

#[tokio::test]
async fn when_the_client_leaves_the_worker_sees_it_and_the_permit_is_free() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    // before the response
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert_eq!(plane.held(), 1);
    drop(client);
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 0).await;
    // during the response
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.read_until("abc\r\n").await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 0).await;
    // while it waits in the queue
    plane.workers(&[]);
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| plane.app.view().queue_depth == 1).await;
    drop(client);
    eventually(|| plane.app.view().queue_depth == 0).await;
    let log = plane.finish().await;
    let mut seen: Vec<_> =
        log.iter().map(|line| (line["status"].as_u64().unwrap(), line["reject"].as_str().unwrap())).collect();
    // each core writes its own lines
    seen.sort_unstable();
    assert_eq!(seen, [(200, "client_gone"), (499, "client_gone"), (499, "client_gone")]);
}

#[tokio::test]
async fn when_the_client_leaves_during_its_body_the_worker_never_sees_an_end() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.read_until("abc\r\n").await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn a_response_that_the_worker_cuts_off_never_looks_complete() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for (head, body) in [("transfer-encoding: chunked", "3\r\nabc\r\n"), ("content-length: 10", "abc")] {
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        client.head().await;
        assert_eq!(client.exactly(body.len()).await, body);
        drop(upstream);
        assert_eq!(client.rest().await, "", "closed without the last chunk");

        let mut client = plane.http2().await;
        let request = Request::get("https://localhost/").body(empty()).unwrap();
        let response = tokio::spawn(client.send_request(request));
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        let response = soon(response).await.unwrap().unwrap();
        drop(upstream);
        assert!(soon(response.into_body().collect()).await.is_err(), "the stream is reset");
    }
    eventually(|| plane.held() == 0).await;
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["reject"] == "cut_off" && line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let plane = Plane::start("max_body = \"10B\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "413");
    assert!(head.contains("connection: close"));
    worker.expect_nobody().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\nabcdef\r\n").await;
    let mut upstream = worker.accept().await;
    assert_eq!(status(&client.response().await.0), "413");
    assert!(!upstream.rest().await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_body_that_stops_is_a_408_and_a_response_that_does_not_come_a_504() {
    let plane = Plane::start("connect_timeout = \"100ms\"\nbody_timeout = \"100ms\"\nresponse_timeout = \"300ms\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").await;
    let _upstream = worker.accept().await;
    assert_eq!(status(&client.response().await.0), "408");
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    let mut upstream = worker.accept().await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "504");
    assert!(head.contains("http_response_timeout"));
    upstream.head().await;
    assert_eq!(upstream.rest().await, "x");
    assert_eq!(plane.held(), 1, "the slot is surely busy still");
    plane.workers(&[]);
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn a_response_that_stops_is_cut_off_and_so_is_a_client_that_reads_nothing() {
    let plane = Plane::start("connect_timeout = \"100ms\"\nbody_timeout = \"100ms\"\nresponse_timeout = \"300ms\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.read_until("abc\r\n").await;
    assert_eq!(client.rest().await, "");
    assert_eq!(upstream.rest().await, "");

    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n").await;
    let chunk = "x".repeat(1024 * 1024);
    // until the connection is closed under it
    while soon(upstream.0.write_all(chunk.as_bytes())).await.is_ok() {}
    assert_eq!(plane.held(), 1, "the slot of the response that stopped is surely busy still");
    plane.workers(&[]);
    eventually(|| plane.held() == 0).await;
    drop(client);
}

#[tokio::test]
async fn requests_wait_for_a_permit_and_the_queue_has_a_bound_and_a_deadline() {
    let plane = Plane::start("queue_length = 1\nqueue_deadline = \"400ms\"");
    let worker = Worker::start().await;
    plane.workers(&[(worker.address, 1)]);
    let mut first = plane.client().await;
    first.send("GET /first HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let mut second = plane.client().await;
    second.send("GET /second HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| plane.app.view().queue_depth == 1).await;
    let mut third = plane.client().await;
    let (head, _) = third.get("/third").await;
    assert_eq!(status(&head), "503");
    assert!(head.contains("retry-after: 1\r\n") && head.contains("connection_limit_reached"));
    upstream.send(OK).await;
    first.response().await;
    // the same connection when both came over the same core
    let mut byte = [0];
    let mut next = tokio::select! {
        biased;
        peer = worker.accept() => peer,
        _ = upstream.0.peek(&mut byte) => upstream,
    };
    assert!(next.head().await.starts_with("get /second"));
    let (head, _) = third.get("/third").await;
    assert_eq!(status(&head), "503");
    assert!(head.contains("destination_unavailable"));
    next.send(OK).await;
    second.response().await;
    let log = plane.finish().await;
    let rejects: Vec<_> = log.iter().filter_map(|line| line["reject"].as_str()).collect();
    assert_eq!(rejects, ["queue_full", "queue_deadline"]);
}

#[tokio::test]
async fn one_client_fills_the_queue_only_until_another_one_comes() {
    let plane = Plane::start("queue_length = 2\nqueue_deadline = \"20s\"\ntrusted_proxies = [\"127.0.0.1\"]");
    let worker = Worker::start().await;
    plane.workers(&[(worker.address, 1)]);
    let ask = |from: &str, path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {from}\r\n\r\n");
    let mut holder = plane.client().await;
    holder.send(&ask("192.0.2.1", "/held")).await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let mut waiting = Vec::new();
    for depth in 1..=2 {
        let mut client = plane.client().await;
        client.send(&ask("192.0.2.1", "/waits")).await;
        eventually(|| plane.app.view().queue_depth == depth).await;
        waiting.push(client);
    }
    let mut other = plane.client().await;
    other.send(&ask("192.0.2.2", "/other")).await;
    // the youngest of the one who has it all makes room, at once
    let (head, body) = waiting.pop().unwrap().response().await;
    assert_eq!(status(&head), "429");
    assert!(head.contains("retry-after: 1\r\n") && body.contains("of yours"), "{head}{body}");
    assert_eq!(plane.app.view().queue_depth, 2);
    drop((holder, waiting, other));
    let log = plane.finish().await;
    assert_eq!(log.iter().filter(|line| line["reject"] == "client_share").count(), 1, "{log:?}");
}

#[tokio::test]
async fn http2_requests_become_http1_requests() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (parts, body) = mpsc::channel(4);
    let stream = ReceiverStream::new(body).map(|part: &'static str| Ok(Frame::data(Bytes::from(part))));
    let request = Request::builder()
        .method(Method::POST)
        .uri("https://localhost:8443/up?x=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(BodyExt::boxed(StreamBody::new(stream)))
        .unwrap();
    let response = tokio::spawn(client.send_request(request));
    parts.send("one").await.unwrap();
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    assert!(head.starts_with("post /up?x=1 http/1.1\r\n"), "{head}");
    for line in [
        "host: localhost:8443",
        "cookie: a=1; b=2",
        "x-forwarded-proto: https",
        "x-forwarded-port: 8443",
        "transfer-encoding: chunked",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert!(!head.contains("\r\nte:"));
    assert_eq!(upstream.read_until("one\r\n").await, "3\r\none\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n").await;
    let mut response = soon(response).await.unwrap().unwrap();
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "ab");
    drop(parts);
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "0\r\n\r\n");
    upstream.send("0\r\n\r\n").await;
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "");
    // several at once on one connection
    let mut requests = Vec::new();
    for at in 0..5 {
        let request = Request::get(format!("https://localhost/{at}")).body(empty()).unwrap();
        requests.push(tokio::spawn(client.send_request(request)));
    }
    let mut upstreams = Vec::new();
    for _ in 0..5 {
        let mut upstream = worker.accept().await;
        let head = upstream.head().await;
        upstreams.push((upstream, head.split(' ').nth(1).unwrap().to_owned()));
    }
    for (upstream, path) in upstreams.iter_mut().rev() {
        upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())).await;
    }
    for (at, request) in requests.into_iter().enumerate() {
        let response = soon(request).await.unwrap().unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), format!("/{at}"));
    }
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["proto"] == "HTTP/2" && line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn an_http2_stream_that_is_reset_leaves_the_worker_but_not_the_others() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let left = tokio::spawn(client.send_request(Request::get("https://localhost/left").body(empty()).unwrap()));
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let stays = tokio::spawn(client.send_request(Request::post("https://localhost/stays").body(full("x")).unwrap()));
    let mut other = worker.accept().await;
    other.read_until("x").await;
    left.abort();
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 1).await;
    other.send(OK).await;
    let response = soon(stays).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn too_many_fields_and_too_long_heads_are_431() {
    let plane = Plane::start("");
    let mut client = plane.http2().await;
    let mut request = Request::get("https://localhost/");
    for at in 0..101 {
        request = request.header(format!("x-{at}"), "1");
    }
    let response = soon(client.send_request(request.body(empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 431);
    let mut client = plane.client().await;
    client.send(&format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(70_000))).await;
    assert_eq!(status(&client.head().await), "431");
}

#[tokio::test]
async fn a_head_that_never_ends_is_closed() {
    let plane = Plane::start("header_timeout = \"100ms\"");
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost:").await;
    client.rest().await;
    // and an HTTP/2 connection without its preface
    let mut client = plane.tls(&[b"h2"]).await;
    let mut bytes = Vec::new();
    drop(soon(client.read_to_end(&mut bytes)).await);
}

#[tokio::test]
async fn plain_http_is_redirected_where_https_is_on() {
    let plane = Plane::start_with("", Some(8443));
    let mut client = plane.client().await;
    client.send("GET /a?b HTTP/1.1\r\nhost: example.org:8080\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(status(&head), "308");
    assert!(head.contains("location: https://example.org:8443/a?b\r\n"));
    client.send("GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(status(&client.head().await), "307");
    client.send("GET /a HTTP/1.1\r\nhost: a b\r\n\r\n").await;
    assert_eq!(status(&client.response().await.0), "400");
}

#[tokio::test]
async fn a_client_that_was_told_to_wait_with_its_body_is_told_to_go_on() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
    client.send("abc").await;
    let mut upstream = worker.accept().await;
    assert!(!upstream.head().await.contains("expect"));
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn an_early_answer_ends_the_upload() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nabc").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), ("401", "no"));
    assert_eq!(upstream.rest().await, "abc", "a connection with half a request on it is not kept");
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn a_new_certificate_is_for_the_next_handshake() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut old = plane.http2().await;
    plane.shared.certificates.store(std::sync::Arc::new(crate::tls::CertificateSet::self_signed().unwrap()));
    let _new = plane.http2().await; // trusts only the new one
    let request = tokio::spawn(old.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    let mut upstream: Peer = worker.accept().await;
    upstream.answer("").await;
    assert_eq!(soon(request).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn who_may_ask_is_told_how_a_request_was_dispatched() {
    for (config, told) in [("debug_networks = [\"127.0.0.1\"]", true), ("", false)] {
        let plane = Plane::start(config);
        let worker = plane.worker().await;
        let mut client = plane.client().await;
        for (asks, told) in [(true, told), (false, false)] {
            let field = if asks { "Servery-Debug: 1\r\n" } else { "" };
            client.send(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n")).await;
            let mut upstream = worker.accept().await;
            assert!(!upstream.head().await.contains("servery-debug"));
            upstream
                .send("HTTP/1.1 200 OK\r\nservery-debug: forged\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
            let (head, _) = client.response().await;
            let line = head.lines().find(|line| line.starts_with("servery-debug: "));
            assert_eq!(line.is_some(), told, "{head}");
            if let Some(line) = line {
                assert!(line.contains("queue_ms=0.") && line.contains("attempts=1, node=\""), "{line}");
                assert!(line.contains("worker=0, generation=1, why=idle"), "{line}");
            }
        }
        drop(client);
        for line in plane.finish().await {
            assert_eq!(line["why"], "idle", "{line}");
        }
    }
}
