//! Who may send how much to a worker: come in the balancers that are there, what they want, the reports that each was
//! sent and those that it has acknowledged, and the workers as they are; goes out each balancer's grant in its next
//! report. Pure: `now` is passed in; no task, no clock, no network. A simulator may run it.
//!
//! Each worker's capacity is divided into the balancers' *targets* (`share`: equal at first; `moves`: by demand). What
//! a balancer *may* be using is something else: the most that any report said which it can still be acting on, the last
//! one it acknowledged and every later one (`account`), or what it held when its stream was lost (`ghost`). A grant is
//! raised towards its target only as far as the others' use leaves room. So lowering is reported first, and what it
//! frees is given away only once the balancer has acknowledged it, worker by worker. The sum of what balancers may use never exceeds the
//! capacity, whatever is lost or late on the way.
//!
//! The order of calls: whatever has happened (`open`, `welcome`, `demand`, `acknowledge`, `lose`, `close`, `observe`),
//! then `plan`, then a `report` to everybody who `is_stale`.

use account::Account;
use ghost::Ghost;
use proto::worker::Presence;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

mod account;
mod ghost;
mod lack;
mod moves;
mod share;
mod tally;

/// A worker process: position and generation.
pub type WorkerKey = (u32, u64);

/// A worker as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Worker<'a> {
    pub key: WorkerKey,
    pub capacity: u32,
    /// Only the permits of such a worker help a balancer that wants some.
    pub ready: bool,
    /// What each balancer has there, as far as it is known.
    pub presences: &'a [Presence],
}

/// What a balancer says that it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests that wait there, for a slot of any node.
    pub waiting: u32,
    /// Permits it asks of this node beyond its grants.
    pub wanted: u32,
    /// How long a request that came there now would wait.
    pub wait: Duration,
    /// The newest report that it had: what it asks is beyond the grants of that one.
    pub sequence: u64,
}

/// What others lack here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lack {
    pub permits: u32,
    /// How long requests have to wait where they are lacked, without what a permit's way there is worth.
    pub wait: Duration,
}

/// The accounts of all balancers that have a stream, and of those that had one and may not have noticed its end.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Turns the remainders of equal shares.
    offset: u32,
    /// By name.
    accounts: Vec<Account>,
    /// Oldest first.
    ghosts: Vec<Ghost>,
    books: Vec<Book>,
    /// Somebody came or went, or a worker did: the shares are not equal any more.
    unequal: bool,
    /// When a permit was last taken from one that wants it for another that wants it more.
    contested: Option<Instant>,
    moves: u64,
}

/// One worker.
#[derive(Debug)]
struct Book {
    key: WorkerKey,
    capacity: u32,
    ready: bool,
    presences: Vec<Presence>,
    /// What everybody together may be using.
    held: u64,
}

impl Book {
    /// What the balancer with these connections has here.
    fn presence(&self, connections: u32) -> Presence {
        let known = self.presences.iter().find(|presence| presence.balancer == connections && connections != 0);
        known.copied().unwrap_or_default()
    }
}

impl Ledger {
    /// `offset`: any number, another one for each node. It decides who gets what is left over after a division: without
    /// it every node would favour the same balancers.
    pub fn new(offset: u32) -> Self {
        Self { offset, ..Self::default() }
    }

    /// A balancer is there. Where it has an account already, that one goes on: a second stream to the same balancer
    /// takes over what it holds.
    pub fn open(&mut self, balancer: &str) {
        if let Err(place) = self.place(balancer) {
            self.accounts.insert(place, Account::new(balancer, &self.books));
            self.unequal = true;
        }
    }

    /// The upper half of the numbers of the balancer's connections. One that had lost its stream and is still the same
    /// process takes over what it may be using.
    pub fn welcome(&mut self, balancer: &str, connections: u32) {
        let Ok(place) = self.place(balancer) else { return };
        let account = &mut self.accounts[place];
        account.connections = connections;
        let own = |ghost: &mut Ghost| ghost.balancer == balancer && ghost.connections == connections;
        for ghost in self.ghosts.extract_if(.., own) {
            account.inherit(&ghost.release(&mut self.books), &mut self.books);
        }
    }

    /// The balancer gives back by itself what others lack, when it is told: what it does not use need not be asked back.
    pub fn lets_yield(&mut self, balancer: &str) {
        if let Ok(place) = self.place(balancer) {
            self.accounts[place].yields = true;
        }
    }

    /// The balancer uses so many permits of this worker fewer than the report `sequence` grants, the newest that it has.
    pub fn yielded(&mut self, balancer: &str, sequence: u64, worker: WorkerKey, permits: u32, now: Instant) {
        let Ok(place) = self.place(balancer) else { return };
        let Some(at) = self.books.iter().position(|book| book.key == worker) else { return };
        let given = self.accounts[place].yielded(sequence, at, permits, &mut self.books);
        self.pass_on(place, at, given, now);
    }

    /// What others lack here and this balancer may have, as its next report is to say.
    pub fn lack(&self, balancer: &str, now: Instant) -> Lack {
        let known = self.place(balancer).map(|place| self.accounts[place].lack);
        known.unwrap_or_default().at(now)
    }

