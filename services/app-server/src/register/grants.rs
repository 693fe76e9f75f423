//! The ledger as the streams share it: come in streams that open and close, what balancers want and acknowledge, the
//! workers as they are; goes out each report with its grants and the connections that are settled, and a ring of the
//! bell of everybody who is to get one now. One lock around each step, nothing awaited inside.

use super::{names::Names, stream::End};
use crate::{
    ledger::{Demand, Lack, Ledger, Worker, WorkerKey},
    roster::{Row, State},
};
use proto::registry::{self, Acknowledged, Report, Yielded};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

/// The grants of the node's workers to its balancers.
#[derive(Debug)]
pub(crate) struct Grants {
    books: Mutex<Books>,
    /// Somebody has acknowledged a report, or does not have to any more.
    heard: watch::Sender<()>,
    /// The next look is sooner than it was.
    sooner: Notify,
}

#[derive(Debug)]
struct Books {
    ledger: Ledger,
    /// Of the last report, to whomever.
    sequence: u64,
    /// By name.
    balancers: BTreeMap<String, Balancer>,
    names: Names,
    /// When to plan again although nothing has happened.
    look: Option<Instant>,
}

#[derive(Debug, Default)]
struct Balancer {
    /// Rung when there is something to report to it.
    bell: Arc<Notify>,
    /// The upper half of its connections' numbers, once it has said.
    connections: Option<u32>,
}

/// The balancers, as far as they listen. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audience(Arc<Grants>);

/// A balancer's account, closed when this is dropped.
#[derive(Debug)]
pub(super) struct Account<'a> {
    grants: &'a Grants,
    balancer: &'a str,
    /// How long it may not notice that it has no stream.
    unaware: Duration,
    /// It uses nothing any more.
    left: bool,
}

impl Default for Grants {
    fn default() -> Self {
        let books = Books {
            ledger: Ledger::new(rand::random()),
            sequence: 0,
            balancers: BTreeMap::new(),
            names: Names::default(),
            look: None,
        };
        Self { books: Mutex::new(books), heard: watch::Sender::new(()), sooner: Notify::new() }
    }
}

impl Grants {
    /// `silence`: so long after the last word from us it knows by itself that its stream is lost.
    pub(super) fn open<'a>(&'a self, balancer: &'a str, silence: Duration) -> Account<'a> {
        let mut books = self.books();
        books.ledger.open(balancer);
        books.balancers.entry(balancer.to_owned()).or_default();
        self.plan(&mut books);
        Account { grants: self, balancer, unaware: silence, left: false }
    }

    /// The node's workers as this balancer is to see them, noted as sent.
    pub(super) fn report(&self, balancer: &str, rows: &[Row]) -> Report {
        let mut books = self.books();
        books.ledger.observe(&workers(rows));
        self.plan(&mut books);
        books.sequence += 1;
        let sequence = books.sequence;
        let grants = books.ledger.report(balancer, sequence, now());
        let Lack { permits, wait } = books.ledger.lack(balancer, now());
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let lack = (permits > 0).then_some(registry::Lack { permits, wait_ms });
        let connections = books.connections(balancer);
        drop(books);
        let worker = |(row, grant): (&Row, u32)| registry::Worker { grant, ..row.report(connections) };
        Report { sequence, workers: living(rows).zip(grants).map(worker).collect(), settled: Vec::new(), lack }
    }

    /// The settled connections of this balancer. It is told of them now: they are not named again.
    pub(super) fn take_settled(&self, balancer: &str) -> Vec<u64> {
        let mut books = self.books();
        let connections = books.connections(balancer);
        books.names.take(connections)
    }

    pub(super) fn acknowledge(&self, balancer: &str, acknowledged: &Acknowledged) {
        let over: Vec<(WorkerKey, u32)> =
            acknowledged.over.iter().map(|over| ((over.position, over.generation), over.held)).collect();
        let mut books = self.books();
        if books.ledger.acknowledge(balancer, acknowledged.sequence, &over, now()) {
            self.plan(&mut books);
        }
        drop(books);
        self.heard.send_replace(());
    }

    pub(super) fn yielded(&self, balancer: &str, yielded: Yielded) {
        let worker = (yielded.position, yielded.generation);
        let mut books = self.books();
        books.ledger.yielded(balancer, yielded.sequence, worker, yielded.permits, now());
        self.plan(&mut books);
    }

    pub(super) fn demand(&self, balancer: &str, demand: Demand) {
        let mut books = self.books();
        books.ledger.demand(balancer, demand, now());
        self.plan(&mut books);
    }

    /// Rings when `has_news` may have become true.
    pub(super) fn bell(&self, balancer: &str) -> Arc<Notify> {
        let books = self.books();
        books.balancers.get(balancer).map(|known| Arc::clone(&known.bell)).unwrap_or_default()
    }

