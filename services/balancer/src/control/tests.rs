//! The control plane of one balancer, from its first breath to its end. A kept identity stands in for the enrolment,
//! and nobody answers at the sidecar's address.

use super::*;
use crate::{
    Config,
    authority::{Authority, CLUSTER, peer},
    fixture::{eventually, soon},
    tls::CertificateSet,
};
use chassis::config::{HostPort, Layers, Reader};
use std::{
    net::{SocketAddr, TcpListener as StdListener},
    path::Path,
};
use tokio::task::JoinHandle;

struct House {
    shared: Arc<Shared>,
    readiness: Readiness,
    status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>,
    stopping: CancellationToken,
    address: SocketAddr,
    running: JoinHandle<Result<(), ControlError>>,
    /// Where no sidecar is: bound, so that nobody else answers there, and never accepted from.
    _nobody: StdListener,
}

fn common(data: &Path, sidecar: SocketAddr) -> config::Shared {
    config::Shared {
        cluster: CLUSTER.to_owned(),
        data: data.to_owned(),
        token_file: data.join("token"),
        sidecar: HostPort::from(sidecar),
        nameservers: Vec::new(),
    }
}

/// Nobody is taken over.
fn already() -> CancellationToken {
    let open = CancellationToken::new();
    open.cancel();
    open
}

async fn open(data: &Path, https_port: Option<u16>) -> House {
    open_with(data, https_port, false).await
}

async fn open_with(data: &Path, https_port: Option<u16>, cache_certificates: bool) -> House {
    let layers = Layers::from_text("test", "", [], Vec::new());
    let config = Config::read(&mut Reader::new(&layers));
    let nobody = StdListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    let common = common(data, address);
    let kept = Kept::read(&common, cache_certificates);
    let certificates = kept.shelf.set().map_or_else(CertificateSet::self_signed, Ok).unwrap();
    let shared = Shared::new(config, https_port, certificates);
    let control = Control::new(Arc::clone(&shared), common, Discovery::new(&[]).unwrap(), kept);
    let (readiness, stopping) = (control.readiness.clone(), control.stopping.clone());
    let recorder = chassis::telemetry::init("balancer", true);
    let status = control.admin(recorder, &Lifecycle::new()).status;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running = tokio::spawn(control.run(listener, None, already()));
    House { shared, readiness, status, stopping, address, running, _nobody: nobody }
}

/// As an enrolment leaves it.
fn keep_identity(data: &Path, authority: &Authority) {
    authority.keep(&peer(Role::Balancer, "balancer-1", &[]), &data.join("identity"));
}

#[tokio::test]
async fn without_an_identity_it_is_unready_and_says_why_and_stops_when_told() {
    let data = tempfile::tempdir().unwrap();
    let house = open(data.path(), Some(443)).await;
    eventually(|| !house.readiness.reasons().is_empty()).await;
    assert_eq!(
        house.readiness.reasons(),
        [
            "no identity from the cert-sidecar yet",
            "no certificate from the cert-sidecar yet",
            "waiting for nodes to come back"
        ]
    );
    let status = (house.status)();
    assert!(status["instance"].is_null(), "{status}");
    assert_eq!(status["streams"][0]["state"], "away");
    assert_eq!(status["certificates"][0]["source"], "self-signed");
    house.stopping.cancel();
    soon(house.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn with_a_kept_identity_the_registry_opens_while_the_sidecar_is_away() {
    let (data, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    keep_identity(data.path(), &authority);
    let house = open(data.path(), Some(443)).await;
    let node = authority.identity(&peer(Role::AppServer, "node-1", &[]));
    let (_, balancer) = soon(node.connect(house.address, Role::Balancer)).await.unwrap();
    assert_eq!(balancer.instance, "balancer-1");
    assert_eq!((house.status)()["instance"], "balancer-1");
    // The very first start waits for no node, but without its certificate it is not ready.
    eventually(|| house.readiness.reasons() == ["no certificate from the cert-sidecar yet"]).await;
    house.stopping.cancel();
    soon(house.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_https_no_certificate_is_waited_for() {
    let (data, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    keep_identity(data.path(), &authority);
    let house = open(data.path(), None).await;
    let identity = authority.identity(&peer(Role::AppServer, "node-1", &[]));
    soon(identity.connect(house.address, Role::Balancer)).await.unwrap();
    eventually(|| house.readiness.is_ready()).await;
}

#[tokio::test]
async fn a_later_start_is_settled_only_after_a_quiet_second() {
    let (data, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    keep_identity(data.path(), &authority);
    fs::write(data.path().join("registered"), "").unwrap();
    let house = open(data.path(), None).await;
    assert!(!house.shared.settled.load(Ordering::Relaxed));
    eventually(|| house.readiness.is_ready()).await;
    assert!(house.shared.settled.load(Ordering::Relaxed));
}

#[tokio::test]
async fn with_kept_certificates_it_is_ready_though_the_sidecar_is_away() {
    use crate::certificates::tests::{DAY, keep, now};
    let (data, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    keep_identity(data.path(), &authority);
    keep(data.path(), "shop", &["shop.example.com"], now() + DAY);
    let house = open_with(data.path(), Some(443), true).await;
    eventually(|| house.readiness.is_ready()).await;
    let certificates = (house.status)()["certificates"].clone();
    assert_eq!(certificates[0]["names"], serde_json::json!(["shop.example.com"]), "{certificates}");
    assert_eq!(certificates[0]["source"], "internal");
    assert_eq!(certificates.as_array().unwrap().len(), 1);

    // Who does not ask for them gets none of them.
    drop(house);
    assert!(Kept::read(&common(data.path(), ([127, 0, 0, 1], 1).into()), false).shelf.set().is_none());
}
