//! A node's registrations over real sockets with mutual TLS: every test is the balancers, and says what they say.

use super::{Audience, Introduction, Registrar, StreamState, Streams};
use crate::{
    config::RouteConfig,
    roster::{Entry, Roster, Row, State},
};
use chassis::{
    config::HostPort,
    discovery::Discovery,
    identity::{ClientAuth, Identity, Material, PeerInfo},
};
use proto::registry::{
    Acknowledged, FromBalancer, FromNode, Hello, Left, Report, Welcome,
    from_balancer::Message as Reply,
    from_node::Message as Word,
    registry_server::{Registry, RegistryServer},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

mod granting;
mod silence;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn material(&self, role: &str, instance: &str) -> Material {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uris = [format!("spiffe://servery/{role}/{instance}"), "servery://servery/app/demo?prefix=/".to_owned()];
        params.subject_alt_names = uris.map(|uri| SanType::URI(uri.try_into().unwrap())).to_vec();
        if role == "balancer" {
            params.subject_alt_names.truncate(1);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        Material::new(vec![leaf, self.root.clone()], der.into(), self.root.clone()).unwrap()
    }
}

/// One registration as the balancer has it.
struct Session {
    node: String,
    words: Streaming<FromNode>,
    replies: mpsc::Sender<Result<FromBalancer, Status>>,
}

/// Hands every registration to the test.
struct Door {
    sessions: mpsc::Sender<Session>,
}

#[tonic::async_trait]
impl Registry for Door {
    type RegisterStream = ReceiverStream<Result<FromBalancer, Status>>;

    async fn register(&self, request: Request<Streaming<FromNode>>) -> Result<Response<Self::RegisterStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().and_then(|info| info.peer.clone()).unwrap();
        let (replies, out) = mpsc::channel(64);
        let session = Session { node: peer.instance, words: request.into_inner(), replies };
        self.sessions.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(out)))
    }
}

struct Balancer {
    name: String,
    address: SocketAddr,
    /// The upper half of its connections' numbers.
    connections: u32,
    /// It says so.
    yields: bool,
    sessions: mpsc::Receiver<Session>,
    server: JoinHandle<()>,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Balancer {
    async fn bind(authority: &Authority, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let identity = Identity::fixed(authority.material("balancer", name));
        let (sessions, receive) = mpsc::channel(16);
        let server = tokio::spawn(async move {
            let incoming = identity.incoming(listener, ClientAuth::Required);
            let service = RegistryServer::new(Door { sessions });
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { name: name.to_owned(), address, connections: 0, yields: false, sessions: receive, server }
    }

    async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("a node in time").unwrap()
    }

    /// A registration that is welcome.
    async fn welcome(&mut self) -> (Session, Hello) {
        let mut session = self.session().await;
        let Some(Word::Hello(hello)) = session.word().await else { panic!("Hello comes first") };
        session.reply(self.word_of_welcome()).await;
        (session, hello)
    }

    fn word_of_welcome(&self) -> Reply {
        let (protocol_version, instance) = (proto::PROTOCOL_VERSION, self.name.clone());
        Reply::Welcome(Welcome { protocol_version, instance, connections: self.connections, yields: self.yields })
    }
}

impl Session {
    /// `None`: the node has ended the stream.
    async fn word(&mut self) -> Option<Word> {
        let word = timeout(PATIENCE, self.words.message()).await.expect("a word in time");
        word.ok().flatten().and_then(|word| word.message)
    }

    async fn reply(&self, reply: Reply) {
        self.replies.send(Ok(FromBalancer { message: Some(reply) })).await.unwrap();
    }

    async fn acknowledge(&self, report: &Report) {
        self.reply(Reply::Acknowledged(Acknowledged { sequence: report.sequence, over: Vec::new() })).await;
    }

    /// The first report that is as wanted. Every one is acknowledged.
    async fn report(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + PATIENCE;
        loop {
            let report = match self.word().await {
                Some(Word::Report(report)) => report,
                other => panic!("{other:?} is no report"),
            };
            self.acknowledge(&report).await;
            if wanted(&report) {
                return report;
            }
            assert!(Instant::now() < until, "not as wanted in time: {report:?}");
        }
    }
}

struct Node {
    registrar: Registrar,
    streams: Streams,
    roster: Roster,
    audience: Audience,
    identity: Identity,
}

impl Node {
    /// With two workers of ten slots.
    fn start(authority: &Authority, balancers: &[&Balancer]) -> (Self, Vec<Entry>) {
        let addresses: Vec<SocketAddr> = balancers.iter().map(|balancer| balancer.address).collect();
        Self::dialling(authority, &addresses)
    }

    fn dialling(authority: &Authority, balancers: &[SocketAddr]) -> (Self, Vec<Entry>) {
        let roster = Roster::new();
        let entries = (0..2).map(|position| roster.enter(row(position, 1))).collect();
        let identity = Identity::fixed(authority.material("app_server", "node-1"));
        let introduction = Introduction {
            app: "demo".to_owned(),
            routes: vec![RouteConfig { host: String::new(), prefix: "/".to_owned(), strip_prefix: false }],
            pass: [7; 32],
            advertise: None,
            heartbeat: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
        };
        let join: Vec<HostPort> = balancers.iter().map(|address| (*address).into()).collect();
        let discovery = Discovery::new(&["127.0.0.1:9".parse().unwrap()]).unwrap();
        let (streams, audience) = (Streams::new(), Audience::default());
        let registrar = Registrar::spawn(
            identity.clone(),
            introduction,
            roster.clone(),
            audience.clone(),
            streams.clone(),
            &join,
            &discovery,
        );
        (Self { registrar, streams, roster, audience, identity }, entries)
    }

    async fn states(&self, wanted: &[StreamState]) {
        let mut changes = self.streams.changes();
        let so = changes.wait_for(|rows| {
            let mut states: Vec<_> = rows.values().map(|row| row.state.as_str()).collect();
            let mut wanted: Vec<_> = wanted.iter().map(|state| state.as_str()).collect();
            states.sort_unstable();
            wanted.sort_unstable();
            states == wanted
        });
        timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("not in time: {:?}", self.streams.rows())).unwrap();
    }
}

fn row(position: u32, generation: u64) -> Row {
    let (state, port, pid, capacity) = (State::Ready, 9000 + u16::try_from(position).unwrap(), 42, 10);
    Row { position, generation, port, pid, state, capacity, ..Row::starting() }
}

fn grants(report: &Report) -> Vec<u32> {
    report.workers.iter().map(|worker| worker.grant).collect()
}

#[tokio::test]
async fn a_node_introduces_itself_and_reports_what_changes() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let (node, mut entries) = Node::start(&authority, &[&balancer]);
    let (mut session, hello) = balancer.welcome().await;
    node.states(&[StreamState::Registered]).await;
    assert_eq!((hello.app.as_str(), hello.pass.len(), hello.heartbeat_ms), ("demo", 32, 1000));
    assert_eq!(hello.routes[0].prefix, "/");
    let first = hello.report.unwrap();
    assert_eq!(grants(&first), [10, 10]);
    session.acknowledge(&first).await;

