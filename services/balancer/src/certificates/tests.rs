//! The follower against a sidecar of our own over real mutual TLS. Each wait is for something that happens.

use super::{shelf::tests::offer, *};
use crate::{
    Config,
    authority::{Authority, peer},
    fixture::{eventually, soon},
    tls::CertificateSet,
};
use chassis::{
    config::{Layers, Reader},
    identity::ClientAuth,
};
use proto::certificates::{
    Certificate, Entry,
    certificates_server::{Certificates, CertificatesServer},
};
use std::{collections::HashMap, net::SocketAddr, path::Path, sync::Mutex};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Streaming, transport::Server};

pub(crate) use super::shelf::tests::DAY;

/// Leaves a certificate in the data directory, as a balancer that keeps them does.
pub(crate) fn keep(data: &Path, name: &str, hosts: &[&str], not_after: OffsetDateTime) {
    let (entry, body) = offer(name, hosts, not_after);
    let mut shelf = Shelf::default();
    let bodies = Bodies::from([(entry.sha256.clone(), Ok(body))]);
    let results = shelf.settle(&Manifest { version: 1, entries: vec![entry], denied: Vec::new() }, &bodies, now());
    assert!(results[0].accepted, "{results:?}");
    Disk::new(data, true).keep_certificates(&shelf).unwrap();
}

/// Sends what the test sends, and hands the acknowledgements to the test.
#[derive(Clone)]
struct Sidecar {
    manifests: Arc<watch::Sender<Manifest>>,
    bodies: Arc<Mutex<HashMap<Vec<u8>, Certificate>>>,
    acknowledged: mpsc::Sender<Acknowledgement>,
}

#[tonic::async_trait]
impl Certificates for Sidecar {
    type WatchStream = ReceiverStream<Result<Manifest, Status>>;

    async fn watch(&self, request: Request<Streaming<Acknowledgement>>) -> Result<Response<Self::WatchStream>, Status> {
        let (outgoing, stream) = mpsc::channel(1);
        let (mut manifests, acknowledged) = (self.manifests.subscribe(), self.acknowledged.clone());
        manifests.mark_changed();
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Ok(()) = manifests.changed() => {
                        let manifest = manifests.borrow_and_update().clone();
                        if manifest.version > 0 && outgoing.send(Ok(manifest)).await.is_err() {
                            return;
                        }
                    }
                    message = inbound.message() => match message {
                        Ok(Some(message)) => acknowledged.send(message).await.unwrap(),
                        _ => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Certificate>, Status> {
        let body = self.bodies.lock().unwrap().get(&request.into_inner().sha256).cloned();
        body.map(Response::new).ok_or_else(|| Status::not_found("no such body"))
    }
}

impl Sidecar {
    fn offer(&self, version: u64, offers: &[&(Entry, Certificate)], denied: &[&str]) {
        let bodies = offers.iter().map(|(entry, body)| (entry.sha256.clone(), body.clone()));
        self.bodies.lock().unwrap().extend(bodies);
        let entries = offers.iter().map(|(entry, _)| entry.clone()).collect();
        let denied = denied.iter().map(|instance| (*instance).to_owned()).collect();
        self.manifests.send_replace(Manifest { version, entries, denied });
    }

    /// Listens as `role`.
    async fn serve(&self, authority: &Authority, role: Role, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = authority.identity(&peer(role, "sidecar-1", &[])).incoming(listener, ClientAuth::Required);
        let server = Server::builder().add_service(CertificatesServer::new(self.clone()));
        (address, tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() }))
    }
}

struct House {
    authority: Authority,
    sidecar: Sidecar,
    acknowledged: mpsc::Receiver<Acknowledgement>,
    shared: Arc<Shared>,
    identity: Identity,
    standing: watch::Receiver<Standing>,
    address: SocketAddr,
    serving: JoinHandle<()>,
    following: JoinHandle<()>,
}

