//! What a worker and a client see of each other: clean heads, whole bodies, in both directions at once.

use super::*;

#[tokio::test]
async fn a_worker_gets_one_clean_request_and_the_client_a_clean_answer() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client
        .send(
            "POST /a/b?c=d HTTP/1.1\r\nHost: Test.Example:8080\r\nConnection: keep-alive, x-private\r\nX-Private: 1\r\n\
             Servery-Pass: stolen\r\nServery-Connection: 1\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: forged\r\nUpgrade: websocket\r\n\
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
    let trace = lines.iter().position(|line| line.starts_with("traceparent: 00-")).unwrap();
    lines.remove(trace);
    let number = format!("servery-connection: {:08x}00000000", plane.shared.connections);
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "accept: */*",
            "content-length: 3",
            "forwarded: for=127.0.0.1;host=\"test.example:8080\";proto=http",
            "host: test.example:8080",
            number.as_str(),
            "servery-pass: abcd",
            "via: 1.1 servery",
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
async fn every_connection_has_a_number_of_its_own_and_every_request_on_it_carries_it() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut clients = Vec::new();
    let mut upstreams = Vec::new();
    for _ in 0..5 {
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        let number = number(&upstream.head().await);
        assert_eq!(number >> 32, u64::from(plane.shared.connections.get()), "whose it is");
        assert!(upstreams.iter().all(|(_, other)| *other != number), "{number}");
        upstreams.push((upstream, number));
        clients.push(client);
    }
    for ((upstream, first), client) in upstreams.iter_mut().zip(&mut clients) {
        upstream.send(OK).await;
        client.response().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // each core uses its newest idle connection, and there is one
        assert_eq!(number(&upstream.answer("").await), *first);
        client.response().await;
    }
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

/// RFC 9110, section 8.6: the first may be said, the second must not.
#[tokio::test]
async fn a_304_and_a_204_say_no_length_whatever_the_worker_says() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    let mut upstream = None;
    for answer in ["304 Not Modified\r\netag: \"1\"", "204 No Content\r\netag: \"1\""] {
        client.send("GET / HTTP/1.1\r\nhost: a\r\nif-none-match: \"1\"\r\n\r\n").await;
        let upstream = match &mut upstream {
            Some(upstream) => upstream,
            None => upstream.insert(worker.accept().await),
        };
        assert!(upstream.head().await.contains("\r\nif-none-match: \"1\"\r\n"));
        upstream.send(&format!("HTTP/1.1 {answer}\r\ncontent-length: 1234\r\n\r\n")).await;
        let head = client.head().await;
        assert!(
            head.starts_with(&format!("http/1.1 {}", &answer[..3])) && head.contains("\r\netag: \"1\"\r\n"),
            "{head}"
        );
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    }
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
    assert_eq!(status(&client.response().await.0), "405");
    assert!(plane.finish().await.iter().all(|line| line["status"] == 400 || line["status"] == 405));
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