    entries[0].update(|row| row.busy = 3);
    session.report(|report| report.workers[0].busy == 3).await;
    entries.remove(0);
    let report = session.report(|report| report.workers.len() == 1).await;
    assert_eq!(report.workers[0].position, 1);
    entries.push(node.roster.enter(row(0, 2)));
    session.report(|report| report.workers.iter().any(|worker| worker.generation == 2)).await;
    // nothing happens, and still it says something within its promise
    for _ in 0..3 {
        let word = timeout(Duration::from_secs(2), session.word()).await.expect("a heartbeat");
        assert!(matches!(word, Some(Word::Report(_))));
    }
}

#[tokio::test]
async fn a_second_balancer_gets_its_half_when_the_first_has_acknowledged() {
    let authority = Authority::new();
    let (mut one, mut two) = (Balancer::bind(&authority, "b-1").await, Balancer::bind(&authority, "b-2").await);
    let (_node, _entries) = Node::start(&authority, &[&one, &two]);
    let ((mut first, said), (mut second, also)) = tokio::join!(one.welcome(), two.welcome());
    // whoever came first was given everything, and the other nothing of what the first may be using
    let (said, also) = (said.report.unwrap(), also.report.unwrap());
    let sums: Vec<u32> = grants(&said).into_iter().zip(grants(&also)).map(|(a, b)| a + b).collect();
    assert!(sums.iter().all(|sum| *sum <= 10), "{sums:?}");
    first.acknowledge(&said).await;
    second.acknowledge(&also).await;
    let half = |report: &Report| grants(report) == [5, 5];
    tokio::join!(first.report(half), second.report(half));

    // one is gone without a word: the other has everything again
    drop(one);
    drop(first);
    second.report(|report| grants(report) == [10, 10]).await;
}

#[tokio::test]
async fn two_addresses_of_one_balancer_are_one_stream_and_a_spare() {
    let authority = Authority::new();
    let (mut one, mut two) = (Balancer::bind(&authority, "b-1").await, Balancer::bind(&authority, "b-1").await);
    let (node, _entries) = Node::start(&authority, &[&one, &two]);
    let one_is_first = tokio::select! {
        (session, _) = one.welcome() => (session, true),
        (session, _) = two.welcome() => (session, false),
    };
    node.states(&[StreamState::Registered, StreamState::Spare]).await;
    let (session, one_is_first) = one_is_first;
    drop(session);
    let mut other = if one_is_first {
        drop(one);
        two
    } else {
        drop(two);
        one
    };
    // the spare takes over
    let (_session, hello) = other.welcome().await;
    assert_eq!(grants(&hello.report.unwrap()), [10, 10]);
}

