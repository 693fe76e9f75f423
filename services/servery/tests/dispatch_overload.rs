//! More than the workers can do, from clients who do not wait for ever: what is done is useful, who cannot be served is told when
//! to come back, and when it is over it is over. The workers' own best in the same run is the measure.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use servery_harness::{Client, Cluster, Crowd, Outcome, Plan, Protocol, Role, Visit, evenly, percentile};
use tokio::task::JoinSet;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const WORK: &str = "/sleep/50";

/// Of one-slot workers. Fifty milliseconds: the machine must not be what is overloaded.
const WORKERS: usize = 4;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(1);

async fn four_one_slot_workers() -> (Cluster, Arc<Client>) {
    let plan = Plan::new(SERVERY).alone().plain().nodes(2).workers(2).with(Role::AppServer, "capacity = 1");
    let cluster = plan.start().await;
    let client = cluster.balancers[0].plain_client(Protocol::Http1);
    (cluster, client)
}

/// Requests per second of so many clients who never pause: what the workers can do.
async fn capacity(client: &Arc<Client>, lasting: Duration) -> f64 {
    let began = Instant::now();
    let turns = (0..3 * WORKERS).map(|_| async {
        let mut answered = 0.0;
        while began.elapsed() < lasting {
            assert_eq!(client.get(WORK).await.unwrap().status, 200);
            answered += 1.0;
        }
        answered
    });
    join_all(turns).await.into_iter().sum::<f64>() / began.elapsed().as_secs_f64()
}

/// What came of it, by kind.
fn outcomes(visits: &[Visit]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for visit in visits {
        let kind = match &visit.outcome {
            Outcome::Served(_) => "served".to_owned(),
            Outcome::Refused(answer) => format!("refused with {}", answer.status.as_u16()),
            Outcome::GaveUp => "gave up".to_owned(),
            Outcome::Failed(why) => why.clone(),
        };
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

fn served(visits: &[Visit]) -> impl Iterator<Item = Duration> {
    visits.iter().filter(|visit| visit.served().is_some()).map(|visit| visit.took)
}

/// How many were served in the first half second, in the second one, ...
fn by_half_second(visits: &[Visit]) -> Vec<usize> {
    let mut counts = Vec::new();
    for visit in visits.iter().filter(|visit| visit.served().is_some()) {
        let index = usize::try_from(visit.ended.as_millis() / 500).unwrap();
        counts.resize(counts.len().max(index + 1), 0);
        counts[index] += 1;
    }
    counts
}

/// Three times what the workers can do, for a while; then, a second later, half of it, as before.
async fn overload(tries: u32) {
    const LASTING: Duration = Duration::from_secs(4);
    let (_cluster, client) = four_one_slot_workers().await;
    let clients = [Arc::clone(&client)];
    capacity(&client, Duration::from_millis(300)).await;
    let capacity = capacity(&client, Duration::from_secs(2)).await;
    let calm = || evenly(WORK, capacity / 2.0, Duration::from_secs(2));
    let before = Crowd::PATIENT.visit(&clients, &calm()).await;

    let began = Instant::now();
    let crowd = Crowd { patience: PATIENCE, tries };
    let during = crowd.visit(&clients, &evenly(WORK, 3.0 * capacity, LASTING)).await;
    // From when the queue is full until nobody comes any more.
    let full = PATIENCE / 2;
    let useful = during.iter().filter(|visit| visit.served().is_some() && (full..LASTING).contains(&visit.ended));
    let goodput = useful.count() as f64 / (LASTING - full).as_secs_f64();
    let p99 = percentile(served(&during), 99.0);
    println!("capacity {capacity:.0}/s; at three times that {goodput:.0}/s within {PATIENCE:?}, p99 of them {p99:?}");
    println!("{:?}; served in each half second: {:?}", outcomes(&during), by_half_second(&during));

    // What is over is over within a second.
    tokio::time::sleep(Duration::from_secs(1).saturating_sub(began.elapsed().saturating_sub(LASTING))).await;
    let after = Crowd::PATIENT.visit(&clients, &calm()).await;
    let [before, after] = [&before, &after].map(|visits| {
        assert_eq!(served(visits).count(), visits.len(), "{:?}", outcomes(visits));
        percentile(served(visits), 99.0)
    });
    println!("at half of the capacity: p99 {before:?} before, {after:?} from a second after the end on");
    assert!(goodput >= 0.95 * capacity, "{goodput:.1} of {capacity:.1} per second");
    // who has waited longer has gone; on a busy machine a client's own timer is late
    assert!(p99 < PATIENCE + Duration::from_millis(50), "{p99:?}");
    assert!(after <= before.mul_f64(1.2) + Duration::from_millis(20), "p99 {before:?} before, {after:?} after");
}

#[tokio::test]
async fn clients_who_give_up_cost_nobody_else_anything() {
    overload(1).await;
}

#[tokio::test]
async fn clients_who_come_back_at_once_do_not_keep_it_down() {
    overload(3).await;
}

#[tokio::test]
async fn who_is_refused_is_told_when_to_come_back_and_served_then() {
    let plan = Plan::new(SERVERY).alone().plain().nodes(2).workers(2).with(Role::AppServer, "capacity = 1");
    let cluster = plan.with(Role::Balancer, "queue_deadline = \"1s\"").start().await;
    let client = cluster.balancers[0].plain_client(Protocol::Http1);
    // Eight seconds of work at once, of which a queue of one second takes a part.
    let mut crowd = JoinSet::new();
    for _ in 0..160 {
        let client = Arc::clone(&client);
        crowd.spawn(async move { client.get("/sleep/200").await.unwrap() });
    }
    let refused = loop {
        let answer = crowd.join_next().await.expect("not everybody can be served within a second").unwrap();
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.status, 503, "{}", refused.text());
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let asked = Instant::now();
    let answer = client.get("/sleep/200").await.unwrap();
    println!("told to come back in {seconds} s, then {} after {:?}", answer.status, asked.elapsed());
    assert_eq!(answer.status, 200, "{}", answer.text());
}
