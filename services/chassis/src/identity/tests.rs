//! Real handshakes over loopback, between certificates of a root made here.

use super::*;
use proto::identity::{
    EnrolRequest, Issued, RenewRequest,
    identity_client::IdentityClient,
    identity_server::{Identity as Service, IdentityServer},
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, SystemTime},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, task::JoinHandle, time::timeout};
use tonic::{Request, Response, Status};

const HOUR: i64 = 3600;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, rand::random::<u64>().to_string());
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// In time from `from` to `until`, seconds from now.
    fn issue(&self, uris: &[&str], from: i64, until: i64) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(from);
        params.not_after = now + time::Duration::seconds(until);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (vec![leaf, self.root.clone()], key)
    }

    fn try_material(&self, uris: &[&str], from: i64, until: i64) -> Result<Material, MaterialError> {
        let (chain, key) = self.issue(uris, from, until);
        Material::new(chain, der(&key), self.root.clone())
    }

    fn material(&self, uri: &str) -> Material {
        self.try_material(&[uri], -HOUR, HOUR).unwrap()
    }

    fn identity(&self, uri: &str) -> Identity {
        Identity::fixed(self.material(uri))
    }
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// Answers every call with the caller's name.
struct WhoAmI;

#[tonic::async_trait]
impl Service for WhoAmI {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Issued>, Status> {
        let peer = &request.extensions().get::<PeerInfo>().unwrap().peer;
        let instance = peer.as_ref().map_or_else(|| "stranger".to_owned(), |peer| peer.instance.clone());
        Ok(Response::new(Issued { instance, ..Issued::default() }))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<Issued>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(identity: &Identity, clients: ClientAuth) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = identity.incoming(listener, clients);
        let server = tonic::transport::Server::builder().add_service(IdentityServer::new(WhoAmI));
        Self { address, task: tokio::spawn(async { server.serve_with_incoming(incoming).await.unwrap() }) }
    }

