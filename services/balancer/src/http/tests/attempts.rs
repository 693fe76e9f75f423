//! Workers that refuse, are not there, break off: what is tried again, and where.

use super::*;

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

#[tokio::test]
async fn a_worker_that_is_not_there_is_passed_over() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    let (one, two) = (Nobody::new(), Nobody::new());
    plane.workers(&[(one.address(), 1), (two.address(), 1), (worker.address, 1)]);
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
    plane.workers(&[(one.address(), 1)]);
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
async fn a_worker_that_closes_whatever_it_accepts_is_tried_a_few_times_and_no_more() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    let (mut accepted, closing) = (0, async |accepted: &mut u32| {
        loop {
            drop(worker.accept().await);
            *accepted += 1;
        }
    });
    let (head, _) = tokio::select! {
        () = closing(&mut accepted) => unreachable!(),
        response = client.response() => response,
    };
    assert_eq!(status(&head), "502");
    assert!((1..=3).contains(&accepted), "{accepted}");
}

#[tokio::test]
async fn a_response_with_two_framings_is_not_passed_on_and_its_connection_not_used_again() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let both = "content-length: 3\r\ntransfer-encoding: chunked";
    upstream.send(&format!("HTTP/1.1 200 OK\r\n{both}\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n")).await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("http_protocol_error"), "{head}");
    assert_eq!(upstream.rest().await, "");
}