impl Drop for House {
    fn drop(&mut self) {
        self.serving.abort();
        self.following.abort();
    }
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

impl House {
    /// A balancer that follows a sidecar; its peer there has the role `role`.
    async fn open(data: &Path, role: Role) -> Self {
        let authority = Authority::new();
        let layers = Layers::from_text("test", "", [], Vec::new());
        let config = Config::read(&mut Reader::new(&layers));
        let shared = Shared::new(config, Some(443), CertificateSet::self_signed().unwrap());
        let (sender, acknowledged) = mpsc::channel(16);
        let sidecar =
            Sidecar { manifests: Arc::new(watch::Sender::default()), bodies: Arc::default(), acknowledged: sender };
        let (address, serving) = sidecar.serve(&authority, role, anywhere()).await;
        let identity = authority.identity(&peer(Role::Balancer, "balancer-1", &[]));
        let disk = Disk::new(data, true);
        let shelf = disk.certificates(OffsetDateTime::now_utc());
        let standing = watch::Sender::new(Standing::new(&shelf));
        let follower = Follower {
            shared: Arc::clone(&shared),
            directory: Directory::new(Arc::clone(&shared)),
            identity: identity.clone(),
            discovery: Discovery::new(&[]).unwrap(),
            sidecar: address.into(),
            denied: disk.denied(),
            disk,
            shelf,
            standing: standing.clone(),
        };
        let standing = standing.subscribe();
        let following = tokio::spawn(follower.run());
        Self { authority, sidecar, acknowledged, shared, identity, standing, address, serving, following }
    }

    async fn acknowledged(&mut self) -> Acknowledgement {
        soon(self.acknowledged.recv()).await.unwrap()
    }

    /// Version and, by name, whether it was accepted.
    async fn verdict(&mut self) -> (u64, Vec<(String, bool)>) {
        let Acknowledgement { version, results } = self.acknowledged().await;
        (version, results.into_iter().map(|result| (result.name, result.accepted)).collect())
    }

    fn serves(&self) -> Vec<(String, OffsetDateTime)> {
        let set = self.shared.certificates.load();
        set.entries().iter().map(|entry| (entry.name.clone(), entry.not_after)).collect()
    }
}

pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().replace_nanosecond(0).unwrap()
}

#[tokio::test]
async fn what_the_sidecar_pushes_is_served_and_acknowledged_entry_by_entry() {
    let data = tempfile::tempdir().unwrap();
    let mut house = House::open(data.path(), Role::CertSidecar).await;
    assert_eq!(house.serves()[0].0, "self-signed");
    let (good, late) = (offer("a", &["a.example.com"], now() + DAY), offer("b", &["b.example.com"], now() - DAY));
    house.sidecar.offer(1, &[&good, &late], &[]);
    let Acknowledgement { version, results } = house.acknowledged().await;
    assert_eq!(version, 1);
    assert!(results[0].accepted && results[0].name == "a", "{results:?}");
    assert!(!results[1].accepted && results[1].reason.contains("expired"), "{results:?}");
    assert_eq!(house.serves(), [("a".to_owned(), now_of(&good))]);
    assert_eq!(house.standing.borrow().sources, [("a".to_owned(), "internal".to_owned())]);

    // A renewal, and one that cannot be taken: the last good one stays.
    let renewed = offer("a", &["a.example.com"], now() + DAY * 2);
    house.sidecar.offer(2, &[&renewed], &[]);
    assert_eq!(house.verdict().await, (2, vec![("a".to_owned(), true)]));
    assert_eq!(house.serves(), [("a".to_owned(), now_of(&renewed))]);
    let wrong = offer("a", &["a.example.com"], now() - DAY);
    house.sidecar.offer(3, &[&wrong], &[]);
    assert_eq!(house.verdict().await, (3, vec![("a".to_owned(), false)]));
    assert_eq!(house.serves(), [("a".to_owned(), now_of(&renewed))]);

    // A body that is not what its hash says.
    let (mut forged, other) =
        (offer("c", &["c.example.com"], now() + DAY), offer("c", &["c.example.com"], now() + DAY));
    forged.1 = other.1;
    house.sidecar.offer(4, &[&renewed, &forged], &[]);
    assert_eq!(house.verdict().await, (4, vec![("a".to_owned(), true), ("c".to_owned(), false)]));
}

