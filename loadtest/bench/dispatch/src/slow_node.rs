//! Three nodes of four one-slot workers, one of them five times slower, Poisson arrivals at 70 % of what they can really do, 90 % of
//! 20 ms of work and 10 % of 200 ms: goes out how long requests take with each contender, beside the ideal single queue on the very
//! same arrivals, and how equal nodes share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use servery_harness::{Arrival, Client, Crowd, Visit, percentile};

use crate::Order;
use crate::contender::{Contender, Fleet, backends, directory};
use crate::ideal::{Choice, Job, single_queue};
use crate::report::{middle, ms, table};

const FLEET: Fleet = Fleet { nodes: 3, workers: 4, slowness: 5 };
const LOAD: f64 = 0.7;
const SHORT_MS: u64 = 20;
const LONG_MS: u64 = 200;
const LONG_SHARE: f64 = 0.1;

/// What comes before is not counted: everybody may get to know the workers.
const WARM_UP: Duration = Duration::from_secs(4);

/// What one load came to.
#[derive(Debug, Default)]
struct Outcome {
    p50: Vec<f64>,
    p99: Vec<f64>,
    mean: Vec<f64>,
    failed: usize,
    by_node: BTreeMap<String, usize>,
}

impl Outcome {
    fn add(&mut self, times: &[Duration]) {
        let of = |percent| percentile(times.iter().copied(), percent).as_secs_f64() * 1000.0;
        self.p50.push(of(50.0));
        self.p99.push(of(99.0));
        self.mean.push(times.iter().sum::<Duration>().as_secs_f64() * 1000.0 / times.len() as f64);
    }

    fn add_visits(&mut self, visits: &[Visit]) {
        let visits: Vec<&Visit> = visits.iter().filter(|visit| visit.at >= WARM_UP).collect();
        self.add(&visits.iter().map(|visit| visit.took).collect::<Vec<_>>());
        for visit in visits {
            match visit.served() {
                None => self.failed += 1,
                Some(answer) => {
                    let text = answer.text();
                    let node = text.split_whitespace().next().unwrap_or_default();
                    *self.by_node.entry(node.to_owned()).or_default() += 1;
                }
            }
        }
    }

    fn row(&self, name: &str, best: f64) -> Vec<String> {
        let [p50, mean, p99] = [&self.p50, &self.mean, &self.p99].map(|numbers| middle(numbers));
        let each: Vec<String> = self.p99.iter().map(|p99| format!("{p99:.0}")).collect();
        let numbers = [p50, mean, p99].map(|number| format!("{number:.1}")).into_iter();
        let rest = [format!("{:.2}", p99 / best), each.join(", "), self.failed.to_string()];
        std::iter::once(name.to_owned()).chain(numbers).chain(rest).collect()
    }
}