    /// Whether a report now would say something of permits that the last one did not.
    pub(super) fn has_news(&self, balancer: &str) -> bool {
        let books = self.books();
        books.ledger.is_stale(balancer) || books.names.has(books.connections(balancer))
    }

    /// Follows the workers, and what changes with time alone.
    pub(super) async fn follow(&self, mut rows: watch::Receiver<Vec<Row>>) {
        loop {
            let look = {
                let mut books = self.books();
                books.ledger.observe(&workers(&rows.borrow_and_update()));
                self.plan(&mut books);
                books.look
            };
            tokio::select! {
                changed = rows.changed() => if changed.is_err() {
                    return;
                },
                () = self.sooner.notified() => {}
                () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {}
            }
        }
    }

    /// Until every balancer has acknowledged a report made after this call.
    async fn heard(&self) {
        let now = self.books().sequence;
        let mut heard = self.heard.subscribe();
        while !self.books().ledger.all_heard_after(now) {
            // the sender is ours and lives, so this cannot fail
            let _ = heard.changed().await;
        }
    }

    fn plan(&self, books: &mut Books) {
        let look = books.ledger.plan(now()).map(Instant::from_std);
        let sooner = look.is_some_and(|look| books.look.is_none_or(|planned| look < planned));
        books.look = look;
        if sooner {
            self.sooner.notify_one();
        }
        for balancer in books.ledger.stale() {
            if let Some(known) = books.balancers.get(balancer) {
                known.bell.notify_one();
            }
        }
        if !books.awaits() {
            books.names.forget_early();
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // every step leaves the books whole, so a panic elsewhere cannot have left half of one
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// 0: it has none, or has not said.
    fn connections(&self, balancer: &str) -> u32 {
        self.balancers.get(balancer).and_then(|known| known.connections).unwrap_or(0)
    }

    /// Whether names of nobody's may yet turn out to be somebody's.
    fn awaits(&self) -> bool {
        self.ledger.is_haunted() || self.balancers.values().any(|known| known.connections.is_none())
    }
}

impl Audience {
    /// Until every balancer knows, and acts on, what the roster says now. For ever while one of them does not answer.
    pub(crate) async fn heard(&self) {
        self.0.heard().await;
    }

    /// These connections have ended, and nothing of theirs runs any more.
    pub(crate) fn settled(&self, numbers: &[u64]) {
        if numbers.is_empty() {
            return;
        }
        let mut books = self.0.books();
        let awaited = books.awaits();
        for number in numbers {
            if books.names.name(*number, awaited) {
                let half = Some((number >> 32) as u32);
                let theirs = books.balancers.values().filter(|known| known.connections == half);
                theirs.for_each(|known| known.bell.notify_one());
            }
        }
    }

    /// How many permits were given to another balancer because it wanted them.
    pub(crate) fn moves(&self) -> u64 {
        self.0.books().ledger.moves()
    }

    pub(super) fn grants(&self) -> &Grants {
        &self.0
    }
}

impl Account<'_> {
    /// The balancer has said what the numbers of its connections begin with (0: it gives none), and whether it gives back
    /// by itself what others lack.
    pub(super) fn welcome(&self, connections: u32, yields: bool) {
        let mut books = self.grants.books();
        if let Some(known) = books.balancers.get_mut(self.balancer) {
            known.connections = Some(connections);
        }
        books.ledger.welcome(self.balancer, connections);
        if yields {
            books.ledger.lets_yield(self.balancer);
        }
        if books.names.claim(connections)
            && let Some(known) = books.balancers.get(self.balancer)
        {
            known.bell.notify_one();
        }
        self.grants.plan(&mut books);
    }

    /// The stream has ended like this.
    pub(super) fn ends(&mut self, end: &End) {
        match end {
            End::Left => self.left = true,
            // it has let go of the node before it said so
            End::Refused(_, why) if why == proto::STOPPING => self.unaware = Duration::ZERO,
            End::Lost(_) | End::Refused(..) => {}
        }
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        let mut books = self.grants.books();
        let connections = books.connections(self.balancer);
        if self.left {
            books.ledger.close(self.balancer);
        } else {
            books.ledger.lose(self.balancer, self.unaware, now());
        }
        books.balancers.remove(self.balancer);
        let awaited = books.awaits();
        books.names.disown(connections, awaited);
        self.grants.plan(&mut books);
        drop(books);
        self.grants.heard.send_replace(());
    }
}

/// As tokio's clock has it, which a test can stop.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

fn workers(rows: &[Row]) -> Vec<Worker<'_>> {
    let worker = living(rows).map(|row| Worker {
        key: row.key(),
        capacity: row.capacity,
        ready: row.state == State::Ready,
        presences: &row.presences,
    });
    worker.collect()
}

/// What balancers hear of.
fn living(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| row.state != State::Dead)
}
