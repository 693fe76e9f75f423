//! What a server says before its answer (1xx, RFC 9110 section 15.2) goes to the client, before that answer and nowhere else.

use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x-hop\r\nx-hop: 1\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn interim_responses_come_before_the_answer_and_do_not_wait_for_it() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send(HINTS).await;
    assert_eq!(client.head().await, "http/1.1 103 early hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
    // the last ones in one piece with the answer
    upstream.send(&format!("HTTP/1.1 102 Processing\r\n\r\n{HINTS}{ANSWER}")).await;
    assert_eq!(client.head().await, "http/1.1 102 processing\r\n\r\n");
    assert!(client.head().await.starts_with("http/1.1 103 "));
    assert_eq!(client.response().await.1, "ok");
    // and nothing of it is left for the next one
    client.send(GET).await;
    upstream.head().await;
    upstream.send(ANSWER).await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let log = front.plane.finish().await;
    assert!(log.iter().all(|line| line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn a_100_goes_to_the_client_that_expects_one_and_one_that_nobody_asked_for_as_well() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    // from us, who want to see the body; the server is not told of it and says so by itself
    assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
    let mut upstream = server.accept().await;
    assert!(!upstream.head().await.contains("expect"));
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
    client.send("abc").await;
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream.send(ANSWER).await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn http_1_0_and_http_2_clients_get_the_answer_alone() {
    let (front, server) = Front::of_one("", "keepalive = \"0s\"").await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.0\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send(&format!("{HINTS}{ANSWER}")).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && !answer.contains(" 103 "), "{answer}");
    let mut client = front.http2().await;
    let empty = Empty::<Bytes>::new().map_err(|never| match never {}).boxed();
    let request = http::Request::get("https://localhost/").body(empty).unwrap();
    let (response, ()) = tokio::join!(soon(client.send_request(request)), async {
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(&format!("{HINTS}{ANSWER}")).await;
    });
    assert_eq!(response.unwrap().status(), 200);
}

#[tokio::test]
async fn more_of_them_than_a_client_needs_are_left_out_and_the_answer_comes() {
    let (front, server) = Front::of_one("", KEPT).await;
    let large = format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "x".repeat(16_000));
    for (many, most) in [(HINTS.repeat(1000), 16), (large, 0)] {
        let mut client = front.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(&format!("{many}HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")).await;
        let answer = client.rest().await;
        assert_eq!(answer.matches("HTTP/1.1 103 ").count(), most);
        assert!(answer.ends_with("\r\n\r\nok") && answer.matches("HTTP/1.1 200 ").count() == 1, "{answer}");
    }
}

#[tokio::test]
async fn they_never_come_within_the_answer_before() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send(&GET.repeat(2)).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    // more than the kernel takes, and the client does not read yet
    let body = "x".repeat(8 << 20);
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let served = async {
        upstream.send(&answer).await;
        upstream.head().await;
        upstream.send(HINTS).await;
        upstream.send(ANSWER).await;
        upstream
    };
    let (_upstream, ()) = tokio::join!(served, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(client.response().await.1, body);
        let mut head = client.head().await;
        if head.starts_with("http/1.1 103 ") {
            head = client.head().await;
        }
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(client.exactly(2).await, "ok");
    });
}
