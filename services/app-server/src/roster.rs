//! What is known of the node's workers just now: come in what the watchers of worker processes see, goes out the same
//! list to everybody who tells it on (registrations, metrics, `/status`). It decides nothing.

use proto::registry::{Worker, WorkerState};
use std::sync::Arc;
use tokio::sync::watch;

/// The life of a worker process, while it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    Starting,
    Ready,
    Draining,
}

impl State {
    pub(crate) const ALL: [Self; 3] = [Self::Starting, Self::Ready, Self::Draining];

    /// As in metrics and `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }

    fn on_the_wire(self) -> WorkerState {
        match self {
            Self::Starting => WorkerState::Starting,
            Self::Ready => WorkerState::Ready,
            Self::Draining => WorkerState::Draining,
        }
    }
}

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
    /// Of this position since the node started.
    pub(crate) restarts: u32,
}

impl Row {
    pub(crate) fn key(&self) -> (u32, u64) {
        (self.position, self.generation)
    }

    /// Without the grant, which is each balancer's own.
    pub(crate) fn report(&self) -> Worker {
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
            restarts: self.restarts,
            ..Worker::default()
        }
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
}

/// One row, until it is dropped: a worker that nobody watches any more is not in the list.
#[derive(Debug)]
pub(crate) struct Entry {
    roster: Roster,
    key: (u32, u64),
}

impl Roster {
    pub(crate) fn new() -> Self {
        Self { rows: Arc::new(watch::Sender::new(Vec::new())) }
    }

    pub(crate) fn enter(&self, row: Row) -> Entry {
        let key = row.key();
        self.rows.send_modify(|rows| {
            let place = rows.partition_point(|other| other.key() < key);
            rows.insert(place, row);
        });
        Entry { roster: self.clone(), key }
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
    use super::{Roster, Row, State};

    fn row(position: u32, generation: u64) -> Row {
        let (port, pid, capacity) = (9000, 1, 4);
        Row { position, generation, port, pid, state: State::Starting, capacity, busy: 0, served: 0, restarts: 0 }
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
