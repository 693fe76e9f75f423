//! Over real sockets: what the configuration says of an upstream becomes an app that has its servers.

use super::{Groups, TrustError, Wanted};
use crate::{
    Config,
    fixture::{Nobody, Peer, Plane, Worker, eventually, soon},
    route::Table,
};
use chassis::{
    config::{Layers, Reader},
    discovery::Discovery,
};
use std::{
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::AbortHandle};

mod faults;
mod http2;
mod interim;
mod mischief;
mod secured;

/// A data plane with this one route.
struct Front {
    plane: Plane,
    groups: Groups,
}

impl Deref for Front {
    type Target = Plane;

    fn deref(&self) -> &Plane {
        &self.plane
    }
}

impl Front {
    /// `route`: lines of its table beside `upstream`.
    fn start(settings: &str, upstream: &[&str], route: &str) -> Self {
        Self::try_start(settings, upstream, route).unwrap()
    }

    fn try_start(settings: &str, upstream: &[&str], route: &str) -> Result<Self, TrustError> {
        let settings = format!("{settings}\n[[balancer.route]]\nupstream = {upstream:?}\n{route}");
        let mut plane = Plane::start(&settings);
        let groups = Groups::new(Arc::clone(&plane.shared.apps), Discovery::new(&[]).unwrap());
        let config = plane.shared.config.load_full();
        groups.follow(Wanted::read(&config.routes)?);
        plane.shared.routes.store(Arc::new(Table::new(&plane.shared.configured(), &[])));
        let name = config.routes[0].target.app().unwrap();
        plane.app = plane.shared.apps.obtain(name);
        Ok(Self { plane, groups })
    }

    /// In front of one server that does what the test says.
    async fn of_one(settings: &str, route: &str) -> (Self, Worker) {
        let server = Worker::start().await;
        let front = Self::start(settings, &[&url(server.address)], route);
        (front, server)
    }

    /// The configuration is another one now.
    fn reconfigure(&self, upstream: &[&str], route: &str) {
        let text = format!("[[balancer.route]]\nupstream = {upstream:?}\n{route}");
        self.groups.follow(Wanted::read(&read(&text).routes).unwrap());
    }

    /// Workers that would take a request.
    fn in_rotation(&self) -> usize {
        let view = self.app.view();
        view.nodes.iter().flat_map(|node| &node.endpoints).filter(|endpoint| endpoint.free > 0).count()
    }
}

