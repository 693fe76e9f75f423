//! Who may not come in stays out: each is refused, logged and counted, and the cluster serves on.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use proto::certificates::certificates_client::CertificatesClient;
use proto::certificates::{Acknowledgement, FetchRequest};
use proto::identity::RenewRequest;
use proto::identity::identity_client::IdentityClient;
use proto::registry::from_node::Message;
use servery_harness::client;
use servery_harness::cluster::{instance_of, nodes_of};
use servery_harness::intruder::{Authority, Credential, FakeNode, dial, enrol, hello};
use servery_harness::{Client, Cluster, Member, Plan, Protocol, Raw, Role, ensure, eventually, run};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Whatever was tried, users are served and the one node is still the only one.
async fn serves_on(cluster: &Cluster) {
    for protocol in Protocol::BOTH {
        let answer = cluster.balancers[0].client(protocol).get("/whoami").await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let who = answer.json().unwrap();
        assert!(who["node"].as_str().unwrap().starts_with("node-0"), "{who}");
    }
    let nodes = nodes_of(&cluster.balancers[0].status().await.unwrap());
    assert_eq!(nodes.len(), 1, "{nodes:?}");
}

/// The sum of a counter over the label sets that do not mean success.
async fn refusals(member: &Member, counter: &str) -> f64 {
    let metrics = member.metrics().await.unwrap();
    let all = metrics.matching(counter, &[]);
    all.filter(|sample| {
        !matches!(sample.labels.get("result").map(String::as_str), Some("ok" | "accepted" | "enrolled" | "renewed"))
    })
    .map(|sample| sample.value)
    .sum()
}

/// Waits until `counter` has grown by at least one since it was `before`.
async fn counted(member: &Member, counter: &str, before: f64) {
    eventually(&format!("{} to count it in {counter}", member.name), SOON, async || {
        let now = refusals(member, counter).await;
        ensure(now >= before + 1.0, || format!("{now} refusals, {before} before"))
    })
    .await;
}

/// Runs `servery certs` against the cluster's cert-sidecar; returns what it printed.
async fn certs(cluster: &Cluster, words: &[&str]) -> String {
    let data = cluster.sidecar.data();
    let words = [&["certs"], words, &["--data", data.to_str().unwrap()]].concat();
    run(SERVERY, &words, &[]).await.printed()
}

const ENROLMENTS: &str = "servery_cert_sidecar_enrolments_total";
const WATCHES: &str = "servery_cert_sidecar_watch_refusals_total";
const REGISTRATIONS: &str = "servery_balancer_registrations_total";

#[tokio::test]
async fn without_the_right_token_nobody_is_enrolled() {
    let cluster = Plan::new(SERVERY).start().await;
    let sidecar = cluster.sidecar.sidecar();
    let good = std::fs::read_to_string(cluster.token_file(Role::AppServer)).unwrap().trim().to_owned();
    let fields: Vec<&str> = good.split('.').collect();
    let [version, role, root, id, secret] = fields[..] else { panic!("a token of five parts: {good}") };
    assert_eq!((version, role), ("servery1", "app_server"));
    let other = std::fs::read_to_string(cluster.token_file(Role::Balancer)).unwrap().trim().to_owned();
    let other_secret = other.rsplit('.').next().unwrap();
    let flipped: String =
        secret.chars().enumerate().map(|(i, c)| if i == 0 { if c == '0' { '1' } else { '0' } } else { c }).collect();
    let attempts = [
        ("no token", String::new()),
        ("no token at all", "let me in".to_owned()),
        ("a very long one", "x".repeat(10_000)),
        ("a wrong secret", format!("{version}.{role}.{root}.{id}.{flipped}")),
        ("an empty secret", format!("{version}.{role}.{root}.{id}.")),
        ("the beginning of the secret", format!("{version}.{role}.{root}.{id}.{}", &secret[..secret.len() / 2])),
        ("another token's secret", format!("{version}.{role}.{root}.{id}.{other_secret}")),
        ("another role", format!("{version}.balancer.{root}.{id}.{secret}")),
        ("a role that is not given away", format!("{version}.cert_sidecar.{root}.{id}.{secret}")),
        ("an unknown id", format!("{version}.{role}.{root}.nobody.{secret}")),
        ("another version", format!("servery9.{role}.{root}.{id}.{secret}")),
    ];
    for (what, token) in attempts {
        let before = refusals(&cluster.sidecar, ENROLMENTS).await;
        let refused = enrol(sidecar, &token, "node-9").await;
        let status = refused.err().unwrap_or_else(|| panic!("enrolled with {what}"));
        println!("{what}: {status}");
        assert!(
            matches!(
                status.code(),
                tonic::Code::Unauthenticated | tonic::Code::PermissionDenied | tonic::Code::InvalidArgument
            ),
            "{what}: {status}"
        );
        counted(&cluster.sidecar, ENROLMENTS, before).await;
    }
    cluster.sidecar.logged(&["WARN"]).await;
    assert!(!cluster.sidecar.log().iter().any(|line| line.contains(secret)), "the log tells a secret");

    // The same way in with the right token is open: it was the token that was refused.
    enrol(sidecar, &good, "node-9").await.unwrap();
    // Until it is rotated; then only the new one opens it.
    let fresh = certs(&cluster, &["token", "app_server", "--app", "demo", "--rotate"]).await;
    assert!(enrol(sidecar, &good, "node-9").await.is_err(), "a rotated token still enrols");
    enrol(sidecar, &fresh, "node-9").await.unwrap();
    serves_on(&cluster).await;
}

