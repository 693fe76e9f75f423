//! Nodes, workers, balancers and the cert-sidecar come, go, die and hang while users keep asking.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use servery_harness::cluster::{instance_of, nodes_of};
use servery_harness::{Cluster, Load, Member, Plan, Protocol, Role, Signal, control_time, ensure, eventually};
use tokio::net::TcpStream;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Requests per second: steady, and far from what two busy cores can take.
const RATE: u32 = 50;

fn plan() -> Plan {
    Plan::new(SERVERY).alone()
}

/// A steady load on every balancer over HTTP/1.1 and HTTP/2, under way.
async fn load_on(balancers: &[Member], path: &str) -> Load {
    let clients = balancers.iter().flat_map(|balancer| Protocol::BOTH.map(|protocol| balancer.client(protocol)));
    let load = Load::start(clients.collect(), path, RATE);
    load.answered(25).await;
    load
}

/// The nodes that `balancer` knows now.
async fn known_nodes(balancer: &Member) -> usize {
    nodes_of(&balancer.status().await.unwrap()).len()
}

#[tokio::test]
async fn a_new_node_takes_its_share_and_no_request_fails() {
    let mut cluster = plan().nodes(2).start().await;
    let load = load_on(&cluster.balancers, "/whoami").await;
    cluster.start_node();
    load.answered_by("node-2", SOON).await;
    load.answered(100).await;
    let tally = load.stop_without_failure().await;
    assert_eq!(tally.by_node.len(), 3, "{:?}", tally.by_node);
}

#[tokio::test]
async fn a_node_stopped_by_sigterm_leaves_without_a_failed_request() {
    let mut cluster = plan().nodes(3).start().await;
    let quick = load_on(&cluster.balancers, "/whoami").await;
    // There is always something in flight at every node.
    let slow = load_on(&cluster.balancers, "/sleep/100").await;
    for _ in 0..2 {
        let mut leaving = cluster.nodes.remove(0);
        let asked = Instant::now();
        leaving.stop().await;
        println!("{} left in {:?}", leaving.name, asked.elapsed());
        let remaining = cluster.nodes.len();
        cluster.complete(&cluster.balancers[0], remaining, SOON).await;
        quick.answered(100).await;
        slow.answered(100).await;
    }
    quick.stop_without_failure().await;
    slow.stop_without_failure().await;
}

#[tokio::test]
async fn the_cert_sidecar_restarted_and_then_away_is_not_noticed() {
    let mut cluster = plan().nodes(2).start().await;
    let load = load_on(&cluster.balancers, "/whoami").await;
    cluster.sidecar.restart().await;
    load.answered(100).await;
    cluster.sidecar.kill().await;
    load.answered(100).await;
    // A node that has its identity starts without the one who gave it.
    let mut node = cluster.nodes.remove(0);
    node.restart().await;
    cluster.nodes.push(node);
    cluster.complete(&cluster.balancers[0], 2, SOON).await;
    load.answered_by("node-0", SOON).await;
    load.stop_without_failure().await;
    // And one that has none waits for it, says so, and comes in when it is back.
    cluster.start_node();
    let newcomer = cluster.nodes.last().unwrap();
    newcomer.logged(&[&cluster.sidecar.sidecar().to_string()]).await;
    assert!(!newcomer.is_ready().await);
    cluster.sidecar.start();
    newcomer.ready().await;
    cluster.complete(&cluster.balancers[0], 3, SOON).await;
}

#[tokio::test]
async fn a_restarted_balancer_has_every_node_back_within_a_second_of_listening() {
    let mut cluster = plan().balancers(2).nodes(3).workers(2).start().await;
    // The other balancer does not notice.
    let load = load_on(&cluster.balancers[1..], "/whoami").await;
    let (mut took, mut control_took) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let mut balancer = cluster.balancers.remove(0);
        if round == 1 {
            balancer.kill().await;
        } else {
            balancer.stop().await;
        }
        control_took.push(control_time(SERVERY).await);
        balancer.start();
        let control = balancer.control();
        eventually("the balancer to listen", SOON, async || TcpStream::connect(control).await.map(drop)).await;
        let listening = Instant::now();
        cluster.complete(&balancer, 3, SOON).await;
        println!(
            "round {round}: complete {:?} after listening; control: {:?}",
            listening.elapsed(),
            control_took[round]
        );
        took.push(listening.elapsed());
        balancer.ready().await;
        let client = balancer.client(Protocol::Http2);
        let mut answered = BTreeSet::new();
        for _ in 0..30 {
            let answer = client.get("/whoami").await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            answered.insert(answer.json().unwrap()["node"].as_str().unwrap().to_owned());
        }
        assert_eq!(answered.len(), 3, "{answered:?}");
        cluster.balancers.insert(0, balancer);
    }
    // A second, and what a machine adds that is too busy to start a process in a few milliseconds.
    took.sort();
    control_took.sort();
    let limit = Duration::from_secs(1) + 20 * control_took[1];
    assert!(took[1] <= limit, "the median of {took:?} is above {limit:?}");
    load.stop_without_failure().await;
}