    async fn ask(&self, client: &Identity, expect: Role) -> Result<String, String> {
        let (channel, _) = client.connect(self.address, expect).await.map_err(|error| error.to_string())?;
        said(channel).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn said(channel: Channel) -> Result<String, String> {
    let answer = IdentityClient::new(channel).enrol(EnrolRequest::default()).await;
    answer.map(|answer| answer.into_inner().instance).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn both_sides_learn_the_others_name() {
    let ours = Authority::new();
    let server = Server::start(&ours.identity("spiffe://a/balancer/b"), ClientAuth::Required).await;
    let client = ours.identity("spiffe://a/app_server/n");
    let (channel, peer) = client.connect(server.address, Role::Balancer).await.unwrap();
    assert_eq!((peer.role, peer.instance.as_str()), (Role::Balancer, "b"));
    assert_eq!(said(channel).await.unwrap(), "n");
}

#[tokio::test]
async fn a_server_of_another_role_cluster_root_or_time_is_not_talked_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let client = ours.identity("spiffe://a/app_server/n");
    for (server, expect, reason) in [
        (ours.identity("spiffe://a/app_server/m"), Role::Balancer, "its role is app_server, not balancer"),
        (ours.identity("spiffe://b/balancer/b"), Role::Balancer, "it belongs to the cluster \"b\""),
        (theirs.identity("spiffe://a/balancer/b"), Role::Balancer, "UnknownIssuer"),
        (
            Identity::fixed(ours.try_material(&["spiffe://a/balancer/b"], -HOUR, -60).unwrap()),
            Role::Balancer,
            "certificate expired",
        ),
        (
            Identity::fixed(ours.try_material(&["spiffe://a/balancer/b"], 60, HOUR).unwrap()),
            Role::Balancer,
            "not valid yet",
        ),
    ] {
        let server = Server::start(&server, ClientAuth::Optional).await;
        let error = client.connect(server.address, expect).await.unwrap_err();
        assert!(error.is_untrusted(), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_client_of_another_cluster_root_or_time_does_not_come_in() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for clients in [ClientAuth::Required, ClientAuth::Optional] {
        let server = Server::start(&ours.identity("spiffe://a/balancer/b"), clients).await;
        let stranger = |material: Material| {
            // Trusts our server, whatever it has itself.
            let mut config = rustls::ClientConfig::clone(&tls::client_config(
                &ours.material("spiffe://a/balancer/x"),
                Role::Balancer,
            ));
            config.client_auth_cert_resolver = material.resolver();
            Arc::new(config)
        };
        for material in [
            ours.material("spiffe://b/app_server/n"),
            theirs.material("spiffe://a/app_server/n"),
            ours.try_material(&["spiffe://a/app_server/n"], -HOUR, -60).unwrap(),
            ours.try_material(&["spiffe://a/app_server/n"], 60, HOUR).unwrap(),
        ] {
            let asked = match connect::open(server.address, stranger(material)).await {
                Ok((channel, _)) => said(channel).await,
                Err(error) => Err(error.to_string()),
            };
            assert!(asked.is_err(), "{asked:?}");
        }
        // A name that a Material cannot have.
        let (chain, key) = ours.issue(&["spiffe://a/balancer/x", "spiffe://a/balancer/y"], -HOUR, HOUR);
        let key = tls::provider().key_provider.load_private_key(der(&key)).unwrap();
        let mut config = rustls::ClientConfig::clone(&stranger(ours.material("spiffe://a/balancer/x")));
        config.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key)));
        let asked = match connect::open(server.address, Arc::new(config)).await {
            Ok((channel, _)) => said(channel).await,
            Err(error) => Err(error.to_string()),
        };
        assert!(asked.is_err(), "{asked:?}");

        assert_eq!(server.ask(&ours.identity("spiffe://a/app_server/n"), Role::Balancer).await.unwrap(), "n");
    }
}

#[tokio::test]
async fn who_has_no_certificate_comes_in_only_where_that_is_wanted() {
    let ours = Authority::new();
    let sidecar = ours.identity("spiffe://a/cert_sidecar/s");
    let pinned = tls::pinned_config(root_hash(&ours.root).unwrap(), "a");
    let open = Server::start(&sidecar, ClientAuth::Optional).await;
    let (channel, peer) = connect::open(open.address, pinned.clone()).await.unwrap();
    assert_eq!(peer.role, Role::CertSidecar);
    assert_eq!(said(channel).await.unwrap(), "stranger");

    let closed = Server::start(&sidecar, ClientAuth::Required).await;
    let asked = match connect::open(closed.address, pinned).await {
        Ok((channel, _)) => said(channel).await,
        Err(error) => Err(error.to_string()),
    };
    assert!(asked.is_err(), "{asked:?}");
}

#[tokio::test]
async fn a_pinned_client_trusts_the_roots_own_sidecar_only() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let refused = |identity: Identity, hash: RootHash| async move {
        let server = Server::start(&identity, ClientAuth::Optional).await;
        connect::open(server.address, tls::pinned_config(hash, "a")).await.unwrap_err().to_string()
    };
    let hash = root_hash(&ours.root).unwrap();
    let error = refused(theirs.identity("spiffe://a/cert_sidecar/s"), hash).await;
    assert!(error.contains("not the one that the join token names"), "{error}");
    let error = refused(ours.identity("spiffe://a/app_server/n"), hash).await;
    assert!(error.contains("not cert_sidecar"), "{error}");
    let error = refused(ours.identity("spiffe://b/cert_sidecar/s"), hash).await;
    assert!(error.contains("cluster"), "{error}");

