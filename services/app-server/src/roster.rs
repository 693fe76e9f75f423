//! What is known of the node's workers just now: come in what the watchers of worker processes see, goes out the same
//! list to everybody who tells it on (registrations, metrics, `/status`). It decides nothing.

use crate::metrics::Cause;
use proto::{
    registry::{Restarts, Worker, WorkerState},
    worker::{Heartbeat, Presence},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, time::Instant};

/// Balancers of which a worker tells. It bounds them itself; a program of the user's may not.
const PRESENCES_MAX: usize = 256;

/// The life of a worker process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    Starting,
    Ready,
    /// It says nothing, and is sent nothing.
    Stalled,
    Draining,
    /// It has ended, and the next one is not to start yet. Balancers are not told of it.
    Dead,
}

impl State {
    pub(crate) const ALL: [Self; 5] = [Self::Starting, Self::Ready, Self::Stalled, Self::Draining, Self::Dead];

    /// As in metrics and `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stalled => "stalled",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }

    fn on_the_wire(self) -> WorkerState {
        match self {
            Self::Starting | Self::Dead => WorkerState::Starting,
            Self::Ready => WorkerState::Ready,
            Self::Stalled => WorkerState::Stalled,
            Self::Draining => WorkerState::Draining,
        }
    }
}

/// Why the workers of a position have been replaced, and how often.
pub(crate) type Causes = BTreeMap<Cause, u32>;

/// One worker process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) position: u32,
    /// Counts the processes of this position, from 1.
    pub(crate) generation: u64,
    pub(crate) port: u16,
    pub(crate) pid: u32,
    pub(crate) state: State,
    pub(crate) capacity: u32,
    pub(crate) busy: u32,
    pub(crate) served: u64,
    /// Requests that wait for a slot of it; none behind a balancer.
    pub(crate) waiting: u32,
    pub(crate) started: Instant,
    /// Resident bytes.
    pub(crate) memory: u64,
    /// Thousandths of a core, over the last second or so.
    pub(crate) cpu_millicores: u32,
    /// Of this position since the node started.
    pub(crate) causes: Arc<Causes>,
    /// What each balancer has there; empty where clients come by themselves.
    pub(crate) presences: Vec<Presence>,
    /// How long a request occupies its slot, in microseconds; 0: unknown.
    pub(crate) service_us: u32,
    /// Requests that were sent ahead of a free slot.
    pub(crate) on_deck: u32,
}

impl Row {
    /// Of a worker of which nothing is known yet.
    pub(crate) fn starting() -> Self {
        Self {
            position: 0,
            generation: 0,
            port: 0,
            pid: 0,
            state: State::Starting,
            capacity: 0,
            busy: 0,
            served: 0,
            waiting: 0,
            started: Instant::now(),
            memory: 0,
            cpu_millicores: 0,
            causes: Arc::default(),
            presences: Vec::new(),
            service_us: 0,
            on_deck: 0,
        }
    }

    /// What it says of itself, and of everybody who sends to it.
    pub(crate) fn hear(&mut self, heartbeat: &Heartbeat) {
        (self.busy, self.served, self.waiting) = (heartbeat.busy, heartbeat.served, heartbeat.waiting);
        (self.service_us, self.on_deck) = (heartbeat.service_us, heartbeat.on_deck);
        self.presences.clear();
        self.presences.extend(heartbeat.presences.iter().take(PRESENCES_MAX));
    }

    pub(crate) fn key(&self) -> (u32, u64) {
        (self.position, self.generation)
    }

    /// As the balancer with these connections is to see it, without its grant.
    pub(crate) fn report(&self, connections: u32) -> Worker {
        let own = self.presences.iter().find(|presence| presence.balancer == connections && connections != 0);
        Worker {
            position: self.position,
            generation: self.generation,
            port: self.port.into(),
            state: self.state.on_the_wire().into(),
            pid: self.pid,
            capacity: self.capacity,
            grant: 0,
            busy: self.busy,
            served: self.served,
            restarts: self.restarts(),
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            memory_bytes: self.memory,
            cpu_millicores: self.cpu_millicores,
            causes: self
                .causes
                .iter()
                .map(|(cause, count)| Restarts { cause: cause.as_str().to_owned(), count: *count })
                .collect(),
            orphaned: own.map_or(0, |presence| presence.orphaned),
            service_us: self.service_us,
            on_deck: self.on_deck,
        }
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.causes.values().sum()
    }

