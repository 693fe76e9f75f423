//! Slow clients of an app whose workers have few slots: they hold none while they send or read.

use super::*;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// One worker with one slot.
async fn few_slots(settings: &str) -> (Plane, Worker) {
    let plane = Plane::start(settings);
    let worker = Worker::start().await;
    plane.narrow_workers(&[(worker.address, 1)]);
    (plane, worker)
}

/// Another client's request is answered, on a connection that is not kept.
async fn quick(plane: &Plane, worker: &Worker) {
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nquick").await;
    assert_eq!(client.response().await.1, "quick");
}

/// So many different lines.
fn text(bytes: usize) -> String {
    let mut text: String = (0..bytes / 8 + 1).map(|line| format!("{line:07}\n")).collect();
    text.truncate(bytes);
    text
}

const HALF: usize = 512 * 1024;

#[tokio::test]
async fn a_request_that_is_still_being_sent_holds_no_slot() {
    let (plane, worker) = few_slots("").await;
    let mut slow = plane.client().await;
    slow.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    let mut chunked = plane.client().await;
    chunked.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    for _ in 0..3 {
        quick(&plane, &worker).await;
    }
    slow.send("def").await;
    let mut first = worker.accept().await;
    assert!(first.head().await.contains("content-length: 6\r\n"));
    assert_eq!(first.exactly(6).await, "abcdef");
    first.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(slow.response().await.1, "ok");
    chunked.send("3\r\ndef\r\n0\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    assert!(upstream.head().await.contains("transfer-encoding: chunked\r\n"));
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n");
    upstream.send(OK).await;
    assert_eq!(chunked.response().await.1, "ok");
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["status"] == 200 && line["queue_ms"].as_f64().unwrap() < 5000.0), "{log:?}");
}

#[tokio::test]
async fn a_body_that_breaks_or_stops_before_it_is_here_reaches_no_worker() {
    let (plane, worker) = few_slots("body_timeout = \"100ms\"\nmax_body = \"10B\"").await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    assert_eq!(status(&client.response().await.0), "408");
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nb\r\nabcdefghijk\r\n").await;
    assert_eq!(status(&client.response().await.0), "413");
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    drop(client);
    worker.expect_nobody().await;
}

