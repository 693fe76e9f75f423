//! The balancer: terminates TLS, routes, holds the one queue of each app, picks a worker, forwards. In reading order:
//! `listener`, `proxy_protocol`, `tls`, `http` (with `host`, `fields`, `origin`, `trace`, `redirect`), `route`, `app` (with `dispatch`, which has `queue`, `client`,
//! `levels`), `endpoint`, `forward` (with `source`, `attempt`, `upstream`, `foreign`, `relay`, `ahead`, `buffers`, `body`, `tunnel`), `retry`, `reject`,
//! `accesslog` (with `record`), `metrics`
//! are the data plane, one runtime per core with its `edge`; `registry`, `fixed`, `certificates`, `readiness`,
//! `status`, `reload` are the control plane, on the process's first runtime. The two meet in [`Shared`] only.

pub mod accesslog;
mod ahead;
pub mod app;
mod attempt;
#[cfg(test)]
mod authority;
pub mod body;
mod buffers;
mod certificates;
pub mod client;
pub mod config;
mod control;
pub mod dispatch;
pub mod edge;
pub mod endpoint;
pub mod fallen;
pub mod fields;
mod fixed;
#[cfg(test)]
mod fixture;
pub mod foreign;
pub mod forward;
pub mod host;
pub mod http;
pub mod levels;
pub mod listener;
pub mod metrics;
pub mod origin;
pub mod patience;
mod proxy_protocol;
pub mod queue;
mod readiness;
pub mod record;
pub mod redirect;
pub mod registry;
pub mod reject;
pub mod relay;
pub mod reload;
pub mod retry;
pub mod route;
pub mod source;
mod status;
pub mod tls;
pub mod trace;
mod tunnel;
pub mod upstream;

pub use config::Config;

use anyhow::Context as _;
use app::Apps;
use arc_swap::ArcSwap;
use certificates::{Offers, OwnFiles};
use chassis::{
    admin,
    discovery::Discovery,
    lifecycle::{Commands, Lifecycle, Phase},
    listen::ListenAddr,
    telemetry::PrometheusHandle,
};
use config::RouteTarget;
use control::{Control, Kept};
use fixed::{Groups, Wanted};
use listener::Sockets;
use reload::Reread;
use route::{Route, Target};
use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};

/// More than any machine has descriptors for.
const CONNECTIONS_MAX: usize = u32::MAX as usize;

/// What the control plane may take for its last words, after the data plane has drained.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What the control plane writes and the data plane reads.
#[derive(Debug)]
pub struct Shared {
    /// Swapped whole. What a connection or a request has taken out of it, it keeps.
    pub config: ArcSwap<Config>,
    /// The port that `https` was bound to. `None`: HTTPS is off, and the routes are served over plain HTTP.
    pub https_port: Option<u16>,
    pub routes: ArcSwap<route::Table>,
    pub certificates: ArcSwap<tls::CertificateSet>,
    /// What `certificates` is made of.
    offers: Mutex<Offers>,
    pub apps: Arc<Apps>,
    /// One for each client connection that may be open.
    pub slots: Arc<Semaphore>,
    /// Where the access log goes.
    pub log: Arc<accesslog::Destination>,
    /// The upper half of the numbers of this process's connections to workers.
    pub connections: NonZeroU32,
    /// The lower half of the newest one.
    connected: AtomicU32,
    /// Open now, or asked for.
    tunnels: AtomicUsize,
    /// False while nodes of an earlier life may be about to come back: a path that no route leads to may be theirs.
    pub settled: AtomicBool,
}

impl Shared {
    /// With the configured routes, and no node yet.
    pub fn new(config: Config, https_port: Option<u16>, certificates: tls::CertificateSet) -> Arc<Self> {
        let (limits, reserves) = (config.limits(), config.reserves());
        let slots = Arc::new(Semaphore::new(config.max_connections.min(CONNECTIONS_MAX)));
        let log = accesslog::Destination::new(config.access_log.clone());
        let shared = Self {
            config: ArcSwap::from_pointee(config),
            https_port,
            routes: ArcSwap::default(),
            certificates: ArcSwap::from_pointee(certificates),
            offers: Mutex::default(),
            apps: Apps::with_reserves(limits, reserves),
            slots,
            log,
            connections: rand::random(),
            connected: AtomicU32::new(0),
            tunnels: AtomicUsize::new(0),
            settled: AtomicBool::new(true),
        };
        shared.routes.store(Arc::new(route::Table::new(&shared.configured(), &[])));
        Arc::new(shared)
    }

    /// Another number of client connections. Where fewer may be open than are, no more are accepted until enough have
    /// ended by themselves.
    fn resize(&self, old: usize, new: usize) {
        let (old, new) = (old.min(CONNECTIONS_MAX), new.min(CONNECTIONS_MAX));
        if let Some(more) = new.checked_sub(old) {
            self.slots.add_permits(more);
            return;
        }
        let (slots, fewer) = (Arc::clone(&self.slots), u32::try_from(old - new).unwrap_or(u32::MAX));
        tokio::spawn(async move {
            // it waits in the line of those who accept: they go on when it has what it needs
            if let Ok(taken) = slots.acquire_many(fewer).await {
                taken.forget();
            }
        });
    }

    /// A number for a connection to a worker. By the time that the lower half has gone round, four billion connections
    /// later, the earlier one is long over.
    pub fn number_connection(&self) -> u64 {
        u64::from(self.connections.get()) << 32 | u64::from(self.connected.fetch_add(1, Ordering::Relaxed))
    }

