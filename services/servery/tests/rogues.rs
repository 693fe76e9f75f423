//! Workers that misbehave among workers that do not: what their clients get, what is logged and counted, and that nobody else
//! notices. Workers have one slot here, so that nobody else's request can be at the worker that misbehaves.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rogue::{LEAK, Mood, Program};
use servery_harness::client::{empty, full};
use servery_harness::{
    Answer, Client, Cluster, Load, Member, Plan, Protocol, Role, Signal, Tally, WorkerRow, ensure, eventually,
};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// The neighbours' requests per second.
const RATE: u32 = 50;

/// Of the application.
const LIMIT: Duration = Duration::from_secs(2);

/// What a client may have to wait beyond the limit, and what this machine may add.
const BEYOND: Duration = Duration::from_millis(1000 + 300);

const WORKERS: usize = 4;

/// A node of four workers, of which one will misbehave, under a steady load.
struct Neighbourhood {
    program: Program,
    cluster: Cluster,
    load: Load,
    /// The same of a process that has no part in it: what this machine, at this time, lets anybody notice.
    control: Load,
    /// What the load looked like while everybody behaved, and when that was over.
    calm: Tally,
    calm_until: Tally,
}

impl Neighbourhood {
    async fn with(lines: &[&str]) -> Self {
        let program = Program::new();
        let mut plan = Plan::new(SERVERY).alone().workers(4).with(Role::AppServer, &program.line());
        for line in ["capacity = 1", "timeout = \"2s\""].iter().chain(lines) {
            plan = plan.with(Role::AppServer, line);
        }
        let cluster = plan.start().await;
        let load = Load::across(&cluster.balancers, "/whoami", RATE).await;
        let bystander = Arc::new(Client::plain(cluster.sidecar.admin(), Protocol::Http1));
        let control = Load::start(vec![bystander], "/livez", RATE);
        let warm = load.so_far();
        load.answered(100).await;
        let calm_until = load.so_far();
        Self { program, cluster, load, control, calm: calm_until.since(&warm), calm_until }
    }

    fn node(&self) -> &Member {
        &self.cluster.nodes[0]
    }

    async fn ask(&self, method: &str, path: &str) -> Answer {
        let client = self.cluster.balancers[0].client(Protocol::Http1);
        let body = if method == "POST" { full("an order") } else { empty() };
        client.send(client.request(method, path, body).unwrap()).await.unwrap()
    }

    async fn ready(&self) -> Vec<WorkerRow> {
        self.node().ready_rows(WORKERS, SOON).await
    }

    /// Tells what was counted, and panics when the neighbours noticed something.
    async fn unmoved(self) {
        self.load.answered(100).await;
        println!("counted: {:?}", self.node().restarts_by_cause().await);
        let during = self.load.stop_without_failure().await.since(&self.calm_until);
        let control = self.control.stop().await;
        let [calm, rogue, control] = [&self.calm, &during, &control].map(|tally| tally.latency(99));
        println!(
            "neighbours: p99 {calm:?} of {} before, {rogue:?} of {} meanwhile, 0 failed; of a bystander: {control:?}",
            self.calm.ok, during.ok
        );
        let most = (3 * calm).max(calm + Duration::from_millis(100)) + 2 * control;
        assert!(
            rogue <= most,
            "the neighbours' p99 went from {calm:?} to {rogue:?}, that of a bystander is {control:?}"
        );
    }
}

fn told(log: &[String], words: &[&str]) -> Vec<String> {
    let has = |line: &&String| words.iter().all(|word| line.contains(word));
    log.iter().filter(has).cloned().collect()
}

