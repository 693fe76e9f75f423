//! One place for a worker, written as it is kept: a worker serves until it ends or is to be replaced. One that has ended
//! is followed by the next, after a pause where it keeps ending; one that is to be replaced (it is due, or all are)
//! serves on until a fresh one is ready, and then drains. What does not come up replaces nothing.
//!
//! Comes in who starts workers and what the node wants, goes out the order of starts and drains. It touches no process
//! itself, so that its test is a timeline on a paused clock.

use crate::{
    crash::CrashLoop,
    life::{Wanted, becomes},
    metrics::{Cause, Counters},
    roster::{Roster, Row, State},
    tenure::{Hatch, Past, Place, Tenure},
    turns::Turns,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

/// How often all workers were to be replaced, and how far that has come.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// Counts the reloads, from 1.
    pub(crate) wanted: u64,
    /// The last one that was given up, because what it started did not come up.
    pub(crate) failed: u64,
    /// What each position's worker that is ready was started for.
    pub(crate) loaded: BTreeMap<u32, u64>,
}

impl Reloads {
    fn wants(&self, loaded: u64) -> bool {
        self.wanted > loaded && self.wanted > self.failed
    }

    /// Whether nothing is left to be done.
    pub(crate) fn is_over(&self) -> bool {
        !self.loaded.values().any(|loaded| self.wants(*loaded))
    }
}

/// What all positions have in common.
pub(crate) struct Common<H> {
    pub(crate) hatchery: H,
    pub(crate) turns: Turns,
    pub(crate) reloads: watch::Sender<Reloads>,
    pub(crate) roster: Roster,
    pub(crate) counters: Counters,
    /// For what is in flight at a worker that is replaced.
    pub(crate) graceful_timeout: Duration,
}

/// One place. Dropping it kills its workers.
pub(crate) struct Position<H> {
    number: u32,
    /// Of the last worker.
    generation: u64,
    common: Arc<Common<H>>,
    wanted: watch::Receiver<Wanted>,
    crashes: CrashLoop,
    /// Has been followed by another one and finishes what it has.
    leaving: Option<Tenure>,
    /// Have ended; their sockets are still answered.
    gone: JoinSet<()>,
    /// No worker is recycled before: the last fresh one did not come up.
    resting_until: Option<Instant>,
}

/// The worker that serves, and the reload that it was started for.
struct Serving {
    tenure: Tenure,
    loaded: u64,
}

/// What there is to do about the worker that serves.
enum Next {
    Ended(Past),
    Replace(Cause),
    Unwanted(Wanted),
}

impl<H: Hatch> Position<H> {
    /// The place `number`, where `generation` workers have been before.
    pub(crate) fn new(number: u32, generation: u64, common: Arc<Common<H>>, wanted: watch::Receiver<Wanted>) -> Self {
        Self {
            number,
            generation,
            common,
            wanted,
            crashes: CrashLoop::default(),
            leaving: None,
            gone: JoinSet::new(),
            resting_until: None,
        }
    }

    /// One worker after the other, until the node wants none here any more. Gives the number and the last generation.
    pub(crate) async fn keep(mut self) -> (u32, u64) {
        let mut serving = Some(self.hatch());
        while let Some(now) = serving {
            serving = match self.watch(&now).await {
                Next::Ended(past) => self.follow(now.tenure, &past).await,
                Next::Replace(cause) => self.replace(now, cause).await,
                Next::Unwanted(wanted) => {
                    self.end(Some(now.tenure), wanted).await;
                    None
                }
            };
        }
        self.common.reloads.send_modify(|reloads| {
            reloads.loaded.remove(&self.number);
        });
        while self.gone.join_next().await.is_some() {}
        (self.number, self.generation)
    }

    fn hatch(&mut self) -> Serving {
        // what has been answered long ago
        while self.gone.try_join_next().is_some() {}
        self.generation += 1;
        let loaded = self.common.reloads.borrow().wanted;
        let place = Place { position: self.number, generation: self.generation };
        Serving { tenure: self.common.hatchery.hatch(place), loaded }
    }

