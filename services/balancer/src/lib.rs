//! The balancer: terminates TLS, routes, holds the one queue of each app, picks a worker, forwards. In reading order:
//! `listener`, `proxy_protocol`, `crowd`, `tls`, `http` (with `idle`, `strict`, `frames`, `farewell`, `host`, `hops`, `fields`, `origin`, `trace`, `redirect`), `route`, `app` (with `dispatch`, which has `queue`, `client`,
//! `levels`), `endpoint`, `forward` (with `source`, `attempt`, `upstream`, `foreign`, `relay`, `ahead`, `buffers`, `body`, `stalls`, `leash`, `trailers`, `tunnel`, `websocket`), `retry`, `reject`,
//! `accesslog` (with `record`, `words`), `metrics`
//! are the data plane, one runtime per core with its `edge`; `registry`, `fixed`, `certificates`, `readiness`,
//! `status`, `reload`, `takeover` are the control plane, on the process's first runtime. The two meet in [`Shared`] only.

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
pub mod crowd;
pub mod dispatch;
pub mod edge;
pub mod endpoint;
mod executor;
pub mod fallen;
mod farewell;
pub mod fields;
mod fixed;
#[cfg(test)]
mod fixture;
pub mod foreign;
pub mod forward;
mod frames;
pub mod hops;
pub mod host;
pub mod http;
pub mod idle;
mod interim;
mod leash;
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
mod stalls;
mod status;
mod strict;
mod takeover;
pub mod tls;
pub mod trace;
pub mod trailers;
mod tunnel;
pub mod upstream;
pub mod values;
mod websocket;
mod words;

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
    telemetry::Metrics,
};
use config::RouteTarget;
use control::{Control, Kept};
use fixed::{Groups, Wanted};
use listener::Sockets;
use reload::Reread;
use route::{Route, Target};
use std::{
    num::NonZeroU32,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use takeover::{Doors, Inheritance, Opened};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

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
    /// Closed when the drain begins.
    doors: Doors,
    /// Another process has the sockets: what is open here may take its time to go.
    pub taken_over: AtomicBool,
    /// One for each client connection that may be open.
    pub slots: Arc<Semaphore>,
    /// Whose they are, where there is a limit for each client.
    pub crowd: Arc<crowd::Crowd>,
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
            doors: Doors::default(),
            taken_over: AtomicBool::new(false),
            apps: Apps::with_reserves(limits, reserves),
            slots,
            crowd: Arc::default(),
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
    /// What is bound, and copies of it for whoever takes over one day.
    fn new(opened: Opened) -> anyhow::Result<(Self, Opened)> {
        let copies = opened.copies().context("no second descriptor for a listening socket")?;
        let Opened { http, https, control, admin } = opened;
        let bound = https.first().map(|listener| listener.local_addr().map(|address| address.port())).transpose()?;
        let threads = http.len().max(https.len());
        let (mut http, mut https) = (http.into_iter(), https.into_iter());
        let cores = (0..threads).map(|_| Sockets { http: http.next(), https: https.next() }).collect();
        let control = TcpListener::from_std(control)?;
        let admin = admin.map(TcpListener::from_std).transpose()?;
        Ok((Self { cores, https_port: bound, control, admin }, copies))
    }
}

