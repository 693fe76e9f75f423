//! One balancer's account: come in the reports it is sent, its acknowledgements and its demand, go out what it may be
//! using of each worker and what it still lacks.

use super::{Book, Demand, WorkerKey, lack::Lacking, tally::Tally};
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Most reports that a balancer may leave unacknowledged before the next ones have to grant what the last one did not
/// exceed; older ones are then folded together.
const REMEMBERED: usize = 64;

/// One acknowledgement moves the mean of the round trips by this part.
const TRIPS: u32 = 8;

/// A revocation that is not acknowledged for so long meets requests that run: whoever waits for it may ask elsewhere.
pub(super) const LATE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Account {
    pub(super) balancer: String,
    /// The upper half of the numbers of its connections; 0: not known.
    pub(super) connections: u32,
    /// It gives back by itself what others lack.
    pub(super) yields: bool,
    /// What others lack, ...
    pub(super) lack: Lacking,
    /// ... and what it was told of it.
    told_lack: Lacking,
    pub(super) acknowledged: u64,
    pub(super) demand: Demand,
    pub(super) told_at: Option<Instant>,
    /// As long ago as it says that its requests have to wait: what it does not tell anew has become longer.
    pub(super) since: Option<Instant>,
    /// From a report to its acknowledgement; nothing before the first one.
    pub(super) round_trip: Duration,
    /// Permits of ready workers that it would be content with.
    goal: u64,
    /// One for each book.
    pub(super) lines: Vec<Line>,
    /// The most that the reports up to the last acknowledged one leave to the balancer, ...
    settled: Tally,
    /// ... but for these workers: it holds more there, and gives it back when the requests have ended.
    over: Tally,
    /// Not acknowledged, oldest first.
    sent: VecDeque<Sent>,
}

#[derive(Debug)]
struct Sent {
    sequence: u64,
    at: Instant,
    grants: Tally,
}

/// How a balancer stands with one worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// Of its target, what its demand brought.
    pub(super) claims: u32,
    /// Of its target, what is equally shared.
    pub(super) shares: u32,
    /// The most that it may be using.
    pub(super) held: u32,
    /// What the last report grants.
    told: u32,
    /// Since when the target is higher than what was granted.
    raised: Option<Instant>,
}

impl Line {
    pub(super) fn target(&self) -> u32 {
        self.claims + self.shares
    }

    fn grant(&self, book: &Book) -> u32 {
        let others = book.held - u64::from(self.held);
        let room = u64::from(book.capacity).saturating_sub(others);
        u32::try_from(room).unwrap_or(u32::MAX).min(self.target())
    }

    /// What the balancer has or will have in a moment.
    fn expected(&self, now: Instant) -> u32 {
        let late = self.raised.is_none_or(|since| now.saturating_duration_since(since) >= LATE);
        if late { self.told.min(self.target()) } else { self.target() }
    }
}

impl Account {
    pub(super) fn new(balancer: &str, books: &[Book]) -> Self {
        Self {
            balancer: balancer.to_owned(),
            connections: 0,
            yields: false,
            lack: Lacking::default(),
            told_lack: Lacking::default(),
            acknowledged: 0,
            demand: Demand::default(),
            told_at: None,
            since: None,
            round_trip: Duration::ZERO,
            goal: 0,
            lines: vec![Line::default(); books.len()],
            settled: Tally::default(),
            over: Tally::default(),
            sent: VecDeque::new(),
        }
    }

    pub(super) fn report(&mut self, sequence: u64, books: &mut [Book], now: Instant) -> Vec<u32> {
        let grants: Vec<u32> = self.lines.iter().zip(&*books).map(|(line, book)| line.grant(book)).collect();
        let noted = books.iter().map(|book| book.key).zip(grants.iter().copied()).collect();
        self.sent.push_back(Sent { sequence, at: now, grants: noted });
        if self.sent.len() > REMEMBERED {
            self.fold();
        }
        self.told_lack = self.lack;
        self.recount(books);
        for line in &mut self.lines {
            line.raised = line.raised.filter(|_| line.told < line.target());
        }
        grants
    }