#[tokio::test]
async fn a_process_with_the_token_of_another_role_stays_outside_and_says_why() {
    let mut cluster = Plan::new(SERVERY).start().await;
    let token = cluster.token_file(Role::Balancer);
    let index = cluster.prepare_node();
    let node = &mut cluster.nodes[index];
    let config = std::fs::read_to_string(node.config_file()).unwrap();
    let line = config.lines().find(|line| line.starts_with("token_file")).unwrap().to_owned();
    std::fs::write(node.config_file(), config.replace(&line, &format!("token_file = {token:?}"))).unwrap();
    node.start();
    node.logged(&["token", "balancer"]).await;
    assert!(!node.is_ready().await);
    serves_on(&cluster).await;

    // A token file that is not there yet is waited for.
    let node = &mut cluster.nodes[index];
    node.stop().await;
    let late = node.data().join("late-token");
    std::fs::write(node.config_file(), config.replace(&line, &format!("token_file = {late:?}"))).unwrap();
    node.start();
    node.logged(&["late-token"]).await;
    assert!(!node.is_ready().await);
    std::fs::copy(cluster.token_file(Role::AppServer), &late).unwrap();
    cluster.nodes[index].ready().await;
    cluster.complete(&cluster.balancers[0], 2, SOON).await;
}

#[tokio::test]
async fn without_the_right_certificate_nobody_registers() {
    let cluster = Plan::new(SERVERY).start().await;
    let balancer = &cluster.balancers[0];
    let uri = format!("spiffe://servery/app_server/{}", "node-9-abcdef");
    let rights = "servery://servery/app/demo?prefix=/";
    let foreign = Authority::foreign();
    let stolen = stolen_authority(&cluster);
    let attempts: [(&str, &str, Option<Credential>); 8] = [
        ("no certificate", "", None),
        ("a foreign certificate", "", Some(foreign.issue(&[&uri, rights], -60, 3600))),
        ("an expired certificate", "", Some(stolen.issue(&[&uri, rights], -7200, -3600))),
        ("a certificate of the future", "", Some(stolen.issue(&[&uri, rights], 3600, 7200))),
        ("a certificate without a name", "", Some(stolen.issue(&[], -60, 3600))),
        (
            "a certificate of another cluster",
            "",
            Some(stolen.issue(&["spiffe://other/app_server/node-9-abcdef", rights], -60, 3600)),
        ),
        ("a certificate without rights", "does not name the app", Some(stolen.issue(&[&uri], -60, 3600))),
        ("a balancer's certificate", "only an app_server", Some(Credential::stolen_from(&balancer.data()).unwrap())),
    ];
    for (what, why, credential) in attempts {
        let before = refused_at_the_door(balancer).await;
        let registered = match dial(balancer.control(), credential.as_ref()).await {
            Ok(channel) => {
                FakeNode::register(channel, hello("demo", "/", 9_999)).await.map_err(|status| status.to_string())
            }
            Err(error) => Err(format!("{error:#}")),
        };
        match registered {
            Ok(_) => panic!("registered with {what}"),
            Err(refusal) => {
                println!("{what}: {refusal}");
                assert!(refusal.contains(why), "{what} is refused for another reason than {why:?}: {refusal}");
            }
        }
        eventually(&format!("{what} to be counted"), SOON, async || {
            let now = refused_at_the_door(balancer).await;
            ensure(now >= before + 1.0, || format!("{now} refused, {before} before"))
        })
        .await;
    }
    balancer.logged(&["WARN", "control connection refused"]).await;
    balancer.logged(&["WARN", "registration refused", "only an app_server may register"]).await;

    // The same authority's valid certificate comes in: it was its validity that was refused.
    let good = stolen.issue(&[&uri, rights], -60, 3600);
    let channel = dial(balancer.control(), Some(&good)).await.unwrap();
    let node = FakeNode::register(channel, hello("demo", "/", 9_999)).await.unwrap();
    drop(node);
    eventually("it to be gone again", SOON, async || {
        let known = nodes_of(&balancer.status().await.unwrap()).len();
        ensure(known == 1, || format!("{known} nodes"))
    })
    .await;
    serves_on(&cluster).await;
}