pub(crate) async fn measure(order: &Order) -> String {
    let (short, long) = bare(order).await;
    let mean = (1.0 - LONG_SHARE) * short.as_secs_f64() + LONG_SHARE * long.as_secs_f64();
    let (fast, slow) = (f64::from(FLEET.nodes - 1), 1.0 / f64::from(FLEET.slowness));
    let capacity = f64::from(FLEET.workers) * (fast + slow) / mean;
    let contenders = [
        Contender::servery(&order.servery, FLEET).await,
        Contender::nginx(&order.servery, FLEET).await,
        Contender::haproxy(&order.servery, FLEET).await,
    ];
    let mut outcomes: Vec<Outcome> = contenders.iter().map(|_| Outcome::default()).collect();
    let [mut blind, mut knowing, mut without] = [Outcome::default(), Outcome::default(), Outcome::default()];
    for round in 0..order.rounds {
        let mut rng = StdRng::seed_from_u64(order.seed + round as u64);
        let arrivals = poisson(LOAD * capacity, WARM_UP + order.seconds, &mut rng);
        for turn in 0..contenders.len() {
            let index = (turn + round) % contenders.len();
            let visits = Crowd::PATIENT.visit(&[contenders[index].client()], &arrivals).await;
            outcomes[index].add_visits(&visits);
        }
        let jobs: Vec<Job> = arrivals
            .iter()
            .map(|arrival| Job { at: arrival.at, work: if is_long(arrival) { long } else { short } })
            .collect();
        let slowness: Vec<u32> = (1..=FLEET.nodes)
            .flat_map(|node| {
                let slowness = if node == FLEET.nodes { FLEET.slowness } else { 1 };
                (0..FLEET.workers).map(move |_| slowness)
            })
            .collect();
        let fast = &slowness[..slowness.len() - usize::from(FLEET.workers)];
        for (outcome, slowness, choice) in [
            (&mut blind, &slowness[..], Choice::Random),
            (&mut knowing, &slowness[..], Choice::FastFirst),
            (&mut without, fast, Choice::Random),
        ] {
            let times = single_queue(&jobs, slowness, choice, &mut rng);
            let counted = jobs.iter().zip(times).filter(|(job, _)| job.at >= WARM_UP);
            outcome.add(&counted.map(|(_, took)| took).collect::<Vec<_>>());
        }
    }
    let best = middle(&blind.p99);
    let mut rows = vec![
        blind.row("ideal single queue, an idle worker at random (computed)", best),
        knowing.row("ideal single queue, fast workers first (computed)", best),
        without.row("ideal single queue, without the slow node (computed)", best),
    ];
    rows.extend(contenders.iter().zip(&outcomes).map(|(contender, outcome)| outcome.row(contender.name, best)));
    let columns = ["", "p50, ms", "mean, ms", "p99, ms", "p99 of the first ideal's", "p99 of each round", "failed"];
    let title = format!(
        "One of three nodes 5 x slower, {:.0} requests per second (70 %), {} rounds of {} s",
        LOAD * capacity,
        order.rounds,
        order.seconds.as_secs()
    );
    let table = table(&title, &columns, &rows);
    let shares = &outcomes[0].by_node;
    let [one, other] = ["node-0", "node-1"].map(|node| shares.get(node).copied().unwrap_or_default() as f64);
    let apart = 100.0 * (one - other).abs() / ((one + other) / 2.0);
    format!(
        "{table}\nA worker alone takes {} and {} ms. Servery's nodes got {shares:?}: the equal ones are {apart:.1} % apart.\n",
        ms(short),
        ms(long)
    )
}

fn is_long(arrival: &Arrival) -> bool {
    *arrival.path == format!("/sleep/{LONG_MS}")
}

/// The two kinds of work at a worker that has nothing else to do, with nobody in between: medians.
async fn bare(order: &Order) -> (Duration, Duration) {
    let directory = directory();
    let fleet = Fleet { nodes: 1, workers: 1, slowness: 1 };
    let backends = backends(&order.servery, fleet, directory.path()).await;
    let client = backends[0].client(servery_harness::Protocol::Http1);
    (alone(&client, SHORT_MS).await, alone(&client, LONG_MS).await)
}

async fn alone(client: &Client, ms: u64) -> Duration {
    let mut times = Vec::new();
    for _ in 0..20 {
        let asked = Instant::now();
        client.get(&format!("/sleep/{ms}")).await.expect("a worker that is ready answers");
        times.push(asked.elapsed());
    }
    percentile(times, 50.0)
}

fn poisson(per_second: f64, lasting: Duration, rng: &mut StdRng) -> Vec<Arrival> {
    let [short, long] = [SHORT_MS, LONG_MS].map(|ms| Arc::<str>::from(format!("/sleep/{ms}")));
    let mut at = Duration::ZERO;
    let mut arrivals = Vec::new();
    loop {
        // The time between two of them; `random` is below 1, so the logarithm is of no 0.
        at += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() / per_second);
        if at >= lasting {
            return arrivals;
        }
        let path = if rng.random::<f64>() < LONG_SHARE { &long } else { &short };
        arrivals.push(Arrival { at, path: Arc::clone(path) });
    }
}