    /// The routes of the configuration. Their apps are known from now on: requests wait for their first node.
    fn configured(&self) -> Vec<Route> {
        let config = self.config.load();
        let routes = config.routes.iter().map(|route| Route {
            host: route.host.clone(),
            prefix: route.prefix.clone(),
            target: match &route.target {
                RouteTarget::App(app) => Target::App(self.apps.obtain(app)),
                RouteTarget::Upstream(upstream) => Target::App(self.apps.obtain(&upstream.name)),
                RouteTarget::Redirect(to) => Target::Redirect(to.as_str().into()),
            },
            strip_prefix: route.strip_prefix,
            class: route.class,
        });
        routes.collect()
    }
}

/// Every listener of the process, bound before anything else happens.
struct Listeners {
    cores: Vec<Sockets>,
    https_port: Option<u16>,
    control: TcpListener,
    admin: Option<TcpListener>,
}

impl Listeners {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let http = bind_cores(&config.http, config.threads, "balancer.http", "HTTP")?;
        let https = bind_cores(&config.https, config.threads, "balancer.https", "HTTPS")?;
        let bound = https.first().map(|listener| listener.local_addr().map(|address| address.port())).transpose()?;
        let (mut http, mut https) = (http.into_iter(), https.into_iter());
        let cores = (0..config.threads).map(|_| Sockets { http: http.next(), https: https.next() }).collect();
        let control = bind_one(&config.control, "balancer.control", "registrations")?;
        let admin = if config.admin.is_off() {
            None
        } else {
            Some(bind_one(&config.admin, "balancer.admin", "metrics, health and status")?)
        };
        Ok(Self { cores, https_port: bound, control, admin })
    }
}

/// One socket per core; none where it is off.
fn bind_cores(
    address: &ListenAddr,
    threads: usize,
    key: &'static str,
    what: &str,
) -> anyhow::Result<Vec<std::net::TcpListener>> {
    if address.is_off() {
        return Ok(Vec::new());
    }
    let sockets = address.bind_reuseport(threads).context(key)?;
    if let Some(first) = sockets.first() {
        tracing::info!(address = %first.local_addr()?, "listening for {what}");
    }
    Ok(sockets)
}

fn bind_one(address: &ListenAddr, key: &'static str, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::from_std(address.bind().context(key)?)?;
    tracing::info!(address = %listener.local_addr()?, "listening for {what}");
    Ok(listener)
}

/// Runs the role until the lifecycle has drained it: bind everything, serve at once with a certificate of our own, and
/// while that runs enrol, open the registry, follow the cert-sidecar. `common` is what every role is told; `reread` is
/// asked for both again when `commands` says so.
pub async fn run(
    config: Config,
    common: chassis::config::Shared,
    telemetry: PrometheusHandle,
    lifecycle: Lifecycle,
    commands: Commands,
    reread: Reread,
) -> anyhow::Result<()> {
    let Listeners { cores, https_port, control: listener, admin } = Listeners::bind(&config)?;
    let discovery = Discovery::new(&common.nameservers)?;
    let kept = Kept::read(&common, config.cache_certificates);
    let own = Arc::new(OwnFiles::default());
    let opened = own.open(&config.certificates).map_err(|errors| {
        for error in &errors {
            tracing::error!("balancer.certificate: {error}");
        }
        anyhow::anyhow!("{} of the configured certificates cannot be used", errors.len())
    })?;
    let shared = Shared::new(config, https_port, tls::CertificateSet::self_signed()?);
    let (watched, pushed) = (own.watch(opened), kept.shelf.entries());
    if !watched.is_empty() || !pushed.is_empty() {
        shared.offer(|offers| *offers = Offers { own: watched, pushed });
    }
    let wanted =
        Wanted::read(&shared.config.load().routes).context("an upstream's certificate could never be verified")?;
    // here until the drain is over: what still waits has somewhere to go
    let upstreams = Arc::new(Groups::new(Arc::clone(&shared.apps), discovery.clone()));
    upstreams.follow(wanted);

    let control = Control::new(Arc::clone(&shared), common.clone(), discovery, kept);
    let reloader = control.reloader(common, reread, Arc::clone(&own), Arc::clone(&upstreams), &lifecycle);
    let stopping = control.stopping.clone();
    // Ends with this function, whichever way it ends.
    let mut tasks = JoinSet::new();
    if let Some(listener) = admin {
        tasks.spawn(admin::serve(listener, control.admin(telemetry, &lifecycle)));
    }
    tasks.spawn(reloader.obey(commands));
    tasks.spawn(certificates::keep_looking(Arc::clone(&shared), own));
    let mut control_plane = JoinSet::new();
    control_plane.spawn(control.run(listener));
    let apps = Arc::clone(&shared.apps);
    tasks.spawn(async move { apps.keep_turning().await });
    let cores = listener::spawn_cores(&shared, cores, &lifecycle).context("cannot start the threads that serve")?;
    lifecycle.advance(Phase::Serving);

    let ended = tokio::select! {
        biased; // who is told to drain does not ask why something else ended
        () = lifecycle.reached(Phase::Draining) => None,
        Some(ended) = control_plane.join_next() => Some(ended),
    };
    if let Some(ended) = ended {
        lifecycle.advance(Phase::Stopping);
        ended.context("the control plane died")??;
        anyhow::bail!("the registry ended by itself");
    }
    // Unready by now. Nodes go on reporting while what is in flight ends; only then do they lose us.
    let drained = cores.drained().await;
    stopping.cancel();
    let _ = timeout(LAST_WORDS, control_plane.join_next()).await;
    Ok(drained?)
}