    /// Until something has to be done about the worker that serves.
    async fn watch(&mut self, serving: &Serving) -> Next {
        let mut reloads = self.common.reloads.subscribe();
        let mut node = self.wanted.clone();
        loop {
            // one at a time: a position never has more than two workers
            let alone = self.leaving.is_none();
            let leaving = self.leaving.as_ref();
            tokio::select! {
                // the end first: what has ended is not replaced gently
                biased;
                wanted = becomes(&mut node, |wanted| wanted != Wanted::Serve) => return Next::Unwanted(wanted),
                past = serving.tenure.ended() => return Next::Ended(past),
                past = ended(leaving) => self.release(&past),
                () = self.loaded(serving) => {}
                () = wants(&mut reloads, serving), if alone => return Next::Replace(Cause::Reload),
                cause = rested(self.resting_until, &serving.tenure), if alone => return Next::Replace(cause),
            }
        }
    }

    /// Notes what the worker was started for, once it is ready; then for ever.
    async fn loaded(&self, serving: &Serving) {
        serving.tenure.ready().await;
        let noted = self
            .common
            .reloads
            .send_if_modified(|reloads| reloads.loaded.insert(self.number, serving.loaded) != Some(serving.loaded));
        if !noted {
            std::future::pending::<()>().await;
        }
    }

    /// The next worker, after a pause if need be. `None`: the node wants none.
    async fn follow(&mut self, tenure: Tenure, past: &Past) -> Option<Serving> {
        let Place { generation, .. } = tenure.place;
        self.gone.spawn(tenure.settled());
        // whatever comes next is started for the newest reload: none has to wait for it
        self.common.reloads.send_modify(|reloads| {
            reloads.loaded.remove(&self.number);
        });
        // it may have drained for no reason of ours: then that is how it exits
        let cause = past.cause.unwrap_or(Cause::Exit);
        self.count(cause);
        let pause = self.crashes.pause(past.ready_for);
        let (worker, cause, how) = (self.number, cause.as_str(), past.how.as_str());
        tracing::warn!(worker, generation, cause, how, next_start_in = ?pause, "a worker has ended");
        // an operator who looks meanwhile finds the position and its causes
        let dead = Row { position: worker, generation, state: State::Dead, ..Row::starting() };
        let _dead = (!pause.is_zero()).then(|| self.common.roster.enter(dead));
        tokio::select! {
            biased;
            wanted = becomes(&mut self.wanted, |wanted| wanted != Wanted::Serve) => {
                self.end(None, wanted).await;
                None
            }
            () = sleep(pause) => Some(self.hatch()),
        }
    }

    /// A fresh worker beside the one that serves, which drains when the fresh one is ready.
    async fn replace(&mut self, serving: Serving, cause: Cause) -> Option<Serving> {
        let common = Arc::clone(&self.common);
        let mut reloads = common.reloads.subscribe();
        let turn = tokio::select! {
            biased;
            wanted = becomes(&mut self.wanted, |wanted| wanted != Wanted::Serve) => {
                self.end(Some(serving.tenure), wanted).await;
                return None;
            }
            past = serving.tenure.ended() => return self.follow(serving.tenure, &past).await,
            () = wants_not(&mut reloads, &serving), if cause == Cause::Reload => return Some(serving),
            turn = common.turns.take() => turn,
        };
        let fresh = self.hatch();
        tokio::select! {
            biased;
            wanted = becomes(&mut self.wanted, |wanted| wanted != Wanted::Serve) => {
                drop(fresh);
                self.end(Some(serving.tenure), wanted).await;
                None
            }
            past = fresh.tenure.ended() => {
                drop(turn);
                self.spare(&past, &fresh, cause);
                self.gone.spawn(fresh.tenure.settled());
                Some(serving)
            }
            past = serving.tenure.ended() => {
                // its successor is on its way already
                let cause = past.cause.unwrap_or(Cause::Exit);
                self.count(cause);
                tracing::warn!(
                    worker = self.number, generation = serving.tenure.place.generation, cause = cause.as_str(),
                    how = past.how, "a worker has ended while its successor starts"
                );
                self.gone.spawn(serving.tenure.settled());
                Some(fresh)
            }
            () = fresh.tenure.ready() => {
                self.count(cause);
                let (old, generation) = (serving.tenure.place.generation, fresh.tenure.place.generation);
                tracing::info!(worker = self.number, old, generation, cause = cause.as_str(), "a worker is replaced");
                let until = Instant::now() + self.common.graceful_timeout;
                serving.tenure.want(Wanted::Drain { until, last: false });
                self.leaving = Some(serving.tenure);
                self.resting_until = None;
                Some(fresh)
            }
        }
    }

