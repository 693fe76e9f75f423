//! The life of one worker process, written as it is lived: starting, ready (stalled while it says nothing), draining, dead. Come in what the worker says,
//! that it has ended, and what the node wants; goes out how this life is to end. It starts and kills nothing itself,
//! so that its test is a timeline on a paused clock.

use crate::metrics::Cause;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use proto::worker::{
    Configure, Drain, FromSupervisor, FromWorker, Heartbeat, Reopen, from_supervisor::Message as Order,
    from_worker::Message as News,
};
use std::{io, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// A control socket that closes says that the worker is about to end: its own words about why come first, this long.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long the worker may take to read an order. It reads between any two of its heartbeats.
const ORDER: Duration = Duration::from_secs(5);

/// What a worker that was told to drain gets beyond the time it was told, to end by itself.
const MERCY: Duration = Duration::from_secs(1);

/// A worker says something every second. One that has not for so long gets no new requests.
const UNHEARD: Duration = Duration::from_secs(3);

/// What balancers need beyond the time limit to answer for a worker that does not: a second, and one more to be sure that
/// they were first.
const ANSWERED: Duration = Duration::from_secs(2);

/// What the node wants of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Serve,
    /// Finish what is in flight until then.
    Drain {
        until: Instant,
        /// The node itself stops: nobody follows.
        last: bool,
    },
    /// It has gone too far.
    Kill(Cause),
    Stop,
}

/// What the node has to say to a worker, as it comes.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(crate) wanted: watch::Receiver<Wanted>,
    /// Counts how often log files were to be opened anew.
    pub(crate) reopens: watch::Receiver<u64>,
}

/// The limits of a life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// To Ready.
    pub(crate) start: Duration,
    /// Between two signs of life, until it is left in peace.
    pub(crate) unheard: Duration,
    /// Between two signs of life, until it is killed.
    pub(crate) silence: Duration,
}

impl Limits {
    /// A worker whose thread is blocked answers neither requests nor the supervisor, so the time limit of a request is
    /// the limit of both. Behind balancers it is killed only when they have answered for all that it had: a reset would
    /// tell their clients less than "too late" does.
    pub(crate) fn new(start: Duration, timeout: Duration, behind_balancers: bool) -> Self {
        let silence = if behind_balancers { UNHEARD + timeout + ANSWERED } else { timeout.max(UNHEARD) };
        Self { start, unheard: UNHEARD, silence }
    }
}

/// What happens in between.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    Ready {
        capacity: u32,
    },
    Heartbeat(Heartbeat),
    /// It says nothing.
    Stalled,
    /// It speaks again.
    Recovered,
    Draining,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself: how.
    Died(String),
    /// It has to be killed, for this reason.
    Kill(Cause),
    /// It has to be killed, because the node wants no more of it.
    Unwanted,
    /// As it was told to.
    Drained,
}

