//! A pool of real processes: this test's own program, started again as a worker of the kind that a test wants.

use super::Pool;
use crate::{
    config::{Percent, Recycling},
    demo,
    life::Limits,
    metrics::{Cause, Counters},
    process::Program,
    register::Audience,
    roster::{Roster, Row, State},
    sockets::Sockets,
    tenure::Hatchery,
};
use chassis::listen::ListenAddr;
use proto::worker::Configure;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{env, process, thread, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const PASS: [u8; 2] = [0xab, 0xcd];

/// Not tests but what the processes run: each does nothing unless it was started by a pool.
mod worker {
    use super::*;

    fn is_started_by_a_pool() -> bool {
        env::var_os("SERVERY_LISTEN_FD").is_some()
    }

    #[test]
    fn serves() {
        if is_started_by_a_pool() {
            let _ = servery_worker::run(demo::router());
            process::exit(0);
        }
    }

    #[test]
    fn exits_at_once() {
        if is_started_by_a_pool() {
            process::exit(3);
        }
    }

    #[test]
    fn is_never_ready() {
        if is_started_by_a_pool() {
            loop {
                thread::park();
            }
        }
    }

    /// Keeps 128 MiB with each request for `/leak`.
    #[test]
    fn leaks() {
        if is_started_by_a_pool() {
            let leak = || async {
                std::mem::forget(std::hint::black_box(vec![1_u8; 128 << 20]));
                "gone"
            };
            let _ = servery_worker::run(demo::router().route("/leak", axum::routing::get(leak)));
            process::exit(0);
        }
    }

    /// Blocks the worker's one thread from inside a handler.
    #[test]
    fn spins() {
        if is_started_by_a_pool() {
            async fn spin() -> &'static str {
                while std::hint::black_box(true) {}
                "never"
            }
            let _ = servery_worker::run(axum::Router::new().route("/", axum::routing::get(spin)));
            process::exit(0);
        }
    }
}

struct Node {
    pool: Pool<Hatchery>,
    roster: Roster,
}

impl Node {
    fn start(kind: &str, workers: u32, limits: Limits) -> Self {
        Self::recycling(kind, workers, limits, Recycling::default())
    }

    fn recycling(kind: &str, workers: u32, limits: Limits, recycling: Recycling) -> Self {
        let arguments = ["--exact", &format!("pool::tests::worker::{kind}"), "--nocapture", "--quiet"];
        let program = Program::of_test(env::current_exe().unwrap(), arguments.map(Into::into).to_vec());
        let worker_bind = ListenAddr::At("127.0.0.1:0".parse().unwrap());
        let configure = Configure {
            protocol_version: proto::PROTOCOL_VERSION,
            pass: PASS.to_vec(),
            capacity: 2,
            app: "demo".to_owned(),
            node: "node-1".to_owned(),
            ..Configure::default()
        };
        let (roster, counters) = (Roster::new(), Counters::new());
        let hatchery = Hatchery {
            program,
            sockets: Sockets::own(worker_bind, workers).unwrap(),
            configure,
            limits,
            recycling,
            roster: roster.clone(),
            counters: counters.clone(),
            audience: Audience::default(),
            reopens: watch::Sender::new(0),
        };
        Self { pool: Pool::spawn(hatchery, workers, Percent(25), PATIENCE, &roster, &counters), roster }
    }

    /// The rows, once they are as wanted.
    async fn rows(&self, wanted: impl Fn(&[Row]) -> bool) -> Vec<Row> {
        let mut watch = self.roster.watch();
        let rows = timeout(PATIENCE, watch.wait_for(|rows| wanted(rows))).await;
        rows.unwrap_or_else(|_| panic!("not as wanted in time: {:?}", self.roster.rows())).unwrap().clone()
    }

    async fn ready(&self, workers: usize) -> Vec<Row> {
        self.rows(|rows| rows.len() == workers && rows.iter().all(|row| row.state == State::Ready)).await
    }
}

