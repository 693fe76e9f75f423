//! The app-server: comes in a program, go out worker processes that run it and a registration of them with every
//! balancer, or one socket where clients reach them. It never touches a request: who sends one reaches the workers.
//!
//! In reading order: [`Config`]; `process` (one child), `life` (what it may do, and for how long), `recycle` (when it has
//! done enough), `sockets` (where it listens), `tenure` (all of that for one worker); `crash` (how soon the next one starts), `turns` (how many at once),
//! `position` (one worker after the other), `pool` (all positions); `scale` (how many) and `supervisor` (who asks for more);
//! `roster` (what is known of the workers); `ledger` (how much each balancer may send) and `register` (who is told);
//! `configure` (what a worker is told); `status` and `metrics`. [`demo`] is the application that runs in a worker when there
//! is no other.

use anyhow::Context as _;
use chassis::{
    admin::{self, Admin, Readiness},
    config::Shared,
    discovery::Discovery,
    identity::{EnrolConfig, Identity, Role},
    lifecycle::{Commands, Lifecycle, Phase},
    listen::ListenAddr,
    telemetry::Metrics,
};
use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

mod bound;
mod config;
mod configure;
mod crash;
pub mod demo;
pub mod ledger;
mod life;
mod metrics;
mod pid_file;
mod pool;
mod position;
mod process;
mod readiness;
mod reaper;
mod recycle;
mod register;
mod roster;
mod scale;
mod sockets;
mod status;
mod supervisor;
mod systemd;
mod tenure;
mod turns;
mod usage;

pub use config::{Bind, Config, Edge, Percent, ProxyProtocol, Recycling, RequestLimits, RouteConfig};
pub use process::ProgramError;

use bound::Bound;
use life::Limits;
use metrics::Counters;
use pid_file::PidFile;
use pool::Pool;
use process::Program;
use register::{Audience, Introduction, Registrar, StreamState, Streams};
use roster::{Roster, State};
use sockets::Sockets;
use status::Status;
use supervisor::{Desk, Sight, supervise};
use systemd::ServiceManager;
use tenure::Hatchery;

/// Beyond the time for what is in flight: for killing what did not end.
const LAST: Duration = Duration::from_secs(10);

