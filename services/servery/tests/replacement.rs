//! Workers and nodes are replaced, recycled, added, taken away and killed while users keep asking. (A node that is told to
//! leave, among others, is in `membership`.)
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::process::Command;
use std::time::{Duration, Instant};

use rogue::{Mood, Program};
use servery_harness::client::{Open, empty, full};
use servery_harness::cluster::{nodes_of, ready_workers};
use servery_harness::{Answer, Cluster, Load, Member, Plan, Process, Protocol, Role, Signal, WorkerRow, eventually};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Requests per second: steady, and far from what two busy cores can take.
const RATE: u32 = 50;

fn plan() -> Plan {
    Plan::new(SERVERY).alone()
}

fn busy(rows: &[WorkerRow]) -> u64 {
    rows.iter().map(|row| row.busy).sum()
}

/// Waits until the nodes have so many requests in work, all together; tells how many the first one has.
async fn in_work(cluster: &Cluster, requests: u64) -> u64 {
    let mut first = 0;
    eventually(&format!("{requests} requests in work"), SOON, async || {
        let mut all = Vec::new();
        for node in &cluster.nodes {
            all.push(busy(&node.rows().await?));
        }
        anyhow::ensure!(all.iter().sum::<u64>() == requests, "{all:?} are in work");
        first = all[0];
        Ok(())
    })
    .await;
    first
}

fn kill_workers(node: &Member) {
    for worker in node.workers() {
        worker.signal(Signal::KILL);
    }
}

#[tokio::test]
async fn every_worker_is_replaced_five_times_and_no_request_fails() {
    let cluster = plan().workers(3).start().await;
    let node = &cluster.nodes[0];
    let quick = Load::across(&cluster.balancers, "/whoami", RATE).await;
    // There is always something in flight at every worker.
    let slow = Load::across(&cluster.balancers, "/sleep/100", RATE).await;
    for round in 1..=5 {
        let before = node.ready_rows(3, SOON).await;
        let asked = Instant::now();
        node.signal(Signal::HUP);
        let after = node.replaced(&before, 3, SOON).await;
        println!("round {round}: three workers replaced in {:?}", asked.elapsed());
        let youngest = before.iter().map(|row| row.generation).max().unwrap();
        assert!(after.iter().all(|row| row.generation > youngest), "{before:?}\n{after:?}");
        quick.answered(25).await;
    }
    slow.stop_without_failure().await;
    let tally = quick.stop_without_failure().await;
    println!("0 of {} failed; counted: {:?}", tally.ok, node.restarts_by_cause().await);
    assert_eq!(node.restarts("reload").await, 15);
}

#[tokio::test]
async fn ten_thousand_requests_with_workers_recycled_every_hundred() {
    let plan = plan().nodes(2).workers(2).with(Role::AppServer, "max_requests = 100");
    let cluster = plan.with(Role::AppServer, "max_requests_jitter = 10").start().await;
    let begun = Instant::now();
    let load = Load::across(&cluster.balancers, "/hello", 400).await;
    load.answered(9_800).await;
    let tally = load.stop_without_failure().await;
    let mut recycled = 0;
    for node in &cluster.nodes {
        println!("{}: {:?}", node.name, node.restarts_by_cause().await);
        recycled += node.restarts("max_requests").await;
    }
    println!("0 of {} failed, {recycled} workers recycled, in {:?}", tally.ok, begun.elapsed());
    assert!(tally.ok >= 10_000 && recycled >= 50, "{} answered, {recycled} recycled", tally.ok);
}

#[tokio::test]
async fn idle_workers_killed_are_not_missed() {
    let cluster = plan().nodes(2).workers(2).start().await;
    let load = Load::across(&cluster.balancers, "/whoami", RATE).await;
    for round in 0..8 {
        let node = &cluster.nodes[round % 2];
        let before = node.ready_rows(2, SOON).await;
        let victim = before.iter().min_by_key(|row| row.busy).unwrap();
        let worker = node.workers().into_iter().find(|worker| worker.pid == victim.pid).unwrap();
        worker.signal(Signal::KILL);
        node.rows_with("a new worker in its place", SOON, |rows| {
            rows.len() == 2 && rows.iter().all(|row| row.is_ready() && row.pid != victim.pid)
        })
        .await;
        load.answered(10).await;
    }
    let tally = load.stop_without_failure().await;
    println!("0 of {} failed, p99 {:?}", tally.ok, tally.latency(99));
    assert_eq!(cluster.nodes[0].restarts("exit").await + cluster.nodes[1].restarts("exit").await, 8);
}

