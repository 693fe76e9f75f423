//! The cert-sidecar and the identities it gives, over real sockets: the role's own `run`, and the chassis as every other
//! process uses it. Short lives are a few seconds of real time.
#![expect(clippy::unwrap_used, reason = "clippy takes what the tests here share for no test")]

use cert_sidecar::{CertificateConfig, Config, Right, TokenConfig, control};
use chassis::{
    config::{HostPort, Shared},
    discovery::Discovery,
    identity::{ConnectError, EnrolConfig, Identity, JoinToken, Role},
    lifecycle::{Lifecycle, Phase},
    listen::{ListenAddr, Reservation, reserve},
    telemetry::Metrics,
};
use proto::{
    certificates::{Acknowledgement, EntryResult, FetchRequest, Manifest, certificates_client::CertificatesClient},
    identity::{EnrolRequest, RenewRequest, identity_client::IdentityClient},
};
use rcgen::{CertificateParams, KeyPair};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SOON: Duration = Duration::from_secs(20);

/// One cluster's authority, which can be stopped and started.
struct Sidecar {
    home: TempDir,
    config: Config,
    shared: Shared,
    address: SocketAddr,
    _port: Reservation,
    running: Option<(Lifecycle, JoinHandle<anyhow::Result<()>>)>,
}

