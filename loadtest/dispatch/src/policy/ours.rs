//! Servery: the shipped `Dispatch` and `Demand` of every balancer, the shipped `Ledger` of every node, and the streams
//! between them. What these files add is what sessions and streams do around the decisions: when something is said, and
//! that it travels. In reading order: `front` (a balancer), `host` (a node), `wire` (what travels, and how).

mod front;
mod host;
mod wire;

use crate::{
    outcome::Outcome,
    scenario::{Part, Scenario},
    world::{Policy, RequestId, World},
};
use app_server::ledger::Lack;
use front::{Acknowledged, Front};
use host::{Host, Row};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;
use wire::{Stream, Wire, Word};

/// For a node to dial again, at least, and up to twice that.
const BACKOFF: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Ours {
    fronts: Vec<Front>,
    hosts: Vec<Host>,
    /// Of each node.
    workers: usize,
    wire: Wire,
    rng: SmallRng,
    /// What the shipped code takes for the time is so much later than this.
    start: Instant,
}

impl Ours {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let mut rng = scenario.generator(Part::Policy);
        let fronts = (0..scenario.balancers).map(|balancer| {
            let name = format!("balancer-{balancer}");
            Front::new(name, scenario, SmallRng::seed_from_u64(rng.random()))
        });
        let fronts: Vec<Front> = fronts.collect();
        let hosts = (0..scenario.nodes).map(|node| Host::new(number(node), scenario, rng.random()));
        Self {
            fronts,
            hosts: hosts.collect(),
            workers: scenario.workers,
            wire: Wire::new(scenario),
            rng,
            start: Instant::now(),
        }
    }

    fn now(&self, world: &World<Word>) -> Instant {
        self.start + world.now().since_start()
    }

    fn node_of(&self, worker: usize) -> u32 {
        number(worker / self.workers)
    }

    /// A stream begins, with everything that the node has to say.
    fn register(&mut self, stream: Stream, world: &mut World<Word>) {
        let now = self.now(world);
        let host = &mut self.hosts[stream.node()];
        host.open(stream, &self.fronts[stream.balancer()].name, now);
        self.fronts[stream.balancer()].register(stream, host.node.clone());
        self.report(stream, world);
        self.plan(stream.node, world);
    }

    fn lose(&mut self, stream: Stream, world: &mut World<Word>) {
        let now = self.now(world);
        self.wire.cut(stream);
        let front = &mut self.fronts[stream.balancer()];
        front.lose(stream);
        self.hosts[stream.node()].lose(stream, &front.name, now);
        self.hand_over(stream.balancer, world);
        self.plan(stream.node, world);
        let after = BACKOFF + BACKOFF.mul_f64(self.rng.random());
        world.say(after, Word::Register(stream));
    }

    /// The node decides anew, and reports to whom that concerns.
    fn plan(&mut self, node: u32, world: &mut World<Word>) {
        let now = self.now(world);
        let host = &mut self.hosts[node as usize];
        for (after, word) in host.plan(now) {
            world.say(after, word);
        }
    }

    fn report(&mut self, stream: Stream, world: &mut World<Word>) {
        let now = self.now(world);
        let name = &self.fronts[stream.balancer()].name;
        let (sequence, rows, lack) = self.hosts[stream.node()].report(stream, name, now);
        self.wire.tell_balancer(stream, |epoch| Word::Report { stream, epoch, sequence, rows, lack }, world);
    }

    fn hear_report(&mut self, stream: Stream, sequence: u64, rows: &[Row], lack: Lack, world: &mut World<Word>) {
        let now = self.now(world);
        let first = stream.node() * self.workers;
        let view = |(at, row): (usize, &Row)| host::view(at, first, *row, world.worker(at));
        let workers: Vec<_> = (first..).zip(rows).map(view).collect();
        self.fronts[stream.balancer()].apply(stream, sequence, &workers, now);
        self.hand_over(stream.balancer, world);
        self.fronts[stream.balancer()].lack(stream, lack, now);
        self.speak(stream, world);
    }

    /// A session says what it owes.
    fn speak(&mut self, stream: Stream, world: &mut World<Word>) {
        if let Some(Acknowledged { sequence, over }) = self.fronts[stream.balancer()].acknowledgement(stream) {
            self.wire.tell_node(stream, |epoch| Word::Acknowledged { stream, epoch, sequence, over }, world);
        }
        let (sequence, yielded) = self.fronts[stream.balancer()].take_yielded(stream);
        for yielded in yielded {
            self.wire.tell_node(stream, |epoch| Word::Yielded { stream, epoch, sequence, yielded }, world);
        }
    }

    /// Every session of the balancer whose time has come looks at the queue.
    fn look(&mut self, balancer: u32, world: &mut World<Word>) {
        let now = self.now(world);
        let front = &mut self.fronts[balancer as usize];
        for (stream, demand) in front.look(balancer, now) {
            self.wire.tell_node(stream, |epoch| Word::Demand { stream, epoch, demand }, world);
        }
        self.look_again(balancer, world);
    }

    fn look_again(&mut self, balancer: u32, world: &mut World<Word>) {
        let now = self.now(world);
        if let Some(at) = self.fronts[balancer as usize].looks_next() {
            world.say(at.saturating_duration_since(now), Word::Look { balancer, at });
        }
    }

    fn hand_over(&mut self, balancer: u32, world: &mut World<Word>) {
        let now = self.now(world);
        for (request, address) in self.fronts[balancer as usize].hand_over(now) {
            world.send(request, worker_at(address));
        }
    }

    /// A request asks for a permit, for the first time or again.
    fn ask(&mut self, request: RequestId, comes_back: bool, world: &mut World<Word>) {
        let now = self.now(world);
        let balancer = world.request(request).balancer;
        let front = &mut self.fronts[balancer];
        match front.ask(request, comes_back, now) {
            front::Answer::Permit(address) => world.send(request, worker_at(address)),
            front::Answer::Wait { first, shed } => {
                if let Some(shed) = shed {
                    world.shed(shed);
                }
                if first {
                    front.notice(now);
                    self.look_again(number(balancer), world);
                }
            }
            front::Answer::Refusal => world.shed(request),
        }
    }

    fn give_back(&mut self, request: RequestId, worker: usize, refused: bool, world: &mut World<Word>) {
        let now = self.now(world);
        let balancer = number(world.request(request).balancer);
        let watched = self.fronts[balancer as usize].give_back(request, refused, now);
        self.hand_over(balancer, world);
        if watched {
            self.speak(Stream { node: self.node_of(worker), balancer }, world);
        }
    }

    fn turn(&mut self, balancer: u32, world: &mut World<Word>) {
        let now = self.now(world);
        for shed in self.fronts[balancer as usize].turn(now) {
            world.shed(shed);
        }
        self.hand_over(balancer, world);
        world.say(front::TURN, Word::Turn { balancer });
    }

    /// Something has changed in a worker: its supervisor hears of it in a moment.
    fn stir(&mut self, worker: usize, world: &mut World<Word>) {
        let node = self.node_of(worker);
        if self.hosts[node as usize].stir(worker % self.workers) {
            world.say(host::COALESCE, Word::Heartbeat { worker: number(worker) });
        }
    }

    fn heartbeat(&mut self, worker: usize, world: &mut World<Word>) {
        let node = self.node_of(worker);
        let running = world.worker(worker).running();
        let balancers = running.iter().map(|request| number(world.request(*request).balancer));
        let now = self.now(world);
        let host = &mut self.hosts[node as usize];
        host.hear(worker % self.workers, balancers);
        for (after, word) in host.tell_load(now) {
            world.say(after, word);
        }
        self.plan(node, world);
    }
}