fn read(text: &str) -> Config {
    let layers = Layers::from_text("test", text, [], Vec::new());
    let mut reader = Reader::new(&layers);
    let config = Config::read(&mut reader);
    reader.finish().unwrap();
    config
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// A server that answers every request with these words, and `/healthz` as it is told.
struct Stub {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    checks: Arc<AtomicU32>,
    task: AbortHandle,
}

impl Stub {
    async fn start(body: &'static str) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (well, checks) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
        let (is_well, asked) = (Arc::clone(&well), Arc::clone(&checks));
        let task = tokio::spawn(async move {
            let mut peers = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = socket.accept().await {
                let (is_well, asked) = (Arc::clone(&is_well), Arc::clone(&asked));
                peers.spawn(async move {
                    let mut peer = Peer(stream);
                    while peer.0.peek(&mut [0; 1]).await.is_ok_and(|length| length > 0) {
                        let head = peer.head().await;
                        if head.starts_with("get /healthz ") {
                            asked.fetch_add(1, Ordering::Relaxed);
                            let status = if is_well.load(Ordering::Relaxed) { "204 No Content" } else { "503 No" };
                            peer.send(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n")).await;
                            return;
                        }
                        let length = body.len();
                        peer.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")).await;
                    }
                });
            }
        });
        Self { address, well, checks, task: task.abort_handle() }
    }

    fn is(&self, well: bool) {
        self.well.store(well, Ordering::Relaxed);
    }

    fn url(&self) -> String {
        url(self.address)
    }

    fn checks(&self) -> u32 {
        self.checks.load(Ordering::Relaxed)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many of so many requests each of two answers had.
async fn shares(front: &Front, requests: u32) -> (u32, u32) {
    let mut client = front.client().await;
    let (mut one, mut two) = (0, 0);
    for _ in 0..requests {
        match client.get("/").await.1.as_str() {
            "one" => one += 1,
            "two" => two += 1,
            other => panic!("{other}"),
        }
    }
    (one, two)
}

/// For longer than any test takes, on whatever machine.
const KEPT: &str = "keepalive = \"1m\"";

const CHECKED: &str = "health_check = \"/healthz\"\nhealth_interval = \"100ms\"";

#[tokio::test]
async fn a_server_sees_a_request_as_it_came_and_nothing_of_ours() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send("GET /a?b=c HTTP/1.1\r\nhost: shop.test\r\nservery-pass: x\r\nx-forwarded-for: 1.2.3.4\r\n\r\n").await;
    let mut upstream = server.accept().await;
    let head = upstream.head().await;
    assert!(head.starts_with("get /a?b=c http/1.1\r\n"), "{head}");
    assert!(!head.contains("servery-"), "{head}");
    assert!(head.contains("\r\nhost: shop.test\r\n") && head.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"), "{head}");
    // its refusal is an answer like any other, and the field means nothing
    upstream.send("HTTP/1.1 503 Busy\r\nservery-refused: busy\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert!(head.starts_with("http/1.1 503") && body == "no" && !head.contains("servery"), "{head}");
    server.expect_nobody().await;
    assert_eq!((front.held(), front.unsettled()), (0, 0));
}

#[tokio::test]
async fn a_server_that_wants_its_own_name_gets_it() {
    let (front, server) = Front::of_one("", "host_header = \"upstream\"").await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    let mut upstream = server.accept().await;
    let head = upstream.answer("ok").await;
    assert!(head.contains(&format!("\r\nhost: {}\r\n", server.address)), "{head}");
    assert!(head.contains("\r\nx-forwarded-host: shop.test\r\n"), "{head}");
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn an_address_has_no_more_requests_at_once_than_it_may() {
    let (front, server) = Front::of_one("", "max_connections = 1").await;
    let (mut one, mut two) = (front.client().await, front.client().await);
    one.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    two.send("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| front.app.queue_depth() == 1).await;
    server.expect_nobody().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
    drop(upstream);
    assert_eq!(one.response().await.1, "1");
    assert!(server.accept().await.answer("2").await.starts_with("get /2 "));
    assert_eq!(two.response().await.1, "2");
}

#[tokio::test]
async fn a_connection_is_kept_for_as_long_as_it_says() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.answer("1").await;
    assert_eq!(client.response().await.1, "1");
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    upstream.answer("2").await;
    assert_eq!(client.response().await.1, "2");

    let (front, server) = Front::of_one("", "keepalive = \"0s\"").await;
    let mut client = front.client().await;
    for turn in ["1", "2"] {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        let mut upstream = server.accept().await;
        upstream.answer(turn).await;
        assert_eq!(client.response().await.1, turn);
    }
}

#[tokio::test]
async fn requests_are_shared_by_weight() {
    let (one, two) = (Stub::start("one").await, Stub::start("two").await);
    let front = Front::start("", &[&format!("{} weight=2", one.url()), &format!("{} weight=6", two.url())], "");
    eventually(|| front.in_rotation() == 4).await; // 1 and 3
    let (ones, twos) = shares(&front, 1200).await;
    assert!((240..=360).contains(&ones), "{ones} and {twos}");
}

#[tokio::test]
async fn a_server_that_fails_its_checks_is_out_until_it_answers_again() {
    let (one, two) = (Stub::start("one").await, Stub::start("two").await);
    let front = Front::start("", &[&one.url(), &two.url()], CHECKED);
    eventually(|| front.in_rotation() == 2).await;
    one.is(false);
    eventually(|| front.in_rotation() == 1).await;
    assert_eq!(shares(&front, 50).await, (0, 50));
    one.is(true);
    eventually(|| front.in_rotation() == 2).await;
    let (ones, _) = shares(&front, 50).await;
    assert!(ones > 0);
    let log = front.plane.finish().await;
    assert!(log.iter().all(|line| line["status"] == 200 && line["attempts"] == 1), "{log:?}");
}

#[tokio::test]
async fn when_every_check_fails_all_are_used() {
    let (one, two) = (Stub::start("one").await, Stub::start("two").await);
    one.is(false);
    let front = Front::start("", &[&one.url(), &two.url()], CHECKED);
    eventually(|| front.in_rotation() == 1 && one.checks() > 0).await;
    two.is(false);
    eventually(|| front.in_rotation() == 2).await;
    let (ones, twos) = shares(&front, 50).await;
    assert!(ones > 0 && twos > 0, "{ones} {twos}");
    two.is(true);
    eventually(|| front.in_rotation() == 1).await;
    assert_eq!(shares(&front, 20).await, (0, 20));
}

#[tokio::test]
async fn a_server_takes_nothing_before_its_first_check_and_a_silent_one_is_better_than_none() {
    let silent = Worker::start().await;
    let route = "health_check = \"/healthz\"\nhealth_interval = \"5s\"\nhealth_timeout = \"200ms\"";
    let front = Front::start("", &[&url(silent.address)], route);
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut check = silent.accept().await;
    let head = check.head().await;
    assert!(head.starts_with("get /healthz http/1.1\r\n") && head.contains("connection: close\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", silent.address)), "{head}");
    eventually(|| front.app.queue_depth() == 1).await;
    assert_eq!(check.rest().await, "", "it is not asked for longer than the timeout");
    silent.accept().await.answer("ok").await;
    assert_eq!(client.response().await.1, "ok");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_passed_over() {
    let (nobody, server) = (Nobody::new(), Stub::start("one").await);
    let front = Front::start("", &[&url(nobody.address()), &server.url()], "");
    eventually(|| front.in_rotation() == 2).await;
    assert_eq!(shares(&front, 20).await, (20, 0));
    let alone = Front::start("", &[&url(nobody.address())], "");
    let mut client = alone.client().await;
    let (head, _) = client.get("/").await;
    assert!(head.starts_with("http/1.1 502") && head.contains("connection_refused"), "{head}");
}

#[tokio::test]
async fn a_name_may_stand_for_addresses_where_nobody_listens() {
    let server = Stub::start("one").await; // at 127.0.0.1, and not at ::1
    let front = Front::start("", &[&format!("http://localhost:{}", server.address.port())], "");
    eventually(|| front.in_rotation() == 1).await;
    assert_eq!(shares(&front, 20).await, (20, 0));
    let log = front.plane.finish().await;
    assert!(log.iter().all(|line| line["attempts"] == 1), "{log:?}");
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_a_503_when_the_queues_deadline_is_over() {
    let front = Front::start("queue_deadline = \"300ms\"", &["http://nowhere.invalid:80"], "");
    let (head, _) = front.client().await.get("/").await;
    assert!(head.starts_with("http/1.1 503") && head.contains("retry-after"), "{head}");
}

#[tokio::test]
async fn a_configuration_that_says_the_same_touches_nothing() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.answer("1").await;
    assert_eq!(client.response().await.1, "1");
    front.reconfigure(&[&url(server.address)], KEPT);
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    upstream.answer("2").await;
    assert_eq!(client.response().await.1, "2");
}

#[tokio::test]
async fn what_the_configuration_takes_away_finishes_what_it_has() {
    let (front, server) = Front::of_one("", "name = \"shop\"").await;
    let mut client = front.client().await;
    client.send("GET /old HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    // the same upstream has another server now
    let other = Worker::start().await;
    front.reconfigure(&[&url(other.address)], "name = \"shop\"");
    let mut second = front.client().await;
    second.send("GET /new HTTP/1.1\r\nhost: a\r\n\r\n").await;
    other.accept().await.answer("new").await;
    assert_eq!(second.response().await.1, "new");
    // for longer than it takes to find out that a node is lost
    tokio::time::sleep(Duration::from_millis(600)).await;
    other.expect_nobody().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nold").await;
    assert_eq!(client.response().await.1, "old");
    assert_eq!(soon(upstream.rest()).await, "", "and it is not kept");
    // and now there is none
    front.groups.follow(Wanted::read(&[]).unwrap());
    eventually(|| front.app.view().nodes.is_empty()).await;
    assert_eq!(front.in_rotation(), 0);
}

#[tokio::test]
async fn a_changed_setting_takes_effect_on_the_same_address() {
    let (front, server) = Front::of_one("", "name = \"shop\"\nkeepalive = \"1m\"").await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = server.accept().await;
    upstream.answer("1").await;
    assert_eq!(client.response().await.1, "1");
    front.reconfigure(&[&url(server.address)], "name = \"shop\"\nkeepalive = \"1m\"\nhost_header = \"upstream\"");
    assert_eq!(soon(upstream.rest()).await, "", "connections of before are closed");
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = server.accept().await.answer("2").await;
    assert!(head.contains(&format!("\r\nhost: {}\r\n", server.address)), "{head}");
    assert_eq!(client.response().await.1, "2");
}

#[tokio::test]
async fn a_websocket_goes_through_and_holds_no_place() {
    let (front, server) = Front::of_one("", "max_connections = 1").await;
    let mut client = front.client().await;
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut upstream = server.accept().await;
    assert!(upstream.head().await.contains("upgrade: websocket\r\n"));
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(client.head().await.starts_with("http/1.1 101"));
    client.send("ping").await;
    assert_eq!(upstream.exactly(4).await, "ping");
    upstream.send("pong").await;
    assert_eq!(client.exactly(4).await, "pong");
    assert_eq!((front.held(), front.unsettled()), (0, 0));
}
