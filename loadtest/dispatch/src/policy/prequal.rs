//! Like Prequal (Wydrowski and others, NSDI 2024), asynchronous mode: every request sends off three probes; the answers,
//! a worker's requests in flight (RIF) and the latency to expect at that number, go into a pool of 16. A request takes
//! the probe with the least latency among the cold ones (RIF at most the 0.84 quantile of late), and where all are hot
//! the one with the least RIF. Probes are used again as often as the paper's formula says, age out after a second, and
//! with every request the worst and the oldest take turns in leaving. "Like", because the latency estimate is a
//! moving average per RIF, and nothing is tuned to Google's load.

use crate::{
    calendar::Time,
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use rand::{RngExt, rngs::SmallRng};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

const POOL: usize = 16;
const PROBES: usize = 3;
const REMOVED: f64 = 1.0;
/// How much faster probes come than they are used up.
const SURPLUS: f64 = 1.0;
const COLD: f64 = 0.84;
const AGE: Duration = Duration::from_secs(1);
/// Answers that the quantile is taken of.
const REMEMBERED: usize = 128;
/// Numbers in flight with a latency of their own.
const LEVELS: usize = 16;

#[derive(Debug)]
pub(super) struct Prequal {
    balancers: Vec<Balancer>,
    workers: Vec<Latencies>,
    /// RIF that a request found at its worker.
    found: HashMap<RequestId, usize>,
    /// How often a probe may be used.
    uses: f64,
    rng: SmallRng,
}

#[derive(Debug, Default)]
struct Balancer {
    /// Oldest first.
    pool: VecDeque<Probe>,
    late: VecDeque<usize>,
    oldest_leaves: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    worker: usize,
    rif: usize,
    latency: Duration,
    at: Time,
    uses: u32,
}

/// By number in flight; none where no request has met it yet.
#[derive(Clone, Debug, Default)]
struct Latencies([Option<Duration>; LEVELS]);

#[derive(Debug)]
pub(super) enum Word {
    Ask { balancer: usize, worker: usize },
    Answer { balancer: usize, probe: Probe },
}

impl Prequal {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let workers = scenario.workers_in_all();
        let share = 1.0 - POOL as f64 / workers as f64;
        let surplus = share * PROBES as f64 - REMOVED;
        Self {
            balancers: (0..scenario.balancers).map(|_| Balancer::default()).collect(),
            workers: vec![Latencies::default(); workers],
            found: HashMap::new(),
            uses: if surplus > 0.0 { ((1.0 + SURPLUS) / surplus).max(1.0) } else { f64::from(u16::MAX) },
            rng: scenario.generator(Part::Policy),
        }
    }

    fn pick(&mut self, balancer: usize, now: Time) -> usize {
        let workers = self.workers.len();
        let balancer = &mut self.balancers[balancer];
        balancer.pool.retain(|probe| now - probe.at < AGE);
        if balancer.pool.len() < 2 {
            return self.rng.random_range(0..workers);
        }
        let limit = balancer.limit();
        let probes = || balancer.pool.iter().enumerate();
        let cold = probes().filter(|(_, probe)| probe.rif <= limit).min_by_key(|(_, probe)| probe.latency);
        let least = cold.or_else(|| probes().min_by_key(|(_, probe)| probe.rif));
        let at = least.expect("the pool is not empty").0;
        let probe = &mut balancer.pool[at];
        let worker = probe.worker;
        // our own request will be there; its worker is worth less from now on
        probe.rif += 1;
        probe.uses = probe.uses.saturating_sub(1);
        if probe.uses == 0 {
            balancer.pool.remove(at);
        }
        worker
    }
}

impl Balancer {
    fn limit(&self) -> usize {
        let mut late: Vec<usize> = self.late.iter().copied().collect();
        late.sort_unstable();
        late.get((late.len() as f64 * COLD) as usize).copied().unwrap_or(0)
    }

    fn remove_one(&mut self) {
        self.oldest_leaves = !self.oldest_leaves;
        if self.oldest_leaves {
            self.pool.pop_front();
            return;
        }
        let limit = self.limit();
        // any hot one is worse than every cold one
        let worst = |probe: &Probe| match probe.rif > limit {
            true => (true, probe.rif, Duration::ZERO),
            false => (false, 0, probe.latency),
        };
        let worst = self.pool.iter().enumerate().max_by_key(|(_, probe)| worst(probe)).map(|(at, _)| at);
        if let Some(at) = worst {
            self.pool.remove(at);
        }
    }
}

impl Latencies {
    fn observe(&mut self, rif: usize, latency: Duration) {
        let known = &mut self.0[rif.min(LEVELS - 1)];
        *known = Some(known.map_or(latency, |known| (known * 7 + latency) / 8));
    }

    /// Of the nearest number that is known.
    fn at(&self, rif: usize) -> Duration {
        let rif = rif.min(LEVELS - 1);
        let known = (0..LEVELS).filter_map(|level| Some((level.abs_diff(rif), self.0[level]?)));
        known.min().map(|(_, latency)| latency).unwrap_or_default()
    }
}

impl Policy for Prequal {
    type Message = Word;

    fn arrive(&mut self, request: RequestId, world: &mut World<Word>) {
        let balancer = world.request(request).balancer;
        let worker = self.pick(balancer, world.now());
        self.found.insert(request, world.worker(worker).load());
        world.send(request, worker);
        self.balancers[balancer].remove_one();
        for _ in 0..PROBES {
            let worker = self.rng.random_range(0..self.workers.len());
            world.say(world.network(), Word::Ask { balancer, worker });
        }
    }

    fn answered(&mut self, request: RequestId, worker: usize, world: &mut World<Word>) {
        if let Some(rif) = self.found.remove(&request) {
            let latency = world.now() - world.request(request).sent;
            self.workers[worker].observe(rif, latency);
        }
    }

    fn hear(&mut self, word: Word, world: &mut World<Word>) {
        let now = world.now();
        match word {
            Word::Ask { balancer, worker } => {
                let rif = world.worker(worker).load();
                let latency = self.workers[worker].at(rif);
                let uses = self.uses.floor() as u32 + u32::from(self.rng.random::<f64>() < self.uses.fract());
                let probe = Probe { worker, rif, latency, at: now, uses };
                world.say(world.network(), Word::Answer { balancer, probe });
            }
            Word::Answer { balancer, probe } => {
                let balancer = &mut self.balancers[balancer];
                balancer.late.push_back(probe.rif);
                if balancer.late.len() > REMEMBERED {
                    balancer.late.pop_front();
                }
                balancer.pool.push_back(Probe { at: now, ..probe });
                if balancer.pool.len() > POOL {
                    balancer.pool.pop_front();
                }
            }
        }
    }
}
