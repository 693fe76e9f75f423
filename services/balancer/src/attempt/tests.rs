//! What becomes of a request whose node is lost while it waits there, over real sockets.

use super::GLANCE;
use crate::{
    endpoint::{Node, WorkerView},
    fixture::{Peer, Plane, Worker, eventually},
};
use std::{net::SocketAddr, sync::Arc};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A node with this one worker.
fn join(plane: &Plane, instance: &str, address: SocketAddr) {
    let node = Node::new(instance.to_owned(), ([127, 0, 0, 1], 1).into(), b"pass");
    plane.app.apply(&Arc::new(node), &[WorkerView::ready(0, address, 1)]);
}

/// Two nodes of one worker each, and a request that waits at the first one.
struct Waiting {
    plane: Plane,
    client: Peer,
    upstream: Peer,
    other: Worker,
}

impl Waiting {
    async fn start(request: &str) -> Self {
        let plane = Plane::start("");
        let (worker, other) = (Worker::start().await, Worker::start().await);
        join(&plane, "node-1", worker.address);
        let mut client = plane.client().await;
        client.send(request).await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        join(&plane, "node-2", other.address);
        Self { plane, client, upstream, other }
    }
}

#[tokio::test]
async fn a_request_that_waits_at_a_lost_node_is_sent_elsewhere() {
    let mut waiting = Waiting::start("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    waiting.plane.app.remove_node("node-1");
    let mut upstream = waiting.other.accept().await;
    upstream.head().await;
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream.send(OK).await;
    assert_eq!(waiting.client.response().await.1, "ok");
    assert_eq!(waiting.upstream.rest().await, "abc", "the connection is closed");
    let log = waiting.plane.finish().await;
    assert_eq!((&log[0]["attempts"], &log[0]["status"], &log[0]["node"]), (&2.into(), &200.into(), &"node-2".into()));
}

#[tokio::test]
async fn what_may_not_be_sent_twice_waits_on_at_a_lost_node() {
    let mut waiting = Waiting::start("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    waiting.plane.app.remove_node("node-1");
    tokio::time::sleep(3 * GLANCE).await; // it looks, and stays
    waiting.other.expect_nobody().await;
    waiting.upstream.send(OK).await;
    assert_eq!(waiting.client.response().await.1, "ok");
}

#[tokio::test]
async fn a_worker_that_its_node_has_ceased_to_report_may_finish_what_it_has() {
    let mut waiting = Waiting::start("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    waiting.plane.app.apply(&Arc::new(Node::new("node-1".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass")), &[]);
    tokio::time::sleep(3 * GLANCE).await; // it looks, and stays
    waiting.other.expect_nobody().await;
    waiting.upstream.send(OK).await;
    assert_eq!(waiting.client.response().await.1, "ok");
}

#[tokio::test]
async fn whatever_is_still_connecting_to_a_lost_node_is_sent_elsewhere() {
    let plane = Plane::start("connect_timeout = \"30s\"");
    // the kernel takes one connection for it and ignores the next
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    deaf.listen(0).unwrap();
    let address = deaf.local_addr().unwrap().as_socket().unwrap();
    let _first = tokio::net::TcpStream::connect(address).await.unwrap();
    join(&plane, "node-1", address);
    let mut client = plane.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    eventually(|| plane.held() == 1).await;
    let other = Worker::start().await;
    join(&plane, "node-2", other.address);
    plane.app.remove_node("node-1");
    let mut upstream = other.accept().await;
    upstream.head().await;
    assert_eq!(upstream.exactly(3).await, "abc");
    upstream.send(OK).await;
    assert_eq!(client.response().await.1, "ok");
}