    // Our root, presented by who does not have its key.
    let (mut chain, key) = theirs.issue(&["spiffe://a/cert_sidecar/s"], -HOUR, HOUR);
    let mut material = Material::new(chain.clone(), der(&key), theirs.root.clone()).unwrap();
    chain.push(ours.root.clone());
    material.present(chain);
    let error = refused(Identity::fixed(material), hash).await;
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn a_replaced_identity_is_used_by_the_next_handshake_and_ends_no_connection() {
    let ours = Authority::new();
    let (balancer, node) = (ours.identity("spiffe://a/balancer/old"), ours.identity("spiffe://a/app_server/old"));
    let server = Server::start(&balancer, ClientAuth::Required).await;
    let (before, peer) = node.connect(server.address, Role::Balancer).await.unwrap();
    assert_eq!(peer.instance, "old");

    let mut rotations = balancer.rotations();
    balancer.replace(ours.material("spiffe://a/balancer/new"));
    node.clone().replace(ours.material("spiffe://a/app_server/new"));
    rotations.changed().await.unwrap();
    let (after, peer) = node.connect(server.address, Role::Balancer).await.unwrap();
    assert_eq!(peer.instance, "new");
    assert_eq!(node.instance(), "new");
    assert_eq!(said(after).await.unwrap(), "new");
    assert_eq!(said(before).await.unwrap(), "old");
}

#[tokio::test]
async fn a_connection_ends_with_its_clients_certificate() {
    let ours = Authority::new();
    let server = Server::start(&ours.identity("spiffe://a/balancer/b"), ClientAuth::Required).await;
    let client = Identity::fixed(ours.try_material(&["spiffe://a/app_server/n"], -HOUR, 2).unwrap());
    let (channel, _) = client.connect(server.address, Role::Balancer).await.unwrap();
    assert_eq!(said(channel.clone()).await.unwrap(), "n");
    let ended = async { while said(channel.clone()).await.is_ok() {} };
    timeout(Duration::from_secs(10), ended).await.expect("the connection outlives its certificate");
    assert!(server.ask(&client, Role::Balancer).await.is_err());
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on_and_holds_nobody_up() {
    let ours = Authority::new();
    let server = Server::start(&ours.identity("spiffe://a/balancer/b"), ClientAuth::Required).await;
    let mut silent = Vec::new();
    for _ in 0..70 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    // All share our address: those beyond the limit are hung up on at once, the others when their time is over.
    let mut closed = 0;
    for stream in &mut silent {
        let read = timeout(Duration::from_secs(10), stream.read(&mut [0])).await.expect("still open");
        closed += usize::from(read.map_or(true, |n| n == 0));
    }
    assert_eq!(closed, silent.len());
    assert_eq!(server.ask(&ours.identity("spiffe://a/app_server/n"), Role::Balancer).await.unwrap(), "n");
}

#[tokio::test]
async fn a_peer_that_never_answers_is_given_up() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = Authority::new().identity("spiffe://a/app_server/n");
    let error = client.connect(listener.local_addr().unwrap(), Role::Balancer).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut(_)), "{error}");
}

// === on disk ===

const NODE: &str = "spiffe://a/app_server/n";

fn commit(files: &Files, authority: &Authority) -> Material {
    let (chain, key) = authority.issue(&[NODE], -HOUR, HOUR);
    let material = Material::new(chain, der(&key), authority.root.clone()).unwrap();
    files.begin(&key.serialize_pem()).unwrap();
    files.commit(&material).unwrap();
    material
}

fn load(data: &Path) -> Result<Option<Material>, FilesError> {
    Files::open(data).unwrap().load(Role::AppServer, "a")
}

#[test]
fn what_is_kept_is_loaded_and_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (home, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    assert!(load(home.path()).unwrap().is_none());
    let kept = commit(&Files::open(home.path()).unwrap(), &ours);
    let loaded = load(home.path()).unwrap().unwrap();
    assert_eq!((loaded.peer(), loaded.chain(), loaded.root()), (kept.peer(), kept.chain(), kept.root()));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&home.path().join("identity")), 0o700);
    for name in ["key.pem", "certificate.pem", "root.pem"] {
        assert_eq!(mode(&home.path().join("identity").join(name)), 0o600, "{name}");
    }
}

