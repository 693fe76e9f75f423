//! Requests that wait, and what is said of how they were dispatched.

use super::*;

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
