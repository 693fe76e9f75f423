//! Timelines on a paused clock; the stream is a pair of channels, the app and the directory are the real ones.

use super::{
    super::admission::tests::{hello, worker},
    *,
};
use crate::{
    Config, Shared,
    app::Permit,
    authority::{Authority, peer},
    reject::Reject,
    tls::CertificateSet,
};
use chassis::config::{Layers, Reader};
use proto::registry::{Hello, Leaving, Report, Worker};
use std::collections::HashSet;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const ADDRESS: &str = "10.0.0.7:40000";

struct House {
    shared: Arc<Shared>,
    terms: Arc<Terms>,
}

impl House {
    fn new() -> Self {
        let layers = Layers::from_text("test", "", [], Vec::new());
        let config = Config::read(&mut Reader::new(&layers));
        let shared = Shared::new(config, None, CertificateSet::self_signed().unwrap());
        let terms = Terms {
            connections: 7,
            identity: Authority::new().identity(&peer(Role::Balancer, "balancer-1", &[])),
            directory: Directory::new(Arc::clone(&shared)),
            stopping: CancellationToken::new(),
        };
        Self { shared, terms: Arc::new(terms) }
    }

    fn app(&self, name: &str) -> Arc<App> {
        self.shared.apps.obtain(name)
    }

    /// Opens a stream as `instance`, which may serve everything.
    fn open(&self, instance: &str) -> Node {
        self.open_as(peer(Role::AppServer, instance, &[("demo", &["/"]), ("other", &["/"])]))
    }

    fn open_as(&self, peer: PeerId) -> Node {
        let (say, inbound) = mpsc::channel(8);
        let (outbound, hear) = mpsc::channel(2);
        let terms = Arc::clone(&self.terms);
        let task = tokio::spawn(async move {
            run(&terms, &peer, ADDRESS.parse().unwrap(), ReceiverStream::new(inbound), outbound).await;
        });
        Node { say, hear, task }
    }

    /// A node with these workers that is in.
    async fn node(&self, instance: &str, workers: Vec<Worker>) -> Node {
        let mut node = self.open(instance);
        node.hello(hello("demo", "/", workers)).await;
        node.welcomed().await;
        node
    }

    /// Endpoints of `demo` by position, with the permits held there.
    fn endpoints(&self) -> Vec<(String, u32, u32)> {
        let nodes = self.app("demo").view().nodes;
        let endpoints = nodes.iter().flat_map(|node| {
            node.endpoints.iter().map(|endpoint| (node.node.instance.clone(), endpoint.worker.position, endpoint.held))
        });
        endpoints.collect()
    }

    fn leads_to(&self, path: &str) -> Option<String> {
        use crate::route::Target;
        let table = self.shared.routes.load();
        match &table.lookup("example.com", path)?.target {
            Target::App(app) => Some(app.name().to_owned()),
            Target::Redirect(_) => None,
        }
    }
}

/// A permit of `demo`, if one is free just now.
async fn permit(house: &House) -> Result<Permit, Reject> {
    let now = Instant::now();
    house
        .app("demo")
        .acquire(crate::client::Client::from(std::net::IpAddr::from([192, 0, 2, 1])).into(), &[], false, now, now)
        .await
}

struct Node {
    say: mpsc::Sender<Result<FromNode, Status>>,
    hear: mpsc::Receiver<Result<FromBalancer, Status>>,
    task: JoinHandle<()>,
}

impl Node {
    async fn say(&self, message: from_node::Message) {
        self.say.send(Ok(FromNode { message: Some(message) })).await.unwrap();
    }

    async fn hello(&self, hello: Hello) {
        self.say(from_node::Message::Hello(hello)).await;
    }

    async fn report(&self, sequence: u64, workers: Vec<Worker>) {
        self.say(from_node::Message::Report(Report { sequence, workers, settled: Vec::new(), lack: None })).await;
    }

    async fn hear(&mut self) -> from_balancer::Message {
        self.hear.recv().await.expect("the stream goes on").unwrap().message.unwrap()
    }

    /// Welcome, and the acknowledgement of the report in the Hello.
    async fn welcomed(&mut self) {
        let welcome = self.hear().await;
        assert_eq!(
            welcome,
            from_balancer::Message::Welcome(Welcome {
                protocol_version: PROTOCOL_VERSION,
                instance: "balancer-1".into(),
                connections: 7,
                yields: true,
            })
        );
        assert_eq!(self.hear().await, acknowledged(1));
    }

