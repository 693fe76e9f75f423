//! WebSockets and other protocols that a connection changes to.

use super::*;
use chassis::lifecycle::Phase;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n";

/// One worker with one slot.
async fn one_slot(settings: &str) -> (Plane, Worker) {
    let plane = Plane::start(settings);
    let worker = Worker::start().await;
    plane.narrow_workers(&[(worker.address, 1)]);
    (plane, worker)
}

/// The two ends of a tunnel.
async fn tunnel(plane: &Plane, worker: &Worker) -> (Peer, Peer) {
    let mut client = plane.client().await;
    client.send(UPGRADE).await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send(SWITCHED).await;
    assert_eq!(status(&client.head().await), "101");
    (client, upstream)
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_and_holds_no_slot() {
    let (plane, worker) = one_slot("").await;
    let mut client = plane.client().await;
    // the client does not wait with its first words, and neither does the worker
    client.send(&format!("{UPGRADE}early")).await;
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-key: k", "servery-pass: abcd"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    upstream.send(&format!("{SWITCHED}hello")).await;
    let head = client.head().await;
    assert_eq!(status(&head), "101");
    for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: x"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert!(head.contains("x-request-id: "));
    assert_eq!(client.exactly(5).await, "hello");
    assert_eq!(upstream.exactly(5).await, "early");
    assert_eq!((plane.held(), plane.unsettled()), (0, 0));
    let mut other = plane.client().await;
    other.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    worker.accept().await.answer("the one slot is free").await;
    other.response().await;
    // more than any buffer on the way
    let many = "x".repeat(300_000);
    let (sent, received) = tokio::join!(client.send(&many), upstream.exactly(many.len()));
    assert_eq!((sent, received.len()), ((), many.len()));
    // one side has said its last, the other one not
    client.0.shutdown().await.unwrap();
    assert_eq!(upstream.rest().await, "");
    upstream.send("bye").await;
    drop(upstream);
    assert_eq!(client.rest().await, "bye");
    drop((client, other));
    let log = plane.finish().await;
    let line = log.iter().find(|line| line["path"] == "/ws").unwrap();
    assert_eq!(
        (&line["status"], &line["reject"], &line["attempts"]),
        (&101.into(), &serde_json::Value::Null, &1.into())
    );
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&300_005.into(), &8.into()));
    assert_eq!((&line["app"], &line["node"]), (&"demo".into(), &"node-1".into()));
}

#[tokio::test]
async fn a_tunnel_ends_when_either_side_is_gone() {
    let (plane, worker) = one_slot("").await;
    let (client, mut upstream) = tunnel(&plane, &worker).await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    let (mut client, upstream) = tunnel(&plane, &worker).await;
    drop(upstream);
    assert_eq!(client.rest().await, "");
    // over TLS too
    let mut client = plane.tls(&[b"http/1.1"]).await;
    client.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut upstream = worker.accept().await;
    assert!(upstream.head().await.contains("x-forwarded-proto: https"));
    upstream.send(&format!("{SWITCHED}hello")).await;
    drop(upstream);
    let mut read = Vec::new();
    soon(client.read_to_end(&mut read)).await.unwrap();
    assert!(read.ends_with(b"hello"));
}

#[tokio::test]
async fn a_tunnel_may_be_idle() {
    let limits =
        "header_timeout = \"50ms\"\nbody_timeout = \"50ms\"\nconnect_timeout = \"50ms\"\nresponse_timeout = \"60ms\"";
    let (plane, worker) = one_slot(limits).await;
    let (mut client, mut upstream) = tunnel(&plane, &worker).await;
    tokio::time::sleep(Duration::from_millis(500)).await; // of idleness, longer than anything else may take
    client.send("ping").await;
    assert_eq!(upstream.exactly(4).await, "ping");
    upstream.send("pong").await;
    assert_eq!(client.exactly(4).await, "pong");
}

#[tokio::test]
async fn there_are_only_so_many_tunnels() {
    let (plane, worker) = one_slot("max_tunnels = 1").await;
    let (client, mut upstream) = tunnel(&plane, &worker).await;
    let mut another = plane.client().await;
    another.send(UPGRADE).await;
    let (head, _) = another.response().await;
    assert_eq!(status(&head), "503");
    assert!(head.contains("retry-after: "), "{head}");
    worker.expect_nobody().await;
    drop(client);
    assert_eq!(upstream.rest().await, "");
    drop(upstream);
    eventually(|| plane.shared.tunnels.load(std::sync::atomic::Ordering::Relaxed) == 0).await;
    // one that is refused by the application has not been one
    another.send(UPGRADE).await;
    worker.accept().await.answer("not here").await;
    let (head, body) = another.response().await;
    assert_eq!((status(&head), body.as_str()), ("200", "not here"));
    tunnel(&plane, &worker).await;
}

#[tokio::test]
async fn a_wish_that_reached_an_application_is_not_repeated() {
    let (plane, worker) = one_slot("").await;
    let mut client = plane.client().await;
    client.send(UPGRADE).await;
    worker.accept().await.head().await; // and gone
    assert_eq!(status(&client.response().await.0), "502");
    worker.expect_nobody().await;
}

#[tokio::test]
async fn nobody_talks_past_us_in_another_http() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    for (protocol, body) in [("h2c", ""), ("websocket, h2c", ""), ("TLS/1.0", ""), ("websocket", "abc")] {
        let mut client = plane.client().await;
        let length = body.len();
        client
            .send(&format!(
                "POST / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: {protocol}\r\n\
                 http2-settings: x\r\ncontent-length: {length}\r\n\r\n{body}"
            ))
            .await;
        let mut upstream = worker.accept().await;
        let head = upstream.head().await;
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        upstream.send(SWITCHED).await;
        assert_eq!(status(&client.response().await.0), "502");
    }
}

#[tokio::test]
async fn a_drain_waits_for_tunnels_and_cuts_what_is_left() {
    let (mut plane, worker) = one_slot("drain = \"500ms\"").await;
    let (mut client, mut upstream) = tunnel(&plane, &worker).await;
    plane.lifecycle.advance(Phase::Draining);
    let cores = plane.take_cores();
    client.send("still").await;
    assert_eq!(upstream.exactly(5).await, "still");
    soon(cores.drained()).await.unwrap();
    assert_eq!((upstream.rest().await, client.rest().await), (String::new(), String::new()));
    let log = plane.log();
    assert_eq!(
        (&log[0]["status"], &log[0]["reject"], &log[0]["bytes_in"]),
        (&101.into(), &"drained".into(), &5.into())
    );
}
