//! Permits go where requests wait. In: what every balancer lacks and how long its requests have to wait; out: other
//! targets, and how many permits have moved. Over time this is one queue for the whole cluster: everybody waits equally
//! long, at whichever balancer it is.
//!
//! - A balancer that yields is told what others lack and gives back what it does not need in the moment in which it does
//!   not: nobody else knows that as well. Of one that does not know how to, what it does not seem to use is taken, as far
//!   as the workers have told, if it wants nothing itself.
//! - From one of those with a shorter wait, or with none, a permit is taken in any case, no more often than every [`PACE`]
//!   and only when the difference is more than [`PATIENCE`] and a quarter: every move costs a slot a round trip, and two
//!   that have equally much must not exchange it. More at a time, of permits that are in use, would be asked back at once:
//!   they would slosh from one balancer to the next.

use super::{Ledger, account::Account};
use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

/// How much longer a wait must be than that of one whose permits are in use.
const PATIENCE: Duration = Duration::from_millis(20);

/// Between two permits that are taken from one that wants them itself.
const PACE: Duration = Duration::from_millis(50);

/// While somebody lacks something.
const LOOK: Duration = Duration::from_millis(10);

/// Of a worker with many slots at least this part moves at once: a request's worth at a time would never end.
const PART: u32 = 16;

/// What a holder can do without at one worker.
struct Offer {
    holder: usize,
    worker: usize,
    permits: u32,
}

impl Ledger {
    /// Who wants something that is not on its way to it, the one with the longest wait first.
    pub(super) fn wanting(&self, now: Instant) -> Vec<usize> {
        let wants = |place: &usize| self.accounts[*place].unmet(&self.books, now) > 0;
        let mut wanting: Vec<usize> = (0..self.accounts.len()).filter(wants).collect();
        wanting.sort_by_key(|place| self.accounts[*place].since);
        wanting
    }

    /// Moves what can move now. `Some`: when to look again.
    pub(super) fn serve(&mut self, now: Instant) -> Option<Instant> {
        for place in self.wanting(now) {
            for offer in self.offers(place) {
                let unmet = self.accounts[place].unmet(&self.books, now);
                if unmet == 0 {
                    break;
                }
                let permits = self.batch(offer.worker, unmet).min(offer.permits);
                self.shift(&offer, place, permits, now);
            }
        }
        if let Some(&oldest) = self.wanting(now).first()
            && self.contested.is_none_or(|at| now.saturating_duration_since(at) >= PACE)
            && let Some(offer) = self.concession(oldest, now)
        {
            let unmet = self.accounts[oldest].unmet(&self.books, now);
            let permits = self.batch(offer.worker, 1).min(unmet).min(offer.permits);
            self.shift(&offer, oldest, permits, now);
            self.contested = Some(now);
        }
        let lacking = (!self.wanting(now).is_empty()).then(|| now + LOOK);
        let wants = self.accounts.iter().filter(|account| account.demand.wanted > 0);
        wants.filter_map(|account| account.late_at(now)).chain(lacking).min()
    }

    /// What those that want nothing can do without for this one, what is idle first.
    fn offers(&self, place: usize) -> Vec<Offer> {
        let balancers = self.accounts.len();
        let mut ranked = Vec::new();
        for (holder, account) in self.accounts.iter().enumerate() {
            if holder == place || account.yields || account.since.is_some() {
                continue;
            }
            let (idle, _) = self.spare(account);
            // from another one for everybody
            let turn = (holder + balancers - place) % balancers;
            let rank = (Reverse(idle), turn);
            for (worker, book) in self.books.iter().enumerate().filter(|(_, book)| book.ready) {
                let target = account.lines[worker].target();
                let permits = target.saturating_sub(book.presence(account.connections).busy);
                if permits > 0 {
                    ranked.push((rank, Offer { holder, worker, permits }));
                }
            }
        }
        ranked.sort_by_key(|(rank, offer)| (*rank, Reverse(offer.permits), offer.worker));
        ranked.into_iter().map(|(_, offer)| offer).collect()
    }

    /// A permit of the one that wants it the least, if that is enough less.
    fn concession(&self, place: usize, now: Instant) -> Option<Offer> {
        let (starved, told) = (self.spare(&self.accounts[place]).1 == 0, &self.accounts[place]);
        // a wait may be over since it was told of, unless there is nothing here to send it to
        let age = if starved { told.waits_for(now) } else { told.demand.wait };
        let heard_since = self.contested.is_none_or(|at| told.told_at.is_some_and(|told| told > at));
        if !starved && !heard_since {
            return None;
        }
        let margin = PATIENCE.max(age / 4);
        let others = self.accounts.iter().enumerate().filter(|(holder, account)| {
            *holder != place && !account.yields && account.waits_for(now) + margin < age && self.spare(account).1 > 0
        });
        let (holder, account) = others.min_by_key(|(_, account)| account.waits_for(now))?;
        let ready = self.books.iter().zip(&account.lines).enumerate().filter(|(_, (book, _))| book.ready);
        let (worker, (_, line)) = ready.max_by_key(|(_, (book, line))| {
            let target = line.target();
            (target.saturating_sub(book.presence(account.connections).busy), target)
        })?;
        Some(Offer { holder, worker, permits: line.target() })
    }

    /// What the balancer is to have at ready workers: how much it does not use, how much in all.
    fn spare(&self, account: &Account) -> (u64, u64) {
        let ready = self.books.iter().zip(&account.lines).filter(|(book, _)| book.ready);
        ready.fold((0, 0), |(idle, all), (book, line)| {
            let target = line.target();
            let unused = target.saturating_sub(book.presence(account.connections).busy);
            (idle + u64::from(unused), all + u64::from(target))
        })
    }

    /// What somebody gave back goes to those that want some; what nobody wants is shared again.
    pub(super) fn pass_on(&mut self, from: usize, worker: usize, permits: u32, now: Instant) {
        let mut left = permits;
        for place in self.wanting(now).into_iter().filter(|place| *place != from) {
            let claimed = self.accounts[place].unmet(&self.books, now).min(left);
            if claimed > 0 {
                self.accounts[place].claim(worker, claimed, now);
                self.moves += u64::from(claimed);
                left -= claimed;
            }
        }
        self.unequal |= left > 0;
    }

    /// How many permits of this worker to move for so many.
    fn batch(&self, worker: usize, permits: u32) -> u32 {
        permits.max(self.books[worker].capacity / PART)
    }

    fn shift(&mut self, offer: &Offer, place: usize, permits: u32, now: Instant) {
        self.accounts[offer.holder].give(offer.worker, permits);
        self.accounts[place].claim(offer.worker, permits, now);
        self.moves += u64::from(permits);
    }
}