/// A worker that stops answering everything: the client has its 504 in time, the worker is killed and replaced.
async fn a_hanging_worker(path: &str) {
    let street = Neighbourhood::with(&[]).await;
    let before = street.ready().await;
    let asked = Instant::now();
    let answer = street.ask("GET", path).await;
    let took = asked.elapsed();
    println!("{path}: {} after {took:?} (limit {LIMIT:?})", answer.status);
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(LIMIT <= took && took <= LIMIT + BEYOND, "504 after {took:?}");
    // It gets nothing new, but might have been about to say something: only then it is killed.
    let stalled = |rows: &[WorkerRow]| rows.iter().filter(|row| row.state == "stalled").count() == 1;
    street.node().rows_with("a stalled worker", SOON, stalled).await;
    eventually("the balancer to know", SOON, async || {
        let metrics = street.cluster.balancers[0].metrics().await?;
        let stalled = metrics.sum("servery_balancer_endpoints", &[("app", "demo"), ("state", "stalled")]);
        anyhow::ensure!((stalled - 1.0).abs() < 0.5, "{stalled} endpoints are stalled");
        Ok(())
    })
    .await;
    street.node().logged(&["WARN", "heartbeat"]).await;
    let one_is_new = |rows: &[WorkerRow]| {
        let old = rows.iter().filter(|row| before.iter().any(|old| old.pid == row.pid)).count();
        rows.len() == WORKERS && rows.iter().all(WorkerRow::is_ready) && old == WORKERS - 1
    };
    street.node().rows_with("one new worker", SOON, one_is_new).await;
    println!("replaced {:?} after the request", asked.elapsed());
    assert_eq!(street.node().restarts("heartbeat").await, 1);
    street.unmoved().await;
}

#[tokio::test]
async fn a_frozen_worker() {
    a_hanging_worker("/freeze").await;
}

#[tokio::test]
async fn a_worker_in_an_endless_loop() {
    a_hanging_worker("/spin").await;
}

/// Asks for leaks, not faster than a node can look, until the worker that leaks was replaced so often for `cause`; tells how
/// often it has leaked.
async fn leak_until(street: &Neighbourhood, cause: &str, replaced: u64) -> u32 {
    let mut turns = tokio::time::interval(Duration::from_millis(25));
    let mut leaks = 0;
    while street.node().restarts(cause).await < replaced {
        // More would not be this worker's burden but this machine's.
        assert!(leaks < 150, "{leaks} times {LEAK} bytes: {:?}", street.node().rows().await);
        turns.tick().await;
        let answer = street.ask("GET", "/leak").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        leaks += u32::from(answer.text() == "leaked");
    }
    leaks
}

#[tokio::test]
async fn a_leaking_worker_is_replaced_before_it_is_a_burden() {
    let street = Neighbourhood::with(&["max_rss = \"100MiB\"", "max_rss_hard = \"1GiB\""]).await;
    let leaks = leak_until(&street, "max_rss", 3).await;
    street.node().logged(&["max_rss"]).await;
    println!("{:?}", told(&street.node().log(), &["max_rss"]).first());
    let rows = street.ready().await;
    let memory: Vec<_> = rows.iter().map(|row| row.memory_bytes).collect();
    println!("three replaced after {leaks} times {LEAK} bytes; the workers now have {memory:?}");
    assert_eq!(street.node().restarts("max_rss_hard").await, 0);
    street.unmoved().await;
}

#[tokio::test]
async fn a_worker_that_leaks_beyond_the_hard_limit_is_killed() {
    let street = Neighbourhood::with(&["max_rss_hard = \"100MiB\""]).await;
    let leaks = leak_until(&street, "max_rss_hard", 1).await;
    println!("killed after {leaks} times {LEAK} bytes, with no request failed");
    street.node().logged(&["WARN", "max_rss_hard"]).await;
    street.ready().await;
    street.unmoved().await;
}