impl Policy for Ours {
    type Message = Word;

    /// Every node is registered with every balancer.
    fn begin(&mut self, world: &mut World<Word>) {
        for node in (0_u32..).take(self.hosts.len()) {
            for balancer in (0_u32..).take(self.fronts.len()) {
                let now = self.now(world);
                self.hosts[node as usize].open(Stream { node, balancer }, &self.fronts[balancer as usize].name, now);
            }
            for balancer in (0_u32..).take(self.fronts.len()) {
                self.register(Stream { node, balancer }, world);
            }
        }
        for balancer in (0_u32..).take(self.fronts.len()) {
            world.say(front::TURN, Word::Turn { balancer });
        }
    }

    fn arrive(&mut self, request: RequestId, world: &mut World<Word>) {
        self.ask(request, false, world);
    }

    fn answered(&mut self, request: RequestId, worker: usize, world: &mut World<Word>) {
        self.give_back(request, worker, false, world);
    }

    fn refused(&mut self, request: RequestId, worker: usize, world: &mut World<Word>) {
        self.give_back(request, worker, true, world);
        self.ask(request, true, world);
    }

    fn reached(&mut self, worker: usize, world: &mut World<Word>) {
        self.stir(worker, world);
    }

    fn freed(&mut self, worker: usize, world: &mut World<Word>) {
        self.stir(worker, world);
    }

