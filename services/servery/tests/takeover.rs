//! `servery balancer --takeover`: another process gets the sockets of the one that runs, and nobody notices.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use servery_harness::{Cluster, Load, Plan, Protocol, Raw, Role, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Visitors who each come with a connection of their own, some at once, by the clock, until told to stop: how many were
/// served, and what happened to the others.
fn visitors(address: SocketAddr, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<(u64, Vec<String>)> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let mut visits = tokio::task::JoinSet::new();
        let mut clock = tokio::time::interval(Duration::from_millis(5));
        while !stop.load(Ordering::Relaxed) {
            clock.tick().await;
            visits.spawn(async move {
                let mut raw = Raw::dial(address).await?;
                raw.send("GET /whoami HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
                let answer = raw.to_the_end().await?;
                anyhow::ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with('}'), "{answer:?}");
                Ok(())
            });
        }
        let outcomes = visits.join_all().await;
        let failed: Vec<String> =
            outcomes.iter().filter_map(|outcome| Some(outcome.as_ref().err()?.to_string())).collect();
        (u64::try_from(outcomes.len() - failed.len()).unwrap(), failed)
    })
}

#[tokio::test]
async fn five_takeovers_in_a_row_fail_no_request() {
    let plan = Plan::new(SERVERY).plain().nodes(2).workers(2).with(Role::Balancer, "header_timeout = \"3s\"");
    let mut cluster = plan.alone().start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let strangers = visitors(cluster.balancers[0].http(), &stop);
    let load = Load::start(vec![cluster.balancers[0].plain_client(Protocol::Http1)], "/whoami", 100);
    load.answered(20).await;
    let mut seen = vec![cluster.balancers[0].process().pid()];
    for _ in 0..5 {
        cluster.balancers[0].take_over().await;
        seen.push(cluster.balancers[0].process().pid());
        cluster.complete(&cluster.balancers[0], 2, SOON).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (served, failed) = strangers.await.unwrap();
    println!("{served} visitors were served during takeovers by {seen:?}; {} were not", failed.len());
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), served, &failed[..failed.len().min(5)]);
    load.stop_without_failure().await;
    for old in cluster.balancers[0].past() {
        let status = old.exited(SOON).await;
        assert!(status.success(), "{status}");
    }
    seen.dedup();
    assert_eq!(seen.len(), 6);
}

#[tokio::test]
async fn over_tls_neither_protocol_notices() {
    let plan = Plan::new(SERVERY).nodes(2).with(Role::Balancer, "header_timeout = \"3s\"");
    let mut cluster = plan.alone().start().await;
    let clients = [Protocol::Http1, Protocol::Http2].map(|protocol| cluster.balancers[0].client(protocol));
    let [one, two] = clients.map(|client| Load::start(vec![client], "/whoami", 100));
    one.answered(20).await;
    two.answered(20).await;
    for _ in 0..2 {
        cluster.balancers[0].take_over().await;
        cluster.complete(&cluster.balancers[0], 2, SOON).await;
    }
    one.stop_without_failure().await;
    // What this client was about to send when it was told to go (GOAWAY) was never sent, and it says so; another client
    // sends it on its next connection (RFC 9113 section 6.8).
    let tally = two.stop().await;
    let unsent = "HTTP/2 request: operation was canceled";
    assert!(tally.ok > 40 && tally.failed.keys().all(|kind| kind.starts_with(unsent)), "{tally:?}");
}

#[tokio::test]
async fn what_runs_in_the_old_process_ends_there_and_its_slot_is_not_given_twice() {
    let mut cluster = Plan::new(SERVERY).plain().with(Role::AppServer, "capacity = 1").start().await;
    let address = cluster.balancers[0].http();
    let mut tunnel = Raw::dial(address).await.unwrap();
    tunnel
        .send(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await
        .unwrap();
    tunnel.until("\r\n\r\n").await.unwrap();
    let mut slow = Raw::dial(address).await.unwrap();
    slow.send("GET /sleep/2000 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let balancer = &cluster.balancers[0];
    eventually("the one slot to be taken", SOON, async || {
        let in_flight = balancer.metrics().await?.sum("servery_balancer_in_flight", &[("app", "demo")]);
        anyhow::ensure!(in_flight > 0.5, "{in_flight}");
        Ok(())
    })
    .await;
    // waits in the old process's queue
    let mut waiting = Raw::dial(address).await.unwrap();
    waiting.send("GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    eventually("a request to wait", SOON, async || {
        let depth = balancer.metrics().await?.sum("servery_balancer_queue_depth", &[("app", "demo")]);
        anyhow::ensure!(depth > 0.5, "{depth}");
        Ok(())
    })
    .await;
    cluster.balancers[0].take_over().await;
    let fresh = cluster.balancers[0].plain_client(Protocol::Http1);
    assert_eq!(fresh.get("/hello").await.unwrap().status, 200);
    assert!(slow.until("\r\n\r\n").await.unwrap().starts_with("HTTP/1.1 200 "));
    assert!(waiting.until("Hello World!").await.unwrap().starts_with("HTTP/1.1 200 "));
    let mut frame = vec![0x81, 0x80 | 3, 0, 0, 0, 0];
    frame.extend_from_slice(b"yes");
    tunnel.send(frame).await.unwrap();
    tunnel.until("yes").await.unwrap();
}

/// Nothing answers for the certificates any more, so that no other balancer can become ready.
async fn without_certificates() -> Cluster {
    let mut cluster = Plan::new(SERVERY).start().await;
    cluster.sidecar.kill().await;
    cluster
}

#[tokio::test]
async fn one_that_dies_before_it_is_ready_has_changed_nothing() {
    let cluster = without_certificates().await;
    let balancer = &cluster.balancers[0];
    let socket = std::fs::metadata(balancer.data().join("takeover.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let client = balancer.client(Protocol::Http2);
    let load = Load::start(vec![client], "/whoami", 50);
    for _ in 0..2 {
        let asked = balancer.log().iter().filter(|line| line.contains("wants to take over")).count();
        let heir = balancer.spawn(&["--takeover"]);
        eventually("it to have the sockets", SOON, async || {
            let log = balancer.log();
            let now = log.iter().filter(|line| line.contains("wants to take over")).count();
            ensure(now > asked && heir.stderr().iter().any(|line| line.contains("enrolled")), || format!("{log:?}"))
        })
        .await;
        heir.kill().await;
        balancer.logged(&["nothing has changed"]).await;
    }
    load.answered(20).await;
    load.stop_without_failure().await;
    assert!(balancer.is_ready().await);
}

#[tokio::test]
async fn a_takeover_of_nobody_or_to_another_address_is_refused() {
    let cluster = Plan::new(SERVERY).plain().start().await;
    let balancer = &cluster.balancers[0];
    let config = balancer.config_file();
    let words = ["balancer", "--takeover", "--config", config.to_str().unwrap()];
    let elsewhere = cluster.site().at(20, 9).to_string();
    let ended = servery_harness::run(SERVERY, &[&words[..], &["--http", &elsewhere]].concat(), &[]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("balancer.http") && ended.stderr.contains(&elsewhere), "{}", ended.stderr);
    let empty = tempfile::tempdir().unwrap();
    let data = ["--data", empty.path().to_str().unwrap()];
    let ended = servery_harness::run(SERVERY, &[&words[..], &data].concat(), &[]).await;
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("takeover.sock") && ended.stderr.contains("without --takeover"), "{}", ended.stderr);
    assert_eq!(balancer.plain_client(Protocol::Http1).get("/hello").await.unwrap().status, 200);
}