#[tokio::test]
async fn a_worker_that_exits_at_once_is_tried_ever_more_rarely_until_it_is_mended() {
    let street = Neighbourhood::with(&[]).await;
    let node = street.node();
    street.ready().await;
    street.program.is_now(Mood::ExitsAtOnce);
    let began = Instant::now();
    node.workers()[0].signal(Signal::KILL);
    eventually("a fifth death", SOON, async || {
        let deaths = node.restarts("exit").await;
        ensure(deaths >= 5, || format!("{deaths} are counted"))
    })
    .await;
    let took = began.elapsed();
    // Nothing after the first, then 0.1, 0.2 and 0.4 seconds.
    println!("five deaths within {took:?}: {:?}", node.restarts_by_cause().await);
    assert!(took >= Duration::from_millis(700), "five deaths within {took:?}");
    assert!(node.is_ready().await, "three of four serve");
    println!("{:?}", told(&node.log(), &["exit status: 3"]).first());
    node.logged(&["WARN", "exit status: 3"]).await;
    street.program.is_now(Mood::Good);
    street.ready().await;
    println!("mended after {:?}", began.elapsed());
    street.unmoved().await;
}

#[tokio::test]
async fn a_worker_that_is_never_ready_is_replaced() {
    let street = Neighbourhood::with(&["start_timeout = \"2s\""]).await;
    let node = street.node();
    street.ready().await;
    street.program.is_now(Mood::NeverReady);
    let began = Instant::now();
    node.workers()[0].signal(Signal::KILL);
    node.logged(&["WARN", "start_timeout"]).await;
    println!("given up after {:?}", began.elapsed());
    street.program.is_now(Mood::Good);
    street.ready().await;
    assert!(node.restarts("start_timeout").await >= 1);
    street.unmoved().await;
}

#[tokio::test]
async fn a_handler_that_panics() {
    let street = Neighbourhood::with(&[]).await;
    let before = street.ready().await;
    for _ in 0..10 {
        let answer = street.ask("GET", "/panic").await;
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(!answer.text().contains("fault"), "what went wrong inside is not for the client: {}", answer.text());
    }
    street.node().logged(&["the handler's own fault"]).await;
    let pids = |rows: Vec<WorkerRow>| rows.iter().map(|row| row.pid).collect::<Vec<_>>();
    assert_eq!(pids(street.ready().await), pids(before), "a panic costs no worker");
    eventually("ten to be counted", SOON, async || {
        let metrics = street.node().metrics().await?;
        let answered = metrics.sum("servery_app_server_requests_total", &[("code_class", "5xx")]);
        anyhow::ensure!((answered - 10.0).abs() < 0.5, "{answered} are counted");
        Ok(())
    })
    .await;
    println!("ten panics: ten times 500, ten counted, no worker lost");
    street.unmoved().await;
}

#[tokio::test]
async fn a_worker_that_closes_its_control_socket() {
    let street = Neighbourhood::with(&[]).await;
    let before = street.ready().await;
    let answer = street.ask("POST", "/close-control").await;
    println!("its client got {}", answer.status);
    assert!(matches!(answer.status.as_u16(), 200 | 502), "{}", answer.text());
    street.node().logged(&["WARN", "control"]).await;
    let gone = |rows: &[WorkerRow]| {
        let old = rows.iter().filter(|row| before.iter().any(|old| old.pid == row.pid)).count();
        rows.len() == WORKERS && old == WORKERS - 1 && rows.iter().all(WorkerRow::is_ready)
    };
    let rows = street.node().rows_with("one new worker", SOON, gone).await;
    assert_eq!(street.node().restarts("control").await, 1);
    let alive = street.node().workers();
    assert!(alive.iter().all(|kin| rows.iter().any(|row| row.pid == kin.pid)), "it lives on: {alive:?}");
    street.unmoved().await;
}