/// The life of an app-server: workers first, then the identity, then the registrations; at the end the balancers first,
/// then the workers. With `bind` it has neither identity nor registrations. Call it on a thread that lives as long as the
/// process: the workers are killed when it ends.
///
/// # Errors
/// Where there is nothing to run, a listener cannot be bound, or the identity on disk cannot be used.
pub async fn run(
    config: Config,
    shared: Shared,
    telemetry: Metrics,
    lifecycle: Lifecycle,
    mut commands: Commands,
) -> anyhow::Result<()> {
    let mut program = match &config.exec {
        Some(name) => Program::of_user(name)?,
        None => Program::built_in()?,
    };
    if let Some(log_file) = &config.log_file {
        program = program.logging_to(log_file);
    }
    let discovery = Discovery::new(&shared.nameservers)?;
    let _pid_file = config.pid.as_deref().map(PidFile::claim).transpose()?;
    let bound = config.bind.as_ref().map(Bound::open).transpose()?;
    let sockets = match &bound {
        Some(bound) => {
            tracing::info!(address = bound.address(), "listening for requests");
            Sockets::shared(bound.share().context("cannot share the listening socket")?)
        }
        None => Sockets::own(config.worker_bind, config.workers).context("cannot listen for workers")?,
    };

    let (roster, streams, counters) = (Roster::new(), Streams::new(), Counters::new());
    let audience = Audience::default();
    let identity: Arc<OnceLock<Identity>> = Arc::default();
    let readiness = Readiness::new();
    let service = ServiceManager::new();
    let mut tasks = JoinSet::new();
    let alone = bound.is_some();
    tasks.spawn(readiness::follow(readiness.clone(), roster.clone(), streams.clone(), config.workers, alone));
    tasks.spawn(service.clone().follow(readiness.clone(), roster.clone()));
    tasks.spawn(reaper::reap());
    if let Some(listener) = admin_listener(&config).context("cannot listen for the admin endpoints")? {
        tracing::info!(address = %listener.local_addr()?, "listening for admin requests");
        let status = Status {
            cluster: shared.cluster.clone(),
            config: config.clone(),
            identity: Arc::clone(&identity),
            roster: roster.clone(),
            streams: streams.clone(),
            lifecycle: lifecycle.clone(),
        };
        let gauges = {
            let (roster, streams, counters) = (roster.clone(), streams.clone(), counters.clone());
            let audience = audience.clone();
            Arc::new(move |out: &mut String| {
                metrics::render(&roster.rows(), &streams.counts(), out);
                metrics::render_moves(audience.moves(), out);
                counters.render(out);
            })
        };
        let admin = Admin {
            readiness,
            lifecycle: lifecycle.clone(),
            metrics: telemetry,
            renderers: vec![gauges],
            status: Arc::new(move || status.render()),
        };
        tasks.spawn(admin::serve(listener, admin));
    }

    let pass: Option<[u8; 32]> = (!alone).then(rand::random);
    let hatchery = Hatchery {
        program,
        sockets,
        configure: configure::configure(&config, pass.as_ref()),
        limits: Limits::new(config.start_timeout, config.timeout, !alone),
        recycling: config.recycling,
        roster: roster.clone(),
        counters: counters.clone(),
        audience: audience.clone(),
        reopens: watch::Sender::new(0),
    };
    let mut pool =
        Pool::spawn(hatchery, config.workers, config.replace_at_once, config.graceful_timeout, &roster, &counters);
    lifecycle.advance(Phase::Serving);

    let mut registrar = {
        let serving = async {
            let registrar = match pass {
                Some(pass) => tokio::select! {
                    registrar = join(&config, shared, pass, audience, &roster, &streams, &identity, &discovery, &mut tasks)
                        => Some(registrar?),
                    () = lifecycle.reached(Phase::Draining) => None,
                },
                None => None,
            };
            lifecycle.reached(Phase::Draining).await;
            anyhow::Ok(registrar)
        };
        let sight = Sight { roster: roster.clone(), streams: streams.clone(), alone };
        let desk = Desk { workers_max: config.workers_max, log_file: config.log_file.as_deref(), service: &service };
        tokio::select! {
            registrar = serving => registrar?,
            never = supervise(&mut pool, &sight, &desk, &mut commands) => never,
        }
    };

    tracing::info!("leaving: every balancer first, then the workers");
    service.stopping();
    // nobody new comes in; the workers have their own share of the socket and take what waits at it
    pool.hatchery().sockets.close();
    drop(bound);
    let until = Instant::now() + config.graceful_timeout;
    let drained = async {
        if let Some(registrar) = &mut registrar
            && timeout(config.graceful_timeout, registrar.leave()).await.is_err()
        {
            tracing::warn!("not every balancer has let go of this node in time");
        }
        pool.drain(until).await;
    };
    let hurried = tokio::select! {
        () = drained => false,
        () = lifecycle.reached(Phase::Stopping) => true,
    };
    if hurried && timeout(LAST, pool.stop()).await.is_err() {
        tracing::error!("workers are left that cannot be killed");
    }
    tracing::info!("every worker has ended");
    Ok(())
}

/// Gets the node its identity, keeps it renewed, and registers the node with every balancer.
#[expect(clippy::too_many_arguments, reason = "one step of the life above, with what it needs of it")]
async fn join(
    config: &Config,
    shared: Shared,
    pass: [u8; 32],
    audience: Audience,
    roster: &Roster,
    streams: &Streams,
    identity: &OnceLock<Identity>,
    discovery: &Discovery,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Registrar> {
    let enrol = EnrolConfig {
        cluster: shared.cluster,
        role: Role::AppServer,
        data: shared.data,
        token_file: shared.token_file,
        sidecar: shared.sidecar,
        name: config.name.clone(),
    };
    let enrolled = Identity::load_or_enrol(&enrol, discovery).await?;
    // nobody else sets it
    let _ = identity.set(enrolled.clone());
    let (instance, app, node) = (enrolled.instance(), &config.app, &config.name);
    tracing::info!(instance, app, node, "this node has its identity");
    let renewing = (enrolled.clone(), discovery.clone());
    tasks.spawn(async move { renewing.0.keep_renewed(&enrol, &renewing.1).await });
    let introduction = Introduction {
        app: config.app.clone(),
        routes: config.routes.clone(),
        pass,
        advertise: config.advertise,
        heartbeat: config.heartbeat,
        timeout: config.timeout,
    };
    let (roster, streams) = (roster.clone(), streams.clone());
    Ok(Registrar::spawn(enrolled, introduction, roster, audience, streams, &config.join, discovery))
}

/// `None`: it is off. One that serves by itself and was told nothing takes any free port rather than not start.
fn admin_listener(config: &Config) -> io::Result<Option<TcpListener>> {
    if config.admin.is_off() {
        return Ok(None);
    }
    let listener = match config.admin.bind() {
        Err(error) if config.admin_is_default && config.bind.is_some() && error.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(%error, "taking another port for metrics and status: choose one with --admin");
            ListenAddr::At((Ipv4Addr::LOCALHOST, 0).into()).bind()?
        }
        bound => bound?,
    };
    TcpListener::from_std(listener).map(Some)
}
