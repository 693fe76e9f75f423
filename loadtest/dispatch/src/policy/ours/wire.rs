//! What travels between balancers and nodes, and how: late, in order, and sometimes not at all. A word that is lost ends
//! its stream, as a connection whose packets are dropped ends; what was on its way then is gone with it.

use super::host::Row;
use crate::{
    calendar::Time,
    scenario::{Messages, Part, Scenario},
    world::World,
};
use app_server::ledger::{Demand, Lack, WorkerKey};
use balancer::dispatch::Yielded;
use rand::{RngExt, rngs::SmallRng};
use std::time::Duration;
use tokio::time::Instant;

/// The registration of a node with a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Stream {
    pub(super) node: u32,
    pub(super) balancer: u32,
}

impl Stream {
    pub(super) fn node(self) -> usize {
        self.node as usize
    }

    pub(super) fn balancer(self) -> usize {
        self.balancer as usize
    }
}

#[derive(Debug)]
pub(in crate::policy) enum Word {
    // of a node to itself
    Due { stream: Stream, at: Instant },
    Plan { node: u32, at: Instant },
    Heartbeat { worker: u32 },
    Register(Stream),
    // of a balancer to itself
    Look { balancer: u32, at: Instant },
    Turn { balancer: u32 },
    // on the wire; `epoch`: which of the streams between the two
    Report { stream: Stream, epoch: u32, sequence: u64, rows: Box<[Row]>, lack: Lack },
    Acknowledged { stream: Stream, epoch: u32, sequence: u64, over: Box<[(WorkerKey, u32)]> },
    Demand { stream: Stream, epoch: u32, demand: Demand },
    Yielded { stream: Stream, epoch: u32, sequence: u64, yielded: Yielded },
    Lost { stream: Stream, epoch: u32 },
}

/// Every stream there is.
#[derive(Debug)]
pub(super) struct Wire {
    messages: Messages,
    rng: SmallRng,
    balancers: usize,
    streams: Vec<State>,
    said: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    epoch: u32,
    /// When the last word arrives at the node, and at the balancer: a stream keeps its order.
    arrivals: [Time; 2],
}

const TO_NODE: usize = 0;
const TO_BALANCER: usize = 1;

impl Wire {
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self {
            messages: scenario.messages,
            rng: scenario.generator(Part::Messages),
            balancers: scenario.balancers,
            streams: vec![State::default(); scenario.balancers * scenario.nodes],
            said: 0,
        }
    }

    /// Words that were said.
    pub(super) fn said(&self) -> u64 {
        self.said
    }

    pub(super) fn tell_balancer(&mut self, stream: Stream, word: impl FnOnce(u32) -> Word, world: &mut World<Word>) {
        self.say(stream, TO_BALANCER, self.messages.stale, word, world);
    }

    pub(super) fn tell_node(&mut self, stream: Stream, word: impl FnOnce(u32) -> Word, world: &mut World<Word>) {
        self.say(stream, TO_NODE, Duration::ZERO, word, world);
    }

    fn say(
        &mut self,
        stream: Stream,
        direction: usize,
        more: Duration,
        word: impl FnOnce(u32) -> Word,
        world: &mut World<Word>,
    ) {
        let Messages { delay, jitter, loss, .. } = self.messages;
        let arrives = world.now() + delay + more + jitter.mul_f64(self.rng.random());
        let lost = loss > 0.0 && self.rng.random::<f64>() < loss;
        let state = &mut self.streams[stream.node() * self.balancers + stream.balancer()];
        let last = &mut state.arrivals[direction];
        *last = arrives.max(*last);
        self.said += 1;
        let epoch = state.epoch;
        world.say(*last - world.now(), if lost { Word::Lost { stream, epoch } } else { word(epoch) });
    }

    /// The stream that ends with this word.
    pub(super) fn breaks(&self, word: &Word) -> Option<Stream> {
        match word {
            Word::Lost { stream, epoch } => self.is_open(*stream, *epoch).then_some(*stream),
            Word::Due { .. }
            | Word::Plan { .. }
            | Word::Heartbeat { .. }
            | Word::Register(_)
            | Word::Look { .. }
            | Word::Turn { .. }
            | Word::Report { .. }
            | Word::Acknowledged { .. }
            | Word::Demand { .. }
            | Word::Yielded { .. } => None,
        }
    }

    pub(super) fn is_open(&self, stream: Stream, epoch: u32) -> bool {
        self.streams[stream.node() * self.balancers + stream.balancer()].epoch == epoch
    }

    pub(super) fn cut(&mut self, stream: Stream) {
        self.streams[stream.node() * self.balancers + stream.balancer()].epoch += 1;
    }
}
