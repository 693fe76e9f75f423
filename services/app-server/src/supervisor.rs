//! The node while it serves: come in the operator's signals and the requests that wait, go out more or fewer workers, fresh
//! ones for all, and log files that are opened anew.

use crate::{
    pool::Pool,
    register::Streams,
    roster::{Roster, Row, State},
    scale::{Change, Load, Scaler},
    systemd::ServiceManager,
    tenure::Hatchery,
};
use chassis::lifecycle::{Command, Commands};
use futures_util::future::OptionFuture;
use std::{path::Path, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Between two looks at the requests that wait.
const LOOK: Duration = Duration::from_millis(100);

/// Most workers of a node: balancers refuse reports of more than twice as many.
const MOST_WORKERS: u32 = crate::config::WORKERS_MAX;

/// What the supervisor sees of the node.
pub(crate) struct Sight {
    pub(crate) roster: Roster,
    pub(crate) streams: Streams,
    /// No balancer is there to say how many requests wait.
    pub(crate) alone: bool,
}

/// What the supervisor goes by, and whom it tells.
#[derive(Clone, Copy)]
pub(crate) struct Desk<'a> {
    pub(crate) workers_max: u32,
    pub(crate) log_file: Option<&'a Path>,
    pub(crate) service: &'a ServiceManager,
}

/// Supervises for ever.
pub(crate) async fn supervise(pool: &mut Pool<Hatchery>, sight: &Sight, desk: &Desk<'_>, commands: &mut Commands) -> ! {
    let Desk { workers_max, log_file, service } = *desk;
    let mut scaler = Scaler::new(pool.size(), workers_max);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reloading = None;
    loop {
        let mut under_way = OptionFuture::from(reloading.as_mut());
        tokio::select! {
            Some(command) = commands.recv() => match command {
                Command::Reload => {
                    tracing::info!("replacing every worker by a fresh one");
                    service.reloading();
                    pool.reload();
                    reloading = Some(Box::pin(pool.reloaded()));
                }
                Command::More if pool.size() >= MOST_WORKERS => {
                    tracing::warn!(workers = pool.size(), "there are as many workers as a node may have");
                }
                Command::More => {
                    pool.grow();
                    scaler.rebase(pool.size());
                    tracing::info!(workers = pool.size(), "one worker more");
                }
                Command::Fewer => {
                    if pool.shrink() {
                        scaler.rebase(pool.size());
                        tracing::info!(workers = pool.size(), "one worker fewer");
                    } else {
                        tracing::warn!("one worker is the least");
                    }
                }
                Command::Reopen => {
                    if let Some(log_file) = log_file {
                        chassis::log_file::reopen(log_file);
                    }
                    pool.hatchery().reopen();
                }
            },
            Some(complete) = &mut under_way => {
                reloading = None;
                service.reloaded();
                if complete {
                    tracing::info!("every worker has been replaced");
                } else {
                    tracing::error!("the reload was given up: workers that were not replaced yet serve on");
                }
            }
            _ = looks.tick(), if scaler.scales() => {
                let load = sight.load();
                match scaler.decide(pool.size(), load, Instant::now()) {
                    Some(Change::More) => {
                        pool.grow();
                        tracing::info!(workers = pool.size(), waiting = load.waiting, "requests wait: one worker more");
                    }
                    Some(Change::Fewer) => {
                        pool.shrink();
                        tracing::info!(workers = pool.size(), "it is quiet: one worker fewer");
                    }
                    None => {}
                }
            }
        }
    }
}

impl Sight {
    fn load(&self) -> Load {
        let rows = self.roster.rows();
        let ready = || rows.iter().filter(|row| row.state == State::Ready);
        let sum = |what: fn(&Row) -> u32| ready().map(|row| u64::from(what(row))).sum::<u64>();
        let (busy, slots) = (sum(|row| row.busy.min(row.capacity)), sum(|row| row.capacity));
        // alone, what waits to be accepted is not seen; but nothing is accepted any more when every slot is busy
        let full = self.alone && slots > 0 && busy == slots;
        let waiting = self.streams.demand() + sum(|row| row.waiting) + u64::from(full);
        Load {
            waiting,
            busy,
            slots,
            starting: rows.iter().any(|row| matches!(row.state, State::Starting | State::Dead)),
        }
    }
}
