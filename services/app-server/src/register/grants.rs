//! The ledger as the streams share it: come in streams that open and close, reports and acknowledgements, goes out each
//! report with its grants. One lock around each step, nothing awaited inside.

use crate::{
    ledger::{Ledger, WorkerKey},
    roster::{Row, State},
};
use proto::registry::{Report, Worker};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The grants of the node's workers to its balancers.
#[derive(Debug)]
pub(crate) struct Grants {
    books: Mutex<Books>,
    /// Somebody's share may have changed.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Books {
    ledger: Ledger,
    /// Of the last report, to whomever.
    sequence: u64,
}

/// The balancers, as far as they listen. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audience(Arc<Grants>);

/// A balancer's account, closed when this is dropped.
#[derive(Debug)]
pub(super) struct Account<'a> {
    grants: &'a Grants,
    balancer: &'a str,
}

impl Default for Grants {
    fn default() -> Self {
        Self { books: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Grants {
    pub(super) fn open<'a>(&'a self, balancer: &'a str) -> Account<'a> {
        self.books().ledger.open(balancer);
        self.changed.send_replace(());
        Account { grants: self, balancer }
    }

    /// The node's workers as this balancer is to see them, noted as sent.
    pub(super) fn report(&self, balancer: &str, rows: &[Row]) -> Report {
        let mut books = self.books();
        books.sequence += 1;
        let sequence = books.sequence;
        let grants = books.ledger.report(balancer, sequence, &capacities(rows));
        drop(books);
        let workers = living(rows).zip(grants).map(|(row, grant)| Worker { grant, ..row.report() }).collect();
        Report { sequence, workers }
    }

    pub(super) fn acknowledge(&self, balancer: &str, sequence: u64) {
        self.books().ledger.acknowledge(balancer, sequence);
        self.changed.send_replace(());
    }

    pub(super) fn is_stale(&self, balancer: &str, rows: &[Row]) -> bool {
        self.books().ledger.is_stale(balancer, &capacities(rows))
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Until every balancer has acknowledged a report made after this call.
    async fn heard(&self) {
        let now = self.books().sequence;
        let mut changes = self.changes();
        while !self.books().ledger.all_heard_after(now) {
            // the sender is ours and lives, so this cannot fail
            let _ = changes.changed().await;
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // every step leaves the books whole, so a panic elsewhere cannot have left half of one
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Audience {
    /// Until every balancer knows, and acts on, what the roster says now. For ever while one of them does not answer.
    pub(crate) async fn heard(&self) {
        self.0.heard().await;
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.0
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        self.grants.books().ledger.close(self.balancer);
        self.grants.changed.send_replace(());
    }
}

fn capacities(rows: &[Row]) -> Vec<(WorkerKey, u32)> {
    living(rows).map(|row| (row.key(), row.capacity)).collect()
}

/// What balancers hear of.
fn living(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.state != State::Dead)
}
