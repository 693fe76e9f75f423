//! The node's registrations: come in the names under which balancers are found, goes out one stream to every balancer,
//! for as long as there are both. What the streams say is in the roster; which of them may send how much is in the
//! ledger. It keeps no worker and serves no request.
//!
//! A name is followed by a task; each address behind it gets a task that dials (`dial`); a dialled balancer whose
//! instance has no stream yet gets one (`stream`).

use crate::{config::RouteConfig, roster::Roster};
use chassis::{
    backoff::Backoff,
    config::HostPort,
    discovery::{Discovery, DiscoveryError},
    identity::Identity,
};
use proto::registry::{Hello, Route};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

mod dial;
mod grants;
mod names;
mod stream;
mod streams;

pub(crate) use grants::Audience;
pub(crate) use streams::{StreamRow, StreamState, Streams};

/// Between two questions to DNS while it has no answer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// DNS that fails is asked less often than DNS that says "not yet".
const FAILING_PAUSE: Duration = Duration::from_secs(2);

/// What a node says of itself.
#[derive(Debug)]
pub(crate) struct Introduction {
    pub(crate) app: String,
    pub(crate) routes: Vec<RouteConfig>,
    /// The node's secret.
    pub(crate) pass: [u8; 32],
    pub(crate) advertise: Option<IpAddr>,
    /// How long it promises to be silent at most.
    pub(crate) heartbeat: Duration,
    /// The workers' limit to a response head and between two parts of its body.
    pub(crate) timeout: Duration,
}

/// What all streams have in common.
struct Desk {
    identity: Identity,
    introduction: Introduction,
    roster: Roster,
    audience: Audience,
    streams: Streams,
    leaving: watch::Sender<bool>,
}

/// Every registration of the node. Dropping it ends them without a word.
pub(crate) struct Registrar {
    desk: Arc<Desk>,
    followers: JoinSet<()>,
    _grants: AbortOnDropHandle<()>,
}

impl Registrar {
    /// Follows every name from now on.
    pub(crate) fn spawn(
        identity: Identity,
        introduction: Introduction,
        roster: Roster,
        audience: Audience,
        streams: Streams,
        join: &[HostPort],
        discovery: &Discovery,
    ) -> Self {
        let leaving = watch::Sender::new(false);
        let desk = Arc::new(Desk { identity, introduction, roster, audience, streams, leaving });
        let mut followers = JoinSet::new();
        for name in join {
            followers.spawn(follow(Arc::clone(&desk), name.clone(), discovery.clone()));
        }
        let granting = Arc::clone(&desk);
        let grants = tokio::spawn(async move { granting.audience.grants().follow(granting.roster.watch()).await });
        Self { desk, followers, _grants: AbortOnDropHandle::new(grants) }
    }

    /// Tells every balancer that the node is leaving, and waits until none has a request in flight here.
    pub(crate) async fn leave(&mut self) {
        self.desk.leaving.send_replace(true);
        while self.followers.join_next().await.is_some() {}
    }
}

impl Desk {
    async fn leaving(&self) {
        // the sender is ours and lives, so this cannot fail
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// The first words of a stream to this balancer.
    fn hello(&self, balancer: &str) -> Hello {
        let Introduction { app, routes, pass, advertise, heartbeat, timeout } = &self.introduction;
        let route = |route: &RouteConfig| Route {
            host: route.host.clone(),
            prefix: route.prefix.clone(),
            strip_prefix: route.strip_prefix,
        };
        Hello {
            protocol_version: proto::PROTOCOL_VERSION,
            app: app.clone(),
            routes: routes.iter().map(route).collect(),
            pass: pass.to_vec(),
            advertise: advertise.map(|address| address.to_string()).unwrap_or_default(),
            report: Some(self.audience.grants().report(balancer, &self.roster.rows())),
            heartbeat_ms: u32::try_from(heartbeat.as_millis()).unwrap_or(u32::MAX),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

/// Dials every address that appears behind the name, until the node leaves and the streams have ended. A stream outlives
/// its address in DNS: only the two ends of a stream know whether it is good.
async fn follow(desk: Arc<Desk>, name: HostPort, discovery: Discovery) {
    let known = watch::Sender::new(HashSet::new());
    let mut dialled: HashSet<SocketAddr> = HashSet::new();
    let mut diallers: JoinSet<SocketAddr> = JoinSet::new();
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut quiet = false;
    while !desk.is_leaving() {
        let resolved = tokio::select! {
            () = desk.leaving() => break,
            resolved = discovery.resolve(&name) => resolved,
        };
        let pause = match resolved {
            Ok(found) => {
                backoff.reset();
                quiet = false;
                let addresses: HashSet<SocketAddr> = found.addresses.into_iter().collect();
                for address in addresses.difference(&dialled.clone()) {
                    tracing::debug!(%name, %address, "found a balancer's address");
                    dialled.insert(*address);
                    let (desk, address) = (Arc::clone(&desk), *address);
                    let known = known.subscribe();
                    diallers.spawn(async move {
                        dial::dial(desk, address, known).await;
                        address
                    });
                }
                known.send_replace(addresses);
                found.valid_for
            }
            Err(error) => {
                if !quiet {
                    tracing::warn!(%name, %error, "no balancer found; asking on");
                    quiet = true;
                }
                match error {
                    DiscoveryError::Absent { .. } => {
                        known.send_replace(HashSet::new());
                        backoff.pause()
                    }
                    // what was known before may well be good
                    _ => FAILING_PAUSE,
                }
            }
        };
        let ask_again = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(ask_again) => break,
                () = desk.leaving() => break,
                Some(ended) = diallers.join_next() => {
                    let Ok(address) = ended else { continue };
                    dialled.remove(&address);
                    // it came back while its dialler was ending
                    if known.borrow().contains(&address) {
                        break;
                    }
                }
            }
        }
    }
    while diallers.join_next().await.is_some() {}
}

/// A pause that ends early when the node leaves.
async fn pause(desk: &Desk, long: Duration) {
    tokio::select! {
        () = sleep(long) => {}
        () = desk.leaving() => {}
    }
}

#[cfg(test)]
mod tests;