fn limits(start: Duration, silence: Duration) -> Limits {
    Limits { start, unheard: Duration::from_secs(1), silence }
}

fn patient() -> Limits {
    limits(PATIENCE, PATIENCE)
}

fn signal(pid: u32, signal: Signal) {
    kill_process(pid_of(pid), signal).unwrap();
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// Stops it, and waits until it stands still.
async fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    let until = Instant::now() + PATIENCE;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if status.lines().any(|line| line.starts_with("State:\tT")) {
            return;
        }
        assert!(Instant::now() < until, "process {pid} does not stop: {status}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn gone(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while test_kill_process(pid_of(pid)).is_ok() {
        assert!(Instant::now() < until, "process {pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn begin(port: u16, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nservery-pass: abcd\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn finish(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn every_worker_serves_and_a_killed_one_is_replaced() {
    let node = Node::start("serves", 2, patient());
    let rows = node.ready(2).await;
    for row in &rows {
        let answer = finish(begin(row.port, "/whoami").await).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(&format!("\"worker\":{},\"pid\":{}", row.position, row.pid)), "{answer}");
    }
    signal(rows[0].pid, Signal::KILL);
    let after = node.rows(|rows| rows.iter().any(|row| row.key() == (0, 2) && row.state == State::Ready)).await;
    assert_eq!((after[0].restarts(), after[1].pid), (1, rows[1].pid), "the neighbour is left alone");
    assert!(finish(begin(after[0].port, "/hello").await).await.contains("Hello World!"));
    gone(rows[0].pid).await;
}

#[tokio::test]
async fn what_waits_for_a_dead_worker_is_sent_elsewhere() {
    let node = Node::start("serves", 1, patient());
    let row = node.ready(1).await.remove(0);
    // stopped, so that it cannot accept: the kernel does, and the requests wait
    stop(row.pid).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(begin(row.port, "/hello").await);
    }
    signal(row.pid, Signal::KILL);
    for stream in waiting {
        let answer = finish(stream).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("servery-refused: gone"), "{answer}");
    }
    node.rows(|rows| rows.iter().any(|row| row.generation == 2 && row.state == State::Ready)).await;
}

#[tokio::test]
async fn a_program_that_exits_at_once_does_not_spin() {
    let mut node = Node::start("exits_at_once", 1, patient());
    let started = Instant::now();
    node.rows(|rows| rows.iter().any(|row| row.generation == 5)).await;
    let pauses = Duration::from_millis(100 + 200 + 400 + 800);
    assert!(started.elapsed() >= pauses, "four deaths within {:?}", started.elapsed());
    // a node that stops waits for no pause
    timeout(Duration::from_secs(5), node.pool.stop()).await.expect("an end at once");
}

#[tokio::test]
async fn a_worker_that_is_never_ready_is_killed_and_replaced() {
    let node = Node::start("is_never_ready", 1, limits(Duration::from_millis(300), PATIENCE));
    let first = node.rows(|rows| rows.len() == 1).await.remove(0);
    node.rows(|rows| rows.iter().any(|row| row.generation == 2)).await;
    gone(first.pid).await;
}

#[tokio::test]
async fn a_worker_that_falls_silent_is_killed_and_replaced() {
    let node = Node::start("serves", 1, limits(PATIENCE, Duration::from_millis(1500)));
    let first = node.ready(1).await.remove(0);
    stop(first.pid).await;
    node.rows(|rows| rows.iter().any(|row| row.generation == 2 && row.state == State::Ready)).await;
    gone(first.pid).await;

    let node = Node::start("spins", 1, limits(PATIENCE, Duration::from_millis(1500)));
    let first = node.ready(1).await.remove(0);
    let spinning = begin(first.port, "/").await;
    node.rows(|rows| rows.iter().any(|row| row.generation == 2 && row.state == State::Ready)).await;
    gone(first.pid).await;
    drop(spinning);
}