/// Handshakes and registrations that a balancer refused.
async fn refused_at_the_door(balancer: &Member) -> f64 {
    let metrics = balancer.metrics().await.unwrap();
    let handshakes = metrics.sum("servery_balancer_control_handshakes_total", &[("result", "refused")]);
    handshakes + refusals(balancer, REGISTRATIONS).await
}

/// The cluster's own signing key, as somebody who broke into the cert-sidecar has it.
fn stolen_authority(cluster: &Cluster) -> Authority {
    Authority::stolen(&cluster.sidecar.data().join("ca/intermediate.pem")).unwrap()
}

#[tokio::test]
async fn a_node_claims_only_what_its_token_names() {
    let cluster = Plan::new(SERVERY).start().await;
    let balancer = &cluster.balancers[0];
    let token = certs(&cluster, &["token", "app_server", "--app", "shop", "--prefix", "/shop"]).await;
    let (_, credential) = enrol(cluster.sidecar.sidecar(), &token, "shop").await.unwrap();

    let good = hello("shop", "/shop", 9_999);
    let mut elsewhere = good.clone();
    elsewhere.advertise = "127.99.99.99".to_owned();
    let mut metadata = good.clone();
    metadata.advertise = "169.254.169.254".to_owned();
    let mut privileged = good.clone();
    privileged.report.as_mut().unwrap().workers[0].port = 22;
    let mut no_port = good.clone();
    no_port.report.as_mut().unwrap().workers[0].port = 70_000;
    let mut greedy = good.clone();
    greedy.report.as_mut().unwrap().workers[0].capacity = u32::MAX;
    greedy.report.as_mut().unwrap().workers[0].grant = u32::MAX;
    let worker = good.report.as_ref().unwrap().workers[0].clone();
    let crowd = |count| {
        let mut crowd = good.clone();
        crowd.report.as_mut().unwrap().workers =
            (0..count).map(|position| proto::registry::Worker { position, ..worker.clone() }).collect();
        crowd
    };
    let mut no_pass = good.clone();
    no_pass.pass.clear();
    let mut old = good.clone();
    old.protocol_version = 99;
    let mut two_routes = good.clone();
    two_routes.routes.push(hello("shop", "/", 1).routes.remove(0));
    let attempts = [
        ("an app that its token does not name", hello("demo", "/shop", 9_999)),
        ("every path", hello("shop", "/", 9_999)),
        ("a neighbouring prefix", hello("shop", "/shopping", 9_999)),
        ("a prefix above, by a detour", hello("shop", "/shop/..", 9_999)),
        ("one right and one wrong prefix", two_routes),
        ("another node's address", elsewhere),
        ("the cloud's metadata address", metadata),
        ("a privileged port", privileged),
        ("a port that does not exist", no_port),
        ("all the capacity in the world", greedy),
        ("more workers than a machine runs", crowd(1_500)),
        ("more than a balancer reads", crowd(150_000)),
        ("no pass", no_pass),
        ("a protocol of the future", old),
    ];
    for (what, claim) in attempts {
        let before = refusals(balancer, REGISTRATIONS).await;
        let channel = dial(balancer.control(), Some(&credential)).await.unwrap();
        let Err(status) = FakeNode::register(channel, claim).await else { panic!("{what} was granted") };
        println!("{what}: {status}");
        assert!(!status.message().is_empty(), "{what} is refused without a word: {status:?}");
        counted(balancer, REGISTRATIONS, before).await;
    }
    balancer.logged(&["WARN", "shop"]).await;

    // What the token does name is granted, below the prefix too.
    for prefix in ["/shop", "/shop/cart"] {
        let channel = dial(balancer.control(), Some(&credential)).await.unwrap();
        FakeNode::register(channel, hello("shop", prefix, 9_999)).await.unwrap();
    }
    // A prefix that another app's living nodes hold is theirs.
    let token = certs(&cluster, &["token", "app_server", "--app", "rival", "--prefix", "/"]).await;
    let (_, rival) = enrol(cluster.sidecar.sidecar(), &token, "rival").await.unwrap();
    let channel = dial(balancer.control(), Some(&rival)).await.unwrap();
    let Err(status) = FakeNode::register(channel, hello("rival", "/", 9_999)).await else {
        panic!("took the prefix of a living app")
    };
    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
    serves_on(&cluster).await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_ended() {
    let cluster = Plan::new(SERVERY).start().await;
    let balancer = &cluster.balancers[0];
    let thief = Credential::stolen_from(&cluster.nodes[0].data()).unwrap();
    let silent = dial(balancer.control(), Some(&thief)).await.unwrap();
    // Its own headers may already wait for a Hello: then the refusal is what opening it ends with.
    let opened = tokio::time::timeout(Duration::from_secs(9), FakeNode::open(silent, None)).await.expect("an end");
    if let Ok(node) = opened {
        let end = node.ended(Duration::from_secs(9)).await.unwrap();
        assert!(end.is_some(), "ended without a reason");
    }
    // A Report before Hello, too.
    let channel = dial(balancer.control(), Some(&thief)).await.unwrap();
    let report = hello("demo", "/", 9_999).report.unwrap();
    let opened = FakeNode::open(channel, Some(Message::Report(report))).await;
    if let Ok(node) = opened {
        assert!(node.ended(SOON).await.unwrap().is_some(), "a report before any Hello was taken");
    }
    serves_on(&cluster).await;
}

#[tokio::test]
async fn a_denied_node_is_out_at_once_and_not_renewed() {
    let mut cluster = Plan::new(SERVERY).nodes(2).start().await;
    let balancer = &cluster.balancers[0];
    let denied = instance_of(&balancer.status().await.unwrap(), "node-1").unwrap();
    let credential = Credential::stolen_from(&cluster.nodes[1].data()).unwrap();
    certs(&cluster, &["deny", &denied]).await;
    eventually("the denied node to be out", SOON, async || {
        let known = nodes_of(&balancer.status().await?).len();
        anyhow::ensure!(known == 1, "{known} nodes");
        Ok(())
    })
    .await;
    balancer.logged(&["WARN", &denied]).await;

    // It does not come back, and nobody else does by its certificate.
    let before = refusals(balancer, REGISTRATIONS).await;
    let channel = dial(balancer.control(), Some(&credential)).await.unwrap();
    let refusal =
        FakeNode::register(channel, hello("demo", "/", 9_999)).await.expect_err("a denied instance registered");
    println!("registering: {refusal}");
    counted(balancer, REGISTRATIONS, before).await;

    let renewal = renew(cluster.sidecar.sidecar(), &credential).await;
    println!("renewing: {}", renewal.expect_err("a denied instance was renewed"));
    cluster.sidecar.logged(&["WARN", &denied]).await;

    // A restarted sidecar and a restarted balancer still know.
    cluster.sidecar.restart().await;
    assert!(renew(cluster.sidecar.sidecar(), &credential).await.is_err(), "forgotten by the restarted sidecar");
    cluster.balancers[0].restart().await;
    let channel = dial(cluster.balancers[0].control(), Some(&credential)).await.unwrap();
    assert!(
        FakeNode::register(channel, hello("demo", "/", 9_999)).await.is_err(),
        "forgotten by the restarted balancer"
    );
    cluster.nodes[1].kill().await;
    cluster.nodes.pop();
    cluster.complete(&cluster.balancers[0], 1, SOON).await;
    serves_on(&cluster).await;
}

async fn renew(sidecar: std::net::SocketAddr, credential: &Credential) -> Result<(), tonic::Status> {
    let channel =
        dial(sidecar, Some(credential)).await.map_err(|error| tonic::Status::unavailable(format!("{error:#}")))?;
    let csr = servery_harness::intruder::signing_request();
    IdentityClient::new(channel).renew(RenewRequest { csr }).await.map(drop)
}

#[tokio::test]
async fn only_a_balancer_is_given_certificates() {
    let cluster = Plan::new(SERVERY).start().await;
    let sidecar = cluster.sidecar.sidecar();
    let node = Credential::stolen_from(&cluster.nodes[0].data()).unwrap();
    for (what, credential) in [("a node", Some(&node)), ("nobody", None)] {
        let before = refusals(&cluster.sidecar, WATCHES).await;
        let channel = dial(sidecar, credential).await.unwrap();
        let mut client = CertificatesClient::new(channel);
        let fetched = client.fetch(FetchRequest { sha256: vec![0; 32] }).await;
        let status = fetched.err().unwrap_or_else(|| panic!("{what} fetched a certificate"));
        println!("{what} fetches: {status}");
        assert!(matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unauthenticated), "{status}");
        let watched = client.watch(tokio_stream::once(Acknowledgement::default())).await;
        let status = match watched {
            Err(status) => status,
            Ok(stream) => match stream.into_inner().message().await {
                Err(status) => status,
                Ok(manifest) => panic!("{what} was told {manifest:?}"),
            },
        };
        println!("{what} watches: {status}");
        assert!(matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unauthenticated), "{status}");
        counted(&cluster.sidecar, WATCHES, before + 1.0).await;
    }
    // Renewal is for those who have a certificate.
    let channel = dial(sidecar, None).await.unwrap();
    let csr = servery_harness::intruder::signing_request();
    let renewed = IdentityClient::new(channel).renew(RenewRequest { csr }).await;
    assert!(renewed.is_err(), "renewed without a certificate");
    // A foreign certificate is not even spoken to.
    let foreign = Authority::foreign().issue(&["spiffe://servery/balancer/balancer-9"], -60, 3600);
    let fetched = match dial(sidecar, Some(&foreign)).await {
        Ok(channel) => {
            let fetched = CertificatesClient::new(channel).fetch(FetchRequest { sha256: vec![0; 32] }).await;
            fetched.map(drop).map_err(|status| status.to_string())
        }
        Err(error) => Err(format!("{error:#}")),
    };
    println!("a foreigner fetches: {}", fetched.expect_err("a foreigner was served"));
    cluster.sidecar.logged(&["WARN", "node-0"]).await;
    serves_on(&cluster).await;
}