#[tokio::test]
async fn a_request_that_kills_its_worker_is_tried_twice_and_not_a_third_time() {
    let street = Neighbourhood::with(&[]).await;
    let (node, balancer) = (street.node(), &street.cluster.balancers[0]);
    let before = street.ready().await;
    let answer = street.ask("GET", "/abort?secret=1").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    // What was logged: which request, and nothing of its query.
    balancer.logged(&["WARN", "GET", "/abort"]).await;
    let line = told(&balancer.log(), &["WARN", "GET", "/abort"]).remove(0);
    println!("{line}");
    assert!(!line.contains("secret"), "{line}");
    let entry = eventually("the request in the access log", SOON, async || {
        let found = balancer.access_log().into_iter().find(|line| line["path"] == "/abort");
        found.ok_or("not there yet")
    })
    .await;
    assert_eq!((entry["reject"].as_str(), entry["attempts"].as_u64()), (Some("poison"), Some(2)), "{entry}");
    assert!(line.contains(entry["request_id"].as_str().unwrap()), "{entry}\n{line}");
    let rejected = balancer.metrics().await.unwrap().sum("servery_balancer_rejects_total", &[("reason", "poison")]);
    assert!((rejected - 1.0).abs() < 0.5, "{rejected} counted");
    let old_ones = |rows: &[WorkerRow]| rows.iter().filter(|row| before.iter().any(|old| old.pid == row.pid)).count();
    let all_ready = |rows: &[WorkerRow]| rows.len() == WORKERS && rows.iter().all(WorkerRow::is_ready);
    node.rows_with("two new workers", SOON, |rows| all_ready(rows) && old_ones(rows) == WORKERS - 2).await;
    assert_eq!(node.restarts("exit").await, 2);

    // What may not be repeated has one try only.
    let answer = street.ask("POST", "/abort").await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    node.rows_with("one more death", SOON, |rows| {
        all_ready(rows) && rows.iter().map(|row| row.restarts).sum::<u64>() == 3
    })
    .await;
    assert_eq!(node.restarts("exit").await, 3);
    street.unmoved().await;
}

#[tokio::test]
async fn what_keeps_moving_is_never_cut_and_what_stands_still_is() {
    let cluster = Plan::new(SERVERY).workers(2).with(Role::AppServer, "timeout = \"1s\"").start().await;
    let balancer = &cluster.balancers[0];
    for protocol in Protocol::BOTH {
        let client = balancer.client(protocol);
        let begun = Instant::now();
        let events = async {
            let answer = client.get("/stream/30/100").await.unwrap();
            assert!(answer.text().ends_with("data: event 30 of 30\n\n"), "{}", answer.text());
            begun.elapsed()
        };
        let download = async {
            let request = client.request("GET", "/bytes/67108864", empty()).unwrap();
            let mut open = client.open(request).await.unwrap();
            let mut length = 0;
            // A client on a slow line: it takes its time between two pieces, and gets all of them.
            let mut line = tokio::time::interval(Duration::from_millis(20));
            while let Some(piece) = open.piece().await.unwrap() {
                length += piece.len();
                if begun.elapsed() < Duration::from_secs(3) {
                    line.tick().await;
                }
            }
            assert_eq!(length, 67_108_864);
            begun.elapsed()
        };
        let (events, download) = tokio::join!(events, download);
        println!("{protocol:?}: events went on for {events:?}, a download for {download:?}, with a limit of 1 s");
        assert!(events > Duration::from_secs(2) && download > Duration::from_secs(2));

        let begun = Instant::now();
        let mut open = client.open(client.request("GET", "/stream/3/4000", empty()).unwrap()).await.unwrap();
        assert_eq!(open.response.status(), 200);
        let cut = tokio::time::timeout(SOON, open.rest()).await.unwrap();
        println!("{protocol:?}: a pause of 4 s was cut after {:?}: {cut:?}", begun.elapsed());
        assert!(cut.is_err(), "{cut:?} looks like a whole answer");
        assert!(begun.elapsed() < Duration::from_secs(1) + BEYOND, "cut after {:?}", begun.elapsed());
    }
    cluster.nodes[0].logged(&["WARN", "/stream/3/4000"]).await;
}
