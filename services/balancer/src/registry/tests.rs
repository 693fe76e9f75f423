//! The registry over real mutual TLS on loopback. Each wait is for something that happens, under a deadline.

use super::{
    admission::tests::{hello, worker},
    *,
};
use crate::{
    Config, Shared,
    authority::{Authority, peer},
    fixture::{eventually, soon},
    tls::CertificateSet,
};
use chassis::{
    config::{Layers, Reader},
    identity::{Identity, PeerId, Role},
};
use proto::registry::{Hello, Restarts, Route, Worker, from_balancer, from_node, registry_client::RegistryClient};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

struct House {
    authority: Authority,
    shared: Arc<Shared>,
    stopping: CancellationToken,
    address: SocketAddr,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl House {
    async fn open() -> Self {
        let authority = Authority::new();
        let layers = Layers::from_text("test", "", [], Vec::new());
        let config = Config::read(&mut Reader::new(&layers));
        let shared = Shared::new(config, None, CertificateSet::self_signed().unwrap());
        let stopping = CancellationToken::new();
        let terms = Terms {
            connections: 0,
            identity: authority.identity(&peer(Role::Balancer, "balancer-1", &[])),
            directory: Directory::new(Arc::clone(&shared)),
            stopping: stopping.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, terms));
        Self { authority, shared, stopping, address, serving }
    }

    /// Opens a stream; the sender is the node's side of it.
    async fn dial(&self, who: &PeerId) -> Result<(mpsc::Sender<FromNode>, Streaming<FromBalancer>), Status> {
        self.dial_as(&self.authority.identity(who)).await
    }

    async fn dial_as(&self, who: &Identity) -> Result<(mpsc::Sender<FromNode>, Streaming<FromBalancer>), Status> {
        let (channel, _) = who.connect(self.address, Role::Balancer).await.unwrap();
        let (say, messages) = mpsc::channel(4);
        let mut client = RegistryClient::new(channel);
        let words = soon(client.register(ReceiverStream::new(messages))).await?.into_inner();
        Ok((say, words))
    }

    fn nodes(&self) -> usize {
        self.shared.apps.obtain("demo").view().nodes.len()
    }
}

fn node() -> PeerId {
    peer(Role::AppServer, "node-1", &[("demo", &["/"])])
}

async fn say_hello(say: &mpsc::Sender<FromNode>) {
    let hello = from_node::Message::Hello(hello("demo", "/", vec![worker(0, 1, 9000, 1)]));
    say.send(FromNode { message: Some(hello) }).await.unwrap();
}

#[tokio::test]
async fn a_node_is_welcomed_and_gone_with_its_connection() {
    let house = House::open().await;
    let (say, mut words) = house.dial(&node()).await.unwrap();
    say_hello(&say).await;
    let welcome = soon(words.message()).await.unwrap().unwrap().message;
    let Some(from_balancer::Message::Welcome(welcome)) = welcome else { panic!("{welcome:?}") };
    assert_eq!(welcome.instance, "balancer-1");
    assert_eq!(house.nodes(), 1);
    drop((say, words));
    eventually(|| house.nodes() == 0).await;
}

/// Every bound of `admission` reached at the same time.
fn longest_hello() -> Hello {
    let most = u32::MAX;
    let causes = vec![Restarts { cause: "a_cause_of_thirty_two_characters".to_owned(), count: most }; 32];
    let workers = (0..512).map(|n| Worker {
        position: most - n,
        generation: u64::MAX,
        pid: most,
        busy: most,
        served: u64::MAX,
        restarts: most,
        age_ms: u64::MAX,
        memory_bytes: u64::MAX,
        cpu_millicores: most,
        causes: causes.clone(),
        ..worker(0, 0, 65_535 - n, 65_536)
    });
    let mut hello = hello("demo", "/", workers.collect());
    let route = |n| Route { host: String::new(), prefix: format!("/{n}/{}", "a".repeat(1000)), strip_prefix: true };
    hello.routes = (10..74).map(route).collect();
    hello
}

#[tokio::test]
async fn the_longest_message_within_all_other_bounds_is_read() {
    let house = House::open().await;
    let (say, mut words) = house.dial(&node()).await.unwrap();
    say.send(FromNode { message: Some(from_node::Message::Hello(longest_hello())) }).await.unwrap();
    let welcome = soon(words.message()).await.unwrap().unwrap().message;
    assert!(matches!(welcome, Some(from_balancer::Message::Welcome(_))), "{welcome:?}");
    assert_eq!(house.shared.apps.obtain("demo").view().nodes[0].endpoints.len(), 512);
}

#[tokio::test]
async fn only_app_servers_may_register() {
    let house = House::open().await;
    for role in [Role::Balancer, Role::CertSidecar] {
        let status = house.dial(&peer(role, "stranger", &[])).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains(role.as_str()), "{status:?}");
    }
}

#[tokio::test]
async fn who_is_not_of_this_root_gets_no_word_in() {
    let house = House::open().await;
    let foreign = Authority::new();
    let stranger = foreign.identity(&node());
    // It does not trust us either: both sides refuse.
    assert!(stranger.connect(house.address, Role::Balancer).await.is_err());
    assert_eq!(house.nodes(), 0);
}

#[tokio::test]
async fn an_instance_cannot_take_every_connection() {
    let house = House::open().await;
    let identity = house.authority.identity(&node());
    let mut held = Vec::new();
    let refused = loop {
        match house.dial_as(&identity).await {
            Ok(stream) => held.push(stream),
            Err(status) => break status,
        }
        assert!(held.len() <= 16, "no bound");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
}

#[tokio::test]
async fn stopping_ends_the_streams_with_a_word_and_then_the_server() {
    let house = House::open().await;
    let (say, mut words) = house.dial(&node()).await.unwrap();
    say_hello(&say).await;
    soon(words.message()).await.unwrap();
    house.stopping.cancel();
    let end = soon(async {
        loop {
            match words.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(status) => break Some(status.code()),
            }
        }
    })
    .await;
    assert_eq!(end, Some(Code::Unavailable));
    soon(house.serving).await.unwrap().unwrap();
}
