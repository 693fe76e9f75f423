//! Join-Idle-Queue (Lu and others, 2011): a worker with an idle slot announces it to one balancer drawn at random. A
//! request takes an announced slot, the oldest first; where its balancer knows of none, any worker. Workers queue.

use crate::{
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use rand::{RngExt, rngs::SmallRng};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct JoinIdle {
    slots: u32,
    workers: usize,
    /// By balancer, workers with an idle slot.
    announced: Vec<VecDeque<usize>>,
    rng: SmallRng,
}

/// A slot of this worker is idle.
#[derive(Debug)]
pub(super) struct Idle {
    worker: usize,
    balancer: usize,
}

impl JoinIdle {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            slots: scenario.slots,
            workers: scenario.workers_in_all(),
            announced: vec![VecDeque::new(); scenario.balancers],
            rng: scenario.generator(Part::Policy),
        }
    }
}

impl Policy for JoinIdle {
    type Message = Idle;

    fn begin(&mut self, _: &mut World<Idle>) {
        for _ in 0..self.slots {
            for worker in 0..self.workers {
                let balancer = self.rng.random_range(0..self.announced.len());
                self.announced[balancer].push_back(worker);
            }
        }
    }

    fn arrive(&mut self, request: RequestId, world: &mut World<Idle>) {
        let balancer = world.request(request).balancer;
        let announced = self.announced[balancer].pop_front();
        let worker = announced.unwrap_or_else(|| self.rng.random_range(0..self.workers));
        world.send(request, worker);
    }

    fn answered(&mut self, _: RequestId, _: usize, _: &mut World<Idle>) {}

    fn freed(&mut self, worker: usize, world: &mut World<Idle>) {
        if world.worker(worker).on_deck() == 0 {
            let balancer = self.rng.random_range(0..self.announced.len());
            world.say(world.network(), Idle { worker, balancer });
        }
    }

    fn hear(&mut self, Idle { worker, balancer }: Idle, _: &mut World<Idle>) {
        self.announced[balancer].push_back(worker);
    }
}
