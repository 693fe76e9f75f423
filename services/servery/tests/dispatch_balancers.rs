//! Several balancers before the same one-slot workers: a permit is with whoever has something to send, and with one of them only.
//! The application itself says so when it ever has two requests at once, and the workers count what they have to send back.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rogue::Program;
use servery_harness::cluster::nodes_of;
use servery_harness::{Client, Cluster, Member, Plan, Protocol, Role, ensure, eventually, percentile};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SLOTS: usize = 4;

/// Two balancers, two nodes of two one-slot workers.
struct Pair {
    cluster: Cluster,
    clients: [Arc<Client>; 2],
    _program: Program,
}

impl Pair {
    async fn start() -> Self {
        let program = Program::new();
        let plan = Plan::new(SERVERY).alone().plain().balancers(2).nodes(2).workers(2);
        let plan = plan.with(Role::AppServer, "capacity = 1").with(Role::AppServer, &program.line());
        let cluster = plan.start().await;
        let clients = [0, 1].map(|index: usize| cluster.balancers[index].plain_client(Protocol::Http1));
        Self { cluster, clients, _program: program }
    }

    /// As many requests as there are slots, all at one balancer: how much longer it took than one of them alone takes.
    async fn all_slots(&self, balancer: usize, ms: u64) -> Duration {
        let began = Instant::now();
        join_all((0..SLOTS).map(|_| alone(&self.clients[balancer], ms))).await;
        began.elapsed().saturating_sub(Duration::from_millis(ms))
    }

    /// Requests per second of these many clients at each of the balancers, who never pause, and of each balancer.
    async fn throughput(&self, turns: [usize; 2], lasting: Duration) -> (f64, [f64; 2]) {
        let until = Instant::now() + lasting;
        let busy = |client: Arc<Client>| async move {
            let mut answered = 0.0;
            while Instant::now() < until {
                alone(&client, 20).await;
                answered += 1.0;
            }
            answered
        };
        let of = |index: usize| {
            let busy = (0..turns[index]).map(|_| busy(Arc::clone(&self.clients[index]))).collect::<Vec<_>>();
            async { join_all(busy).await.into_iter().sum::<f64>() / lasting.as_secs_f64() }
        };
        let (one, other) = tokio::join!(of(0), of(1));
        (one + other, [one, other])
    }

    /// Permits that have moved from one balancer to the other so far.
    async fn moves(&self) -> f64 {
        let mut sum = 0.0;
        for node in &self.cluster.nodes {
            sum += node.metrics().await.unwrap().sum("servery_app_server_grant_moves_total", &[]);
        }
        sum
    }

    async fn no_slot_ran_two(&self) {
        for node in &self.cluster.nodes {
            let metrics = node.metrics().await.unwrap();
            let sent_back = metrics.sum("servery_app_server_requests_refused_total", &[]);
            assert!(sent_back < 0.5, "{} had to send {sent_back} requests back", node.name);
        }
    }
}

async fn alone(client: &Client, ms: u64) {
    let answer = client.get(&format!("/alone/{ms}")).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The permits that a balancer is granted now.
async fn granted(balancer: &Member) -> anyhow::Result<u64> {
    let status = balancer.status().await?;
    let workers = nodes_of(&status).into_iter().filter_map(|node| node["workers"].as_array().cloned()).flatten();
    Ok(workers.filter_map(|worker| worker["grant"].as_u64()).sum())
}

#[tokio::test]
async fn permits_follow_the_load_from_one_balancer_to_the_other_and_no_slot_runs_two() {
    const ROUNDS: usize = 12;
    let pair = Pair::start().await;
    pair.throughput([4, 4], Duration::from_millis(200)).await;
    // In turn, each time with nothing left of what the other one had asked for. Three hundred milliseconds: two requests one after
    // the other could not be mistaken for two at once.
    let (mut moves, mut controls) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        controls.push(began.elapsed().saturating_sub(Duration::from_millis(300)));
        moves.push(pair.all_slots(round % 2, 300).await);
    }
    let [moved, control] = [&moves, &controls].map(|times| percentile(times.iter().copied(), 50.0));
    println!(
        "four requests at once at the balancer that had nothing: {moved:?} more than one takes, a bare sleep {control:?}: {moves:?}"
    );
    assert!(moved <= Duration::from_millis(100) + control, "grants have moved after {moved:?}");

    // In turn, so that what this machine does besides is everybody's.
    let lasting = Duration::from_millis(600);
    let (mut first, mut second, mut both, mut shares) = (Vec::new(), Vec::new(), Vec::new(), [0.0; 2]);
    let mut moves = 0.0;
    for _ in 0..5 {
        first.push(pair.throughput([8, 0], lasting).await.0);
        second.push(pair.throughput([0, 8], lasting).await.0);
        let moved = pair.moves().await;
        let (sum, each) = pair.throughput([4, 4], lasting).await;
        both.push(sum);
        moves += pair.moves().await - moved;
        shares = [shares[0] + each[0], shares[1] + each[1]];
    }
    let [first, second, both] = [first, second, both].map(median);
    println!(
        "requests per second, medians: {first:.0} at one, {second:.0} at the other, {both:.0} at both ({shares:.0?}), {moves} moves"
    );
    assert!(second >= 0.9 * first, "{second} at the other balancer, {first} at the first");
    assert!(both >= 0.9 * first, "{both} at both balancers, {first} at one");
    assert!(shares.iter().all(|one| *one >= 0.3 * shares.iter().sum::<f64>()), "{shares:?}: one balancer starves");
    pair.no_slot_ran_two().await;
}

#[tokio::test]
async fn what_a_killed_balancer_held_is_the_others_within_two_heartbeats() {
    // The default of `heartbeat` is a second.
    const TWO_HEARTBEATS: Duration = Duration::from_secs(2);
    let mut pair = Pair::start().await;
    // It has all there is, in use, when it dies.
    let mut victim = pair.cluster.balancers.remove(0);
    let client = Arc::clone(&pair.clients[0]);
    let busy = tokio::spawn(async move { join_all((0..8).map(|_| client.get("/nap/5000"))).await });
    eventually("the balancer to have every permit", Duration::from_secs(5), async || {
        let granted = granted(&victim).await?;
        anyhow::ensure!(granted == SLOTS as u64, "it has {granted}");
        Ok(())
    })
    .await;
    victim.kill().await;
    let killed = Instant::now();
    let heir = &pair.cluster.balancers[0];
    eventually("the other one to have every permit", Duration::from_secs(10), async || {
        let granted = granted(heir).await?;
        ensure(granted == SLOTS as u64, || format!("it has {granted}")).map_err(anyhow::Error::msg)
    })
    .await;
    let took = killed.elapsed();
    println!("the permits are the other balancer's {took:?} after the death of the first");
    assert!(took <= TWO_HEARTBEATS, "after {took:?}");
    let beyond = pair.all_slots(1, 200).await;
    println!("four requests at once take {beyond:?} more than one");
    assert!(beyond < Duration::from_millis(150), "{beyond:?}");
    pair.no_slot_ran_two().await;
    busy.abort();
}
