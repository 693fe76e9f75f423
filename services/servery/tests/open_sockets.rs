//! Many open WebSockets over TLS while the configuration is read again and the certificate swapped, again and again.
//!
//! `SERVERY_TEST_SOCKETS` says how many (2,000; with 10,000, of which 2,000 are streams of HTTP/2, the limit on descriptors has to
//! be above 18,200).
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::iter::repeat_n;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::iter;
use rcgen::{CertificateParams, KeyPair};
use servery_harness::{Client, Footprint, Load, Plan, Protocol, Raw, Role, Signal, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

const ROUNDS: usize = 100;

/// Sockets that are opened, or asked, at the same time.
const AT_ONCE: usize = 64;

/// Every so many sockets one is asked in each round; at the end all are.
const SAMPLE: usize = 100;

/// What all the rounds may leave behind in the balancer, in KiB.
const MORE_MEMORY: u64 = 64 * 1024;

fn wanted() -> usize {
    std::env::var("SERVERY_TEST_SOCKETS").map_or(2000, |text| text.parse().unwrap())
}

/// A certificate for `localhost` that nothing else vouches for, and its key, both in PEM.
fn made() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn write(directory: &Path, (cert, key): &(String, String)) {
    std::fs::write(directory.join("cert.pem"), cert).unwrap();
    std::fs::write(directory.join("key.pem"), key).unwrap();
    std::fs::set_permissions(directory.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Those of one HTTP/2 connection: more are refused.
const STREAMS: usize = 100;

/// One in five is a stream of HTTP/2, the others have a connection each. They live as long as the clients, too.
async fn websockets(root: &Path, address: SocketAddr, count: usize) -> (Vec<Raw>, Vec<Arc<Client>>) {
    let client = |protocol| Arc::new(Client::trusting(root, address, protocol).unwrap().within(SOON));
    let alone = client(Protocol::Http1);
    let mut clients = Vec::new();
    for _ in 0..(count / 5).div_ceil(STREAMS) {
        let shared = client(Protocol::Http2);
        assert_eq!(shared.get("/hello").await.unwrap().status, 200);
        clients.extend(repeat_n(shared, STREAMS));
    }
    clients.truncate(count / 5);
    clients.extend(repeat_n(alone, count - clients.len()));
    let opening = clients.clone().into_iter().map(async |client| client.websocket("/ws").await.unwrap());
    (iter(opening).buffer_unordered(AT_ONCE).collect().await, clients)
}

/// Says something that nobody else says, masked by nothing, and waits for it.
async fn echoes(websocket: &mut Raw, word: String) {
    let mut frame = vec![0x81, 0x80 | u8::try_from(word.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(word.as_bytes());
    websocket.send(frame).await.unwrap();
    websocket.until(&word).await.unwrap();
}

#[tokio::test]
async fn open_websockets_survive_a_hundred_reloads_and_a_hundred_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    write(directory.path(), &made());
    let tables = format!("[[balancer.certificate]]\ncert = {:?}\nkey = {:?}\n", at("cert.pem"), at("key.pem"));
    // one worker takes 8,192 connections
    let plan = Plan::new(SERVERY).workers(2).with_tables(&tables).with(Role::AppServer, "capacity = 16");
    let cluster = plan.alone().start().await;
    let balancer = &cluster.balancers[0];
    let file = balancer.config_file();
    let configuration = std::fs::read_to_string(&file).unwrap();

    std::fs::copy(at("cert.pem"), at("root.pem")).unwrap();
    let began = Instant::now();
    let (mut sockets, _clients) = websockets(&at("root.pem"), balancer.https(), wanted()).await;
    let footprint = || Footprint::of(balancer.process().pid());
    let before = footprint();
    println!("{} sockets after {:?}: {before}", sockets.len(), began.elapsed());

    // one connection, open before the first swap: it is not shown another certificate
    let steady = Client::trusting(&at("root.pem"), balancer.https(), Protocol::Http2).unwrap();
    let load = Load::start(vec![Arc::new(steady)], "/whoami", 50);
    load.answered(1).await;
    let began = Instant::now();
    for round in 0..ROUNDS {
        let new = made();
        write(directory.path(), &new);
        let route = format!("[[balancer.route]]\nprefix = \"/round{round}\"\nredirect = \"/whoami\"\n");
        std::fs::write(&file, format!("{configuration}{route}")).unwrap();
        balancer.signal(Signal::HUP);
        eventually("the next version", SOON, async || {
            let version = balancer.metrics().await.unwrap().sum("servery_balancer_config_version", &[]);
            #[expect(clippy::cast_precision_loss, reason = "a hundred is exact")]
            ensure(version == (round + 2) as f64, || format!("it is {version}"))
        })
        .await;
        if round % 10 == 0 {
            std::fs::write(at("new.pem"), &new.0).unwrap();
            let fresh = Client::trusting(&at("new.pem"), balancer.https(), Protocol::Http1).unwrap();
            assert_eq!(fresh.get(&format!("/round{round}")).await.unwrap().status, 308);
        }
        for (number, socket) in sockets.iter_mut().enumerate().skip(round).step_by(SAMPLE) {
            echoes(socket, format!("<{number} in {round}>")).await;
        }
    }
    let asked = sockets.iter_mut().enumerate().map(|(number, socket)| echoes(socket, format!("<{number} at the end>")));
    iter(asked).for_each_concurrent(AT_ONCE, |echo| echo).await;
    let after = footprint();
    println!("{ROUNDS} reloads and certificates in {:?}: {after}", began.elapsed());
    load.stop_without_failure().await;
    assert!(after.rss_kib < before.rss_kib + MORE_MEMORY, "{before}\n{after}");
}