    pub(super) fn acknowledge(
        &mut self,
        sequence: u64,
        over: &[(WorkerKey, u32)],
        books: &mut [Book],
        now: Instant,
    ) -> bool {
        let mut settled = None;
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.sequence <= sequence) {
            if sent.sequence == sequence {
                self.took(now.saturating_duration_since(sent.at));
            }
            settled = Some(sent.grants);
        }
        match settled {
            Some(grants) => self.settled = grants,
            // said of the same report as the last time: fewer are over by now
            None if sequence == self.acknowledged => {}
            None => return false,
        }
        self.acknowledged = sequence;
        // what it cannot have held before it does not hold now
        let most = |worker: WorkerKey| self.line_of(worker, books).map_or(0, |line| line.held);
        self.over = over.iter().map(|(worker, held)| (*worker, most(*worker).min(*held))).collect();
        let held = |account: &Self| account.lines.iter().map(|line| u64::from(line.held)).sum::<u64>();
        let before = held(self);
        self.recount(books);
        held(self) < before
    }

    /// A report and its acknowledgement.
    fn took(&mut self, trip: Duration) {
        let first = self.round_trip.is_zero();
        self.round_trip = if first { trip } else { (self.round_trip * (TRIPS - 1) + trip) / TRIPS };
    }

    /// It uses so many fewer than the report `sequence` grants. Where a newer report is on its way to it, that one
    /// overrules it: then only its target is lower, and the next report asks them back. So many it gives.
    pub(super) fn yielded(&mut self, sequence: u64, worker: usize, permits: u32, books: &mut [Book]) -> u32 {
        // less where it was to be asked back already
        let given = permits.min(self.lines[worker].target());
        self.give(worker, given);
        if self.sent.back().is_some_and(|sent| sent.sequence > sequence) {
            return given;
        }
        let (key, left) = (books[worker].key, self.lines[worker].told.saturating_sub(permits));
        let lower = |other, number: u32| if other == key { number.min(left) } else { number };
        self.settled.revise(lower);
        self.sent.iter_mut().for_each(|sent| sent.grants.revise(lower));
        self.recount(books);
        given
    }

    fn line_of(&self, worker: WorkerKey, books: &[Book]) -> Option<&Line> {
        let at = books.iter().position(|book| book.key == worker)?;
        self.lines.get(at)
    }

    pub(super) fn is_stale(&self, books: &[Book]) -> bool {
        let other_grants = self.lines.iter().zip(books).any(|(line, book)| line.told != line.grant(book));
        other_grants || self.lack.differs(self.told_lack)
    }

    /// What it lacks, in permits of ready workers. `wanted` is meant beyond the grants of the report that it knew.
    pub(super) fn want(&mut self, demand: Demand, books: &[Book], now: Instant) {
        let known = self.sent.iter().rev().find(|sent| sent.sequence <= demand.sequence);
        let known = known.map_or(&self.settled, |sent| &sent.grants);
        let has: u64 = books.iter().filter(|book| book.ready).map(|book| u64::from(known.of(book.key))).sum();
        self.goal = has + u64::from(demand.wanted);
        self.since = match (demand.wanted > 0, demand.waiting > 0) {
            // an age from before the clock began is none
            (true, _) => Some(now.checked_sub(demand.wait).unwrap_or(now)),
            // it asks others for what it lacks, and does not say for how long
            (false, true) => self.since.or(Some(now)),
            (false, false) => None,
        };
        (self.demand, self.told_at) = (demand, Some(now));
    }

    /// How long its requests have to wait by now, if that has become longer since.
    pub(super) fn waits_for(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The permits that it wants and that are not on their way to it.
    pub(super) fn unmet(&self, books: &[Book], now: Instant) -> u32 {
        if self.demand.wanted == 0 {
            return 0;
        }
        let ready = self.lines.iter().zip(books).filter(|(_, book)| book.ready);
        let expected: u64 = ready.map(|(line, _)| u64::from(line.expected(now))).sum();
        u32::try_from(self.goal.saturating_sub(expected)).unwrap_or(u32::MAX)
    }

    /// When what is on its way now will be late.
    pub(super) fn late_at(&self, now: Instant) -> Option<Instant> {
        let due = self.lines.iter().filter_map(|line| line.raised).map(|since| since + LATE);
        due.filter(|due| *due > now).min()
    }

    pub(super) fn give(&mut self, worker: usize, permits: u32) {
        let line = &mut self.lines[worker];
        let claimed = line.claims.min(permits);
        line.claims -= claimed;
        line.shares -= permits - claimed;
    }

    pub(super) fn claim(&mut self, worker: usize, permits: u32, now: Instant) {
        let line = &mut self.lines[worker];
        line.claims += permits;
        line.raised = Some(now);
    }

    pub(super) fn share(&mut self, worker: usize, permits: u32, now: Instant) {
        let line = &mut self.lines[worker];
        if permits > line.shares {
            line.raised = Some(now);
        }
        line.shares = permits;
    }

    /// It may be using these, too.
    pub(super) fn inherit(&mut self, held: &Tally, books: &mut [Book]) {
        for (worker, held) in held.iter() {
            self.settled.raise(worker, held);
        }
        self.recount(books);
    }

    /// Takes it out of the books; what it may be using.
    pub(super) fn release(self, books: &mut [Book]) -> Tally {
        for (line, book) in self.lines.iter().zip(&mut *books) {
            book.held -= u64::from(line.held);
        }
        let held = self.lines.iter().zip(&*books).filter(|(line, _)| line.held > 0);
        held.map(|(line, book)| (book.key, line.held)).collect()
    }

    /// `before`: where the workers' lines are; into the new books.
    pub(super) fn rebind(&mut self, before: &BTreeMap<WorkerKey, usize>, books: &mut [Book]) {
        let line = |book: &Book| {
            let known = before.get(&book.key).map(|at| self.lines[*at].clone());
            Line { held: 0, ..known.unwrap_or_default() }
        };
        self.lines = books.iter().map(line).collect();
        self.recount(books);
    }

    fn recount(&mut self, books: &mut [Book]) {
        let last = self.sent.back().map_or(&self.settled, |sent| &sent.grants);
        for (line, book) in self.lines.iter_mut().zip(books) {
            let sent = self.sent.iter().map(|sent| sent.grants.of(book.key)).max().unwrap_or(0);
            let held = sent.max(self.settled.of(book.key)).max(self.over.of(book.key));
            book.held = book.held - u64::from(line.held) + u64::from(held);
            (line.held, line.told) = (held, last.of(book.key));
        }
    }

    /// Makes one report of the two oldest that says the most of both: never less than the balancer may be using.
    fn fold(&mut self) {
        let Some(oldest) = self.sent.pop_front() else { return };
        if let Some(next) = self.sent.front_mut() {
            for (worker, grant) in oldest.grants.iter() {
                next.grants.raise(worker, grant);
            }
        }
    }
}
