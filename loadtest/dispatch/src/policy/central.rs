//! The ideal: one queue for the whole cluster that knows every slot the moment it is free. First come, first served;
//! among idle slots one at random. Nothing travels. Not to be had, and so the measure.

use crate::{
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use rand::{RngExt, rngs::SmallRng};
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Central {
    queue: VecDeque<RequestId>,
    /// Workers, once per idle slot.
    idle: Vec<usize>,
    rng: SmallRng,
}

impl Central {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let slots = (0..scenario.slots).flat_map(|_| 0..scenario.workers_in_all());
        Self { queue: VecDeque::new(), idle: slots.collect(), rng: scenario.generator(Part::Policy) }
    }
}

impl Policy for Central {
    type Message = ();

    fn arrive(&mut self, request: RequestId, world: &mut World<()>) {
        if self.idle.is_empty() {
            self.queue.push_back(request);
            return;
        }
        let at = self.rng.random_range(0..self.idle.len());
        world.send(request, self.idle.swap_remove(at));
    }

    fn answered(&mut self, _: RequestId, worker: usize, world: &mut World<()>) {
        match self.queue.pop_front() {
            Some(next) => world.send(next, worker),
            None => self.idle.push(worker),
        }
    }
}
