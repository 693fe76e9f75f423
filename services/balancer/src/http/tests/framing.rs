//! Bytes that two readers could take for different messages: none of it reaches a worker, whatever is sent after it.

use super::*;
use servery_harness::malformed::{self, Malformed, SMUGGLED};

#[tokio::test]
async fn malformed_requests_reach_nobody_and_what_follows_them_is_no_request() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let classes = malformed::heads();
    for Malformed { request, status: expected, .. } in &classes {
        for whole in [true, false] {
            let mut client = plane.client().await;
            if whole {
                client.send(&format!("{request}{SMUGGLED}{SMUGGLED}")).await;
            } else {
                // in pieces, of which the last ones may meet a closed connection
                let bytes = format!("{request}{SMUGGLED}");
                let (first, second) = bytes.as_bytes().split_at(request.len() / 2);
                soon(client.0.write_all(first)).await.unwrap();
                tokio::task::yield_now().await;
                drop(soon(client.0.write_all(second)).await);
            }
            let answer = client.rest().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
            let answer = answer.to_ascii_lowercase();
            for part in [
                "connection: close\r\n",
                "content-type: application/problem+json\r\n",
                "proxy-status: servery; error=http_request_error",
                "\"request_id\":\"",
            ] {
                assert!(answer.contains(part), "{part} in {answer}");
            }
        }
    }
    worker.expect_nobody().await;
    let log = plane.finish().await;
    assert_eq!(log.len(), 2 * classes.len(), "one line each");
    for Malformed { request, status, reason } in &classes {
        let lines = log.iter().filter(|line| line["reject"] == *reason && line["status"] == *status);
        assert!(lines.count() >= 2, "{reason} for {request:?}");
    }
    assert!(log.iter().all(|line| line["attempts"] == 0 && line["bytes_out"].as_u64() > Some(50)), "{log:?}");
}

#[tokio::test]
async fn a_broken_body_never_ends_for_the_worker_and_what_follows_it_is_no_request() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for body in malformed::bodies() {
        let mut client = plane.client().await;
        client.send(malformed::BEGUN).await;
        let mut upstream = worker.accept().await;
        let head = upstream.read_until("abc\r\n").await.to_ascii_lowercase();
        drop(soon(client.0.write_all(format!("{body}{SMUGGLED}").as_bytes())).await);
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{body:?}: {answer}");
        let rest = upstream.rest().await;
        assert!(!rest.ends_with("0\r\n\r\n") && !rest.contains("smuggled"), "{body:?}: {rest:?}");
        plane.settle(&head);
    }
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["reject"] == "bad_body" && line["path"] == "/first"), "{log:?}");
}

#[tokio::test]
async fn what_came_before_a_malformed_request_is_answered_first() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send(&format!("GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\nhost: a\n\n{SMUGGLED}")).await;
    let mut upstream = worker.accept().await;
    // the client's next request is broken, and this one is not given up for it
    assert!(upstream.answer("whole").await.starts_with("get /first "));
    assert_eq!(client.response().await.1, "whole");
    assert!(client.rest().await.starts_with("HTTP/1.1 400 "));
    worker.expect_nobody().await;
}

#[tokio::test]
async fn nothing_after_the_last_request_is_read() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for last in ["HTTP/1.1\r\nhost: a\r\nconnection: close", "HTTP/1.0\r\nhost: a"] {
        let mut client = plane.client().await;
        client.send(&format!("GET /first {last}\r\n\r\n{SMUGGLED}\0\0")).await;
        let mut upstream = worker.accept().await;
        assert!(upstream.answer("last").await.starts_with("get /first "));
        let answer = client.rest().await;
        assert!(answer.ends_with("last") && answer.matches("HTTP/1.").count() == 1, "{answer}");
    }
    assert_eq!(plane.finish().await.len(), 2);
}

#[tokio::test]
async fn a_head_that_stops_is_a_408() {
    let plane = Plane::start("header_timeout = \"100ms\"");
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost:").await;
    assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
    // who has said nothing is told nothing
    let mut client = plane.client().await;
    assert_eq!(client.rest().await, "");
    let log = plane.finish().await;
    assert_eq!(log.len(), 1);
    assert_eq!(log[0]["reject"], "header_timeout");
}

#[tokio::test]
async fn a_client_that_sends_on_still_gets_its_answer() {
    let plane = Plane::start("max_body = \"10B\"");
    let _worker = plane.worker().await;
    let body = "x".repeat(200_000);
    for request in [
        format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
        format!("nonsense\r\n{body}"),
    ] {
        let mut client = plane.client().await;
        client.send(&request).await;
        // no reset before it is read, although most of what was sent has not been
        let (head, _) = client.response().await;
        assert!(matches!(status(&head), "413" | "400"), "{head}");
        let mut rest = Vec::new();
        soon(client.0.read_to_end(&mut rest)).await.unwrap();
    }
}

#[tokio::test]
async fn chunks_are_made_anew_without_their_extensions() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client
        .send(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n003;x=\"y\"\r\nabc\r\n0;z\r\nt: 1\r\n\r\n\
             POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 003\r\n\r\nabc",
        )
        .await;
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
    upstream.send(OK).await;
    client.response().await;
    let head = upstream.head().await;
    assert!(head.contains("content-length: 3\r\n") && !head.contains("transfer-encoding"), "{head}");
    assert_eq!(upstream.exactly(3).await, "abc");
}

#[tokio::test]
async fn an_answer_that_is_still_on_its_way_is_not_cut_by_the_malformed_request_behind_it() {
    // read ahead of the client, so that the worker is done long before
    for slots in [1, 256] {
        let plane = Plane::start("");
        let worker = Worker::start().await;
        plane.narrow_workers(&[(worker.address, slots)]);
        let mut client = plane.client().await;
        client.send(&format!("GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\nhost: a\n\n{SMUGGLED}")).await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        let body = "x".repeat(6 << 20);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        // more than the kernel takes, before the client reads the first byte
        let (_, rest) = tokio::join!(upstream.send(&answer), async {
            tokio::task::yield_now().await;
            client.rest().await
        });
        let (first, second) = rest.split_at(rest.rfind("HTTP/1.1 ").unwrap());
        assert!(first.ends_with(&body), "{} bytes of it", first.len());
        assert!(second.starts_with("HTTP/1.1 400 "), "{second}");
        worker.expect_nobody().await;
    }
}