/// Every listener that is configured.
fn bind(config: &Config) -> anyhow::Result<Opened> {
    Ok(Opened {
        http: bind_cores(&config.http, config.threads, "balancer.http", "HTTP")?,
        https: bind_cores(&config.https, config.threads, "balancer.https", "HTTPS")?,
        control: bind_one(&config.control, "balancer.control", "registrations")?,
        admin: if config.admin.is_off() {
            None
        } else {
            Some(bind_one(&config.admin, "balancer.admin", "metrics, health and status")?)
        },
    })
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

fn bind_one(address: &ListenAddr, key: &'static str, what: &str) -> anyhow::Result<std::net::TcpListener> {
    let listener = address.bind().context(key)?;
    tracing::info!(address = %listener.local_addr()?, "listening for {what}");
    Ok(listener)
}

/// A start in place of a balancer that runs with the same data directory.
async fn inherit(config: &mut Config, data: &Path) -> anyhow::Result<Inheritance> {
    let inheritance = Inheritance::ask(data).await?;
    inheritance.check(config)?;
    let Opened { http, https, .. } = &inheritance.estate.opened;
    let sockets = http.len().max(https.len());
    if sockets != config.threads {
        tracing::warn!(threads = sockets, "balancer.threads stays as it is in the running balancer: one per socket");
        config.threads = sockets;
    }
    Ok(inheritance)
}

/// Runs the role until the lifecycle has drained it: bind everything, serve at once with a certificate of our own, and
/// while that runs enrol, open the registry, follow the cert-sidecar. `common` is what every role is told; `reread` is
/// asked for both again when `commands` says so. With `takeover` the sockets are those of the balancer that runs, and
/// nobody is served before this one is ready.
pub async fn run(
    mut config: Config,
    common: chassis::config::Shared,
    telemetry: Metrics,
    lifecycle: Lifecycle,
    commands: Commands,
    reread: Reread,
    takeover: bool,
) -> anyhow::Result<()> {
    let (opened, inheritance) = if takeover {
        let inheritance = inherit(&mut config, &common.data).await?;
        (inheritance.estate.opened.copies()?, Some(inheritance))
    } else {
        (bind(&config)?, None)
    };
    let (Listeners { cores, https_port, control: listener, admin }, copies) = Listeners::new(opened)?;
    let discovery = Discovery::new(&common.nameservers)?;
    let kept = Kept::read(&common, config.cache_certificates);
    let own = Arc::new(OwnFiles::default());
    let watched = own.watch(usable(&own, &config)?);
    let shared = Shared::new(config, https_port, tls::CertificateSet::self_signed()?);
    let pushed = kept.shelf.entries();
    if !watched.is_empty() || !pushed.is_empty() {
        shared.offer(|offers| *offers = Offers { own: watched, pushed });
    }
    let wanted =
        Wanted::read(&shared.config.load().routes).context("an upstream's certificate could never be verified")?;
    // here until the drain is over: what still waits has somewhere to go
    let upstreams = Arc::new(Groups::new(Arc::clone(&shared.apps), discovery.clone()));
    upstreams.follow(wanted);

    let data = common.data.clone();
    let control = Control::new(Arc::clone(&shared), common.clone(), discovery, kept);
    let reloader = control.reloader(common, reread, Arc::clone(&own), Arc::clone(&upstreams), &lifecycle);
    let (stopping, given, open) = (control.stopping.clone(), CancellationToken::new(), CancellationToken::new());
    let (giver, readiness) = (control.giver(&lifecycle, &given), control.readiness.clone());
    let page = control.admin(telemetry, &lifecycle);
    if let Some(inheritance) = &inheritance {
        control.inherit(inheritance.routes.clone());
    }
    // Ends with this function, whichever way it ends.
    let mut control_plane = JoinSet::new();
    let lock = inheritance.as_ref().map(|inheritance| inheritance.estate.lock.try_clone()).transpose()?;
    control_plane.spawn(control.run(listener, lock, open.clone()));
    if let Some(inheritance) = inheritance {
        tokio::select! {
            biased; // who is told to end before anything is its own does
            () = lifecycle.reached(Phase::Draining) => return Ok(()),
            taken = inheritance.take(&readiness) => taken?,
            Some(ended) = control_plane.join_next() => {
                ended.context("the control plane died")??;
                anyhow::bail!("the registry ended by itself");
            }
        }
        tracing::info!("took over from the balancer that ran here");
    }
    open.cancel();
    shared.doors.open(copies);
    let mut tasks = JoinSet::new();
    if let Some(listener) = admin {
        let given = given.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = admin::serve(listener, page) => {}
                () = given.cancelled() => {}
            }
        });
    }
    tasks.spawn(reloader.obey(commands));
    tasks.spawn(certificates::keep_looking(Arc::clone(&shared), own));
    tasks.spawn(async move { giver.run(&data).await });
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
    shared.doors.close();
    // Unready by now. Nodes go on reporting while what is in flight ends; only then do they lose us. Where another
    // process has taken over they are with it already.
    let drained = cores.drained().await;
    stopping.cancel();
    let _ = timeout(LAST_WORDS, control_plane.join_next()).await;
    Ok(drained?)
}

/// The configured certificates, or everything that is wrong with them, which the log has by then.
fn usable(own: &OwnFiles, config: &Config) -> anyhow::Result<certificates::files::Opened> {
    own.open(&config.certificates).map_err(|errors| {
        for error in &errors {
            tracing::error!("balancer.certificate: {error}");
        }
        anyhow::anyhow!("{} of the configured certificates cannot be used", errors.len())
    })
}