    /// The balancer's stream has ended and the balancer uses nothing any more.
    pub fn close(&mut self, balancer: &str) {
        let Ok(place) = self.place(balancer) else { return };
        self.accounts.remove(place).release(&mut self.books);
        self.unequal = true;
    }

    /// The balancer's stream is lost. It keeps what it may be using for as long as it has connections and has perhaps
    /// not noticed, `unaware` at most; then the slots in which its requests run.
    pub fn lose(&mut self, balancer: &str, unaware: Duration, now: Instant) {
        let Ok(place) = self.place(balancer) else { return };
        let account = self.accounts.remove(place);
        let (connections, held) = (account.connections, account.release(&mut self.books));
        // of a balancer that numbers no connections nothing would ever be known
        if connections != 0 {
            let ghost = Ghost { balancer: balancer.to_owned(), connections, lost: now, unaware, held };
            self.haunt(ghost);
        }
        self.unequal = true;
    }

    /// The balancer's newest word on what it lacks.
    pub fn demand(&mut self, balancer: &str, demand: Demand, now: Instant) {
        if let Ok(place) = self.place(balancer) {
            self.accounts[place].want(demand, &self.books, now);
        }
    }

    /// These are the workers now, each once; what is not listed is gone.
    pub fn observe(&mut self, workers: &[Worker<'_>]) {
        if !self.books.iter().map(|book| book.key).eq(workers.iter().map(|worker| worker.key)) {
            self.rebind(workers);
        }
        for (book, worker) in self.books.iter_mut().zip(workers) {
            self.unequal |= book.capacity != worker.capacity;
            (book.capacity, book.ready) = (worker.capacity, worker.ready);
            if book.presences != worker.presences {
                book.presences.clear();
                book.presences.extend_from_slice(worker.presences);
            }
        }
    }

    /// Decides who is to have what. `Some`: when to call again although nothing has happened.
    pub fn plan(&mut self, now: Instant) -> Option<Instant> {
        let ghosts = self.bury(now);
        if std::mem::take(&mut self.unequal) {
            self.share_out(now);
        }
        let wants = self.serve(now);
        self.tell_lacks(now);
        ghosts.into_iter().chain(wants).min()
    }

    /// Whether a report now would grant this balancer something else than the last one did, or tell it of another lack.
    pub fn is_stale(&self, balancer: &str) -> bool {
        self.place(balancer).is_ok_and(|place| self.accounts[place].is_stale(&self.books))
    }

    /// Every balancer to which that applies.
    pub fn stale(&self) -> impl Iterator<Item = &str> {
        let stale = self.accounts.iter().filter(|account| account.is_stale(&self.books));
        stale.map(|account| account.balancer.as_str())
    }

    /// The grants for the report `sequence`, in the order of the workers last observed, noted as sent. Sequence numbers
    /// grow. A balancer without an account is granted nothing.
    pub fn report(&mut self, balancer: &str, sequence: u64, now: Instant) -> Vec<u32> {
        match self.place(balancer) {
            Ok(place) => self.accounts[place].report(sequence, &mut self.books, now),
            Err(_) => vec![0; self.books.len()],
        }
    }

    /// The balancer holds no more than the report `sequence` grants, but for the workers in `over`, each with what it
    /// holds. `true`: it has given something back.
    pub fn acknowledge(&mut self, balancer: &str, sequence: u64, over: &[(WorkerKey, u32)], now: Instant) -> bool {
        let place = self.place(balancer);
        place.is_ok_and(|place| self.accounts[place].acknowledge(sequence, over, &mut self.books, now))
    }

    /// Whether every balancer has acknowledged a report that came after `sequence`.
    pub fn all_heard_after(&self, sequence: u64) -> bool {
        self.accounts.iter().all(|account| account.acknowledged > sequence)
    }

    /// How many permits were given to another balancer because it wanted them, ever.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Whether a balancer's stream is lost and what it held is not free yet.
    pub fn is_haunted(&self) -> bool {
        !self.ghosts.is_empty()
    }

    fn place(&self, balancer: &str) -> Result<usize, usize> {
        self.accounts.binary_search_by(|account| account.balancer.as_str().cmp(balancer))
    }

    /// Other workers than before: what is known of those that stay is carried over.
    fn rebind(&mut self, workers: &[Worker<'_>]) {
        let before: BTreeMap<WorkerKey, usize> =
            self.books.iter().enumerate().map(|(at, book)| (book.key, at)).collect();
        let book = |worker: &Worker<'_>| Book {
            key: worker.key,
            capacity: worker.capacity,
            ready: worker.ready,
            presences: Vec::new(),
            held: 0,
        };
        self.books = workers.iter().map(book).collect();
        for account in &mut self.accounts {
            account.rebind(&before, &mut self.books);
        }
        for ghost in &mut self.ghosts {
            ghost.rebind(&mut self.books);
        }
        self.unequal = true;
    }
}

#[cfg(test)]
mod tests;
