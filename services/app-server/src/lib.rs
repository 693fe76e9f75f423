//! The app-server: comes in a program, go out worker processes that run it and a registration of them with every
//! balancer. It never touches a request: balancers send those to the workers themselves.
//!
//! In reading order: [`Config`]; `process` (one child), `life` (what it may do, and for how long), `crash` (how soon the
//! next one starts), `pool` (one position after the other); `roster` (what is known of them); `ledger` (how much each
//! balancer may send) and `register` (who is told); `status` and `metrics`. [`demo`] is the application that runs in a
//! worker when there is no other.

use anyhow::Context as _;
use chassis::{
    admin::{self, Admin, Readiness},
    config::Shared,
    discovery::Discovery,
    identity::{EnrolConfig, Identity, Role},
    lifecycle::{Commands, Lifecycle, Phase},
    telemetry::PrometheusHandle,
};
use proto::worker::Configure;
use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, timeout},
};

#[allow(dead_code, reason = "until the supervisor uses it")]
mod bound;
mod config;
mod crash;
pub mod demo;
mod ledger;
mod life;
mod metrics;
#[allow(dead_code, reason = "until the supervisor uses it")]
mod pid_file;
mod pool;
mod process;
mod readiness;
#[allow(dead_code, reason = "until the supervisor uses it")]
mod reaper;
mod register;
mod roster;
mod status;
#[allow(dead_code, reason = "until the supervisor uses it")]
mod systemd;
#[allow(dead_code, reason = "until the supervisor uses it")]
mod usage;

pub use config::{Bind, Config, Edge, Percent, ProxyProtocol, Recycling, RequestLimits, RouteConfig};
pub use process::ProgramError;

use life::Limits;
use metrics::Counters;
use pool::{Plan, Pool};
use process::Program;
use register::{Introduction, Registrar, StreamState, Streams};
use roster::{Roster, State};
use status::Status;

/// Beyond the time for what is in flight: for killing what did not end.
const LAST: Duration = Duration::from_secs(10);

/// The life of an app-server: workers first, then the identity, then the registrations; at the end the balancers first,
/// then the workers. Call it on a thread that lives as long as the process: the workers are killed when it ends.
///
/// # Errors
/// Where there is nothing to run, a listener cannot be bound, or the identity on disk cannot be used.
pub async fn run(
    config: Config,
    shared: Shared,
    telemetry: PrometheusHandle,
    lifecycle: Lifecycle,
    commands: Commands,
) -> anyhow::Result<()> {
    anyhow::ensure!(!config.join.is_empty(), "no balancer to register with: set app_server.join (--join NAME:PORT)");
    let program = match &config.exec {
        Some(name) => Program::of_user(name)?,
        None => Program::built_in()?,
    };
    let discovery = Discovery::new(&shared.nameservers)?;
    let sockets = pool::bind_all(config.worker_bind, config.workers).context("cannot listen for workers")?;
    for (worker, socket) in sockets.iter().enumerate() {
        if let Ok(address) = socket.local_addr() {
            tracing::info!(%address, worker, "listening for balancers' requests");
        }
    }

    let (roster, streams, counters) = (Roster::new(), Streams::new(), Counters::new());
    let identity: Arc<OnceLock<Identity>> = Arc::default();
    let readiness = Readiness::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(readiness::follow(readiness.clone(), roster.clone(), streams.clone(), config.workers));
    if !config.admin.is_off() {
        let listener = TcpListener::from_std(config.admin.bind().context("cannot listen for the admin endpoints")?)?;
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
            let (roster, streams) = (roster.clone(), streams.clone());
            Arc::new(move |out: &mut String| metrics::render(&roster.rows(), &streams.counts(), out))
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

    let pass: [u8; 32] = rand::random();
    let plan = Plan {
        program,
        worker_bind: config.worker_bind,
        configure: Configure {
            protocol_version: proto::PROTOCOL_VERSION,
            pass: pass.to_vec(),
            capacity: config.capacity,
            timeout_ms: u32::try_from(config.timeout.as_millis()).unwrap_or(u32::MAX),
            app: config.app.clone(),
            node: config.name.clone(),
            position: 0,
            generation: 0,
            limits: None,
            edge: None,
        },
        limits: Limits::new(config.start_timeout, config.timeout),
    };
    tasks.spawn(chassis::lifecycle::ignore(commands));
    let mut pool = Pool::spawn(plan, sockets, &roster, &counters);
    lifecycle.advance(Phase::Serving);

    let enrol = EnrolConfig {
        cluster: shared.cluster,
        role: Role::AppServer,
        data: shared.data,
        token_file: shared.token_file,
        sidecar: shared.sidecar,
        name: config.name.clone(),
    };
    let enrolled = tokio::select! {
        enrolled = Identity::load_or_enrol(&enrol, &discovery) => Some(enrolled?),
        () = lifecycle.reached(Phase::Draining) => None,
    };
    let mut registrar = enrolled.map(|enrolled| {
        // nobody else sets it
        let _ = identity.set(enrolled.clone());
        tracing::info!(
            instance = enrolled.instance(),
            app = config.app,
            node = config.name,
            "this node has its identity"
        );
        let renewing = (enrolled.clone(), discovery.clone());
        tasks.spawn(async move { renewing.0.keep_renewed(&enrol, &renewing.1).await });
        let introduction = Introduction {
            app: config.app.clone(),
            routes: config.routes.clone(),
            pass,
            advertise: config.advertise,
            heartbeat: config.heartbeat,
        };
        Registrar::spawn(enrolled, introduction, roster.clone(), streams, &config.join, &discovery)
    });

    lifecycle.reached(Phase::Draining).await;
    tracing::info!("leaving: every balancer first, then the workers");
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
