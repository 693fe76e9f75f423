//! What is simulated: the cluster, the load on it, and what happens to messages. Plain data, and what follows from it.

use crate::{
    calendar::Time,
    service::{Service, exponential},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub balancers: usize,
    pub nodes: usize,
    /// Per node.
    pub workers: usize,
    /// Per worker.
    pub slots: u32,
    /// Of what the workers can do, slow ones counted as slow.
    pub load: f64,
    pub service: Service,
    /// 0: every balancer gets the same share of the requests; otherwise the n-th one gets 1/n to this power.
    pub skew: f64,
    /// So many nodes need `slow_factor` times as long for everything.
    pub slow_nodes: usize,
    pub slow_factor: f64,
    /// Requests arrive for so long.
    pub duration: Duration,
    /// What arrives before is not counted.
    pub warmup: Duration,
    /// Of a request and of its response, one way.
    pub network: Duration,
    pub messages: Messages,
}

/// What happens to messages of the control plane.
#[derive(Clone, Copy, Debug)]
pub struct Messages {
    /// One way.
    pub delay: Duration,
    /// Up to so much more, at random.
    pub jitter: Duration,
    /// So much more for what nodes report: the balancers decide by old news.
    pub stale: Duration,
    /// Which share of them breaks its stream.
    pub loss: f64,
    /// A node reports mere load within this time.
    pub load: Duration,
}

/// The base cluster of the tables: 4 nodes of four one-slot workers, 90 % short requests and 10 % long ones.
impl Default for Scenario {
    fn default() -> Self {
        Self {
            seed: 1,
            balancers: 4,
            nodes: 4,
            workers: 4,
            slots: 1,
            load: 0.9,
            service: Service::Bimodal { short: 20.0, long: 200.0, share: 0.1 },
            skew: 0.0,
            slow_nodes: 0,
            slow_factor: 5.0,
            duration: Duration::from_secs(600),
            warmup: Duration::from_secs(10),
            network: Duration::from_micros(250),
            messages: Messages::default(),
        }
    }
}

impl Default for Messages {
    fn default() -> Self {
        Self {
            delay: Duration::from_micros(200),
            jitter: Duration::from_micros(100),
            stale: Duration::ZERO,
            loss: 0.0,
            load: Duration::from_millis(25),
        }
    }
}

impl Scenario {
    /// In the whole cluster.
    pub fn workers_in_all(&self) -> usize {
        self.nodes * self.workers
    }

    pub fn node_of(&self, worker: usize) -> usize {
        worker / self.workers
    }

    /// How many times as long a worker needs. The slow nodes are the first ones.
    pub fn factor(&self, worker: usize) -> f64 {
        if self.node_of(worker) < self.slow_nodes { self.slow_factor } else { 1.0 }
    }

    /// Requests per second that would keep every slot busy.
    pub fn capacity(&self) -> f64 {
        let slots: f64 = (0..self.workers_in_all()).map(|worker| f64::from(self.slots) / self.factor(worker)).sum();
        slots * 1e3 / self.service.mean()
    }

    /// A generator of one part of the run: the parts do not disturb each other, so that every policy meets the same
    /// requests.
    pub fn generator(&self, part: Part) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part as u64)
    }
}

/// What has a generator of its own.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Arrivals = 1,
    Policy = 2,
    Messages = 3,
}

/// The requests that come: one Poisson process, split over the balancers, which makes one of each. For a seed they are
/// the same whatever becomes of them.
#[derive(Debug)]
pub struct Arrivals {
    rng: SmallRng,
    /// Between two, on average, in seconds.
    gap: f64,
    /// Up to which number in 0..1 a balancer gets it.
    shares: Vec<f64>,
    service: Service,
    next: Time,
    end: Time,
}

/// A request as it comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub at: Time,
    pub balancer: usize,
    /// What it needs of a worker that is not slow.
    pub work: Duration,
}

impl Arrivals {
    pub fn new(scenario: &Scenario) -> Self {
        let weights: Vec<f64> = (1..=scenario.balancers).map(|place| (place as f64).powf(-scenario.skew)).collect();
        let all: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let shares = weights.iter().map(|weight| {
            reached += weight / all;
            reached
        });
        Self {
            rng: scenario.generator(Part::Arrivals),
            gap: 1.0 / (scenario.load * scenario.capacity()),
            shares: shares.collect(),
            service: scenario.service.clone(),
            next: Time::START,
            end: Time::START + scenario.duration,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        self.next = self.next + Duration::from_secs_f64(exponential(&mut self.rng) * self.gap);
        let draw: f64 = self.rng.random();
        // the last share may be a hair below 1
        let balancer = self.shares.partition_point(|share| *share <= draw).min(self.shares.len() - 1);
        let work = self.service.draw(&mut self.rng);
        (self.next < self.end).then_some(Arrival { at: self.next, balancer, work })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_as_often_as_the_load_says_and_are_shared_out_as_the_skew_says() {
        let scenario = Scenario { skew: 1.0, ..Scenario::default() };
        let mut counts = [0_u32; 4];
        for arrival in Arrivals::new(&scenario) {
            counts[arrival.balancer] += 1;
        }
        let all = f64::from(counts.iter().sum::<u32>());
        let expected = 0.9 * 16.0 / 0.038 * 600.0;
        assert!((all / expected - 1.0).abs() < 0.01, "{all} instead of {expected}");
        for (place, count) in (1..).zip(counts) {
            let share = 1.0 / f64::from(place) / (1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0);
            assert!((f64::from(count) / all - share).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn another_number_of_balancers_meets_the_same_requests() {
        let one = Scenario { balancers: 1, ..Scenario::default() };
        let four = Scenario { balancers: 4, ..Scenario::default() };
        let same = |scenario: &Scenario| Arrivals::new(scenario).take(1000).map(|a| (a.at, a.work)).collect::<Vec<_>>();
        assert_eq!(same(&one), same(&four));
    }

    #[test]
    fn slow_workers_count_for_what_they_can_do() {
        let scenario = Scenario { nodes: 3, slow_nodes: 1, slow_factor: 5.0, ..Scenario::default() };
        let expected = (4.0 + 4.0 + 4.0 / 5.0) / 0.038;
        assert!((scenario.capacity() / expected - 1.0).abs() < 1e-9);
    }
}
