//! What nobody has asked for, in equal shares. In: who is there; out: everybody's shares of every worker. What demand
//! has moved stays where it is.
//!
//! What is left over after the division goes to one balancer each, another one for each position and for each node, so
//! that no balancer gets all of it.

use super::Ledger;
use std::time::Instant;

impl Ledger {
    /// What is nobody's goes to those that want some, the one that waits the longest first; the rest is divided anew.
    pub(super) fn share_out(&mut self, now: Instant) {
        let wanting = self.wanting(now);
        for worker in 0..self.books.len() {
            let mut pool = self.unclaimed(worker);
            let shared: u32 = self.accounts.iter().map(|account| account.lines[worker].shares).sum();
            let mut free = if self.books[worker].ready { pool.saturating_sub(shared) } else { 0 };
            for &place in &wanting {
                let claimed = self.accounts[place].unmet(&self.books, now).min(free);
                if claimed > 0 {
                    self.accounts[place].claim(worker, claimed, now);
                    self.moves += u64::from(claimed);
                    (free, pool) = (free - claimed, pool - claimed);
                }
            }
            self.divide(worker, pool, now);
        }
    }

    /// The capacity without what demand has moved. Claims beyond a capacity that has become smaller are cut.
    fn unclaimed(&mut self, worker: usize) -> u32 {
        let mut rest = self.books[worker].capacity;
        for account in &mut self.accounts {
            let line = &mut account.lines[worker];
            line.claims = line.claims.min(rest);
            rest -= line.claims;
        }
        rest
    }

    /// The first `remainder` balancers, counted from the worker's position and the node's offset on, get one more.
    fn divide(&mut self, worker: usize, pool: u32, now: Instant) {
        let balancers = u32::try_from(self.accounts.len()).unwrap_or(u32::MAX).max(1);
        let (share, remainder) = (pool / balancers, pool % balancers);
        let first = self.books[worker].key.0.wrapping_add(self.offset) % balancers;
        for (turned, account) in (balancers - first..).zip(&mut self.accounts) {
            account.share(worker, share + u32::from(turned % balancers < remainder), now);
        }
    }
}