#[test]
fn a_power_cut_leaves_the_old_identity_or_the_new_one() {
    let (home, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let directory = home.path().join("identity");
    let old = commit(&Files::open(home.path()).unwrap(), &ours);

    // The next key is there, its certificate is not.
    let (chain, key) = ours.issue(&[NODE], -HOUR, 2 * HOUR);
    let new = Material::new(chain, der(&key), ours.root.clone()).unwrap();
    Files::open(home.path()).unwrap().begin(&key.serialize_pem()).unwrap();
    assert_eq!(load(home.path()).unwrap().unwrap().chain(), old.chain());

    // The certificate is there, the key has not been moved.
    let next = fs::read(directory.join("key.next.pem")).unwrap();
    let before = fs::read(directory.join("key.pem")).unwrap();
    Files::open(home.path()).unwrap().commit(&new).unwrap();
    fs::write(directory.join("key.pem"), before).unwrap();
    fs::write(directory.join("key.next.pem"), &next).unwrap();
    assert_eq!(load(home.path()).unwrap().unwrap().chain(), new.chain());
    assert_eq!(fs::read(directory.join("key.pem")).unwrap(), next);
    assert_eq!(load(home.path()).unwrap().unwrap().chain(), new.chain());

    // The same on the very first enrolment, when there is no old key at all.
    fs::rename(directory.join("key.pem"), directory.join("key.next.pem")).unwrap();
    assert_eq!(load(home.path()).unwrap().unwrap().chain(), new.chain());
}

#[test]
fn damaged_files_are_explained_and_left_alone() {
    let ours = Authority::new();
    for (name, contents) in [
        ("key.pem", None),
        ("certificate.pem", None),
        ("root.pem", None),
        ("key.pem", Some("")),
        ("certificate.pem", Some("-----BEGIN CERTIFICATE-----\nhalf")),
        ("root.pem", Some("zero")),
        ("key.pem", Some("other")),
    ] {
        let home = tempfile::tempdir().unwrap();
        commit(&Files::open(home.path()).unwrap(), &ours);
        let path = home.path().join("identity").join(name);
        let contents = contents
            .map(|text| if text == "other" { KeyPair::generate().unwrap().serialize_pem() } else { text.to_owned() });
        match &contents {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = load(home.path()).unwrap_err();
        assert!(matches!(&error, FilesError::Damaged { path: found, .. } if *found == path), "{name}: {error}");
        assert!(error.to_string().contains("move"), "{error}");
        assert_eq!(fs::read_to_string(&path).ok(), contents);
    }
}

#[test]
fn an_identity_of_another_role_or_cluster_is_not_taken() {
    let (home, ours) = (tempfile::tempdir().unwrap(), Authority::new());
    let files = Files::open(home.path()).unwrap();
    commit(&files, &ours);
    for (role, cluster) in [(Role::Balancer, "a"), (Role::AppServer, "b")] {
        assert!(matches!(files.load(role, cluster), Err(FilesError::Foreign { .. })));
    }
    assert!(matches!(Files::open(home.path()), Err(FilesError::InUse(_))));
}

#[test]
fn parts_that_do_not_fit_together_are_no_identity() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (chain, key) = ours.issue(&[NODE], -HOUR, HOUR);
    let other = KeyPair::generate().unwrap();
    assert!(matches!(Material::new(chain.clone(), der(&other), ours.root.clone()), Err(MaterialError::Mismatch)));
    assert!(matches!(Material::new(chain.clone(), der(&key), theirs.root.clone()), Err(MaterialError::Chain(_))));
    assert!(matches!(Material::new(Vec::new(), der(&key), ours.root.clone()), Err(MaterialError::Empty)));
    assert!(matches!(ours.try_material(&[], -HOUR, HOUR), Err(MaterialError::Name(_))));
    // Expired is no damage: whoever loads it asks the clock.
    let expired = ours.try_material(&[NODE], -HOUR, -60).unwrap();
    assert!(expired.peer().not_after < SystemTime::now());
    assert_eq!(expired.lifetime(), Duration::from_secs(3540));
    assert_eq!(expired.renewal_due(), expired.not_before() + Duration::from_secs(3540) / 7);
}