#[tokio::test]
async fn nodes_find_every_balancer_by_dns_and_a_third_when_it_appears() {
    let mut cluster = plan().by_dns(1).balancers(2).nodes(2).workers(2).start().await;
    // Whatever a balancer may send, the workers can take: no slot is promised twice.
    permits_are_shared(&cluster, 2).await;

    let load = load_on(&cluster.balancers, "/whoami").await;
    let third = cluster.start_balancer().await;
    cluster.balancers[third].ready().await;
    cluster.complete(&cluster.balancers[third], 2, SOON).await;
    permits_are_shared(&cluster, 3).await;
    let client = cluster.balancers[third].client(Protocol::Http1);
    assert_eq!(client.get("/whoami").await.unwrap().status, 200);

    // One that is gone for good gives its share back.
    let mut gone = cluster.balancers.pop().unwrap();
    cluster.publish_balancers().await;
    gone.kill().await;
    permits_are_shared(&cluster, 2).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn nodes_find_every_balancer_by_the_records_of_a_service() {
    let mut cluster = plan().by_service(1).balancers(2).start().await;
    let third = cluster.start_balancer().await;
    cluster.balancers[third].ready().await;
    cluster.complete(&cluster.balancers[third], 1, SOON).await;
}

#[tokio::test]
async fn a_request_waits_for_a_node_that_comes_back() {
    let mut cluster = plan().start().await;
    cluster.nodes[0].stop().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.client(Protocol::Http2);
    let waiting = tokio::spawn(async move { client.get("/whoami").await });
    eventually("the request to wait", SOON, async || {
        let depth = balancer.metrics().await?.sum("servery_balancer_queue_depth", &[("app", "demo")]);
        anyhow::ensure!(depth > 0.5, "nothing waits");
        Ok(())
    })
    .await;
    cluster.nodes[0].start();
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Every worker's capacity of 256 is granted, in parts of about the same size, to these many balancers.
async fn permits_are_shared(cluster: &Cluster, balancers: u32) {
    eventually("the permits to be shared", SOON, async || {
        let mut sum = 0.0;
        for balancer in &cluster.balancers {
            let metrics = balancer.metrics().await?;
            let granted = metrics.sum("servery_balancer_permits", &[("app", "demo")]);
            let fair = 4.0 * 256.0 / f64::from(balancers);
            anyhow::ensure!((granted - fair).abs() <= 4.0, "{} has {granted} permits, not {fair}", balancer.name);
            sum += granted;
        }
        anyhow::ensure!((sum - 4.0 * 256.0_f64).abs() < 0.5, "{sum} permits in all");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_node_killed_outright_is_out_of_rotation_at_once() {
    let mut cluster = plan().nodes(3).start().await;
    let load = load_on(&cluster.balancers, "/whoami").await;
    let mut dead = cluster.nodes.remove(0);
    let workers = dead.workers();
    assert_eq!(workers.len(), 1);
    dead.kill().await;
    let killed = Instant::now();
    eventually("the balancer to forget it", Duration::from_secs(1), async || {
        let known = known_nodes(&cluster.balancers[0]).await;
        ensure(known == 2, || format!("it knows {known} nodes"))
    })
    .await;
    println!("forgotten {:?} after its death", killed.elapsed());
    eventually("its workers to be gone", Duration::from_secs(1), async || {
        ensure(!workers.iter().any(servery_harness::Kin::is_alive), || format!("{workers:?}"))
    })
    .await;
    load.answered(100).await;
    // GETs: what was in flight may be sent again.
    let tally = load.stop_without_failure().await;
    assert_eq!(tally.by_node.len(), 3, "{:?}", tally.by_node);
}

#[tokio::test]
async fn a_worker_killed_is_replaced_and_no_request_fails() {
    let cluster = plan().nodes(2).workers(2).start().await;
    let (balancer, node) = (&cluster.balancers[0], &cluster.nodes[0]);
    let load = load_on(&cluster.balancers, "/whoami").await;
    // There is always something in flight at every worker.
    let slow = load_on(&cluster.balancers, "/sleep/100").await;
    for round in 1..=3_u64 {
        let victim = node.workers().into_iter().next().unwrap();
        victim.signal(Signal::KILL);
        eventually("its replacement", SOON, async || {
            let status = balancer.status().await?;
            let name = instance_of(&status, &node.name)?;
            let nodes = nodes_of(&status);
            let workers = nodes.iter().find(|node| node["node"] == name.as_str()).unwrap()["workers"].clone();
            let workers = workers.as_array().unwrap();
            let ready = workers.iter().filter(|worker| worker["state"] == "ready").count();
            let restarts: u64 = workers.iter().filter_map(|worker| worker["restarts"].as_u64()).sum();
            let replaced = workers.iter().all(|worker| worker["pid"] != victim.pid);
            anyhow::ensure!(ready == 2 && restarts == round && replaced, "round {round}: {workers:?}");
            Ok(())
        })
        .await;
        load.answered(50).await;
    }
    load.stop_without_failure().await;
    slow.stop_without_failure().await;
    let restarts = node.metrics().await.unwrap().sum("servery_app_server_worker_restarts_total", &[]);
    assert!((restarts - 3.0).abs() < 0.5, "{restarts} restarts counted");
}

#[tokio::test]
async fn a_frozen_supervisor_is_left_out_until_it_speaks_again() {
    let cluster = plan().nodes(2).with(Role::AppServer, "heartbeat = \"500ms\"").start().await;
    let balancer = &cluster.balancers[0];
    let load = load_on(&cluster.balancers, "/whoami").await;
    cluster.nodes[0].freeze();
    eventually("the silent node to be left out", SOON, async || {
        let metrics = balancer.metrics().await?;
        let ready = metrics.sum("servery_balancer_endpoints", &[("app", "demo"), ("state", "ready")]);
        anyhow::ensure!((ready - 1.0).abs() < 0.5, "{ready} endpoints are ready");
        Ok(())
    })
    .await;
    load.answered(50).await;
    cluster.nodes[0].thaw();
    cluster.complete(balancer, 2, SOON).await;
    load.answered_by("node-0", SOON).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_node_that_restarts_is_one_node_and_not_two() {
    let mut cluster = plan().nodes(2).start().await;
    let before = instance_of(&cluster.balancers[0].status().await.unwrap(), "node-0").unwrap();
    let load = load_on(&cluster.balancers, "/whoami").await;
    let mut node = cluster.nodes.remove(0);
    node.restart().await;
    cluster.complete(&cluster.balancers[0], 2, SOON).await;
    let after = instance_of(&cluster.balancers[0].status().await.unwrap(), "node-0").unwrap();
    assert_eq!(before, after, "it has its identity on disk");
    cluster.nodes.insert(0, node);
    load.answered_by("node-0", SOON).await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn identities_are_renewed_under_load_without_a_failed_request() {
    let cluster = plan().nodes(2).with(Role::CertSidecar, "identity_lifetime = \"30s\"").start().await;
    let certificate = |member: &Member| std::fs::read(member.data().join("identity/certificate.pem")).unwrap();
    let members: Vec<&Member> = cluster.balancers.iter().chain(&cluster.nodes).collect();
    let first: Vec<_> = members.iter().map(|member| certificate(member)).collect();
    let load = load_on(&cluster.balancers, "/whoami").await;
    eventually("every identity to be renewed", Duration::from_secs(30), async || {
        let old = members.iter().zip(&first).filter(|(member, first)| certificate(member) == **first).count();
        ensure(old == 0, || format!("{old} are the first ones"))
    })
    .await;
    load.answered(100).await;
    cluster.ready().await;
    load.stop_without_failure().await;
}
