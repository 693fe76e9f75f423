//! Requests that end before they should: who leaves, who stops, what is too large.

use super::*;

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
    eventually(|| plane.held() == 0).await;
    assert_eq!(plane.unsettled(), 2, "both slots may be busy still");
    plane.workers(&[]);
    assert_eq!(plane.unsettled(), 0);
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
    eventually(|| plane.held() == 0).await;
    assert_eq!(plane.unsettled(), 2);
    drop(client);
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
async fn a_connection_of_a_balancer_that_was_taken_over_ends_with_its_next_answer() {
    for taken_over in [false, true] {
        let mut plane = Plane::start("drain = \"20s\"");
        let worker = plane.worker().await;
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert!(!client.response().await.0.contains("connection: close"));
        plane.shared.taken_over.store(taken_over, std::sync::atomic::Ordering::Relaxed);
        plane.lifecycle.advance(chassis::lifecycle::Phase::Draining);
        let cores = plane.take_cores();
        if taken_over {
            // it was on its way while nobody knew
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            upstream.head().await;
            upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            assert!(client.response().await.0.contains("connection: close\r\n"));
        }
        assert_eq!(client.rest().await, "");
        soon(cores.drained()).await.unwrap();
    }
}
