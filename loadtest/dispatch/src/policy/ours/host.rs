//! A node: the shipped `Ledger`, what its supervisor knows of the workers, and when it reports, as `register/grants.rs` and
//! `register/stream.rs` do it.

use super::wire::{Stream, Word};
use crate::{scenario::Scenario, world};
use app_server::ledger::{Demand, Lack, Ledger, Worker, WorkerKey};
use balancer::{
    dispatch::Yielded,
    endpoint::{Node, WorkerView},
};
use proto::worker::Presence;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Changes in a worker within this time go into one heartbeat of it.
pub(super) const COALESCE: Duration = Duration::from_millis(2);
/// No two reports to the same balancer within this time.
const SPACE: Duration = Duration::from_millis(1);
/// How long a balancer may not notice that its stream is lost: the node's own silence.
const UNAWARE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Host {
    pub(super) node: Arc<Node>,
    number: u32,
    workers: Vec<Known>,
    slots: u32,
    ledger: Ledger,
    sequence: u64,
    /// By balancer.
    streams: Vec<Outbox>,
    plans_at: Option<Instant>,
    /// Something was heard from a worker since the last plan.
    heard: bool,
    /// Mere load goes out within this time.
    load: Duration,
}

/// What the supervisor knows of a worker.
#[derive(Debug, Default)]
struct Known {
    presences: Vec<Presence>,
    busy: u32,
    /// A heartbeat is on its way.
    stirred: bool,
}

/// A worker in a report.
#[derive(Clone, Copy, Debug)]
pub(in crate::policy) struct Row {
    grant: u32,
    busy: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outbox {
    open: bool,
    sent: Option<Instant>,
    due: Option<Instant>,
}

impl Host {
    /// `offset`: what the ledger draws.
    pub(super) fn new(number: u32, scenario: &Scenario, offset: u32) -> Self {
        let mut host = Self {
            node: node(number),
            number,
            workers: (0..scenario.workers).map(|_| Known::default()).collect(),
            slots: scenario.slots,
            ledger: Ledger::new(offset),
            sequence: 0,
            streams: vec![Outbox::default(); scenario.balancers],
            plans_at: None,
            heard: true,
            load: scenario.messages.load,
        };
        host.observe();
        host
    }

    /// The balancer has its account from now on.
    pub(super) fn open(&mut self, stream: Stream, name: &str, now: Instant) {
        self.streams[stream.balancer()] = Outbox { open: true, sent: None, due: None };
        self.ledger.open(name);
        self.ledger.welcome(name, connections(stream.balancer));
        self.ledger.lets_yield(name);
        self.plans_at = None;
        self.ledger.plan(now.into_std());
    }

    pub(super) fn lose(&mut self, stream: Stream, name: &str, now: Instant) {
        self.streams[stream.balancer()] = Outbox::default();
        // it comes back as another lease
        self.node = node(self.number);
        self.ledger.lose(name, UNAWARE, now.into_std());
    }

    /// Decides; what is to happen because of it, and after how long.
    pub(super) fn plan(&mut self, now: Instant) -> Vec<(Duration, Word)> {
        if std::mem::take(&mut self.heard) {
            self.observe();
        }
        let mut words = Vec::new();
        let look = self.ledger.plan(now.into_std()).map(Instant::from_std);
        if let Some(at) = look.filter(|_| look != self.plans_at) {
            words.push((at.saturating_duration_since(now), Word::Plan { node: self.number, at }));
        }
        self.plans_at = look;
        for name in self.ledger.stale() {
            let balancer = place(name);
            let outbox = &mut self.streams[balancer as usize];
            let due = outbox.sent.map_or(now, |sent| now.max(sent + SPACE));
            words.extend(outbox.due_at(due, Stream { node: self.number, balancer }, now));
        }
        words
    }

    /// Mere load has changed: what is to happen because of it.
    pub(super) fn tell_load(&mut self, now: Instant) -> Vec<(Duration, Word)> {
        let (number, due) = (self.number, now + self.load);
        let streams = (0_u32..).zip(&mut self.streams);
        streams.filter_map(|(balancer, outbox)| outbox.due_at(due, Stream { node: number, balancer }, now)).collect()
    }

    pub(super) fn is_to_plan(&self, at: Instant) -> bool {
        self.plans_at == Some(at)
    }

