//! One worker process under its supervisor's eye, from its start to its end: comes in what to run and a place to listen,
//! go out its row in the roster, what it counts, and its standing, which its position watches. It decides nothing about
//! who follows it.

use crate::{
    life::{End, Event, Limits, Wanted, Wishes, becomes, live},
    metrics::{Cause, Counters},
    process::{Process, Program},
    recycle::{Due, Terms},
    register::Audience,
    roster::{Entry, Roster, Row, State},
    sockets::{Socket, Sockets, refuse_all},
    usage::Usage,
};
use proto::worker::Configure;
use std::{
    io,
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How long the socket of a dead worker goes on being answered: until every balancer has surely heard of the death.
const GONE: Duration = Duration::from_secs(2);

/// The same for one that has drained: its balancers have let go of it before.
const GONE_AFTER_DRAIN: Duration = Duration::from_millis(100);

/// A killed process is gone at once, unless the kernel itself is stuck on its behalf.
const KILLED: Duration = Duration::from_secs(5);

/// How long a drain waits at most for the balancers to know of it.
const ANNOUNCED: Duration = Duration::from_millis(500);

/// Between two looks at a worker's memory and CPU.
const SAMPLE: Duration = Duration::from_secs(1);

/// Memory and CPU are told in these steps: every change of a row is a report.
const MEMORY_STEP: u64 = 64 * 1024;

/// Where a worker's place is, how often it has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: u32,
    pub(crate) generation: u64,
}

/// What a position knows of its worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) ready: bool,
    /// It should be replaced, for this reason.
    pub(crate) due: Option<Cause>,
    /// It has ended.
    pub(crate) past: Option<Past>,
}

/// What became of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    /// `None`: it ended because it was told to.
    pub(crate) cause: Option<Cause>,
    /// In words for the log.
    pub(crate) how: String,
    pub(crate) ready_for: Option<Duration>,
}

/// A worker. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) place: Place,
    wanted: watch::Sender<Wanted>,
    standing: watch::Receiver<Standing>,
    task: AbortOnDropHandle<()>,
}

/// Who starts workers.
pub(crate) trait Hatch: Send + Sync + 'static {
    fn hatch(&self, place: Place) -> Tenure;
}

/// The real thing: starts processes.
pub(crate) struct Hatchery {
    pub(crate) program: Program,
    pub(crate) sockets: Sockets,
    /// With an empty position and generation.
    pub(crate) configure: Configure,
    pub(crate) limits: Limits,
    pub(crate) recycling: crate::config::Recycling,
    pub(crate) roster: Roster,
    pub(crate) counters: Counters,
    pub(crate) audience: Audience,
    /// Counts how often log files were to be opened anew.
    pub(crate) reopens: watch::Sender<u64>,
}

impl Tenure {
    /// `live` lives the whole life of a worker: it follows what is wanted and tells how it stands; a life that ends
    /// without a past is taken for one that failed. Call it on the thread that lives as long as the process.
    pub(crate) fn begin<L>(
        place: Place,
        live: impl FnOnce(watch::Receiver<Wanted>, watch::Sender<Standing>) -> L,
    ) -> Self
    where
        L: Future<Output = ()> + Send + 'static,
    {
        let (wanted, want) = watch::channel(Wanted::Serve);
        let (stand, standing) = watch::channel(Standing::default());
        let task = AbortOnDropHandle::new(tokio::spawn(live(want, stand)));
        Self { place, wanted, standing, task }
    }

    pub(crate) fn want(&self, wanted: Wanted) {
        self.wanted.send_replace(wanted);
    }