#[tokio::test]
async fn a_client_is_told_to_go_on_before_a_slot_is_asked_for() {
    let (plane, worker) = few_slots("").await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
    assert_eq!(plane.held(), 0);
    client.send("abc").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn a_body_that_is_here_is_sent_again_from_its_first_byte() {
    let (plane, one) = few_slots("").await;
    let body = text(HALF);
    let mut client = plane.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {HALF}\r\n\r\n{body}")).await;
    let mut refusing = one.accept().await;
    refusing.head().await;
    assert_eq!(refusing.exactly(HALF / 2).await, body[..HALF / 2]);
    let two = Worker::start().await;
    plane.narrow_workers(&[(one.address, 1), (two.address, 1)]);
    refusing.send(REFUSED).await;
    let mut upstream = two.accept().await;
    upstream.head().await;
    // it answers before it has read: nothing of the rest is lost by that
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.head().await;
    assert!(upstream.exactly(HALF).await == body);
    upstream.send("2\r\nok\r\n0\r\n\r\n").await;
    assert_eq!(client.read_until("0\r\n\r\n").await, "2\r\nok\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_body_beyond_its_bound_streams_once_that_much_is_here() {
    let (plane, worker) = few_slots("").await;
    let body = text(3 * 1024 * 1024);
    let (first, rest) = body.split_at(2 * 1024 * 1024);
    let mut client = plane.client().await;
    client.send(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    client.send(&first[..HALF]).await;
    quick(&plane, &worker).await;
    client.send(&first[HALF..]).await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert!(upstream.exactly(first.len()).await == first);
    client.send(rest).await;
    assert!(upstream.exactly(rest.len()).await == rest);
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn without_room_bodies_stream_in_both_directions() {
    let (plane, worker) = few_slots("buffers = \"1KiB\"").await;
    let mut client = plane.client().await;
    let body = text(4096);
    client.send(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8192\r\n\r\n{body}")).await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert_eq!(upstream.exactly(4096).await, body);
    client.send(&body).await;
    assert_eq!(upstream.exactly(4096).await, body);
    let size = 64 * 1024 * 1024;
    upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
    held_back(&mut upstream, size / 2).await;
    assert_eq!(plane.held(), 1);
}

/// Sends until the other side takes no more for a while.
async fn held_back(upstream: &mut Peer, most: usize) {
    let chunk = "x".repeat(64 * 1024);
    let mut sent = 0;
    while let Ok(()) = tokio::time::timeout(Duration::from_millis(300), upstream.send(&chunk)).await {
        sent += chunk.len();
        assert!(sent < most, "it is not held back");
    }
}

#[tokio::test]
async fn a_response_that_is_here_holds_no_slot_while_its_client_reads() {
    let (plane, worker) = few_slots("").await;
    let body = text(HALF);
    for head in [format!("content-length: {HALF}"), "transfer-encoding: chunked".to_owned()] {
        let mut slow = plane.client().await;
        socket2::SockRef::from(&slow.0).set_recv_buffer_size(64 * 1024).unwrap();
        slow.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).await;
        let chunked = head.starts_with("transfer");
        if chunked {
            upstream.send(&format!("{HALF:x}\r\n{body}\r\n0\r\n\r\n")).await;
        } else {
            upstream.send(&body).await;
        }
        eventually(|| plane.held() == 0).await;
        drop(upstream);
        // and one that reads nothing of its HTTP/2 stream
        let stream = TokioIo::new(plane.tls(&[b"h2"]).await);
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let handshake = builder.initial_stream_window_size(20_000).handshake(stream).await;
        let (mut http2, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let request = tokio::spawn(http2.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
        let mut upstream = worker.accept().await;
        upstream.head().await;
        let part = &body[..200_000];
        upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{part}", part.len())).await;
        let response = soon(request).await.unwrap().unwrap();
        eventually(|| plane.held() == 0).await;
        drop(upstream);

        slow.head().await;
        if chunked {
            // in chunks of our own
            let mut read = String::new();
            while read.len() < HALF {
                let length = slow.read_until("\r\n").await;
                let length = usize::from_str_radix(length.trim_end(), 16).unwrap();
                read += &slow.exactly(length).await;
                slow.exactly(2).await;
            }
            assert!(read == body);
            assert_eq!(slow.exactly(5).await, "0\r\n\r\n");
        } else {
            assert!(slow.exactly(HALF).await == body);
        }
        assert!(soon(response.into_body().collect()).await.unwrap().to_bytes() == part);
    }
}

#[tokio::test]
async fn a_response_beyond_its_bound_is_held_back_and_given_up_when_its_client_leaves() {
    let (plane, worker) = few_slots("").await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    let request = upstream.head().await;
    let size = 64 * 1024 * 1024;
    upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
    held_back(&mut upstream, size / 2).await;
    client.head().await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.unsettled() == 1).await;
    plane.settle(&request);
    // also while it waits for the worker
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.exactly(3).await, "abc");
    drop(client);
    assert_eq!(upstream.rest().await, "");
}

#[tokio::test]
async fn a_stream_is_passed_on_as_it_comes_and_ends_as_it_ends() {
    let (plane, worker) = few_slots("").await;
    for cut in [false, true] {
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        let request = upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.head().await;
        for event in ["one", "two", "six"] {
            upstream.send(&format!("3\r\n{event}\r\n")).await;
            assert_eq!(client.read_until(&format!("{event}\r\n")).await, format!("3\r\n{event}\r\n"));
        }
        if cut {
            drop(upstream);
            assert_eq!(client.rest().await, "", "closed without the last chunk");
            eventually(|| plane.unsettled() == 1).await;
            plane.settle(&request);
        } else {
            upstream.send("0\r\n\r\n").await;
            assert_eq!(client.exactly(5).await, "0\r\n\r\n");
            eventually(|| plane.held() == 0).await;
            drop(upstream);
        }
    }
    // what comes with the head is passed on before it is cut off
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    drop(upstream);
    client.head().await;
    assert_eq!(client.rest().await, "abc");
    eventually(|| plane.held() == 0).await;
    let log = plane.finish().await;
    let mut ends: Vec<_> = log.iter().map(|line| line["reject"].as_str()).collect();
    ends.sort_unstable();
    assert_eq!(ends, [None, Some("cut_off"), Some("cut_off")]);
}

#[tokio::test]
async fn a_response_that_stops_is_cut_off_also_when_it_is_read_ahead() {
    let (plane, worker) = few_slots("connect_timeout = \"100ms\"\nresponse_timeout = \"300ms\"").await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.rest().await, "abc");
    assert_eq!(upstream.rest().await, "");
}