/// When an offered certificate ends, from its own DER.
fn now_of((entry, body): &(Entry, Certificate)) -> OffsetDateTime {
    let mut shelf = Shelf::default();
    let manifest = Manifest { version: 1, entries: vec![entry.clone()], denied: Vec::new() };
    let bodies = Bodies::from([(entry.sha256.clone(), Ok(body.clone()))]);
    shelf.settle(&manifest, &bodies, OffsetDateTime::now_utc());
    shelf.held()[0].entry.not_after
}

#[tokio::test]
async fn a_sidecar_that_is_away_takes_nothing_and_is_found_again() {
    let data = tempfile::tempdir().unwrap();
    let mut house = House::open(data.path(), Role::CertSidecar).await;
    let first = offer("a", &["a.example.com"], now() + DAY);
    house.sidecar.offer(1, &[&first], &["node-9"]);
    house.verdict().await;
    soon(house.standing.wait_for(|standing| standing.peer.is_some())).await.unwrap();
    // Its connections live in tasks of their own: closing the watch's stream is what a process's end looks like.
    house.serving.abort();
    house.sidecar.manifests.send_modify(|manifest| manifest.version = 0);
    let (address, authority) = (house.address, &house.authority);
    let fresh = Sidecar {
        manifests: Arc::new(watch::Sender::default()),
        bodies: Arc::default(),
        acknowledged: house.sidecar.acknowledged.clone(),
    };
    // A renewed identity makes the follower leave the old connection, which nobody serves any more.
    house.identity.replace(authority.material(&peer(Role::Balancer, "balancer-1", &[])));
    eventually(|| house.standing.borrow().peer.is_none()).await;
    assert_eq!(house.serves(), [("a".to_owned(), now_of(&first))]);
    let (_, serving) = fresh.serve(authority, Role::CertSidecar, address).await;
    house.serving = serving;
    let second = offer("a", &["a.example.com"], now() + DAY * 2);
    fresh.offer(2, &[&second], &["node-9"]);
    assert_eq!(house.verdict().await, (2, vec![("a".to_owned(), true)]));
    assert_eq!(house.serves(), [("a".to_owned(), now_of(&second))]);

    // Both outlive the process.
    let disk = Disk::new(data.path(), true);
    assert_eq!(disk.denied(), HashSet::from(["node-9".to_owned()]));
    let kept = disk.certificates(OffsetDateTime::now_utc());
    assert_eq!(kept.held().iter().map(|held| &held.wanted).collect::<Vec<_>>(), [&second.0]);
}

#[tokio::test]
async fn who_is_not_the_cert_sidecar_is_not_followed() {
    let data = tempfile::tempdir().unwrap();
    let house = House::open(data.path(), Role::AppServer).await;
    house.sidecar.offer(1, &[&offer("a", &["a.example.com"], now() + DAY)], &[]);
    let error = house.identity.connect(house.address, Role::CertSidecar).await.unwrap_err();
    assert!(error.is_untrusted(), "{error}");
    assert!(house.standing.borrow().peer.is_none());
    assert_eq!(house.serves()[0].0, "self-signed");
}

#[test]
fn the_end_of_every_certificate_is_a_series() {
    let mut text = String::new();
    let mut shelf = Shelf::default();
    let (entry, body) = offer("a\"b", &["a.example.com"], now() + DAY);
    let manifest = Manifest { version: 1, entries: vec![entry.clone()], denied: Vec::new() };
    shelf.settle(&manifest, &Bodies::from([(entry.sha256, Ok(body))]), OffsetDateTime::now_utc());
    let set = shelf.set().unwrap();
    render(&set, &mut text);
    let wanted = format!(
        "servery_balancer_certificate_not_after_seconds{{name=\"a\\\"b\"}} {}\n",
        set.entries()[0].not_after.unix_timestamp()
    );
    assert!(text.ends_with(&wanted), "{text}");
}