#[tokio::test]
async fn a_worker_answers_only_who_has_the_pass() {
    let cluster = Plan::new(SERVERY).start().await;
    let address = worker_address(&cluster).await;
    for pass in [None, Some("wrong"), Some(""), Some("00000000000000000000000000000000")] {
        let direct = Client::plain(address, Protocol::Http1);
        let mut request = direct.request("GET", "/whoami", client::empty()).unwrap();
        if let Some(pass) = pass {
            request.headers_mut().insert("servery-pass", pass.parse().unwrap());
        }
        let answer = direct.send(request).await.unwrap();
        println!("pass {pass:?}: {} {}", answer.status, answer.text());
        assert!(answer.status.is_client_error(), "pass {pass:?} was answered with {answer:?}");
        assert!(!answer.text().contains("\"pid\""), "the application answered: {answer:?}");
    }
    // Not by the back door of an upgrade either.
    let mut raw = Raw::dial(address).await.unwrap();
    raw.send(format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))
    .await
    .unwrap();
    let answer = raw.until("\r\n\r\n").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    cluster.nodes[0].logged(&["pass"]).await;
    eventually("the refusals to be counted", SOON, async || {
        let metrics = cluster.nodes[0].metrics().await?;
        let refused = metrics.sum("servery_app_server_requests_total", &[("code_class", "4xx")]);
        anyhow::ensure!(refused >= 5.0, "{refused} refused");
        Ok(())
    })
    .await;
    serves_on(&cluster).await;
}

async fn worker_address(cluster: &Cluster) -> std::net::SocketAddr {
    let worker = &cluster.nodes[0].workers()[0];
    servery_harness::listening_addresses(worker.pid).into_iter().next().expect("a worker listens")
}

#[tokio::test]
async fn a_client_that_sends_our_own_fields_gains_nothing() {
    let cluster = Plan::new(SERVERY).start().await;
    for protocol in Protocol::BOTH {
        let client = cluster.balancers[0].client(protocol);
        let mut request = client.request("GET", "/headers", client::empty()).unwrap();
        request.headers_mut().insert("servery-pass", "mine".parse().unwrap());
        request.headers_mut().insert("servery-refused", "busy".parse().unwrap());
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!answer.text().to_lowercase().contains("servery-"), "{}", answer.text());
        assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("servery-")), "{:?}", answer.headers);
    }
    serves_on(&cluster).await;
}