    /// What was to follow did not come up: the old one stays.
    fn spare(&mut self, past: &Past, fresh: &Serving, why: Cause) {
        let cause = past.cause.unwrap_or(Cause::Exit);
        self.count(cause);
        let pause = self.crashes.pause(past.ready_for);
        self.resting_until = Some(Instant::now() + pause);
        let (worker, generation) = (self.number, fresh.tenure.place.generation);
        tracing::error!(
            worker,
            generation,
            replacing_for = why.as_str(),
            cause = cause.as_str(),
            how = past.how,
            "the new worker did not come up: the old one stays"
        );
        if why == Cause::Reload {
            self.common.reloads.send_modify(|reloads| reloads.failed = reloads.failed.max(fresh.loaded));
        }
    }

    /// Lets the workers of this position end as the node wants it. One that drains already goes on doing so.
    async fn end(&mut self, serving: Option<Tenure>, wanted: Wanted) {
        if let Some(serving) = &serving {
            serving.want(wanted);
        }
        let mut last = wanted;
        let tenures: Vec<Tenure> = serving.into_iter().chain(self.leaving.take()).collect();
        if matches!(wanted, Wanted::Drain { .. }) {
            let ended = async {
                for tenure in &tenures {
                    tenure.ended().await;
                }
            };
            tokio::select! {
                biased;
                () = ended => {}
                harder = becomes(&mut self.wanted, |wanted| matches!(wanted, Wanted::Kill(_) | Wanted::Stop)) => last = harder,
            }
        }
        if !matches!(last, Wanted::Drain { .. }) {
            for tenure in &tenures {
                tenure.want(last);
            }
        }
        for tenure in tenures {
            tenure.ended().await;
            self.gone.spawn(tenure.settled());
        }
    }

    /// The one that was leaving has left.
    fn release(&mut self, past: &Past) {
        let Some(leaving) = self.leaving.take() else { return };
        if let Some(cause) = past.cause {
            self.common.counters.restart(cause);
            let Place { position, generation } = leaving.place;
            let (cause, how) = (cause.as_str(), past.how.as_str());
            tracing::warn!(worker = position, generation, cause, how, "a worker that was replaced has ended badly");
        }
        self.gone.spawn(leaving.settled());
    }

    fn count(&self, cause: Cause) {
        self.common.counters.restart(cause);
        self.common.roster.restarted(self.number, cause);
    }
}

/// Until the worker that leaves has; for ever without one.
async fn ended(leaving: Option<&Tenure>) -> Past {
    match leaving {
        Some(leaving) => leaving.ended().await,
        None => std::future::pending().await,
    }
}

/// Until a reload wants this worker, which is ready, to be replaced.
async fn wants(reloads: &mut watch::Receiver<Reloads>, serving: &Serving) {
    serving.tenure.ready().await;
    if reloads.wait_for(|reloads| reloads.wants(serving.loaded)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until it does not any more.
async fn wants_not(reloads: &mut watch::Receiver<Reloads>, serving: &Serving) {
    if reloads.wait_for(|reloads| !reloads.wants(serving.loaded)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Until the worker is due, but not before the position has rested.
async fn rested(until: Option<Instant>, tenure: &Tenure) -> Cause {
    if let Some(until) = until {
        sleep_until(until).await;
    }
    tenure.due().await
}

#[cfg(test)]
mod tests;