    fn hear(&mut self, word: Word, world: &mut World<Word>) {
        if let Some(stream) = self.wire.breaks(&word) {
            self.lose(stream, world);
            return;
        }
        match word {
            Word::Due { stream, at } => {
                if self.hosts[stream.node()].is_due(stream, at) {
                    self.report(stream, world);
                }
            }
            Word::Plan { node, at } => {
                if self.hosts[node as usize].is_to_plan(at) {
                    self.plan(node, world);
                }
            }
            Word::Heartbeat { worker } => self.heartbeat(worker as usize, world),
            Word::Look { balancer, at } => {
                if self.fronts[balancer as usize].is_to_look(at) {
                    self.look(balancer, world);
                }
            }
            Word::Turn { balancer } => self.turn(balancer, world),
            Word::Register(stream) => self.register(stream, world),
            Word::Report { stream, epoch, sequence, rows, lack } => {
                if self.wire.is_open(stream, epoch) {
                    self.hear_report(stream, sequence, &rows, lack, world);
                }
            }
            Word::Acknowledged { stream, epoch, sequence, over } => {
                if self.wire.is_open(stream, epoch) {
                    let now = self.now(world);
                    let name = &self.fronts[stream.balancer()].name;
                    if self.hosts[stream.node()].acknowledge(name, sequence, &over, now) {
                        self.plan(stream.node, world);
                    }
                }
            }
            Word::Demand { stream, epoch, demand } => {
                if self.wire.is_open(stream, epoch) {
                    let now = self.now(world);
                    let name = &self.fronts[stream.balancer()].name;
                    self.hosts[stream.node()].demand(name, demand, now);
                    self.plan(stream.node, world);
                }
            }
            Word::Yielded { stream, epoch, sequence, yielded } => {
                if self.wire.is_open(stream, epoch) {
                    let now = self.now(world);
                    let name = &self.fronts[stream.balancer()].name;
                    self.hosts[stream.node()].yielded(name, sequence, yielded, now);
                    self.plan(stream.node, world);
                }
            }
            // what was lost came when its stream was cut already
            Word::Lost { .. } => {}
        }
    }

    fn close(&mut self, outcome: &mut Outcome) {
        outcome.messages = self.wire.said();
        outcome.moves = self.hosts.iter().map(Host::moves).sum();
    }
}

fn worker_at(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(address) => u32::from(*address.ip()) as usize,
        SocketAddr::V6(_) => unreachable!("`host::address` makes none"),
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("balancers, nodes and workers are counted in 32 bits")
}
