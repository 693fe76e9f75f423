//! The node's workers: comes in how many and of what kind, goes out a process for every position, replaced for as long
//! as the node wants to serve. Each position is a task of its own, so that one that is in trouble harms no other.

use crate::{
    crash::CrashLoop,
    life::{End, Event, Limits, Wanted, becomes, live},
    metrics::{Cause, Counters},
    process::{Process, Program, bind},
    roster::{Roster, Row, State},
};
use chassis::listen::ListenAddr;
use proto::worker::Configure;
use servery_worker::supervision::refuse_gone;
use std::{io, net::TcpListener, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How long the socket of a dead worker goes on being answered: until every balancer has surely heard of the death.
const GONE: Duration = Duration::from_secs(2);

/// The same when the node itself stops: its balancers have let go of it before.
const GONE_AT_THE_END: Duration = Duration::from_millis(100);

/// Most connections of one dead worker that are answered at the same time; the others wait in the kernel.
const GONE_AT_ONCE: usize = 256;

/// A killed process is gone at once, unless the kernel itself is stuck on its behalf.
const KILLED: Duration = Duration::from_secs(5);

/// What all positions have in common.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) program: Program,
    pub(crate) worker_bind: ListenAddr,
    /// With an empty position and generation.
    pub(crate) configure: Configure,
    pub(crate) limits: Limits,
}

/// Every worker of the node. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Pool {
    positions: JoinSet<()>,
    wanted: watch::Sender<Wanted>,
}

/// One place for a worker.
struct Position {
    number: u32,
    plan: Arc<Plan>,
    roster: Roster,
    counters: Counters,
    wanted: watch::Receiver<Wanted>,
    /// Sockets of dead workers that are still answered.
    gone: JoinSet<()>,
}

/// What became of one worker.
struct Past {
    cause: Cause,
    how: String,
    ready_for: Option<Duration>,
}

impl Pool {
    /// One worker per socket, at position 0 and up. Call it on the thread that lives as long as the process.
    pub(crate) fn spawn(plan: Plan, sockets: Vec<TcpListener>, roster: &Roster, counters: &Counters) -> Self {
        let plan = Arc::new(plan);
        let wanted = watch::Sender::new(Wanted::Serve);
        let mut positions = JoinSet::new();
        for (number, socket) in (0..).zip(sockets) {
            let position = Position {
                number,
                plan: Arc::clone(&plan),
                roster: roster.clone(),
                counters: counters.clone(),
                wanted: wanted.subscribe(),
                gone: JoinSet::new(),
            };
            positions.spawn(position.keep(socket));
        }
        Self { positions, wanted }
    }

    /// Lets every worker finish what is in flight, and returns when the last one has ended. Not cancelled half-way: call
    /// [`Self::stop`] from elsewhere.
    pub(crate) async fn drain(&mut self, until: Instant) {
        self.wanted.send_if_modified(|wanted| {
            let serving = *wanted == Wanted::Serve;
            if serving {
                *wanted = Wanted::Drain { until };
            }
            serving
        });
        self.ended().await;
    }

    /// Kills what is left.
    pub(crate) async fn stop(&mut self) {
        self.wanted.send_replace(Wanted::Stop);
        self.ended().await;
    }

    async fn ended(&mut self) {
        while let Some(ended) = self.positions.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the task of a worker position has failed");
            }
        }
    }
}

impl Position {
    /// One worker after the other.
    async fn keep(mut self, first: TcpListener) {
        let mut crashes = CrashLoop::default();
        let mut socket: io::Result<TcpListener> = Ok(first);
        for generation in 1.. {
            let past = match socket {
                Ok(socket) => self.run(generation, socket).await,
                Err(error) => Some(Past { cause: Cause::Spawn, how: error.to_string(), ready_for: None }),
            };
            if *self.wanted.borrow() != Wanted::Serve {
                break;
            }
            // it may also have drained for no reason of ours
            let Some(Past { cause, how, ready_for }) = past else { break };
            self.counters.restart(cause);
            let pause = crashes.pause(ready_for);
            let (worker, cause) = (self.number, cause.as_str());
            tracing::warn!(worker, generation, cause, how, next_start_in = ?pause, "a worker has ended");
            tokio::select! {
                _ = becomes(&mut self.wanted, |wanted| wanted != Wanted::Serve) => break,
                () = sleep(pause) => {}
            }
            // what has been answered long ago
            while self.gone.try_join_next().is_some() {}
            socket = bind(self.plan.worker_bind);
        }
        while self.gone.join_next().await.is_some() {}
    }

