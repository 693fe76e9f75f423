//! The cert-sidecar: the internal CA that gives every process its identity and every balancer its certificates.
//!
//! In reading order: `config` says what is wanted, `store` keeps it, `internal_ca` issues, `records` knows who may come
//! in, `catalogue` what is on offer, `trust` holds them together; `enrolment`, `push` and `control` are the doors.

mod attempts;
mod catalogue;
mod config;
pub mod control;
mod enrolment;
mod internal_ca;
mod push;
mod records;
mod schedule;
mod status;
mod store;
mod trust;

pub use config::{CertificateConfig, Config, Right, RightError, TokenConfig};

use anyhow::Context as _;
use chassis::{
    admin::{self, Admin, Readiness},
    config::Shared,
    identity::{ClientAuth, Identity, Material},
    lifecycle::{Lifecycle, Phase},
    telemetry::Metrics,
};
use proto::{certificates::certificates_server::CertificatesServer, identity::identity_server::IdentityServer};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::json;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use trust::Trust;

/// How often what falls due with time is looked at.
const TICK: Duration = Duration::from_secs(10);
/// How long open calls may take once this process drains.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Runs the role until the lifecycle drains it.
pub async fn run(config: Config, shared: Shared, telemetry: Metrics, lifecycle: Lifecycle) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(config.listen.bind().context("cert_sidecar.listen")?)?;
    tracing::info!(address = %listener.local_addr()?, "listening for enrolment and certificates");
    let readiness = Readiness::new();
    let opened = readiness.latch("the certificate store is being opened");

    let admin_address = config.admin;
    let trust = Arc::new(Trust::open(config, &shared, SystemTime::now())?);
    let identity = Identity::fixed(own_material(&trust)?);
    let instance = identity.instance();
    let watchers = Arc::new(push::Watchers::default());
    let socket = control::bind(&shared.data)
        .with_context(|| format!("cannot listen on {}", shared.data.join("control.sock").display()))?;

    let mut tasks = JoinSet::new();
    if !admin_address.is_off() {
        let listener = TcpListener::from_std(admin_address.bind().context("cert_sidecar.admin")?)?;
        tracing::info!(address = %listener.local_addr()?, "listening for metrics, health and status");
        let (for_status, for_render) = (Arc::clone(&trust), Arc::clone(&trust));
        let (status_watchers, render_watchers) = (Arc::clone(&watchers), Arc::clone(&watchers));
        let cluster = shared.cluster.clone();
        let admin = Admin {
            readiness,
            lifecycle: lifecycle.clone(),
            metrics: telemetry,
            renderers: vec![Arc::new(move |out: &mut String| {
                status::render(&for_render, out);
                render_watchers.render(out);
            })],
            // the admin listener adds `version`, `uptime_s` and `ready`
            status: Arc::new(move || {
                json!({
                    "cluster": cluster,
                    "role": "cert_sidecar",
                    "instance": instance,
                    "certificates": status::certificates(&for_status),
                    "streams": status::streams(&status_watchers),
                })
            }),
        };
        tasks.spawn(admin::serve(listener, admin));
    }
    tasks.spawn(control::serve(socket, Arc::clone(&trust)));
    tasks.spawn(maintain(Arc::clone(&trust), identity.clone()));

    let serving = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(10))
        .concurrency_limit_per_connection(32)
        .max_concurrent_streams(64)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .add_service(
            IdentityServer::new(enrolment::Enrolment::new(Arc::clone(&trust))).max_decoding_message_size(64 << 10),
        )
        .add_service(
            CertificatesServer::new(push::Push::new(trust, watchers, lifecycle.clone()))
                .max_decoding_message_size(1 << 20),
        )
        .serve_with_incoming_shutdown(identity.incoming(listener, ClientAuth::Optional), {
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reached(Phase::Draining).await }
        });
    opened.release();
    lifecycle.advance(Phase::Serving);

    let drained = async {
        lifecycle.reached(Phase::Draining).await;
        tokio::time::sleep(LAST_CALLS).await;
    };
    tokio::select! {
        served = serving => served.context("serving enrolment and certificates")?,
        () = drained => {}
        () = lifecycle.reached(Phase::Stopping) => {}
    }
    // the listeners close with their tasks; the store's lock goes with the last view of it
    let _ = timeout(LAST_CALLS, tasks.shutdown()).await;
    Ok(())
}

/// The sidecar's own identity, by its own CA, on a fresh key that never touches the disk.
fn own_material(trust: &Trust) -> anyhow::Result<Material> {
    let key = KeyPair::generate().context("making a key")?;
    let csr = CertificateParams::default().serialize_request(&key).context("making a request")?;
    let own = trust.own_identity(csr.der(), SystemTime::now()).context("issuing the own identity")?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let root = CertificateDer::from(own.root);
    let mut chain = own.issued.chain;
    chain.push(root.clone()); // who enrols knows only its hash
    Ok(Material::new(chain, key.into(), root)?)
}

/// Renews the own identity and whatever else falls due. An error leaves the last good state and is tried again.
async fn maintain(trust: Arc<Trust>, identity: Identity) {
    loop {
        let lifetime = trust.config().identity_lifetime;
        tokio::time::sleep(TICK.min(lifetime / 14)).await;
        let now = SystemTime::now();
        if let Err(error) = trust.maintain(now) {
            tracing::error!(%error, "keeping certificates and tokens");
        }
        if schedule::renew_identity_at(identity.peer().not_after, lifetime) <= now {
            match own_material(&trust) {
                Ok(material) => identity.replace(material),
                Err(error) => tracing::error!("renewing the own identity: {error:#}"),
            }
        }
    }
}
