//! What RFC 9110 asks of an intermediary, one test per rule, by the bytes that a worker and a client get.

use super::*;

/// The worker's view of the one request.
async fn head_of(request: &str) -> String {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send(request).await;
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    upstream.send(OK).await;
    client.head().await;
    head
}

#[tokio::test]
async fn what_connection_names_ends_here_but_never_what_we_say_ourselves() {
    let head = head_of(
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-hop, x-forwarded-for, forwarded, x-request-id, via, host, servery-pass\r\n\
         connection: keep-alive\r\nkeep-alive: 5\r\nproxy-connection: x\r\nx-hop: 1\r\nvia: 1.1 before\r\n\r\n",
    )
    .await;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "1.1 before"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    for ours in
        ["x-forwarded-for: ", "forwarded: ", "x-request-id: ", "via: 1.1 servery", "host: a", "servery-pass: abcd"]
    {
        assert!(head.contains(&format!("\r\n{ours}")), "{ours} in {head}");
    }
}

#[tokio::test]
async fn the_authority_of_an_absolute_target_replaces_the_host_and_the_target_becomes_a_path() {
    let head = head_of("GET http://b.example:81/x?y HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(head.starts_with("get /x?y http/1.1\r\n") && head.contains("\r\nhost: b.example:81\r\n"), "{head}");
    assert!(!head.contains("a.example"), "{head}");
    let head = head_of("GET http://b.example HTTP/1.1\r\nhost: a.example\r\n\r\n").await;
    assert!(head.starts_with("get / http/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn via_names_us_after_those_before() {
    let head = head_of("GET / HTTP/1.1\r\nhost: a\r\nvia: 1.0 before\r\n\r\n").await;
    let via: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("via: ")).collect();
    assert_eq!(via, ["1.0 before", "1.1 servery"]);
    assert!(head_of("GET / HTTP/1.0\r\nhost: a\r\n\r\n").await.contains("\r\nvia: 1.0 servery\r\n"));
}

#[tokio::test]
async fn max_forwards_of_options_is_counted_down_and_ends_here_at_zero() {
    let head = head_of("OPTIONS /x HTTP/1.1\r\nhost: a\r\nmax-forwards: 3\r\n\r\n").await;
    assert!(head.contains("\r\nmax-forwards: 2\r\n"), "{head}");
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    for request in ["/x HTTP/1.1\r\nhost: a\r\nmax-forwards: 0", "* HTTP/1.1\r\nhost: a"] {
        client.send(&format!("OPTIONS {request}\r\n\r\n")).await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), "200");
        assert!(head.contains("\r\nallow: get, head, "), "{head}");
    }
    worker.expect_nobody().await;
}

#[tokio::test]
async fn trace_and_connect_are_refused_and_what_follows_them_is_not_read() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for request in ["TRACE /x HTTP/1.1\r\nhost: a", "CONNECT a:443 HTTP/1.1\r\nhost: a:443"] {
        let mut client = plane.client().await;
        client.send(&format!("{request}\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answer = client.rest().await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 405 ") && answer.contains("\r\nallow: get"), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n") && answer.matches("http/1.1 ").count() == 1, "{answer}");
    }
    worker.expect_nobody().await;
}

#[tokio::test]
async fn answers_that_have_no_body_have_none_whatever_they_say() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    let mut upstream = None;
    for (method, answer, length) in [
        ("HEAD", "200 OK\r\ncontent-length: 1234", Some("1234")),
        ("HEAD", "200 OK\r\ntransfer-encoding: chunked", None),
        ("GET", "204 No Content", None),
        // which may say a length, but hyper takes it out
        ("GET", "304 Not Modified\r\ncontent-length: 1234", None),
    ] {
        client.send(&format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let upstream = match &mut upstream {
            Some(upstream) => upstream,
            None => upstream.insert(worker.accept().await),
        };
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let head = client.head().await;
        let said = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        assert_eq!(said, length, "{method} {answer}: {head}");
    }
    // and both connections are still in step
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    upstream.unwrap().answer("in step").await;
    assert_eq!(client.response().await.1, "in step");
}

#[tokio::test]
async fn an_interim_answer_is_no_answer() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn a_final_answer_instead_of_100_leaves_no_body_for_the_next_request() {
    let plane = Plane::start("max_body = \"10B\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 37\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "413");
    assert!(head.contains("connection: close\r\n"), "{head}");
    // whatever the client does now: it is the body, or nothing
    drop(soon(client.0.write_all(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await);
    assert_eq!(client.rest().await, "");
    worker.expect_nobody().await;
}

#[tokio::test]
async fn a_worker_that_says_more_than_its_answer_is_not_asked_again_there() {
    for excess in ["HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged", "x"] {
        let plane = Plane::start("");
        let worker = plane.worker().await;
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&format!("{OK}{excess}")).await;
        assert_eq!(client.response().await.1, "ok");
        assert_eq!(upstream.rest().await, "", "closed");
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        worker.accept().await.answer("anew").await;
        assert_eq!(client.response().await.1, "anew");
    }
}

#[tokio::test]
async fn a_worker_that_closes_or_answers_in_http10_is_not_asked_again_there() {
    for answer in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let plane = Plane::start("");
        let worker = plane.worker().await;
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(answer).await;
        let (head, body) = client.response().await;
        assert!(head.starts_with("http/1.1 200 ") && body == "ok" && !head.contains("connection: close"), "{head}");
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        worker.accept().await.answer("anew").await;
        assert_eq!(client.response().await.1, "anew");
    }
}

#[tokio::test]
async fn a_worker_whose_answer_is_not_well_framed_is_a_502() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokx",
        "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx : y\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/2 200\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let plane = Plane::start("");
        let worker = plane.worker().await;
        let mut client = plane.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(answer).await;
        assert_eq!(status(&client.response().await.0), "502", "{answer:?}");
        assert_eq!(upstream.rest().await, "");
    }
}