    /// Until it is ready; for ever if it ends before.
    pub(crate) async fn ready(&self) {
        if self.standing.clone().wait_for(|standing| standing.ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Until it is ready and should be replaced; for ever if it ends before.
    pub(crate) async fn due(&self) -> Cause {
        let due = |standing: &Standing| standing.ready && standing.due.is_some();
        match self.standing.clone().wait_for(due).await.map(|standing| standing.due) {
            Ok(Some(cause)) => cause,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Until it has ended.
    pub(crate) async fn ended(&self) -> Past {
        let mut standing = self.standing.clone();
        let past = standing.wait_for(|standing| standing.past.is_some()).await.ok().and_then(|it| it.past.clone());
        past.unwrap_or_else(|| Past {
            cause: Some(Cause::Exit),
            how: "its supervision has failed".to_owned(),
            ready_for: None,
        })
    }

    /// What is left of one that has ended: its socket is answered for a while.
    pub(crate) async fn settled(self) {
        // a panic of it has been logged by its runtime, and says nothing about the others
        let _ = self.task.await;
    }
}

impl Hatchery {
    /// Has every worker open its log files anew.
    pub(crate) fn reopen(&self) {
        self.reopens.send_modify(|reopens| *reopens += 1);
    }
}

impl Hatch for Hatchery {
    fn hatch(&self, place: Place) -> Tenure {
        let socket = self.sockets.next();
        let spawned = socket.and_then(|socket| {
            let spawned = Process::spawn(&self.program, socket.as_fd());
            spawned
                .map(|spawned| (spawned, socket))
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.path().display())))
        });
        let ((process, news, orders), socket) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                let past = Past { cause: Some(Cause::Spawn), how: error.to_string(), ready_for: None };
                return Tenure::begin(place, |_, stand| async move {
                    stand.send_modify(|standing| standing.past = Some(past));
                });
            }
        };
        let Place { position, generation } = place;
        let (port, pid, capacity) = (socket.port(), process.pid(), self.configure.capacity);
        tracing::debug!(worker = position, generation, pid, port, "worker started");
        let entry = self.roster.enter(Row { position, generation, port, pid, capacity, ..Row::starting() });
        let configure = Configure { position, generation, ..self.configure.clone() };
        let work = Work {
            process,
            socket,
            entry,
            capacity,
            limits: self.limits,
            terms: Terms::draw(&self.recycling, &mut rand::rng()),
            counters: self.counters.clone(),
            audience: self.audience.clone(),
            reopens: self.reopens.subscribe(),
        };
        Tenure::begin(place, |wanted, stand| work.carry_out(configure, news, orders, wanted, stand))
    }
}

/// Everything that belongs to one process.
struct Work {
    process: Process,
    socket: Socket,
    entry: Entry,
    capacity: u32,
    limits: Limits,
    terms: Terms,
    counters: Counters,
    audience: Audience,
    reopens: watch::Receiver<u64>,
}

impl Work {
    async fn carry_out(
        self,
        configure: Configure,
        news: crate::process::News,
        orders: crate::process::Orders,
        wanted: watch::Receiver<Wanted>,
        stand: watch::Sender<Standing>,
    ) {
        let Self { mut process, socket, entry, capacity, limits, terms, counters, audience, reopens } = self;
        let (worker, generation, pid) = (configure.position, configure.generation, process.pid());
        let started = Instant::now();
        let mut ready_since = None;
        let terms = Mutex::new(terms);
        let observe = |event| match event {
            Event::Ready { capacity: offered } => {
                let rss = Usage::of(pid).map_or(0, |usage| usage.rss_bytes);
                if !lock(&terms).begin_with(rss) {
                    tracing::error!(worker, generation, rss, "a fresh worker holds more than max_rss: raise it");
                }
                ready_since = Some(Instant::now());
                entry.update(|row| {
                    row.state = State::Ready;
                    // a program may serve less at once than it is asked to, never more
                    row.capacity = offered.clamp(1, capacity);
                });
                stand.send_modify(|standing| standing.ready = true);
                tracing::info!(worker, generation, pid, "worker ready");
            }
            Event::Heartbeat(heartbeat) => {
                counters.heartbeat(&heartbeat);
                entry.update(|row| row.hear(&heartbeat));
                audience.settled(&heartbeat.settled);
                note_due(&stand, lock(&terms).due(heartbeat.served, started.elapsed(), 0));
            }
            Event::Stalled => {
                entry.update(|row| row.state = State::Stalled);
                tracing::warn!(worker, generation, pid, "a worker says nothing: it gets no new requests");
            }
            Event::Recovered => {
                entry.update(|row| row.state = State::Ready);
                tracing::info!(worker, generation, pid, "a worker speaks again");
            }
            Event::Draining => {}
        };
        // what the life is told: what the position wants, once the balancers know of it, and what memory commands
        let (tell, told) = watch::channel(Wanted::Serve);
        let mut wishes = Wishes { wanted: told, reopens };
        let end = {
            let exit = Box::pin(process.ended());
            let life = live(configure, limits, news, orders, exit, &mut wishes, observe);
            tokio::select! {
                end = life => end,
                () = relay(wanted, &tell, &entry, &audience) => End::Unwanted,
                () = sample(pid, &terms, started, &entry, &stand, &tell) => End::Unwanted,
            }
        };

        let (cause, how) = match end {
            End::Died(how) => (Some(Cause::Exit), how),
            End::Kill(cause) => {
                kill(&mut process).await;
                (Some(cause), "killed".to_owned())
            }
            End::Unwanted => {
                kill(&mut process).await;
                (None, "killed".to_owned())
            }
            End::Drained => (None, "drained".to_owned()),
        };
        let ready_for = ready_since.map(|since| since.elapsed());
        let answered_for = if cause.is_some() { GONE } else { GONE_AFTER_DRAIN };
        // the balancers first, so that what is refused below goes elsewhere
        drop(entry);
        stand.send_modify(|standing| standing.past = Some(Past { cause, how, ready_for }));
        if let Socket::Own(socket) = socket {
            refuse_all(socket, answered_for).await;
        }
    }
}