/// Lives one life. `exit` gives the words for how the process ended; it is not asked again after that.
pub(crate) async fn live(
    configure: Configure,
    limits: Limits,
    mut news: impl Stream<Item = io::Result<FromWorker>> + Unpin,
    mut orders: impl Sink<FromSupervisor> + Unpin,
    mut exit: impl Future<Output = String> + Unpin,
    wishes: &mut Wishes,
    mut observe: impl FnMut(Event),
) -> End {
    let Wishes { wanted, reopens } = wishes;
    // it opens its files after this
    reopens.mark_unchanged();
    let told = timeout(ORDER, orders.send(order(Order::Configure(configure)))).await;
    if !matches!(told, Ok(Ok(()))) {
        return silent(&mut exit).await;
    }

    // starting
    let start_until = Instant::now() + limits.start;
    loop {
        tokio::select! {
            // the exit first: what it says is the reason for all the rest
            biased;
            how = &mut exit => return End::Died(how),
            // nothing has been sent to it yet
            changed = becomes(wanted, |wanted| wanted != Wanted::Serve) => match changed {
                Wanted::Kill(cause) => return End::Kill(cause),
                Wanted::Serve | Wanted::Drain { .. } | Wanted::Stop => return End::Unwanted,
            },
            said = news.next() => match said {
                Some(Ok(FromWorker { message: Some(News::Ready(ready)) })) => {
                    if ready.protocol_version.abs_diff(proto::PROTOCOL_VERSION) > 1 {
                        return End::Kill(Cause::Version);
                    }
                    observe(Event::Ready { capacity: ready.capacity });
                    break;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return silent(&mut exit).await,
            },
            () = sleep_until(start_until) => return End::Kill(Cause::StartTimeout),
        }
    }

    // ready
    let mut heard = Instant::now();
    let mut stalled = false;
    let (drain_until, last) = loop {
        tokio::select! {
            biased;
            how = &mut exit => return End::Died(how),
            changed = becomes(wanted, |wanted| wanted != Wanted::Serve) => match changed {
                Wanted::Drain { until, last } => break (until, last),
                Wanted::Kill(cause) => return End::Kill(cause),
                Wanted::Serve | Wanted::Stop => return End::Unwanted,
            },
            said = news.next() => match said {
                Some(Ok(said)) => {
                    heard = Instant::now();
                    if std::mem::take(&mut stalled) {
                        observe(Event::Recovered);
                    }
                    if let Some(News::Heartbeat(heartbeat)) = said.message {
                        observe(Event::Heartbeat(heartbeat));
                    }
                }
                Some(Err(_)) | None => return silent(&mut exit).await,
            },
            Ok(()) = reopens.changed() => {
                // one that does not read has worse to fear than an old log file
                let _ = timeout(ORDER, orders.send(order(Order::Reopen(Reopen {})))).await;
            }
            () = sleep_until(heard + limits.unheard), if !stalled => {
                stalled = true;
                observe(Event::Stalled);
            }
            () = sleep_until(heard + limits.silence) => return End::Kill(Cause::Heartbeat),
        }
    };

    // draining
    observe(Event::Draining);
    let left = drain_until.saturating_duration_since(Instant::now());
    let graceful_timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let told = timeout(ORDER, orders.send(order(Order::Drain(Drain { graceful_timeout_ms, last })))).await;
    if !matches!(told, Ok(Ok(()))) {
        return silent(&mut exit).await;
    }
    let mut listening = true;
    loop {
        tokio::select! {
            biased;
            _ = &mut exit => return End::Drained,
            changed = becomes(wanted, |wanted| matches!(wanted, Wanted::Kill(_) | Wanted::Stop)) => match changed {
                Wanted::Kill(cause) => return End::Kill(cause),
                Wanted::Serve | Wanted::Drain { .. } | Wanted::Stop => return End::Unwanted,
            },
            said = news.next(), if listening => match said {
                Some(Ok(FromWorker { message: Some(News::Heartbeat(heartbeat)) })) => observe(Event::Heartbeat(heartbeat)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => listening = false,
            },
            () = sleep_until(drain_until + MERCY) => return End::Kill(Cause::DrainTimeout),
        }
    }
}

/// The control socket is closed: a worker without one must not live, and most often it has just died.
async fn silent(exit: &mut (impl Future<Output = String> + Unpin)) -> End {
    match timeout(LAST_WORDS, exit).await {
        Ok(how) => End::Died(how),
        Err(_) => End::Kill(Cause::Control),
    }
}

/// Until the node wants something such. A node that is gone wants its workers to stop.
pub(crate) async fn becomes(wanted: &mut watch::Receiver<Wanted>, such: impl Fn(Wanted) -> bool) -> Wanted {
    wanted.wait_for(|wanted| such(*wanted)).await.map_or(Wanted::Stop, |wanted| *wanted)
}

fn order(order: Order) -> FromSupervisor {
    FromSupervisor { message: Some(order) }
}

#[cfg(test)]
mod tests;
