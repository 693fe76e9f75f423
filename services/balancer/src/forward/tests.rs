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
    assert_eq!((plane.held(), plane.unsettled()), (0, 1), "the slot is surely busy still");
    // the next one goes elsewhere
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    other.accept().await.answer("on time").await;
    assert_eq!(client.response().await.1, "on time");
    // what is gone has no busy slots
    plane.reports(LIMIT, &[]);
    assert_eq!(plane.unsettled(), 0);
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
    assert_eq!((plane.held(), plane.unsettled()), (0, 1), "the slot is surely busy still");
    plane.reports(LIMIT, &[]);
    assert_eq!(plane.unsettled(), 0);
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

/// Three workers, and which of them the node still reports.
struct Three {
    plane: Plane,
    workers: [Worker; 3],
    alive: Vec<WorkerView>,
}

impl Three {
    async fn start() -> Self {
        let workers = [Worker::start().await, Worker::start().await, Worker::start().await];
        let (plane, alive) = (Plane::start(""), ready(&workers.each_ref()));
        plane.reports(None, &alive);
        Self { plane, workers, alive }
    }

    /// The next connection at any of them, and at which.
    async fn accept(&self) -> (Peer, usize) {
        let [one, two, three] = &self.workers;
        tokio::select! {
            peer = one.accept() => (peer, 0),
            peer = two.accept() => (peer, 1),
            peer = three.accept() => (peer, 2),
        }
    }

    /// The worker that has the request dies of it: the node says so, and the connection ends.
    async fn one_dies(&mut self) {
        let (mut upstream, at) = self.accept().await;
        upstream.head().await;
        self.alive.retain(|worker| worker.address != self.workers[at].address);
        self.plane.reports(None, &self.alive);
    }

    /// Nobody has a connection that waits to be accepted.
    async fn expect_nobody(&self) {
        for worker in &self.workers {
            worker.expect_nobody().await;
        }
    }
}

#[tokio::test]
async fn a_request_that_killed_two_workers_is_not_sent_to_a_third() {
    let mut three = Three::start().await;
    let mut client = three.plane.client().await;
    client.send("GET /boom?secret=1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    three.one_dies().await;
    three.one_dies().await;
    let (head, body) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("connection_terminated") && body.contains("failed on this request"), "{head}{body}");
    three.expect_nobody().await;
    // the third one is as good as ever
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    three.accept().await.0.answer("alive").await;
    assert_eq!(client.response().await.1, "alive");
    let log = three.plane.finish().await;
    let poison = log.iter().find(|line| line["status"] == 502).unwrap();
    assert_eq!((&poison["attempts"], &poison["reject"]), (&2.into(), &"poison".into()));
}

#[tokio::test]
async fn two_resets_by_workers_that_live_leave_the_third_try() {
    let three = Three::start().await;
    let mut client = three.plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    for _ in 0..2 {
        three.accept().await.0.head().await; // and gone
    }
    three.accept().await.0.answer("third").await;
    assert_eq!(client.response().await.1, "third");
    let log = three.plane.finish().await;
    assert_eq!((&log[0]["attempts"], &log[0]["status"]), (&3.into(), &200.into()));
}

#[tokio::test]
async fn one_death_and_one_reset_leave_the_third_try() {
    let mut three = Three::start().await;
    let mut client = three.plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    three.one_dies().await;
    three.accept().await.0.head().await; // and gone
    // one worker is left that has not had it
    three.accept().await.0.answer("third").await;
    assert_eq!(client.response().await.1, "third");
}

#[tokio::test]
async fn a_post_whose_worker_dies_is_a_502_and_sent_to_no_other() {
    let mut three = Three::start().await;
    let mut client = three.plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    three.one_dies().await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    three.expect_nobody().await;
    let log = three.plane.finish().await;
    assert_eq!((&log[0]["attempts"], &log[0]["reject"]), (&1.into(), &"upstream_reset".into()));
}

#[tokio::test]
async fn a_response_whose_worker_dies_never_looks_complete() {
    let three = Three::start().await;
    let mut client = three.plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (mut upstream, _) = three.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.read_until("abc\r\n").await;
    three.plane.reports(None, &[]);
    drop(upstream);
    assert_eq!(client.rest().await, "", "closed without the last chunk");
    three.expect_nobody().await;
    eventually(|| three.plane.held() == 0).await;
}
