//! HTTP/2, redirects and certificates.

use super::*;

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
