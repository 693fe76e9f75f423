//! One fixed upstream's life. In: its settings. Out: its members, kept in step with DNS and with the answers of health checks.
//! A name that cannot be resolved keeps the addresses that it had. Everything in here is one task: whatever waits is a future
//! in one set, so that dropping the task ends it all.

use super::{check, check::Ill, members::Members, trust::Trust};
use crate::{
    app::App,
    config::{HostHeader, Server, UpstreamConfig},
    foreign::{Foreign, Security},
};
use chassis::{
    config::HostPort,
    discovery::{Discovery, DiscoveryError, Found},
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::HeaderValue;
use rand::RngExt as _;
use rustls_pki_types::ServerName;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// After a name could not be resolved, or a new address not be dialled.
const AGAIN: Duration = Duration::from_secs(1);
/// Checks of many servers, by many balancers, fall apart by so much of their interval.
const JITTER: f64 = 0.1;

/// One upstream before it runs.
#[derive(Debug)]
pub(super) struct Group {
    app: Arc<App>,
    settings: Arc<UpstreamConfig>,
    /// As `settings.servers`.
    servers: Vec<Arc<Foreign>>,
    discovery: Discovery,
}

/// Something that was waited for.
enum Event {
    Resolved(usize, Result<Found, DiscoveryError>),
    Checked(u64, Result<(), Ill>),
}

type Events = FuturesUnordered<BoxFuture<'static, Event>>;

impl Group {
    /// `trust`: where one of the servers is `https`.
    pub(super) fn new(
        app: Arc<App>,
        settings: &Arc<UpstreamConfig>,
        trust: Option<&Trust>,
        discovery: Discovery,
    ) -> Self {
        let foreign = |server: &Server| {
            let security = trust
                .filter(|_| server.secure)
                .map(|trust| Security { config: trust.config(settings.protocol), name: identity(&server.at) });
            let host = match settings.host {
                HostHeader::Preserve => None,
                HostHeader::Upstream => Some(authority(server)),
            };
            Arc::new(Foreign { security, host, protocol: settings.protocol, keepalive: settings.keepalive })
        };
        let servers = settings.servers.iter().map(foreign).collect();
        Self { app, settings: Arc::clone(settings), servers, discovery }
    }

    /// For ever.
    pub(super) async fn run(self) {
        let mut members = Members::new(Arc::clone(&self.app), Arc::clone(&self.settings));
        let mut known = vec![false; self.servers.len()];
        let mut events = Events::new();
        for server in 0..self.servers.len() {
            events.push(self.resolve(server, Duration::ZERO));
        }
        while let Some(event) = events.next().await {
            match event {
                Event::Resolved(server, Ok(found)) => {
                    known[server] = true;
                    let new = members.replace(server, &found.addresses, &self.servers[server]);
                    events.extend(new.into_iter().filter_map(|number| self.check(&members, number, Duration::ZERO)));
                    events.push(self.resolve(server, found.valid_for));
                }
                Event::Resolved(server, Err(error)) => {
                    self.complain(server, std::mem::take(&mut known[server]), &error);
                    events.push(self.resolve(server, AGAIN));
                }
                Event::Checked(number, checked) => {
                    members.judge(number, &checked);
                    let interval = self.settings.health.as_ref().map_or(AGAIN, |health| health.interval);
                    let pause = interval.mul_f64(1.0 + JITTER * (rand::rng().random::<f64>() - 0.5));
                    events.extend(self.check(&members, number, pause));
                }
            }
        }
    }

    fn resolve(&self, server: usize, pause: Duration) -> BoxFuture<'static, Event> {
        let (at, discovery) = (self.settings.servers[server].at.clone(), self.discovery.clone());
        Box::pin(async move {
            sleep(pause).await;
            Event::Resolved(server, discovery.resolve(&at).await)
        })
    }

    /// `None` where nobody is to be asked: it is gone, or there are no checks and somebody has been there before.
    fn check(&self, members: &Members, number: u64, pause: Duration) -> Option<BoxFuture<'static, Event>> {
        let (server, address, standing) = members.find(number)?;
        let health = self.settings.health.clone();
        if health.is_none() && standing.is_well() {
            return None;
        }
        let (foreign, host) = (Arc::clone(&self.servers[server]), authority(&self.settings.servers[server]));
        Some(Box::pin(async move {
            sleep(pause).await;
            let checked = match &health {
                Some(health) => check::ask(address, &foreign, host, health).await,
                None => check::dial(address).await,
            };
            Event::Checked(number, checked)
        }))
    }

    /// Once, until it is known again.
    fn complain(&self, server: usize, known: bool, error: &DiscoveryError) {
        let (upstream, name) = (self.app.name(), &self.settings.servers[server].at);
        if known {
            tracing::warn!(upstream, %name, %error, "an upstream's name cannot be resolved: its last addresses stay");
        } else {
            tracing::debug!(upstream, %name, %error, "an upstream's name cannot be resolved");
        }
    }
}

/// What its certificate has to be for.
fn identity(at: &HostPort) -> ServerName<'static> {
    ServerName::try_from(at.host.clone()).expect("the configuration has only hosts that a certificate can be for")
}

/// Its own name, as `Host` has it: without a port that goes without saying (RFC 9110, section 7.2).
fn authority(server: &Server) -> HeaderValue {
    let usual = if server.secure { 443 } else { 80 };
    let at = if server.at.port == Some(usual) {
        let host = &server.at.host;
        if host.contains(':') { format!("[{host}]") } else { host.clone() }
    } else {
        server.at.to_string()
    };
    HeaderValue::try_from(at).expect("hosts of upstreams are made of visible characters")
}
