//! What the app's mutex costs, in real time: a permit acquired and given back, with few and many endpoints, from one
//! thread and from two. Comes in a counter of allocations, because only a binary can count them; goes out a table.

use balancer::{
    app::{App, Apps, Limits},
    client::Client,
    endpoint::{Node, WorkerView},
};
use chassis::config::Percent;
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};
use tokio::time::Instant;

const ENDPOINTS: [u32; 4] = [1, 8, 1_000, 10_000];
/// Of each endpoint: nobody waits.
const GRANT: u32 = 64;
const ROUNDS: usize = 9;
const PAIRS: u32 = 100_000;

/// The table. `allocations`: how many this process has made so far.
pub fn cost(allocations: impl Fn() -> u64) -> anyhow::Result<String> {
    let mut markdown =
        String::from("| endpoints | threads | ns per pair | allocations per pair |\n|---|---|---|---|\n");
    for endpoints in ENDPOINTS {
        for threads in [1, 2] {
            let app = app(endpoints);
            round(&app, threads)?;
            let before = allocations();
            round(&app, threads)?;
            // starting the threads allocates too, but not for every pair
            let made = (allocations() - before) / u64::from(PAIRS);
            let mut rounds = (0..ROUNDS).map(|_| round(&app, threads)).collect::<anyhow::Result<Vec<_>>>()?;
            rounds.sort_unstable();
            let nanos = rounds[ROUNDS / 2].as_nanos() / u128::from(PAIRS);
            let _ = writeln!(markdown, "| {endpoints} | {threads} | {nanos} | {made} |");
        }
    }
    Ok(markdown)
}

/// As long as all threads together need for `PAIRS` pairs each.
fn round(app: &Arc<App>, threads: usize) -> anyhow::Result<Duration> {
    let barrier = Barrier::new(threads);
    let times = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| pairs(app, &barrier))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that panics ends the measurement")).collect()
    });
    let times: anyhow::Result<Vec<Duration>> = times;
    Ok(times?.into_iter().max().unwrap_or_default())
}

fn pairs(app: &Arc<App>, barrier: &Barrier) -> anyhow::Result<Duration> {
    let client = Client::from(IpAddr::from(Ipv4Addr::LOCALHOST));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        barrier.wait();
        let start = Instant::now();
        let deadline = start + Duration::from_secs(60);
        for _ in 0..PAIRS {
            let permit = app.acquire(client.into(), &[], false, start, deadline).await;
            let mut permit = permit.map_err(|reject| anyhow::anyhow!("no permit: {reject:?}"))?;
            permit.settle();
        }
        Ok(start.elapsed())
    })
}

fn app(endpoints: u32) -> Arc<App> {
    let limits = Limits {
        queue_length: 1024,
        client_share: Percent(50),
        stalled_share: Percent(50),
        queue_deadline: Duration::from_secs(10),
    };
    let app = Apps::new(limits).obtain("cost");
    let port = |worker: u32| SocketAddr::from((Ipv4Addr::from(worker), 1));
    for node in 0..endpoints.div_ceil(4) {
        let workers =
            (node * 4..endpoints.min(node * 4 + 4)).map(|worker| WorkerView::ready(worker % 4, port(worker), GRANT));
        let workers: Vec<WorkerView> = workers.collect();
        app.apply(&Arc::new(Node::new(format!("node-{node}"), port(node), b"measured")), &workers);
    }
    app
}