impl Sidecar {
    fn plan(identity_lifetime: Duration) -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = reserve((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = port.address().unwrap();
        let right =
            |app: &str, prefix: &str| Right::AppServer { app: app.to_owned(), prefixes: vec![prefix.to_owned()] };
        let tokens = [Right::Balancer, right("demo", "/"), right("shop", "/shop")];
        let config = Config {
            listen: ListenAddr::At(address),
            admin: ListenAddr::Off,
            identity_lifetime,
            certificates: vec![CertificateConfig { name: "site".to_owned(), hosts: vec!["localhost".to_owned()] }],
            tokens: tokens.map(|right| TokenConfig { right, file: None }).to_vec(),
        };
        let shared = Shared {
            cluster: "servery".to_owned(),
            data: home.path().join("sidecar"),
            token_file: PathBuf::new(),
            sidecar: HostPort::from(address),
            nameservers: Vec::new(),
        };
        Self { home, config, shared, address, _port: port, running: None }
    }

    async fn start(identity_lifetime: Duration) -> Self {
        let mut sidecar = Self::plan(identity_lifetime);
        sidecar.go().await;
        sidecar
    }

    async fn go(&mut self) {
        let lifecycle = Lifecycle::new();
        let mut task = tokio::spawn(self.run(lifecycle.clone()));
        tokio::select! {
            ended = &mut task => panic!("the cert-sidecar ended: {ended:?}"),
            () = lifecycle.reached(Phase::Serving) => {}
        }
        self.running = Some((lifecycle, task));
    }

    fn run(&self, lifecycle: Lifecycle) -> impl Future<Output = anyhow::Result<()>> + Send + use<> {
        cert_sidecar::run(self.config.clone(), self.shared.clone(), Metrics::default(), lifecycle)
    }

    async fn stop(&mut self) {
        let (lifecycle, task) = self.running.take().unwrap();
        lifecycle.advance(Phase::Draining);
        timeout(SOON, task).await.expect("it drains").unwrap().unwrap();
    }

    /// Why it does not start.
    async fn refusal(&self) -> String {
        format!("{:#}", timeout(SOON, self.run(Lifecycle::new())).await.expect("it refuses").unwrap_err())
    }

    fn data(&self) -> &Path {
        &self.shared.data
    }

    fn token_file(&self, slot: &str) -> PathBuf {
        self.data().join("tokens").join(slot)
    }

    /// How a process called `name` enrols; its data is in a directory of that name.
    fn member(&self, role: Role, name: &str) -> EnrolConfig {
        let slot = if role == Role::Balancer { "balancer" } else { "app_server-demo" };
        EnrolConfig {
            cluster: "servery".to_owned(),
            role,
            data: self.home.path().join(name),
            token_file: self.token_file(slot),
            sidecar: self.shared.sidecar.clone(),
            name: name.to_owned(),
        }
    }

    async fn enrolled(&self, role: Role, name: &str) -> Identity {
        timeout(SOON, Identity::load_or_enrol(&self.member(role, name), &discovery())).await.expect("enrolled").unwrap()
    }

    /// Asks with a token, over a connection of somebody who is a member already: the token alone counts.
    async fn enrol(&self, through: &Identity, token: &str) -> Result<String, Status> {
        let (channel, _) = through.connect(self.address, Role::CertSidecar).await.unwrap();
        let request = EnrolRequest { token: token.to_owned(), csr: request(), name: "some".to_owned() };
        Ok(IdentityClient::new(channel).enrol(request).await?.into_inner().instance)
    }

    async fn renew(&self, identity: &Identity) -> Result<String, Status> {
        let (channel, _) = identity.connect(self.address, Role::CertSidecar).await.unwrap();
        Ok(IdentityClient::new(channel).renew(RenewRequest { csr: request() }).await?.into_inner().instance)
    }
}

fn discovery() -> Discovery {
    Discovery::new(&["127.0.0.1:9".parse().unwrap()]).unwrap()
}

fn request() -> Vec<u8> {
    CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn token(path: &Path) -> JoinToken {
    JoinToken::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < SOON, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_token_gives_an_identity_that_is_kept_while_the_sidecar_is_away() {
    let mut sidecar = Sidecar::start(7 * DAY).await;
    let node = sidecar.enrolled(Role::AppServer, "Node 1").await;
    let peer = node.peer();
    assert_eq!((peer.cluster.as_str(), peer.role), ("servery", Role::AppServer));
    assert!(peer.instance.starts_with("node-1-"), "{}", peer.instance);
    assert!(peer.may_claim("demo", "/anything") && !peer.may_claim("shop", "/shop"));
    let left = peer.not_after.duration_since(SystemTime::now()).unwrap();
    assert!(left > 7 * DAY - Duration::from_secs(60) && left <= 7 * DAY);
    let balancer = sidecar.enrolled(Role::Balancer, "b").await;
    assert!(balancer.peer().apps.is_empty());
    assert_eq!(control::root(sidecar.data()).await.unwrap().trim(), {
        let kept = fs::read_to_string(sidecar.home.path().join("b/identity/root.pem")).unwrap();
        kept.replace("\r\n", "\n").trim().to_owned()
    });

    sidecar.stop().await;
    drop(node);
    let again = sidecar.enrolled(Role::AppServer, "Node 1").await;
    assert_eq!(again.peer(), peer);
    // Two processes with one identity would fight over it for ever.
    let error = Identity::load_or_enrol(&sidecar.member(Role::AppServer, "Node 1"), &discovery()).await.unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
}

#[tokio::test]
async fn who_waits_for_a_token_or_a_sidecar_enrols_as_soon_as_it_is_there() {
    let mut sidecar = Sidecar::plan(7 * DAY);
    let config = sidecar.member(Role::AppServer, "early");
    let enrolling = tokio::spawn(async move { Identity::load_or_enrol(&config, &discovery()).await });
    let mut hasty = sidecar.member(Role::AppServer, "hasty");
    hasty.token_file = sidecar.home.path().join("token");
    // The right form for the wrong cluster: nobody here has that root, so nobody is told the secret.
    let foreign = JoinToken { role: Role::AppServer, root: [7; 32], id: "1".to_owned(), secret: "5".repeat(64) };
    fs::write(&hasty.token_file, foreign.expose()).unwrap();
    let path = hasty.token_file.clone();
    let corrected = tokio::spawn(async move { Identity::load_or_enrol(&hasty, &discovery()).await });

    sidecar.go().await;
    timeout(SOON, enrolling).await.expect("enrolled").unwrap().unwrap();
    assert!(!corrected.is_finished());
    fs::copy(sidecar.token_file("app_server-demo"), path).unwrap();
    let began = Instant::now();
    timeout(SOON, corrected).await.expect("enrolled").unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "a corrected token waits for nothing");
}

#[tokio::test]
async fn a_token_of_another_role_root_or_secret_gives_nothing() {
    let sidecar = Sidecar::start(7 * DAY).await;
    let member = sidecar.enrolled(Role::AppServer, "n").await;
    let good = token(&sidecar.token_file("app_server-demo"));
    let balancer = token(&sidecar.token_file("balancer"));
    assert!(sidecar.enrol(&member, &good.expose()).await.unwrap().starts_with("some-"));
    for (wrong, code) in [
        (JoinToken { role: Role::Balancer, ..good.clone() }, Code::Unauthenticated),
        (JoinToken { secret: balancer.secret.clone(), ..good.clone() }, Code::Unauthenticated),
        (JoinToken { secret: "0".repeat(64), ..good.clone() }, Code::Unauthenticated),
        (JoinToken { id: "0".repeat(16), ..good.clone() }, Code::Unauthenticated),
        (JoinToken { root: [7; 32], ..good.clone() }, Code::Unauthenticated),
    ] {
        let status = sidecar.enrol(&member, &wrong.expose()).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    let status = sidecar.enrol(&member, "").await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    // A process with the token of another role says so without asking anybody.
    let config = EnrolConfig { token_file: sidecar.token_file("balancer"), ..sidecar.member(Role::AppServer, "x") };
    let discovery = discovery();
    let enrolling = Identity::load_or_enrol(&config, &discovery);
    assert!(timeout(Duration::from_secs(1), enrolling).await.is_err());

    // Noise is cut short, but a good token from the same address is not.
    let (channel, _) = member.connect(sidecar.address, Role::CertSidecar).await.unwrap();
    let mut client = IdentityClient::new(channel);
    let mut codes = Vec::new();
    for _ in 0..80 {
        let request = EnrolRequest { token: "no".to_owned(), ..EnrolRequest::default() };
        codes.push(client.enrol(request).await.unwrap_err().code());
    }
    assert!(codes.contains(&Code::InvalidArgument) && codes.contains(&Code::ResourceExhausted), "{codes:?}");
    sidecar.enrol(&member, &good.expose()).await.unwrap();
}

#[tokio::test]
async fn a_rotated_token_enrols_nobody_and_expels_nobody() {
    let sidecar = Sidecar::start(7 * DAY).await;
    let member = sidecar.enrolled(Role::AppServer, "n").await;
    let file = sidecar.token_file("app_server-demo");
    let ask = async |prefixes: &[&str], rotate| {
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        control::token(sidecar.data(), Role::AppServer, Some("demo".to_owned()), prefixes, rotate).await
    };
    let old = ask(&[], false).await.unwrap();
    assert_eq!(old, fs::read_to_string(&file).unwrap());
    let new = ask(&[], true).await.unwrap();
    assert_ne!(new, old);
    assert_eq!(new, fs::read_to_string(&file).unwrap());
    assert_eq!(sidecar.enrol(&member, &old).await.unwrap_err().code(), Code::Unauthenticated);
    sidecar.enrol(&member, &new).await.unwrap();
    assert_eq!(sidecar.renew(&member).await.unwrap(), member.instance());
}

#[tokio::test]
async fn printing_a_token_never_changes_what_it_gives() {
    let sidecar = Sidecar::start(7 * DAY).await;
    let ask = async |app: &str, prefixes: &[&str], rotate| {
        let prefixes = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        control::token(sidecar.data(), Role::AppServer, Some(app.to_owned()), prefixes, rotate).await
    };
    let configured = fs::read_to_string(sidecar.token_file("app_server-shop")).unwrap();
    assert_eq!(ask("shop", &[], false).await.unwrap(), configured);
    assert_eq!(ask("shop", &["/shop/"], false).await.unwrap(), configured);
    for rotate in [false, true] {
        let error = ask("shop", &["/"], rotate).await.unwrap_err().to_string();
        assert!(error.contains("configuration") && error.contains("/shop"), "{error}");
    }

    let by_hand = ask("blog", &["/blog"], false).await.unwrap();
    assert_eq!(ask("blog", &[], false).await.unwrap(), by_hand);
    let error = ask("blog", &["/"], false).await.unwrap_err().to_string();
    assert!(error.contains("--rotate") && error.contains("/blog"), "{error}");
    assert_ne!(ask("blog", &["/"], true).await.unwrap(), by_hand);
    let error = control::token(sidecar.data(), Role::CertSidecar, None, Vec::new(), false).await.unwrap_err();
    assert!(error.to_string().contains("no token"), "{error}");
    assert!(
        !control::list(sidecar.data())
            .await
            .unwrap()
            .to_string()
            .contains(&token(&sidecar.token_file("balancer")).secret)
    );
}

#[tokio::test]
async fn an_identity_is_renewed_in_time_under_the_same_name() {
    let sidecar = Sidecar::start(Duration::from_secs(4)).await;
    let config = sidecar.member(Role::AppServer, "n");
    let node = sidecar.enrolled(Role::AppServer, "n").await;
    let first = node.peer();
    let (keeper, kept) = (node.clone(), config.clone());
    let keeping = tokio::spawn(async move { keeper.keep_renewed(&kept, &discovery()).await });
    let mut rotations = node.rotations();
    timeout(SOON, rotations.wait_for(|rotations| *rotations >= 10)).await.expect("renewed").unwrap();
    // Every 4/7 of a second: more often would be a loop that does not rest.
    let lived = SystemTime::now().duration_since(first.not_after).expect("it has outlived its first certificate");
    assert!(lived < SOON, "{lived:?}");
    let now = node.peer();
    assert!(now.not_after > SystemTime::now());
    assert_eq!((&now.instance, &now.apps), (&first.instance, &first.apps));
    keeping.abort();
    let _ = keeping.await;
    drop(node);
    let again = sidecar.enrolled(Role::AppServer, "n").await;
    assert_eq!(again.peer(), now);
}

#[tokio::test]
async fn one_that_expired_while_the_sidecar_was_away_enrols_anew() {
    let mut sidecar = Sidecar::start(Duration::from_secs(3)).await;
    let config = sidecar.member(Role::AppServer, "n");
    let node = sidecar.enrolled(Role::AppServer, "n").await;
    let first = node.peer();
    sidecar.stop().await;
    let (keeper, kept) = (node.clone(), config.clone());
    let keeping = tokio::spawn(async move { keeper.keep_renewed(&kept, &discovery()).await });
    until("expired", || first.not_after < SystemTime::now()).await;
    assert_eq!(node.instance(), first.instance);
    sidecar.go().await;
    until("enrolled anew", || node.instance() != first.instance).await;
    sidecar.renew(&node).await.unwrap();
    keeping.abort();
}

#[tokio::test]
async fn a_denied_instance_is_not_renewed_also_after_a_restart() {
    let mut sidecar = Sidecar::start(7 * DAY).await;
    let (good, bad) = (sidecar.enrolled(Role::AppServer, "good").await, sidecar.enrolled(Role::AppServer, "bad").await);
    sidecar.renew(&bad).await.unwrap();
    let error = control::deny(sidecar.data(), "nobody").await.unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
    control::deny(sidecar.data(), &bad.instance()).await.unwrap();
    for restart in [false, true] {
        if restart {
            sidecar.stop().await;
            sidecar.go().await;
        }
        assert_eq!(sidecar.renew(&bad).await.unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(sidecar.renew(&good).await.unwrap(), good.instance());
    }
    let list = control::list(sidecar.data()).await.unwrap();
    assert!(list["denied"].get(bad.instance()).is_some() && list["instances"].get(good.instance()).is_some(), "{list}");
}

/// A balancer's side of the Watch stream.
struct Watch {
    acknowledge: mpsc::Sender<Acknowledgement>,
    manifests: Streaming<Manifest>,
}

impl Watch {
    async fn open(sidecar: &Sidecar, identity: &Identity) -> Result<Self, Status> {
        let (channel, _) = identity.connect(sidecar.address, Role::CertSidecar).await.unwrap();
        let (acknowledge, acknowledgements) = mpsc::channel(4);
        let answer = CertificatesClient::new(channel).watch(ReceiverStream::new(acknowledgements)).await?;
        Ok(Self { acknowledge, manifests: answer.into_inner() })
    }

    async fn next(&mut self) -> Result<Manifest, Status> {
        let next = timeout(SOON, self.manifests.message()).await.expect("a manifest or an end")?;
        next.ok_or_else(|| Status::aborted("the end"))
    }
}

#[tokio::test]
async fn balancers_get_certificates_by_hash_and_are_told_of_every_change() {
    let mut sidecar = Sidecar::start(7 * DAY).await;
    let balancer = sidecar.enrolled(Role::Balancer, "b").await;
    let other = sidecar.enrolled(Role::Balancer, "c").await;
    let mut watch = Watch::open(&sidecar, &balancer).await.unwrap();
    let first = watch.next().await.unwrap();
    let entry = &first.entries[0];
    assert_eq!((entry.name.as_str(), entry.hosts.as_slice()), ("site", ["localhost".to_owned()].as_slice()));
    let (channel, _) = balancer.connect(sidecar.address, Role::CertSidecar).await.unwrap();
    let mut client = CertificatesClient::new(channel);
    let body = client.fetch(FetchRequest { sha256: entry.sha256.clone() }).await.unwrap().into_inner();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &[body.chain.concat(), body.key].concat());
    assert_eq!(digest.as_ref(), entry.sha256);
    let status = client.fetch(FetchRequest { sha256: vec![0; 32] }).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let refused = EntryResult { name: "site".to_owned(), reason: "no".to_owned(), ..EntryResult::default() };
    watch.acknowledge.send(Acknowledgement { version: first.version, results: vec![refused] }).await.unwrap();

    control::deny(sidecar.data(), &other.instance()).await.unwrap();
    let second = watch.next().await.unwrap();
    assert!(second.version > first.version);
    assert_eq!((second.entries, second.denied), (first.entries.clone(), vec![other.instance()]));
    let status = Watch::open(&sidecar, &other).await.err().expect("denied");
    assert_eq!(status.code(), Code::PermissionDenied);

    // The certificate outlives the sidecar's restart; the version grows over it.
    sidecar.stop().await;
    watch.next().await.unwrap_err();
    sidecar.go().await;
    let third = Watch::open(&sidecar, &balancer).await.unwrap().next().await.unwrap();
    assert_eq!((&third.entries, third.denied.len()), (&first.entries, 1));
    assert!(third.version > second.version);

    // A denied balancer's open stream ends at once.
    let mut watch = Watch::open(&sidecar, &balancer).await.unwrap();
    watch.next().await.unwrap();
    control::deny(sidecar.data(), &balancer.instance()).await.unwrap();
    assert_eq!(watch.next().await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn nobody_but_a_balancer_gets_certificates() {
    let sidecar = Sidecar::start(7 * DAY).await;
    let node = sidecar.enrolled(Role::AppServer, "n").await;
    let status = Watch::open(&sidecar, &node).await.err().expect("refused");
    assert_eq!(status.code(), Code::PermissionDenied);
    let (channel, _) = node.connect(sidecar.address, Role::CertSidecar).await.unwrap();
    let status = CertificatesClient::new(channel).fetch(FetchRequest { sha256: vec![0; 32] }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    // Nor does it pass for somebody else.
    let error = node.connect(sidecar.address, Role::Balancer).await.unwrap_err();
    assert!(matches!(error, ConnectError::Untrusted { .. }), "{error}");
}

#[tokio::test]
async fn a_stream_ends_with_its_balancers_certificate() {
    let sidecar = Sidecar::start(Duration::from_secs(3)).await;
    let balancer = sidecar.enrolled(Role::Balancer, "b").await;
    let mut watch = Watch::open(&sidecar, &balancer).await.unwrap();
    let status = loop {
        if let Err(status) = watch.next().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(balancer.peer().not_after <= SystemTime::now());
}

#[tokio::test]
async fn token_files_come_back() {
    let sidecar = Sidecar::start(Duration::from_secs(2)).await;
    let file = sidecar.token_file("balancer");
    let text = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    until("written again", || fs::read_to_string(&file).is_ok_and(|again| again == text)).await;
}

#[tokio::test]
async fn a_damaged_incomplete_foreign_or_used_store_is_refused_with_what_to_do() {
    let mut sidecar = Sidecar::start(7 * DAY).await;
    let refusal = elsewhere(&sidecar).refusal().await;
    assert!(refusal.contains("in use by another cert-sidecar"), "{refusal}");
    sidecar.stop().await;

    sidecar.shared.cluster = "other".to_owned();
    let refusal = sidecar.refusal().await;
    assert!(refusal.contains("belongs to the cluster \"servery\""), "{refusal}");
    sidecar.shared.cluster = "servery".to_owned();

    for name in ["records.json", "ca", "ca/root.key", "ca/intermediate.pem"] {
        let (path, aside) = (sidecar.data().join(name), sidecar.home.path().join("aside"));
        fs::rename(&path, &aside).unwrap();
        let refusal = sidecar.refusal().await;
        assert!(refusal.contains("damaged") && refusal.contains("backup"), "{name}: {refusal}");
        assert!(!path.exists(), "{name} was made anew");
        fs::rename(&aside, &path).unwrap();
    }
    let records = fs::read(sidecar.data().join("records.json")).unwrap();
    fs::write(sidecar.data().join("records.json"), &records[..records.len() / 2]).unwrap();
    assert!(sidecar.refusal().await.contains("damaged"));
    fs::write(sidecar.data().join("records.json"), records).unwrap();
    sidecar.go().await;
}

/// The same store under another address.
fn elsewhere(sidecar: &Sidecar) -> Sidecar {
    let mut other = Sidecar::plan(7 * DAY);
    other.shared.data = sidecar.shared.data.clone();
    other
}