    /// Nothing is said as long as nothing happens.
    async fn hears_nothing(&mut self) {
        assert!(timeout(Duration::from_millis(50), self.hear.recv()).await.is_err());
    }

    /// How the balancer ended the stream; `None`: without a word.
    async fn ended(mut self) -> Option<Code> {
        let mut code = None;
        while let Some(message) = self.hear.recv().await {
            code = message.err().map(|status| status.code());
        }
        self.task.await.unwrap();
        code
    }
}

fn acknowledged(sequence: u64) -> from_balancer::Message {
    from_balancer::Message::Acknowledged(Acknowledged { sequence, over: Vec::new() })
}

#[tokio::test(start_paused = true)]
async fn a_node_is_in_rotation_from_its_hello_on() {
    let house = House::new();
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1), worker(1, 1, 9001, 1)]).await;
    assert_eq!(house.endpoints().len(), 2);
    let permit = permit(&house).await.unwrap();
    assert_eq!(permit.endpoint().address.ip().to_string(), "10.0.0.7");
    assert_eq!(house.leads_to("/anything").as_deref(), Some("demo"));
    drop(node);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_says_no_hello_is_ended_after_five_seconds() {
    let house = House::new();
    let started = Instant::now();
    let node = house.open("node-1");
    assert_eq!(node.ended().await, Some(Code::DeadlineExceeded));
    assert_eq!(started.elapsed(), HELLO_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn the_first_message_is_hello_and_no_other_is() {
    let house = House::new();
    let node = house.open("node-1");
    node.report(1, Vec::new()).await;
    assert_eq!(node.ended().await, Some(Code::InvalidArgument));
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    node.hello(hello("demo", "/", Vec::new())).await;
    assert_eq!(node.ended().await, Some(Code::InvalidArgument));
    assert_eq!(house.endpoints(), []);
}

#[tokio::test(start_paused = true)]
async fn a_claim_beyond_the_certificate_is_refused_and_changes_nothing() {
    let house = House::new();
    let node = house.open_as(peer(Role::AppServer, "node-1", &[("demo", &["/shop"])]));
    node.hello(hello("demo", "/", vec![worker(0, 1, 9000, 1)])).await;
    assert_eq!(node.ended().await, Some(Code::PermissionDenied));
    let node = house.open_as(peer(Role::AppServer, "node-1", &[("demo", &["/shop"])]));
    node.hello(hello("other", "/shop", vec![worker(0, 1, 9000, 1)])).await;
    assert_eq!(node.ended().await, Some(Code::PermissionDenied));
    assert_eq!(house.endpoints(), []);
    assert_eq!(house.leads_to("/"), None);
}

#[tokio::test(start_paused = true)]
async fn a_report_is_acknowledged_at_once_but_for_the_workers_that_hold_more_than_it_grants() {
    let house = House::new();
    let two = |grant| vec![worker(0, 1, 9000, grant), worker(1, 1, 9001, 0)];
    let mut node = house.node("node-1", two(3)).await;
    let first = permit(&house).await.unwrap();
    let second = permit(&house).await.unwrap();
    node.report(2, two(1)).await;
    let over = |sequence, held| {
        let over = vec![Over { position: 0, generation: 1, held }];
        from_balancer::Message::Acknowledged(Acknowledged { sequence, over })
    };
    assert_eq!(node.hear().await, over(2, 2));
    node.hears_nothing().await;
    assert!(permit(&house).await.is_err(), "a permit was given beyond the grant");
    node.report(3, two(0)).await;
    assert_eq!(node.hear().await, over(3, 2));
    drop(first);
    assert_eq!(node.hear().await, over(3, 1));
    drop(second);
    assert_eq!(node.hear().await, acknowledged(3));
    node.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_granted_again_what_it_was_asked_for_is_not_over() {
    let house = House::new();
    let mut node = house.node("node-1", vec![worker(0, 1, 9000, 3)]).await;
    let (_first, _second) = (permit(&house).await.unwrap(), permit(&house).await.unwrap());
    node.report(2, vec![worker(0, 1, 9000, 0)]).await;
    assert_ne!(node.hear().await, acknowledged(2));
    node.report(3, vec![worker(0, 1, 9000, 2)]).await;
    assert_eq!(node.hear().await, acknowledged(3));
    node.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_registration_of_an_instance_wins_and_carries_its_endpoints_over() {
    let house = House::new();
    let old = house.node("node-1", vec![worker(0, 1, 9000, 2)]).await;
    let held = permit(&house).await.unwrap();
    let mut new = house.node("node-1", vec![worker(0, 1, 9000, 2)]).await;
    assert_eq!(old.ended().await, Some(Code::Aborted));
    assert_eq!(house.endpoints(), [("node-1".to_owned(), 0, 1)]);
    drop(held);
    assert_eq!(house.endpoints(), [("node-1".to_owned(), 0, 0)]);
    new.report(2, vec![worker(0, 1, 9000, 1)]).await;
    assert_eq!(new.hear().await, acknowledged(2));
    assert_eq!(house.terms.directory.members().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_comes_back_with_another_app_leaves_its_old_one() {
    let house = House::new();
    let old = house.node("node-1", vec![worker(0, 1, 9000, 2)]).await;
    let mut new = house.open("node-1");
    new.hello(hello("other", "/", vec![worker(0, 2, 9000, 2)])).await;
    new.welcomed().await;
    assert_eq!(old.ended().await, Some(Code::Aborted));
    assert_eq!(house.endpoints(), []);
    assert_eq!(house.app("other").view().nodes.len(), 1);
    assert_eq!(house.leads_to("/").as_deref(), Some("other"));
}

#[tokio::test(start_paused = true)]
async fn a_prefix_of_an_app_with_live_nodes_cannot_be_taken() {
    let house = House::new();
    let holder = house.node("node-1", vec![worker(0, 1, 9000, 2)]).await;
    let thief = house.open("node-2");
    thief.hello(hello("other", "/", vec![worker(0, 1, 9000, 2)])).await;
    assert_eq!(thief.ended().await, Some(Code::AlreadyExists));
    assert_eq!(house.leads_to("/").as_deref(), Some("demo"));
    drop(holder.say);
    holder.task.await.unwrap();
    let mut heir = house.open("node-2");
    heir.hello(hello("other", "/", vec![worker(0, 1, 9000, 2)])).await;
    heir.welcomed().await;
    assert_eq!(house.leads_to("/").as_deref(), Some("other"));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_known_is_a_sign_of_life() {
    let house = House::new();
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    for _ in 0..3 {
        sleep(Duration::from_millis(1900)).await;
        node.say.send(Ok(FromNode { message: None })).await.unwrap();
    }
    sleep(Duration::from_millis(1900)).await;
    assert_eq!(house.endpoints().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_reads_nothing_is_held_to_one_word() {
    let house = House::new();
    let mut node = house.open("node-1");
    node.hello(hello("demo", "/", vec![worker(0, 1, 9000, 4)])).await;
    for sequence in 2..40 {
        node.report(sequence, vec![worker(0, 1, 9000, 4)]).await;
    }
    sleep(Duration::from_millis(100)).await;
    node.hear().await;
    assert_eq!(node.hear().await, acknowledged(1));
    // What could not be said in time is said once, for the newest.
    assert_eq!(node.hear().await, acknowledged(39));
    node.hears_nothing().await;
}

#[test]
fn an_instance_opens_so_many_streams_and_no_more() {
    let directory = House::new().terms.directory.clone();
    let mut open: Vec<_> = (0..4).map(|_| directory.open("greedy").unwrap()).collect();
    assert!(matches!(directory.open("greedy"), Err(Refusal::Full(_))));
    directory.open("modest").unwrap();
    open.pop();
    directory.open("greedy").unwrap();
}

#[test]
fn the_certificate_alone_decides_who_may_speak() {
    let now = SystemTime::now();
    let node = peer(Role::AppServer, "node-1", &[("demo", &["/"])]);
    assert_eq!(may_speak(Some(&node), &node.cluster, now), Ok(node.clone()));
    assert_eq!(may_speak(None, &node.cluster, now), Err(Refusal::NoCertificate));
    for role in [Role::Balancer, Role::CertSidecar] {
        assert_eq!(may_speak(Some(&peer(role, "x", &[])), &node.cluster, now), Err(Refusal::Role(role)));
    }
    assert!(matches!(may_speak(Some(&node), "another", now), Err(Refusal::Cluster { .. })));
    assert_eq!(may_speak(Some(&node), &node.cluster, node.not_after), Err(Refusal::Expired));
}

mod demand;
mod endings;