#[tokio::test]
async fn a_node_that_leaves_says_so_and_waits_until_it_is_let_go() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let (mut node, _entries) = Node::start(&authority, &[&balancer]);
    let (mut session, _) = balancer.welcome().await;
    node.states(&[StreamState::Registered]).await;
    let streams = node.streams.clone();
    let leaving = tokio::spawn(async move { node.registrar.leave().await });
    loop {
        match session.word().await {
            Some(Word::Leaving(_)) => break,
            Some(Word::Report(_)) => {}
            other => panic!("{other:?} before it leaves"),
        }
    }
    // it is not silent while it waits
    assert!(matches!(session.word().await, Some(Word::Report(_))));
    assert!(!leaving.is_finished());
    assert_eq!(streams.rows()[0].state, StreamState::Leaving);
    session.reply(Reply::Left(Left {})).await;
    timeout(PATIENCE, leaving).await.expect("the end").unwrap();
}

#[tokio::test]
async fn a_node_without_a_balancer_leaves_at_once() {
    let authority = Authority::new();
    let balancer = Balancer::bind(&authority, "b-1").await;
    let (mut node, _entries) = Node::start(&authority, &[&balancer]);
    drop(balancer);
    timeout(Duration::from_secs(10), node.registrar.leave()).await.expect("nobody to wait for");
}

#[tokio::test]
async fn a_renewed_identity_gets_its_stream_before_the_old_one_ends() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let (node, _entries) = Node::start(&authority, &[&balancer]);
    let (mut old, hello) = balancer.welcome().await;
    old.acknowledge(&hello.report.unwrap()).await;
    node.states(&[StreamState::Registered]).await;
    node.identity.replace(authority.material("app_server", "node-1"));
    let mut new = balancer.session().await;
    assert_eq!(new.node, "node-1");
    let Some(Word::Hello(hello)) = new.word().await else { panic!("Hello comes first") };
    assert_eq!(grants(&hello.report.unwrap()), [10, 10], "it is the same balancer: it keeps what it has");
    // the old one still speaks: until the new one is welcome it is the only one
    assert!(matches!(old.word().await, Some(Word::Report(_))));
    new.reply(balancer.word_of_welcome()).await;
    let ended = async { while old.word().await.is_some() {} };
    timeout(PATIENCE, ended).await.expect("an end of the old stream");
    new.report(|_| true).await;
    assert_eq!(node.streams.rows()[0].state, StreamState::Registered);
}

#[tokio::test]
async fn a_balancer_may_end_the_old_stream_before_it_welcomes_the_new_one() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let (node, _entries) = Node::start(&authority, &[&balancer]);
    let (old, _) = balancer.welcome().await;
    node.states(&[StreamState::Registered]).await;
    node.identity.replace(authority.material("app_server", "node-1"));
    let mut new = balancer.session().await;
    assert!(matches!(new.word().await, Some(Word::Hello(_))));
    let _ = old.replies.send(Err(Status::aborted("a newer registration of this instance took over"))).await;
    drop(old);
    new.reply(balancer.word_of_welcome()).await;
    new.report(|_| true).await;
    assert_eq!(node.streams.rows()[0].state, StreamState::Registered);
    assert!(balancer.sessions.try_recv().is_err(), "there is no third stream");
}

#[tokio::test]
async fn a_refusal_is_asked_about_again_but_not_at_once() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    let (_node, _entries) = Node::start(&authority, &[&balancer]);
    let started = Instant::now();
    for _ in 0..3 {
        let session = balancer.session().await;
        let _ = session.replies.send(Err(Status::permission_denied("the certificate does not name the app"))).await;
    }
    assert!(started.elapsed() >= Duration::from_secs(1), "three tries within {:?}", started.elapsed());
    balancer.welcome().await;
}

#[tokio::test]
async fn who_is_no_balancer_learns_nothing() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = Identity::fixed(authority.material("app_server", "b-1"));
    let (sessions, receive) = mpsc::channel(16);
    let server = tokio::spawn(async move {
        let service = RegistryServer::new(Door { sessions });
        let incoming = impostor.incoming(listener, ClientAuth::Required);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    let mut impostor =
        Balancer { name: "b-1".to_owned(), address, connections: 0, yields: false, sessions: receive, server };
    let mut honest = Balancer::bind(&authority, "b-2").await;
    let (node, _entries) = Node::start(&authority, &[&impostor, &honest]);
    let _session = honest.welcome().await;
    node.states(&[StreamState::Registered, StreamState::Connecting]).await;
    assert!(impostor.sessions.try_recv().is_err());
}