    /// What a balancer must know at once; the rest is load, which may come a little later.
    pub(crate) fn standing(&self) -> ((u32, u64), State, u16, u32) {
        (self.key(), self.state, self.port, self.capacity)
    }
}

/// The list, in the order of positions and generations. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    rows: Arc<watch::Sender<Vec<Row>>>,
    /// By position; they outlive the workers.
    causes: Arc<Mutex<BTreeMap<u32, Arc<Causes>>>>,
}

/// One row, until it is dropped: a worker that nobody watches any more is not in the list.
#[derive(Debug)]
pub(crate) struct Entry {
    roster: Roster,
    key: (u32, u64),
}

impl Roster {
    pub(crate) fn new() -> Self {
        Self { rows: Arc::new(watch::Sender::new(Vec::new())), causes: Arc::default() }
    }

    /// The row's causes are filled in here.
    pub(crate) fn enter(&self, mut row: Row) -> Entry {
        let key = row.key();
        row.causes = self.causes_of(row.position, None);
        self.rows.send_modify(|rows| {
            let place = rows.partition_point(|other| other.key() < key);
            rows.insert(place, row);
        });
        Entry { roster: self.clone(), key }
    }

    /// A worker of the position was replaced, or has to be.
    pub(crate) fn restarted(&self, position: u32, cause: Cause) {
        let causes = self.causes_of(position, Some(cause));
        self.rows.send_if_modified(|rows| {
            let of_position = rows.iter_mut().filter(|row| row.position == position);
            of_position.map(|row| row.causes = Arc::clone(&causes)).count() > 0
        });
    }

    /// The position's causes, with one more where there is one.
    fn causes_of(&self, position: u32, one_more: Option<Cause>) -> Arc<Causes> {
        // every step leaves the map whole, so a panic elsewhere cannot have left half of one
        let mut all = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let causes = all.entry(position).or_default();
        if let Some(cause) = one_more {
            *Arc::make_mut(causes).entry(cause).or_default() += 1;
        }
        Arc::clone(causes)
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        self.rows.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Vec<Row>> {
        self.rows.subscribe()
    }
}

impl Entry {
    /// Changes the row; nobody is woken where it stays as it was.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Row)) {
        self.roster.rows.send_if_modified(|rows| {
            let Some(row) = rows.iter_mut().find(|row| row.key() == self.key) else { return false };
            let before = row.clone();
            change(row);
            *row != before
        });
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.rows.send_modify(|rows| rows.retain(|row| row.key() != self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::{Roster, Row};
    use crate::metrics::Cause;

    fn row(position: u32, generation: u64) -> Row {
        Row { position, generation, port: 9000, pid: 1, capacity: 4, ..Row::starting() }
    }

    #[test]
    fn causes_are_the_positions_and_outlive_its_workers() {
        let roster = Roster::new();
        let first = roster.enter(row(0, 1));
        let _other = roster.enter(row(1, 1));
        roster.restarted(0, Cause::Exit);
        assert_eq!(roster.rows()[0].restarts(), 1, "told of the worker that is there");
        drop(first);
        let _second = roster.enter(row(0, 2));
        roster.restarted(0, Cause::Exit);
        roster.restarted(0, Cause::Reload);
        let rows = roster.rows();
        assert_eq!((rows[0].restarts(), rows[0].causes[&Cause::Exit], rows[1].restarts()), (3, 2, 0));
    }

    #[test]
    fn rows_are_in_order_and_leave_with_their_entry() {
        let roster = Roster::new();
        let entries = [roster.enter(row(1, 1)), roster.enter(row(0, 2)), roster.enter(row(0, 1))];
        let keys = |roster: &Roster| roster.rows().iter().map(Row::key).collect::<Vec<_>>();
        assert_eq!(keys(&roster), [(0, 1), (0, 2), (1, 1)]);
        drop(entries);
        assert!(keys(&roster).is_empty());
    }

    #[test]
    fn nobody_is_woken_for_nothing() {
        let roster = Roster::new();
        let entry = roster.enter(row(0, 1));
        let mut watch = roster.watch();
        entry.update(|row| row.busy = 0);
        assert!(!watch.has_changed().unwrap());
        entry.update(|row| row.busy = 1);
        assert!(watch.has_changed().unwrap());
        assert_eq!(watch.borrow_and_update()[0].busy, 1);
    }
}
