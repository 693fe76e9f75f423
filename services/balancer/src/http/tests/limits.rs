//! What one client may have: connections at once, requests on one of them.

use super::*;

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Asks once and is answered, so that the connection is known to be open.
async fn served(worker: &Worker, peer: &mut Peer) {
    peer.send(REQUEST).await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(peer.response().await.1, "ok");
}

#[tokio::test]
async fn a_client_has_only_so_many_connections_and_may_come_back() {
    let plane = Plane::start("max_connections_per_client = 2");
    let worker = plane.worker().await;
    let (mut one, mut two) = (plane.client().await, plane.client().await);
    served(&worker, &mut one).await;
    served(&worker, &mut two).await;
    let mut third = plane.client().await;
    assert!(third.rest().await.starts_with("HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\n"));
    let mut third = Peer(tokio::net::TcpStream::connect(plane.https).await.unwrap());
    assert_eq!(third.rest().await, "", "closed before TLS, which costs most");
    drop(one);
    let one = soon(async {
        loop {
            let mut third = plane.client().await;
            // it may be closed already
            drop(third.0.write_all(REQUEST.as_bytes()).await);
            tokio::select! {
                mut upstream = worker.accept() => {
                    upstream.answer("").await;
                    assert!(third.head().await.starts_with("http/1.1 200"));
                    return third;
                }
                // or reset before it was read, as it was not waited for
                end = third.rest() => assert!(end.is_empty() || end.starts_with("HTTP/1.1 429 "), "{end}"),
            }
        }
    })
    .await;
    served(&worker, &mut two).await;
    drop((one, two));
    let log = plane.finish().await;
    let refused: Vec<_> = log.iter().filter(|line| line["status"] == 429).collect();
    assert!(!refused.is_empty() && refused.iter().all(|line| line["reject"] == "too_many_connections"), "{log:?}");
}

#[tokio::test]
async fn clients_are_told_apart_by_whom_the_load_balancer_names() {
    let plane = Plane::start("max_connections_per_client = 1\nproxy_protocol = [\"127.0.0.1\"]");
    let worker = plane.worker().await;
    let named = async |line: &str| {
        let mut peer = plane.client().await;
        peer.send(&format!("PROXY {line}\r\n")).await;
        peer
    };
    let mut open = Vec::new();
    for client in ["TCP4 192.0.2.1 192.0.2.9 1 1", "TCP4 192.0.2.2 192.0.2.9 1 1", "TCP6 2001:db8::1 ::1 1 1"] {
        let mut peer = named(client).await;
        served(&worker, &mut peer).await;
        open.push(peer);
    }
    for client in ["TCP4 192.0.2.1 192.0.2.9 2 2", "TCP6 2001:db8::ffff ::1 1 1", "TCP6 ::ffff:192.0.2.2 ::1 1 1"] {
        assert!(named(client).await.rest().await.starts_with("HTTP/1.1 429 "), "{client}");
    }
    served(&worker, &mut open[0]).await;
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_as_it_needs() {
    let plane = Plane::start("max_connections_per_client = 1\ntrusted_proxies = [\"127.0.0.1\"]");
    let worker = plane.worker().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut peer = plane.client().await;
        served(&worker, &mut peer).await;
        open.push(peer);
    }
}

#[tokio::test]
async fn a_connection_ends_after_its_last_request_and_says_so() {
    let plane = Plane::start("requests_per_connection = 2");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    served(&worker, &mut client).await;
    client.send(REQUEST).await;
    worker.accept().await.answer("ok").await;
    let (head, body) = client.response().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!((body.as_str(), client.rest().await.as_str()), ("ok", ""));
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_and_finishes_what_it_has() {
    let plane = Plane::start("requests_per_connection = 2");
    let worker = plane.worker().await;
    let mut http2 = plane.http2().await;
    let request = || Request::get("https://localhost/").body(empty()).unwrap();
    let first = tokio::spawn(http2.send_request(request()));
    let mut one = worker.accept().await;
    one.head().await;
    let second = tokio::spawn(http2.send_request(request()));
    let mut two = worker.accept().await;
    two.head().await;
    for (upstream, asked) in [(&mut one, first), (&mut two, second)] {
        upstream.send(OK).await;
        let response = soon(asked).await.unwrap().unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    soon(async {
        while http2.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