    pub(super) fn is_due(&self, stream: Stream, at: Instant) -> bool {
        self.streams[stream.balancer()].due == Some(at)
    }

    pub(super) fn report(&mut self, stream: Stream, name: &str, now: Instant) -> (u64, Box<[Row]>, Lack) {
        let outbox = &mut self.streams[stream.balancer()];
        (outbox.due, outbox.sent) = (None, Some(now));
        self.sequence += 1;
        let grants = self.ledger.report(name, self.sequence, now.into_std());
        let rows = grants.into_iter().zip(&self.workers).map(|(grant, known)| Row { grant, busy: known.busy });
        let Lack { permits, wait } = self.ledger.lack(name, now.into_std());
        (self.sequence, rows.collect(), Lack { permits, wait: whole_millis(wait) })
    }

    /// True when there is something to decide.
    pub(super) fn acknowledge(&mut self, name: &str, sequence: u64, over: &[(WorkerKey, u32)], now: Instant) -> bool {
        self.ledger.acknowledge(name, sequence, over, now.into_std())
    }

    pub(super) fn yielded(&mut self, name: &str, sequence: u64, yielded: Yielded, now: Instant) {
        let Yielded { position, generation, permits } = yielded;
        self.ledger.yielded(name, sequence, (position, generation), permits, now.into_std());
    }

    pub(super) fn demand(&mut self, name: &str, demand: Demand, now: Instant) {
        self.ledger.demand(name, demand, now.into_std());
    }

    /// A worker has changed. True when that is to be told: nothing of it is on its way yet.
    pub(super) fn stir(&mut self, worker: usize) -> bool {
        !std::mem::replace(&mut self.workers[worker].stirred, true)
    }

    /// What a worker says: whose requests run in it.
    pub(super) fn hear(&mut self, worker: usize, balancers: impl Iterator<Item = u32>) {
        let known = &mut self.workers[worker];
        (known.stirred, known.busy) = (false, 0);
        known.presences.iter_mut().for_each(|presence| presence.busy = 0);
        for balancer in balancers.map(connections) {
            known.busy += 1;
            match known.presences.iter_mut().find(|presence| presence.balancer == balancer) {
                Some(presence) => presence.busy += 1,
                None => known.presences.push(Presence { balancer, connections: 1, busy: 1, orphaned: 0 }),
            }
        }
        self.heard = true;
    }

    pub(super) fn moves(&self) -> u64 {
        self.ledger.moves()
    }

    fn observe(&mut self) {
        let workers = (0_u32..).zip(&self.workers).map(|(position, known)| Worker {
            key: key(position),
            capacity: self.slots,
            ready: true,
            presences: &known.presences,
        });
        self.ledger.observe(&workers.collect::<Vec<_>>());
    }
}

/// A worker as its node reports it. `first`: of its node.
pub(super) fn view(worker: usize, first: usize, row: Row, state: &world::Worker) -> WorkerView {
    let (position, generation) = key(super::number(worker - first));
    WorkerView {
        generation,
        capacity: state.capacity,
        busy: row.busy,
        service: state.service(),
        on_deck: super::number(state.on_deck()),
        ..WorkerView::ready(position, address(super::number(worker)), row.grant)
    }
}

impl Outbox {
    /// A report is due then, unless one is before that.
    fn due_at(&mut self, due: Instant, stream: Stream, now: Instant) -> Option<(Duration, Word)> {
        if !self.open || self.due.is_some_and(|planned| planned <= due) {
            return None;
        }
        self.due = Some(due);
        Some((due.saturating_duration_since(now), Word::Due { stream, at: due }))
    }
}

/// As messages have it.
pub(super) fn whole_millis(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// Says which worker it is: nothing is dialled.
fn address(worker: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(worker), 1))
}

fn node(number: u32) -> Arc<Node> {
    Arc::new(Node::new(format!("node-{number}"), address(number), b"simulated"))
}

fn key(position: u32) -> WorkerKey {
    (position, 1)
}

/// The upper half of a balancer's numbers, which is never 0.
fn connections(balancer: u32) -> u32 {
    balancer + 1
}

fn place(name: &str) -> u32 {
    name.rsplit('-').next().and_then(|number| number.parse().ok()).expect("balancers are numbered")
}