/// Passes on what the position wants. Before a drain every balancer is told, so that the worker is not asked for what it
/// would have to refuse.
async fn relay(mut wanted: watch::Receiver<Wanted>, tell: &watch::Sender<Wanted>, entry: &Entry, audience: &Audience) {
    let first = becomes(&mut wanted, |wanted| wanted != Wanted::Serve).await;
    if matches!(first, Wanted::Drain { .. }) {
        entry.update(|row| row.state = State::Draining);
        tokio::select! {
            _ = timeout(ANNOUNCED, audience.heard()) => {}
            _ = becomes(&mut wanted, |wanted| wanted != first) => {}
        }
        tell.send_replace(first);
        let next = becomes(&mut wanted, |wanted| matches!(wanted, Wanted::Kill(_) | Wanted::Stop)).await;
        tell.send_replace(next);
    } else {
        tell.send_replace(first);
    }
    std::future::pending::<()>().await;
}

/// Looks at the process from outside. Ends when there is nothing to see any more, and not before the life has.
async fn sample(
    pid: u32,
    terms: &Mutex<Terms>,
    started: Instant,
    entry: &Entry,
    stand: &watch::Sender<Standing>,
    tell: &watch::Sender<Wanted>,
) {
    let mut ticks = interval(SAMPLE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<(Instant, Usage)> = None;
    loop {
        let now = ticks.tick().await;
        let Some(usage) = Usage::of(pid) else { continue };
        let cores = last.map_or(0.0, |(before, earlier)| usage.cores_since(&earlier, now - before));
        last = Some((now, usage));
        let rss_bytes = usage.rss_bytes;
        entry.update(|row| {
            row.memory = rss_bytes / MEMORY_STEP * MEMORY_STEP;
            row.cpu_millicores = (cores * 1000.0).round() as u32;
        });
        match lock(terms).due(0, started.elapsed(), rss_bytes) {
            Some(Due::Kill(cause)) => {
                tell.send_replace(Wanted::Kill(cause));
            }
            due => note_due(stand, due),
        }
    }
}

/// Every change leaves them whole, so a panic elsewhere cannot have left half of one.
fn lock(terms: &Mutex<Terms>) -> MutexGuard<'_, Terms> {
    terms.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first reason stays.
fn note_due(stand: &watch::Sender<Standing>, due: Option<Due>) {
    let Some(Due::Replace(cause)) = due else { return };
    stand.send_if_modified(|standing| {
        let first = standing.due.is_none();
        standing.due.get_or_insert(cause);
        first
    });
}

async fn kill(process: &mut Process) {
    process.kill();
    if timeout(KILLED, process.ended()).await.is_err() {
        tracing::error!(pid = process.pid(), "a worker was killed and has not ended: the kernel holds it");
    }
}
