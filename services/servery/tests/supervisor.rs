//! The supervisor itself: what is left of a node when it is killed, what is left of a thousand workers, and how many workers
//! it keeps when requests wait.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::time::{Duration, Instant};

use rogue::Program;
use servery_harness::{
    Footprint, Kin, Load, Plan, Protocol, Role, Signal, Standalone, StandalonePlan, WorkerRow, ensure, eventually,
};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// State and processor time (in ticks of 10 ms) of a process.
fn activity(pid: u32) -> Option<(String, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.first()?.to_string(), fields.get(11)?.parse().ok()?))
}

#[tokio::test]
async fn no_worker_outlives_its_supervisor_by_a_second() {
    let program = Program::new();
    // One slot each: the two requests that hang are at two workers.
    let plan = StandalonePlan::new(SERVERY).alone().workers(3).with("capacity = 1").with(&program.line());
    let mut node = plan.start().await;
    let workers = node.workers();
    assert_eq!(workers.len(), 3, "{workers:?}");
    for path in ["/freeze", "/spin"] {
        let client = node.client(Protocol::Http1);
        tokio::spawn(async move { client.get(path).await });
    }
    eventually("one worker to stand still and one to run in circles", SOON, async || {
        let active: Vec<_> = workers.iter().filter_map(|worker| activity(worker.pid)).collect();
        let frozen = active.iter().any(|(state, _)| state == "T");
        let spinning = active.iter().any(|(_, ticks)| *ticks > 100);
        ensure(active.len() == 3 && frozen && spinning, || format!("{active:?}"))
    })
    .await;
    let killed = Instant::now();
    node.kill().await;
    while workers.iter().any(Kin::is_alive) {
        assert!(killed.elapsed() < Duration::from_secs(1), "they live on: {workers:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("three workers, one frozen and one spinning, are gone {:?} after their supervisor", killed.elapsed());
}

/// What the supervisor holds while nobody but its workers is there.
async fn at_rest(node: &Standalone, workers: usize) -> Footprint {
    eventually("nobody but the workers to be there", SOON, async || {
        let footprint = Footprint::of(node.process().pid());
        ensure((footprint.descendants, footprint.zombies) == (workers, 0), || footprint.to_string()).map(|()| footprint)
    })
    .await
}

#[tokio::test]
async fn a_thousand_replacements_leave_nothing_behind() {
    const WORKERS: usize = 8;
    let plan = StandalonePlan::new(SERVERY).alone().workers(8).with("replace_at_once = \"100%\"");
    let node = plan.start().await;
    let mut rows = node.ready_rows(WORKERS, SOON).await;
    let (mut replaced, mut before) = (0, None);
    let begun = Instant::now();
    while replaced < 1100 {
        if replaced >= 100 && before.is_none() {
            before = Some(at_rest(&node, WORKERS).await);
        }
        node.signal(Signal::HUP);
        rows = node.replaced(&rows, WORKERS, SOON).await;
        replaced += WORKERS;
    }
    let after = at_rest(&node, WORKERS).await;
    let before = before.unwrap();
    println!("{replaced} replacements in {:?}\nafter 100: {before}\nat the end: {after}", begun.elapsed());
    assert!(node.restarts("reload").await >= 1100);
    assert_eq!((after.descriptors, after.threads), (before.descriptors, before.threads));
    let most = (before.rss_kib + before.rss_kib / 5).max(before.rss_kib + 8 * 1024);
    assert!(after.rss_kib <= most, "{} KiB became {} KiB", before.rss_kib, after.rss_kib);
}

#[tokio::test]
async fn workers_are_added_while_requests_wait_and_taken_away_when_it_is_quiet() {
    let plan = Plan::new(SERVERY).alone().with(Role::AppServer, "capacity = 1");
    let cluster = plan.with(Role::AppServer, "workers_max = 3").start().await;
    let node = &cluster.nodes[0];
    let begun = Instant::now();
    // Two and a half workers' worth.
    let client = cluster.balancers[0].client(Protocol::Http2);
    let load = Load::start(vec![client], "/sleep/500", 5);
    node.ready_rows(3, SOON).await;
    println!("three workers after {:?}", begun.elapsed());
    load.answered(10).await;
    assert!(node.rows().await.unwrap().len() <= 3);
    let tally = load.stop_without_failure().await;
    println!("0 of {} failed, p50 {:?}, p99 {:?}", tally.ok, tally.latency(50), tally.latency(99));
    let quiet = Instant::now();
    let rows = node.rows_with("one worker", 2 * SOON, |rows| rows.len() == 1 && rows[0].is_ready()).await;
    println!("one worker {:?} after the last answer: {rows:?}", quiet.elapsed());
    assert!(rows.iter().all(WorkerRow::is_ready));
}

#[tokio::test]
async fn a_node_by_itself_adds_workers_while_requests_wait() {
    let plan = StandalonePlan::new(SERVERY).alone().with("capacity = 1").with("workers_max = 3");
    let node = plan.start().await;
    let load = Load::start(vec![node.client(Protocol::Http1)], "/sleep/500", 5);
    node.ready_rows(3, SOON).await;
    load.answered(10).await;
    let tally = load.stop_without_failure().await;
    println!("0 of {} failed, p50 {:?}, p99 {:?}", tally.ok, tally.latency(50), tally.latency(99));
}
