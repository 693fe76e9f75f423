//! What becomes of a request whose worker is late or dies, over real sockets.

use crate::{
    endpoint::WorkerView,
    fixture::{Peer, Plane, Worker, eventually},
};
use std::time::Duration;

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

/// The limit of a node in these tests; with what the balancer adds it is still less than a second.
const LIMIT: Option<Duration> = Some(Duration::from_millis(50));

fn ready(workers: &[&Worker]) -> Vec<WorkerView> {
    (0..).zip(workers).map(|(position, worker)| WorkerView::ready(position, worker.address, 1)).collect()
}

/// The connection that comes, and the worker it did not come to.
async fn whichever<'a>(one: &'a Worker, two: &'a Worker) -> (Peer, &'a Worker) {
    tokio::select! {
        peer = one.accept() => (peer, two),
        peer = two.accept() => (peer, one),
    }
}

#[tokio::test]
async fn a_worker_that_does_not_keep_its_own_limit_is_answered_for_and_the_request_is_over() {
    let plane = Plane::start("");
    let (one, two) = (Worker::start().await, Worker::start().await);
    plane.reports(LIMIT, &ready(&[&one, &two]));
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (mut late, other) = whichever(&one, &two).await;
    late.head().await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "504");
    assert!(head.contains("http_response_timeout"), "{head}");
    assert_eq!(late.rest().await, "", "the connection is closed");
    other.expect_nobody().await;
    assert_eq!(plane.held(), 1, "the slot is surely busy still");
    // the next one goes elsewhere
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    other.accept().await.answer("on time").await;
    assert_eq!(client.response().await.1, "on time");
    // a new process has all its slots
    plane.reports(LIMIT, &[]);
    eventually(|| plane.held() == 0).await;
    let log = plane.finish().await;
    let late = log.iter().find(|line| line["status"] == 504).unwrap();
    assert_eq!((&late["attempts"], &late["reject"]), (&1.into(), &"response_timeout".into()));
}

#[tokio::test]
async fn a_response_that_stops_for_longer_than_the_workers_limit_is_cut_off() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.reports(LIMIT, &ready(&[&worker]));
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.read_until("abc\r\n").await;
    assert_eq!(client.rest().await, "", "closed without the last chunk");
    assert_eq!(plane.held(), 1, "the slot is surely busy still");
    plane.reports(LIMIT, &[]);
    eventually(|| plane.held() == 0).await;
}

#[tokio::test]
async fn a_client_that_takes_its_time_with_the_body_takes_none_of_the_workers() {
    let plane = Plane::start("connect_timeout = \"100ms\"\nresponse_timeout = \"300ms\"");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc").await;
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert_eq!(upstream.exactly(3).await, "abc");
    tokio::time::sleep(Duration::from_millis(900)).await; // the client's time
    client.send("def").await;
    assert_eq!(upstream.exactly(3).await, "def");
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.1, "ok");
    // and then the worker has its own again, and no more
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabcdef").await;
    assert_eq!(status(&client.response().await.0), "504");
}
