//! Least connections with a limit per server, and a queue at the balancer for what is beyond: HAProxy's `leastconn` with
//! `maxconn`. Balancers know nothing of each other, so each is given its part of the slots, and at least one of each
//! worker: where there are more balancers than slots, requests may meet at a worker and queue there.

use crate::{
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use balancer::levels::Levels;
use rand::rngs::SmallRng;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct MaxConn {
    limit: u32,
    balancers: Vec<Balancer>,
    rng: SmallRng,
}

#[derive(Debug)]
struct Balancer {
    in_flight: Vec<u32>,
    /// Workers below the limit, by `in_flight`.
    levels: Levels,
    queue: VecDeque<RequestId>,
}

impl MaxConn {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let workers = scenario.workers_in_all();
        let seats = || {
            let mut levels = Levels::default();
            (0_u32..).take(workers).for_each(|seat| levels.place(seat, Some(0)));
            levels
        };
        let balancer = || Balancer { in_flight: vec![0; workers], levels: seats(), queue: VecDeque::new() };
        let balancers = u32::try_from(scenario.balancers).unwrap_or(u32::MAX);
        Self {
            limit: scenario.slots.div_ceil(balancers),
            balancers: (0..scenario.balancers).map(|_| balancer()).collect(),
            rng: scenario.generator(Part::Policy),
        }
    }
}

impl Balancer {
    fn change(&mut self, seat: u32, by: i32, limit: u32) {
        let count = &mut self.in_flight[seat as usize];
        *count = count.checked_add_signed(by).expect("a response comes once for each request");
        self.levels.place(seat, (*count < limit).then_some(*count));
    }
}

impl Policy for MaxConn {
    type Message = ();

    fn arrive(&mut self, request: RequestId, world: &mut World<()>) {
        let balancer = &mut self.balancers[world.request(request).balancer];
        match balancer.levels.pick(&mut self.rng, |_| true) {
            Some(seat) => {
                balancer.change(seat, 1, self.limit);
                world.send(request, seat as usize);
            }
            None => balancer.queue.push_back(request),
        }
    }

    fn answered(&mut self, request: RequestId, worker: usize, world: &mut World<()>) {
        let balancer = &mut self.balancers[world.request(request).balancer];
        match balancer.queue.pop_front() {
            Some(next) => world.send(next, worker),
            None => balancer.change(u32::try_from(worker).expect("it was a seat before"), -1, self.limit),
        }
    }
}
