//! When a slot is known to be free, and when only its worker knows.

use super::*;

/// One worker with one permit, and a request at it: what the client sent, and what the worker got.
struct One {
    plane: Plane,
    worker: Worker,
    client: Peer,
    upstream: Peer,
    request: String,
}

impl One {
    async fn start(settings: &str, request: &str) -> Self {
        let plane = Plane::start(settings);
        let worker = Worker::start().await;
        plane.workers(&[(worker.address, 1)]);
        let mut client = plane.client().await;
        client.send(request).await;
        let mut upstream = worker.accept().await;
        let request = upstream.head().await;
        assert_eq!((plane.held(), plane.unsettled()), (1, 0));
        Self { plane, worker, client, upstream, request }
    }

    /// The next request is not sent before the worker says that the connection is over.
    async fn expect_unsettled(self) {
        let Self { plane, worker, request, .. } = self;
        eventually(|| (plane.held(), plane.unsettled()) == (0, 1)).await;
        let mut client = plane.client().await;
        client.send("GET /next HTTP/1.1\r\nhost: a\r\n\r\n").await;
        eventually(|| plane.app.view().queue_depth == 1).await;
        plane.app.settle("node-1", &[number(&request) + 1]);
        worker.expect_nobody().await;
        plane.settle(&request);
        worker.accept().await.answer("next").await;
        assert_eq!(client.response().await.1, "next");
        eventually(|| (plane.held(), plane.unsettled()) == (0, 0)).await;
    }

    async fn expect_settled(self) {
        eventually(|| self.plane.held() == 0).await;
        assert_eq!(self.plane.unsettled(), 0);
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc";

#[tokio::test]
async fn a_slot_is_free_when_both_messages_are_whole() {
    for (request, response) in [
        (GET, OK),
        (GET, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        (GET, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"),
        (GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n"),
        ("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", OK),
    ] {
        let mut one = One::start("", request).await;
        one.upstream.send(response).await;
        one.client.head().await;
        one.expect_settled().await;
    }
}

#[tokio::test]
async fn a_slot_that_was_refused_or_never_reached_is_free() {
    let mut one = One::start("", GET).await;
    one.upstream.send(REFUSED).await;
    let mut again = one.worker.accept().await;
    assert_ne!(number(&again.answer("ok").await), number(&one.request));
    one.client.response().await;
    one.expect_settled().await;

    let (plane, nobody) = (Plane::start(""), Nobody::new());
    plane.workers(&[(nobody.address(), 1)]);
    assert_eq!(status(&plane.client().await.get("/").await.0), "502");
    eventually(|| plane.held() == 0).await;
    assert_eq!(plane.unsettled(), 0);
}

#[tokio::test]
async fn a_slot_whose_client_left_is_free_when_the_worker_says_so() {
    let mut one = One::start("", GET).await;
    one.client = one.plane.client().await;
    one.expect_unsettled().await;

    let mut one = One::start("", GET).await;
    one.upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    one.client.head().await;
    assert_eq!(one.client.exactly(3).await, "abc");
    one.client = one.plane.client().await;
    one.expect_unsettled().await;

    let mut one = One::start("", POST).await;
    one.client = one.plane.client().await;
    one.expect_unsettled().await;
}

#[tokio::test]
async fn a_slot_whose_worker_broke_off_or_was_late_is_free_when_the_worker_says_so() {
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", "SSH-2.0-OpenSSH\r\n\r\n"] {
        let mut one = One::start("", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        one.upstream.send(part).await;
        one.upstream = one.plane.client().await; // the connection closes
        one.expect_unsettled().await;
    }
    for part in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"] {
        let mut one = One::start("connect_timeout = \"100ms\"\nresponse_timeout = \"300ms\"", GET).await;
        one.upstream.send(part).await;
        one.expect_unsettled().await;
    }
}

#[tokio::test]
async fn a_slot_that_answered_half_a_request_is_free_when_the_worker_says_so() {
    let mut one = One::start("", POST).await;
    one.upstream.send("HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await;
    assert_eq!(one.client.response().await.1, "no");
    one.expect_unsettled().await;
}
