//! The life of a worker as its supervisor sees it: come in the messages of the control socket, go out Ready, heartbeats
//! and Drained. It ends when it is told to, when it has drained, or when the control socket closes; it never outlives
//! its supervisor.
//!
//! A supervisor that does not read (stopped, say) must not stop the worker: while bytes of ours are still unsent no
//! further heartbeat is made, and the counts wait for the next one.

use crate::{Error, frames::Frames, front::Front, log_file, stream::Listener};
use axum::Router;
use futures_util::{SinkExt, StreamExt};
use proto::worker::{
    Configure, Drained, FromSupervisor, FromWorker, Ready, from_supervisor::Message as Order,
    from_worker::Message as News,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::{UnixStream, unix::OwnedReadHalf},
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::codec::{FramedRead, FramedWrite};

/// How long the supervisor may take to send the configuration: it does so before anything else.
const CONFIGURATION: Duration = Duration::from_secs(10);

/// A heartbeat goes out this often when there is nothing to tell.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Changes within this time go into one heartbeat.
const COALESCE: Duration = Duration::from_millis(2);

/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long cut connections may take to be gone.
const CUT: Duration = Duration::from_millis(100);

type Protocol = Frames<FromSupervisor, FromWorker>;
type Orders = FramedRead<OwnedReadHalf, Protocol>;

/// Serves the router on an accepted worker's two sockets until the supervisor ends it.
pub(crate) async fn serve_on(listener: Listener, control: UnixStream, router: Router) -> Result<(), Error> {
    let (read, write) = control.into_split();
    let mut orders = FramedRead::new(read, Protocol::new());
    let mut news = FramedWrite::new(write, Protocol::new());

    let configure = timeout(CONFIGURATION, configuration(&mut orders)).await.map_err(|_| Error::Unconfigured)??;
    let front = Front::new(&configure, router)?;
    let mut accepting = JoinSet::new();
    accepting.spawn(Arc::clone(&front).accept(listener));
    if let Some(access) = front.access_log() {
        accepting.spawn(Arc::clone(access).keep_flushed());
    }
    let ready = Ready { protocol_version: proto::PROTOCOL_VERSION, capacity: configure.capacity };
    news.feed(message(News::Ready(ready))).await.map_err(Error::Control)?;

    let mut heartbeat_at = Instant::now();
    let mut drain_until: Option<Instant> = None;
    loop {
        let unsent = !news.write_buffer().is_empty();
        let soon = heartbeat_at <= Instant::now() + COALESCE;
        tokio::select! {
            // orders first: Stop must not wait behind a stream of changes
            biased;
            order = orders.next() => match understood(order)? {
                Some(Order::Drain(drain)) => {
                    let within = Duration::from_millis(drain.graceful_timeout_ms.into());
                    drain_until = Some(Instant::now() + within);
                    front.drain(drain.last);
                }
                Some(Order::Stop(_)) => {
                    finish(&front, accepting).await;
                    return Ok(());
                }
                Some(Order::Reopen(_)) => {
                    log_file::reopen();
                    if let Some(access) = front.access_log() {
                        access.reopen();
                    }
                }
                // said once; and what a newer supervisor says that we do not know
                Some(Order::Configure(_)) | None => {}
            },
            sent = news.flush(), if unsent => sent.map_err(|_| Error::SupervisorGone)?,
            () = front.empty(), if drain_until.is_some() => break,
            () = sleep_until(drain_until.unwrap_or(heartbeat_at)), if drain_until.is_some() => {
                tracing::warn!(connections = front.connections(), "drain: time is up, cutting what is left");
                break;
            }
            () = front.slots.counts.changed(), if !soon => heartbeat_at = Instant::now() + COALESCE,
            () = sleep_until(heartbeat_at), if !unsent => {
                let heartbeat = front.heartbeat();
                news.feed(message(News::Heartbeat(heartbeat))).await.map_err(Error::Control)?;
                heartbeat_at = Instant::now() + HEARTBEAT;
            }
        }
    }
    let last = async {
        news.feed(message(News::Heartbeat(front.heartbeat()))).await?;
        news.send(message(News::Drained(Drained {}))).await
    };
    finish(&front, accepting).await;
    // nobody is harmed if the supervisor does not hear it: it sees the exit
    let _ = timeout(FAREWELL, last).await;
    Ok(())
}

/// Writes what the access log still has to say.
async fn finish(front: &Front, mut accepting: JoinSet<()>) {
    if let Some(access) = front.access_log().cloned() {
        accepting.shutdown().await;
        // what has just been cut has its lines too; tunnels are the application's, and may live on
        let _ = timeout(CUT, front.empty()).await;
        // a log that cannot be written must not keep the worker from ending
        let _ = timeout(FAREWELL, spawn_blocking(move || access.finish())).await;
    }
}

async fn configuration(orders: &mut Orders) -> Result<Configure, Error> {
    let Some(Order::Configure(configure)) = understood(orders.next().await)? else {
        return Err(Error::Unconfigured);
    };
    if configure.protocol_version.abs_diff(proto::PROTOCOL_VERSION) > 1 {
        return Err(Error::Version { ours: proto::PROTOCOL_VERSION, theirs: configure.protocol_version });
    }
    Ok(configure)
}

fn understood(order: Option<io::Result<FromSupervisor>>) -> Result<Option<Order>, Error> {
    match order {
        Some(Ok(order)) => Ok(order.message),
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(Error::Control(error)),
        Some(Err(_)) | None => Err(Error::SupervisorGone),
    }
}

fn message(news: News) -> FromWorker {
    FromWorker { message: Some(news) }
}