#[tokio::test]
async fn more_workers_by_ttin_and_fewer_by_ttou_and_no_request_fails() {
    let cluster = plan().workers(2).start().await;
    let (node, balancer) = (&cluster.nodes[0], &cluster.balancers[0]);
    let quick = Load::across(&cluster.balancers, "/whoami", RATE).await;
    let slow = Load::across(&cluster.balancers, "/sleep/100", RATE).await;
    // One at a time: two equal signals that wait are one.
    for workers in 3..=8 {
        node.signal(Signal::TTIN);
        node.ready_rows(workers, SOON).await;
    }
    ready_workers(balancer, &[8], SOON).await;
    quick.answered(50).await;
    for workers in (1..=7).rev() {
        node.signal(Signal::TTOU);
        node.ready_rows(workers, SOON).await;
    }
    ready_workers(balancer, &[1], SOON).await;
    // The last one stays: the node has answered this signal when it has answered the next.
    node.signal(Signal::TTOU);
    let last = node.ready_rows(1, SOON).await;
    quick.answered(50).await;
    node.signal(Signal::HUP);
    node.replaced(&last, 1, SOON).await;
    assert_eq!(node.rows().await.unwrap().len(), 1);
    slow.stop_without_failure().await;
    let tally = quick.stop_without_failure().await;
    println!("0 of {} failed, p99 {:?}", tally.ok, tally.latency(99));
}

/// From the SIGKILL of a process that holds a TCP connection to its peer's seeing the end: what no system can be faster than.
async fn bare_cut() -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let held = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut command = Command::new("/bin/sleep");
    command.arg("100");
    let process = Process::spawn_holding("holder", command, std::os::fd::OwnedFd::from(held)).unwrap();
    let killed = Instant::now();
    process.signal(Signal::KILL);
    let _ = peer.read(&mut [0]).await;
    killed.elapsed()
}

#[tokio::test]
async fn a_whole_node_killed_is_out_of_rotation_within_100_ms() {
    let mut cluster = plan().nodes(3).start().await;
    let load = Load::across(&cluster.balancers, "/whoami", RATE).await;
    let (mut took, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        bare.push(bare_cut().await);
        let mut node = cluster.nodes.remove(0);
        let killed = Instant::now();
        node.signal(Signal::KILL);
        // Looked at without a pause: this is what is measured.
        while nodes_of(&cluster.balancers[0].status().await.unwrap()).len() > 2 {
            assert!(killed.elapsed() < SOON, "the balancer does not let go of a dead node");
        }
        took.push(killed.elapsed());
        node.kill().await;
        node.start();
        cluster.nodes.push(node);
        cluster.ready().await;
        load.answered(25).await;
    }
    let tally = load.stop_without_failure().await;
    println!("0 of {} failed; out of rotation after {took:?}; a bare connection is cut after {bare:?}", tally.ok);
    took.sort();
    bare.sort();
    println!("medians: {:?} and {:?}", took[2], bare[2]);
    let limit = Duration::from_millis(100) + 20 * bare[2];
    assert!(took[2] <= limit, "the median of {took:?} is above {limit:?}");
}

/// `each` requests to every balancer's listener over HTTP/1.1 and as many over HTTP/2, on their way.
fn ask(cluster: &Cluster, method: &'static str, path: &'static str, each: usize) -> JoinSet<anyhow::Result<Answer>> {
    let mut asking = JoinSet::new();
    for protocol in Protocol::BOTH {
        let client = cluster.balancers[0].client(protocol);
        for _ in 0..each {
            let client = client.clone();
            asking.spawn(async move {
                let body = if method == "POST" { full("an order") } else { empty() };
                client.send(client.request(method, path, body)?).await
            });
        }
    }
    asking
}

