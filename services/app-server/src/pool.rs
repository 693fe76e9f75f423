//! The node's workers: comes in how many there are to be, goes out a position for each, kept for as long as the node wants
//! to serve. Each position is a task of its own, so that one that is in trouble harms no other.

use crate::config::Percent;
use crate::{
    life::Wanted,
    metrics::Counters,
    position::{Common, Position, Reloads},
    roster::Roster,
    tenure::Hatch,
    turns::Turns,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet, time::Instant};

/// Every worker of the node. Dropping it kills them.
pub(crate) struct Pool<H> {
    common: Arc<Common<H>>,
    positions: JoinSet<(u32, u64)>,
    /// Those that are wanted.
    seats: BTreeMap<u32, watch::Sender<Wanted>>,
    /// Those that end: their workers finish what they have.
    ending: BTreeMap<u32, watch::Sender<Wanted>>,
    /// Of the last worker of positions that are no more: no generation is used twice.
    generations: BTreeMap<u32, u64>,
}

impl<H: Hatch> Pool<H> {
    /// This many workers, at positions 0 and up. Call it on the thread that lives as long as the process.
    pub(crate) fn spawn(
        hatchery: H,
        workers: u32,
        replace_at_once: Percent,
        graceful_timeout: Duration,
        roster: &Roster,
        counters: &Counters,
    ) -> Self {
        let common = Common {
            hatchery,
            turns: Turns::new(replace_at_once),
            reloads: watch::Sender::new(Reloads::default()),
            roster: roster.clone(),
            counters: counters.clone(),
            graceful_timeout,
        };
        let mut pool = Self {
            common: Arc::new(common),
            positions: JoinSet::new(),
            seats: BTreeMap::new(),
            ending: BTreeMap::new(),
            generations: BTreeMap::new(),
        };
        for _ in 0..workers {
            pool.grow();
        }
        pool
    }

    /// Who starts the workers.
    pub(crate) fn hatchery(&self) -> &H {
        &self.common.hatchery
    }

    /// How many workers there are to be.
    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.seats.len()).unwrap_or(u32::MAX)
    }

    /// One worker more, at the first position that nobody has.
    pub(crate) fn grow(&mut self) {
        self.settle();
        let free = |number: &u32| !self.seats.contains_key(number) && !self.ending.contains_key(number);
        let Some(number) = (0..).find(free) else { return };
        let generation = self.generations.get(&number).copied().unwrap_or(0);
        let (want, wanted) = watch::channel(Wanted::Serve);
        self.positions.spawn(Position::new(number, generation, Arc::clone(&self.common), wanted).keep());
        self.seats.insert(number, want);
        self.common.turns.among(self.size());
    }

    /// One worker fewer, the last one, which finishes what it has. One always stays.
    pub(crate) fn shrink(&mut self) -> bool {
        self.settle();
        if self.size() <= 1 {
            return false;
        }
        let Some((number, want)) = self.seats.pop_last() else { return false };
        want.send_replace(Wanted::Drain { until: Instant::now() + self.common.graceful_timeout, last: false });
        self.ending.insert(number, want);
        self.common.turns.among(self.size());
        true
    }

    /// Replaces every worker by a fresh one. Await the end with [`Self::reloaded`].
    pub(crate) fn reload(&self) {
        self.common.reloads.send_modify(|reloads| reloads.wanted += 1);
    }

    /// Until no reload is under way; whether the last one has replaced every worker.
    pub(crate) fn reloaded(&self) -> impl Future<Output = bool> + use<H> {
        let mut reloads = self.common.reloads.subscribe();
        async move {
            let over = reloads.wait_for(Reloads::is_over).await;
            over.is_ok_and(|reloads| reloads.failed < reloads.wanted)
        }
    }

    /// Lets every worker finish what is in flight, and returns when the last one has ended. Not cancelled half-way: call
    /// [`Self::stop`] from elsewhere.
    pub(crate) async fn drain(&mut self, until: Instant) {
        for want in self.seats.values().chain(self.ending.values()) {
            want.send_if_modified(|wanted| {
                let serving = *wanted == Wanted::Serve;
                if serving {
                    *wanted = Wanted::Drain { until, last: true };
                }
                serving
            });
        }
        self.ended().await;
    }

    /// Kills what is left.
    pub(crate) async fn stop(&mut self) {
        for want in self.seats.values().chain(self.ending.values()) {
            want.send_replace(Wanted::Stop);
        }
        self.ended().await;
    }

    async fn ended(&mut self) {
        while let Some(ended) = self.positions.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the task of a worker position has failed");
            }
        }
    }

    /// Forgets the positions that have ended, but not their generations.
    fn settle(&mut self) {
        while let Some(ended) = self.positions.try_join_next() {
            match ended {
                Ok((number, generation)) => {
                    self.ending.remove(&number);
                    self.generations.insert(number, generation);
                }
                Err(error) => tracing::error!(%error, "the task of a worker position has failed"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