#[tokio::test]
async fn a_pool_that_drains_finishes_what_runs_and_leaves_no_process() {
    let mut node = Node::start("serves", 2, patient());
    let rows = node.ready(2).await;
    let slow = begin(rows[0].port, "/sleep/700").await;
    node.rows(|rows| rows[0].busy == 1).await;
    timeout(PATIENCE, node.pool.drain(Instant::now() + PATIENCE)).await.expect("drained in time");
    assert!(finish(slow).await.contains("slept 700 ms"));
    for row in rows {
        gone(row.pid).await;
    }
    assert!(node.roster.rows().is_empty());
}

#[tokio::test]
async fn a_pool_that_is_dropped_takes_its_workers_along() {
    let node = Node::start("serves", 2, patient());
    let rows = node.ready(2).await;
    drop(node);
    for row in rows {
        gone(row.pid).await;
    }
}

#[tokio::test]
async fn a_reload_replaces_every_worker_and_finishes_what_runs() {
    let node = Node::start("serves", 3, patient());
    let rows = node.ready(3).await;
    let slow = begin(rows[0].port, "/sleep/300").await;
    node.rows(|rows| rows[0].busy == 1).await;
    node.pool.reload();
    assert!(timeout(PATIENCE, node.pool.reloaded()).await.expect("a reload in time"));
    let after = node.rows(|rows| rows.len() == 3 && rows.iter().all(|row| row.state == State::Ready)).await;
    assert!(after.iter().all(|row| row.generation == 2 && row.restarts() == 1), "{after:?}");
    assert!(finish(slow).await.contains("slept 300 ms"));
    for row in rows {
        gone(row.pid).await;
    }
}

#[tokio::test]
async fn positions_come_and_go_and_no_generation_is_used_twice() {
    let mut node = Node::start("serves", 1, patient());
    node.ready(1).await;
    node.pool.grow();
    let two = node.ready(2).await;
    assert!(node.pool.shrink());
    node.rows(|rows| rows.len() == 1).await;
    gone(two[1].pid).await;
    assert!(!node.pool.shrink(), "one worker is the least");
    // its place is free again when its socket is
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.pool.grow();
    let again = node.ready(2).await;
    assert!(again[1].position == 2 || again[1].key() == (1, 2), "{again:?}");
}

#[tokio::test]
async fn a_worker_that_holds_too_much_memory_is_replaced_or_killed() {
    const LIMIT: Option<u64> = Some(64 << 20);
    let soft = Recycling { max_rss: LIMIT, ..Recycling::default() };
    let node = Node::recycling("leaks", 1, patient(), soft);
    let first = node.ready(1).await.remove(0);
    let slow = begin(first.port, "/sleep/1500").await;
    finish(begin(first.port, "/leak").await).await;
    let after = node.rows(|rows| rows.iter().any(|row| row.generation == 2 && row.state == State::Ready)).await;
    assert_eq!(after.last().unwrap().causes.keys().collect::<Vec<_>>(), [&Cause::MaxRss]);
    assert!(finish(slow).await.contains("slept 1500 ms"), "gently");
    gone(first.pid).await;

    let hard = Recycling { max_rss_hard: LIMIT, ..Recycling::default() };
    let node = Node::recycling("leaks", 1, patient(), hard);
    let first = node.ready(1).await.remove(0);
    finish(begin(first.port, "/leak").await).await;
    let after = node.rows(|rows| rows.iter().any(|row| row.generation == 2 && row.state == State::Ready)).await;
    assert_eq!(after[0].causes.keys().collect::<Vec<_>>(), [&Cause::MaxRssHard]);
}

#[tokio::test]
async fn a_limit_that_a_fresh_worker_exceeds_does_not_replace_for_ever() {
    let senseless = Recycling { max_rss: Some(1), ..Recycling::default() };
    let node = Node::recycling("serves", 1, patient(), senseless);
    let first = node.ready(1).await.remove(0);
    // memory has been looked at again
    node.rows(|rows| rows[0].started.elapsed() > Duration::from_secs(2) && rows[0].memory > 0).await;
    assert_eq!(node.ready(1).await[0].pid, first.pid);
}