#[tokio::test]
async fn of_busy_workers_killed_only_what_cannot_be_repeated_fails() {
    let cluster = plan().nodes(2).workers(2).start().await;
    let node = &cluster.nodes[0];

    // Idempotent and unanswered: somebody else does it.
    let asking = ask(&cluster, "GET", "/sleep/1500", 10);
    let lost = in_work(&cluster, 20).await;
    let before = node.rows().await.unwrap();
    kill_workers(node);
    for answer in asking.join_all().await {
        let answer = answer.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "slept 1500 ms\n"));
    }
    println!("20 GETs, {lost} of them at killed workers: 20 times 200");
    assert!(lost > 0);
    node.replaced(&before, 2, SOON).await;

    // Not idempotent: nobody may do it twice.
    let asking = ask(&cluster, "POST", "/sleep/1500", 10);
    let lost = in_work(&cluster, 20).await;
    let before = node.rows().await.unwrap();
    kill_workers(node);
    let mut failed = 0;
    for answer in asking.join_all().await {
        let answer = answer.unwrap();
        match answer.status.as_u16() {
            502 => failed += 1,
            status => assert_eq!((status, answer.text().as_str()), (200, "slept 1500 ms\n")),
        }
    }
    println!("20 POSTs, {lost} of them at killed workers: {failed} times 502");
    assert!(lost > 0 && failed == lost, "{failed} of {lost} failed");
    node.replaced(&before, 2, SOON).await;

    // Begun: cut, and seen as cut.
    for (path, is_whole) in [
        ("/stream/40/50", (|body: &[u8]| body.ends_with(b"data: event 40 of 40\n\n")) as fn(&[u8]) -> bool),
        ("/bytes/67108864", |body: &[u8]| body.len() == 67_108_864),
    ] {
        let before = node.ready_rows(2, SOON).await;
        let mut begun = Vec::new();
        for protocol in Protocol::BOTH {
            let client = cluster.balancers[0].client(protocol);
            for _ in 0..4 {
                let mut open = client.open(client.request("GET", path, empty()).unwrap()).await.unwrap();
                assert_eq!(open.response.status(), 200);
                let first = open.piece().await.unwrap().unwrap();
                begun.push((client.clone(), open, first));
            }
        }
        let lost = in_work(&cluster, 8).await;
        kill_workers(node);
        let mut cut = 0;
        // The clients live as long as their answers: they hold the connections of HTTP/2.
        for (_client, open, first) in &mut begun {
            match read_on(open, first).await {
                Ok(body) => assert!(is_whole(&body), "{path}: {} bytes look like the whole answer", body.len()),
                Err(error) => {
                    println!("{path}: {error:#}");
                    cut += 1;
                }
            }
        }
        println!("8 of {path}, {lost} of them at killed workers: {cut} cut");
        assert!(lost > 0 && cut == lost, "{cut} of {lost} were cut");
        node.replaced(&before, 2, SOON).await;
    }
}

async fn read_on(open: &mut Open, first: &[u8]) -> anyhow::Result<Vec<u8>> {
    let rest = tokio::time::timeout(SOON, open.rest()).await??;
    Ok([first, &rest].concat())
}

#[tokio::test]
async fn a_program_that_does_not_come_up_replaces_nobody() {
    let program = Program::new();
    let cluster = plan().workers(2).with(Role::AppServer, &program.line()).start().await;
    let node = &cluster.nodes[0];
    let load = Load::across(&cluster.balancers, "/whoami", RATE).await;
    let before = node.ready_rows(2, SOON).await;
    program.is_now(Mood::ExitsAtOnce);
    node.signal(Signal::HUP);
    node.logged(&["ERROR", "the old one stays", "exit status: 3"]).await;
    node.logged(&["ERROR", "the reload was given up"]).await;
    load.answered(50).await;
    let pids = |rows: &[WorkerRow]| rows.iter().map(|row| row.pid).collect::<Vec<_>>();
    let serving = node.rows_with("its old workers", SOON, |rows| pids(rows) == pids(&before)).await;
    println!("{serving:?}\n{:?}", node.restarts_by_cause().await);
    assert!(serving.iter().all(WorkerRow::is_ready), "{serving:?}");
    println!("{:?}", node.log().into_iter().find(|line| line.contains("the old one stays")));
    assert!(node.restarts("exit").await >= 1);
    assert_eq!(node.restarts("reload").await, 0);

    program.is_now(Mood::Good);
    node.signal(Signal::HUP);
    node.replaced(&before, 2, SOON).await;
    load.answered(50).await;
    let tally = load.stop_without_failure().await;
    println!("0 of {} failed", tally.ok);
}

#[tokio::test]
async fn no_request_waits_for_the_slow_start_of_the_only_worker() {
    let program = Program::new();
    let cluster = plan().with(Role::AppServer, &program.line()).start().await;
    let node = &cluster.nodes[0];
    program.is_now(Mood::Slow);
    let load = Load::across(&cluster.balancers, "/whoami", RATE).await;
    let before = node.ready_rows(1, SOON).await;
    let asked = Instant::now();
    node.signal(Signal::HUP);
    node.replaced(&before, 1, SOON).await;
    let took = asked.elapsed();
    load.answered(50).await;
    let tally = load.stop_without_failure().await;
    println!("replaced in {took:?}; 0 of {} failed, the slowest took {:?}", tally.ok, tally.latency(100));
    assert!(took >= Duration::from_secs(2), "the program starts in {took:?}: nothing is shown");
    assert!(tally.latency(100) < Duration::from_secs(1), "one waited for {:?}", tally.latency(100));
}
