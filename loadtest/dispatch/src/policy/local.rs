//! Policies that know only what their own balancer sent and got back, and queue at the workers: round robin, least
//! connections (equals at random), the better of two drawn at random by connections, or by peak EWMA as Finagle and
//! linkerd have it.

use crate::{
    calendar::Time,
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use balancer::levels::Levels;
use rand::{RngExt, rngs::SmallRng};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    RoundRobin,
    Least,
    TwoChoices,
    PeakEwma,
}

/// After so long an old latency counts for 1/e.
const DECAY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Local {
    rule: Rule,
    balancers: Vec<Balancer>,
    rng: SmallRng,
}

#[derive(Debug)]
struct Balancer {
    next: usize,
    in_flight: Vec<u32>,
    /// Workers by `in_flight`; kept only where the least is asked for.
    levels: Levels,
    latencies: Vec<PeakEwma>,
}

impl Local {
    pub(super) fn new(scenario: &Scenario, rule: Rule) -> Self {
        let workers = scenario.workers_in_all();
        let mut rng = scenario.generator(Part::Policy);
        let balancers = (0..scenario.balancers).map(|_| {
            let mut levels = Levels::default();
            if rule == Rule::Least {
                (0..workers).for_each(|worker| levels.place(seat(worker), Some(0)));
            }
            Balancer {
                // they have not all been started with the same request
                next: rng.random_range(0..workers),
                in_flight: vec![0; workers],
                levels,
                latencies: vec![PeakEwma::default(); if rule == Rule::PeakEwma { workers } else { 0 }],
            }
        });
        Self { rule, balancers: balancers.collect(), rng }
    }

    fn change(&mut self, balancer: usize, worker: usize, by: i32) {
        let balancer = &mut self.balancers[balancer];
        let count = &mut balancer.in_flight[worker];
        *count = count.checked_add_signed(by).expect("a response comes once for each request");
        if self.rule == Rule::Least {
            balancer.levels.place(seat(worker), Some(*count));
        }
    }

    fn pick(&mut self, balancer: usize, now: Time) -> usize {
        let Self { rule, balancers, rng } = self;
        let balancer = &mut balancers[balancer];
        let workers = balancer.in_flight.len();
        match rule {
            Rule::RoundRobin => {
                balancer.next = (balancer.next + 1) % workers;
                balancer.next
            }
            Rule::Least => balancer.levels.pick(rng, |_| true).expect("every worker has its level") as usize,
            Rule::TwoChoices => {
                let (one, two) = pair(workers, rng);
                if balancer.in_flight[two] < balancer.in_flight[one] { two } else { one }
            }
            Rule::PeakEwma => {
                let (one, two) = pair(workers, rng);
                let mut cost = |worker: usize| balancer.latencies[worker].cost(balancer.in_flight[worker], now);
                let (first, second) = (cost(one), cost(two));
                if second < first { two } else { one }
            }
        }
    }
}

impl Policy for Local {
    type Message = ();

    fn arrive(&mut self, request: RequestId, world: &mut World<()>) {
        let balancer = world.request(request).balancer;
        let worker = self.pick(balancer, world.now());
        self.change(balancer, worker, 1);
        world.send(request, worker);
    }

    fn answered(&mut self, request: RequestId, worker: usize, world: &mut World<()>) {
        let request = *world.request(request);
        self.change(request.balancer, worker, -1);
        if self.rule == Rule::PeakEwma {
            let now = world.now();
            self.balancers[request.balancer].latencies[worker].observe(now - request.sent, now);
        }
    }
}

/// A latency that jumps up with every slower answer and comes down slowly.
#[derive(Clone, Copy, Debug, Default)]
struct PeakEwma {
    /// In seconds; 0 before the first answer.
    latency: f64,
    at: Time,
}

impl PeakEwma {
    fn observe(&mut self, latency: Duration, now: Time) {
        let latency = latency.as_secs_f64();
        if latency > self.latency {
            self.latency = latency;
        } else {
            let weight = self.weight(now);
            self.latency = self.latency * weight + latency * (1.0 - weight);
        }
        self.at = now;
    }

    /// What it would cost to have one more there. An unknown one that has not answered yet is the last resort.
    fn cost(&mut self, in_flight: u32, now: Time) -> f64 {
        if self.latency == 0.0 {
            return if in_flight == 0 { 0.0 } else { 1e6 + f64::from(in_flight) };
        }
        // nothing was heard since, so it comes down
        self.latency *= self.weight(now);
        self.at = now;
        self.latency * f64::from(in_flight + 1)
    }

    fn weight(&self, now: Time) -> f64 {
        (-(now - self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

fn pair(workers: usize, rng: &mut SmallRng) -> (usize, usize) {
    let one = rng.random_range(0..workers);
    if workers == 1 {
        return (one, one);
    }
    let two = rng.random_range(0..workers - 1);
    (one, if two < one { two } else { two + 1 })
}

fn seat(worker: usize) -> u32 {
    u32::try_from(worker).expect("no cluster has four billion workers")
}
