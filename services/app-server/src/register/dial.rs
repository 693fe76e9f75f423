//! One address of a balancer, for as long as DNS names it: comes in the address, goes out a stream to whoever is there,
//! dialled again when it is lost. An identity that was renewed gets its new stream before the old one ends.

use super::{
    Desk, pause,
    stream::{End, Stream},
    streams::{Entry, StreamState},
};
use chassis::{
    backoff::Backoff,
    identity::{ConnectError, PeerId, Role},
};
use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::{Code, transport::Channel};

/// Between two tries at an address that DNS names: a balancer that is just starting is found at once.
const FIRST: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_millis(500);

/// After a balancer has said no: somebody has to change something first.
const REFUSED_FIRST: Duration = Duration::from_secs(1);
const REFUSED_CAP: Duration = Duration::from_secs(10);

/// How often a spare address is looked at again: another balancer may be there by now.
const SPARE: Duration = Duration::from_secs(5);

/// Between two tries to renew a stream whose identity has been renewed; the old stream is good for days yet.
const ROTATION: Duration = Duration::from_secs(5);

/// How one try ended.
enum Tried {
    Unreachable(ConnectError),
    /// Not at the first words: the balancer is there and does not want this node.
    Refused(String),
    /// Before or while it was registered.
    Lost {
        why: String,
        registered: bool,
    },
    Spare(String),
    Left,
}

pub(super) async fn dial(desk: Arc<Desk>, address: SocketAddr, known: watch::Receiver<HashSet<SocketAddr>>) {
    // two names that lead to one address need one dialler
    let Some(entry) = desk.streams.enter(address) else { return pause(&desk, SPARE).await };
    let mut backoff = Backoff::new(FIRST, CAP);
    let mut refused = Backoff::new(REFUSED_FIRST, REFUSED_CAP);
    let mut failures: u32 = 0;
    while !desk.is_leaving() && known.borrow().contains(&address) {
        let tried = attempt(&desk, address, &entry).await;
        if !matches!(tried, Tried::Spare(_)) {
            entry.release();
        }
        match tried {
            Tried::Left => return,
            Tried::Spare(instance) => {
                failures = 0;
                tokio::select! {
                    () = entry.unclaimed(&instance, SPARE) => {}
                    () = desk.leaving() => return,
                }
            }
            Tried::Lost { why, registered } => {
                if registered {
                    backoff.reset();
                    refused.reset();
                    failures = 0;
                }
                if why == proto::STOPPING {
                    tracing::info!(balancer = %address, "a balancer stops; dialling on in case it comes back");
                } else {
                    tracing::warn!(balancer = %address, why, "the registration with a balancer is lost; dialling again");
                }
                pause(&desk, backoff.pause()).await;
            }
            Tried::Refused(why) => {
                tracing::warn!(balancer = %address, why, "a balancer refuses this node; asking again later");
                pause(&desk, refused.pause()).await;
            }
            Tried::Unreachable(error) => {
                failures = failures.saturating_add(1);
                // the first one, and then ever more rarely
                if failures.is_power_of_two() {
                    tracing::warn!(balancer = %address, %error, failures, "a balancer cannot be reached; dialling on");
                }
                pause(&desk, backoff.pause()).await;
            }
        }
    }
}

async fn attempt(desk: &Desk, address: SocketAddr, entry: &Entry) -> Tried {
    // first, so that a renewal while we dial is noticed
    let mut rotations = desk.identity.rotations();
    let connected = tokio::select! {
        () = desk.leaving() => return Tried::Left,
        connected = connect(desk, address) => connected,
    };
    let (channel, peer) = match connected {
        Ok(connected) => connected,
        Err(error) => return Tried::Unreachable(error),
    };
    let instance = peer.instance;
    if !entry.claim(&instance) {
        return Tried::Spare(instance);
    }
    let mut account = desk.audience.grants().open(&instance, desk.introduction.heartbeat * 2);
    let mut stream = match Stream::open(desk, channel, &instance).await {
        Ok(stream) => stream,
        Err(end) => return tried(end, false),
    };
    account.welcome(stream.connections(), stream.yields());
    entry.set(StreamState::Registered);
    tracing::info!(balancer = instance, %address, "registered with a balancer");

    let end = loop {
        let end = tokio::select! {
            end = stream.run(desk, entry) => Some(end),
            rotated = rotations.changed() => match rotated {
                Ok(()) => renew(desk, address, &instance, &mut stream, entry).await,
                // the identity is ours, so its sender lives; without it there is nothing to follow
                Err(_) => Some(stream.run(desk, entry).await),
            },
        };
        if let Some(end) = end {
            break end;
        }
    };
    account.ends(&end);
    tried(end, true)
}

/// A balancer that was cut off without a word is noticed within two heartbeats, as it notices us.
async fn connect(desk: &Desk, address: SocketAddr) -> Result<(Channel, PeerId), ConnectError> {
    desk.identity.connect_watched(address, Role::Balancer, desk.introduction.heartbeat).await
}

/// Opens a stream with the identity as it is now while the old one goes on, and puts it in its place. The balancer ends
/// the old one when it hears the new Hello, so the end of the old one is not the end. `None`: there is a stream.
async fn renew(desk: &Desk, address: SocketAddr, instance: &str, stream: &mut Stream, entry: &Entry) -> Option<End> {
    let connections = stream.connections();
    loop {
        let opened = {
            let opening = async {
                let (channel, peer) = connect(desk, address).await.map_err(|error| error.to_string())?;
                if peer.instance != instance {
                    return Err(format!("another balancer is there by now: {}", peer.instance));
                }
                let opened = Stream::open(desk, channel, instance).await.map_err(|end| end.to_string())?;
                // what the old stream holds is the old process's
                let same = opened.connections() == connections;
                same.then_some(opened).ok_or_else(|| "another process is there by now".to_owned())
            };
            let mut opening = std::pin::pin!(opening);
            tokio::select! {
                opened = &mut opening => opened,
                end = stream.run(desk, entry) => match end {
                    End::Left => return Some(End::Left),
                    End::Lost(_) | End::Refused(..) => match opening.await {
                        Ok(opened) => Ok(opened),
                        Err(_) => return Some(end),
                    },
                },
            }
        };
        match opened {
            Ok(opened) => {
                *stream = opened;
                tracing::info!(balancer = instance, %address, "registered anew with the renewed identity");
                return None;
            }
            Err(why) => {
                tracing::warn!(balancer = instance, %address, why, "cannot register with the renewed identity yet");
                tokio::select! {
                    () = tokio::time::sleep(ROTATION) => {}
                    end = stream.run(desk, entry) => return Some(end),
                }
            }
        }
    }
}

fn tried(end: End, registered: bool) -> Tried {
    match end {
        End::Left => Tried::Left,
        End::Lost(why) => Tried::Lost { why, registered },
        End::Refused(code, why) => match code {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::Unimplemented => Tried::Refused(why),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Tried::Lost { why, registered },
        },
    }
}