    /// One worker from its start to its end. `None`: it ended because the node wanted it to.
    async fn run(&mut self, generation: u64, socket: TcpListener) -> Option<Past> {
        let (mut process, news, orders) = match Process::spawn(&self.plan.program, &socket) {
            Ok(spawned) => spawned,
            Err(error) => {
                let how = format!("{}: {error}", self.plan.program.path().display());
                return Some(Past { cause: Cause::Spawn, how, ready_for: None });
            }
        };
        let port = socket.local_addr().map_or(0, |address| address.port());
        let (worker, pid, capacity) = (self.number, process.pid(), self.plan.configure.capacity);
        tracing::debug!(worker, generation, pid, port, "worker started");
        let entry = self.roster.enter(Row {
            position: self.number,
            generation,
            port,
            pid,
            state: State::Starting,
            capacity,
            busy: 0,
            served: 0,
            restarts: u32::try_from(generation - 1).unwrap_or(u32::MAX),
        });
        let mut ready_since = None;
        let observe = |event| match event {
            Event::Ready { capacity: offered } => {
                ready_since = Some(Instant::now());
                entry.update(|row| {
                    row.state = State::Ready;
                    // a program may serve less at once than it is asked to, never more
                    row.capacity = offered.clamp(1, capacity);
                });
                tracing::info!(worker, generation, pid, port, "worker ready");
            }
            Event::Heartbeat(heartbeat) => {
                self.counters.heartbeat(&heartbeat);
                entry.update(|row| (row.busy, row.served) = (heartbeat.busy, heartbeat.served));
            }
            Event::Draining => entry.update(|row| row.state = State::Draining),
        };
        let configure = Configure { position: self.number, generation, ..self.plan.configure.clone() };
        let exit = Box::pin(process.ended());
        let end = live(configure, self.plan.limits, news, orders, exit, &mut self.wanted, observe).await;

        let past = match end {
            End::Died(how) => Some((Cause::Exit, how)),
            End::Kill(cause) => {
                kill(&mut process).await;
                Some((cause, "killed".to_owned()))
            }
            End::Unwanted => {
                kill(&mut process).await;
                None
            }
            End::Drained => None,
        };
        // the balancers first, so that what is refused below goes elsewhere
        drop(entry);
        let answered_for = if past.is_some() { GONE } else { GONE_AT_THE_END };
        self.gone.spawn(refuse_all(socket, answered_for));
        let ready_for = ready_since.map(|since| since.elapsed());
        past.map(|(cause, how)| Past { cause, how, ready_for })
    }
}

async fn kill(process: &mut Process) {
    process.kill();
    if timeout(KILLED, process.ended()).await.is_err() {
        tracing::error!(pid = process.pid(), "a worker was killed and has not ended: the kernel holds it");
    }
}

/// Answers whoever comes to the socket of a dead worker, for a while.
async fn refuse_all(socket: TcpListener, for_long: Duration) {
    let until = Instant::now() + for_long;
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the socket of a dead worker cannot be answered");
            return;
        }
    };
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if answering.len() < GONE_AT_ONCE => match accepted {
                Ok((stream, _)) => {
                    answering.spawn(refuse_gone(stream));
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot accept for a dead worker");
                    sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = answering.join_next() => {}
            () = sleep_until(until) => break,
        }
    }
    drop(listener);
    while answering.join_next().await.is_some() {}
}

/// The sockets of the first workers.
pub(crate) fn bind_all(first: ListenAddr, workers: u32) -> io::Result<Vec<TcpListener>> {
    (0..workers).map(|_| bind(first)).collect()
}

#[cfg(test)]
mod tests;
