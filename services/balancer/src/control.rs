//! The life of the control plane. In: a bound listener, what the data directory remembers. Out: an identity, then the
//! registry, the followed cert-sidecar, readiness. It runs beside the data plane, which serves from the first moment,
//! and never stands in a request's way.

use crate::{
    Shared,
    certificates::{self, Disk, Follower, OwnFiles, Shelf, Standing},
    fixed::Groups,
    metrics, readiness,
    registry::{self, Directory, Inherited, Terms},
    reload::{Reloader, Reread},
    status,
    takeover::Giver,
};
use chassis::{
    admin::{Admin, Latch, Readiness},
    config,
    discovery::Discovery,
    identity::{EnrolConfig, Identity, IdentityError, Role},
    lifecycle::Lifecycle,
    telemetry::Metrics,
};
use std::{
    collections::HashSet,
    fs::{self, File},
    sync::{Arc, OnceLock, atomic::Ordering},
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Why a balancer cannot go on.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error("there is no identity to be had: {0}")]
    Identity(#[from] IdentityError),
    #[error("the registry failed: {0}")]
    Registry(#[from] tonic::transport::Error),
    #[error("a task of the control plane died: {0}")]
    Task(#[from] JoinError),
}

/// What the control plane is made of before it runs.
pub(crate) struct Control {
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    pub(crate) readiness: Readiness,
    /// Ends the registry.
    pub(crate) stopping: CancellationToken,
    common: config::Shared,
    discovery: Discovery,
    disk: Disk,
    shelf: Shelf,
    denied: HashSet<String>,
    /// Once enrolled.
    identity: Arc<OnceLock<Identity>>,
    standing: watch::Sender<Standing>,
    latches: Latches,
}

/// Why it is not ready yet; held from the first moment on.
struct Latches {
    enrolled: Latch,
    /// `None` where HTTPS is off, or the operator has brought certificates.
    certified: Option<Latch>,
    settled: Latch,
}

/// What was kept of an earlier life: read before the first connection, so that it is served as the last one was.
pub(crate) struct Kept {
    pub(crate) disk: Disk,
    pub(crate) shelf: Shelf,
    pub(crate) denied: HashSet<String>,
}

impl Kept {
    pub(crate) fn read(common: &config::Shared, certificates: bool) -> Self {
        let disk = Disk::new(&common.data, certificates);
        let (shelf, denied) = (disk.certificates(OffsetDateTime::now_utc()), disk.denied());
        Self { disk, shelf, denied }
    }
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>, common: config::Shared, discovery: Discovery, kept: Kept) -> Self {
        let Kept { disk, shelf, denied } = kept;
        let first_start = readiness::is_first_start(&common.data);
        shared.settled.store(first_start, Ordering::Relaxed);
        let directory = Directory::new(Arc::clone(&shared));
        directory.deny(denied.clone());
        let standing = watch::Sender::new(Standing::new(&shelf));
        let readiness = Readiness::new();
        let has_own = shared.certificates.load().entries().iter().any(|entry| entry.from_file);
        let latches = Latches {
            enrolled: readiness.latch("no identity from the cert-sidecar yet"),
            certified: shared
                .https_port
                .filter(|_| !has_own)
                .map(|_| readiness.latch("no certificate from the cert-sidecar yet")),
            settled: readiness.latch("waiting for nodes to come back"),
        };
        Self {
            shared,
            directory,
            readiness,
            stopping: CancellationToken::new(),
            common,
            discovery,
            disk,
            shelf,
            denied,
            identity: Arc::default(),
            standing,
            latches,
        }
    }

    /// Who puts newer configurations in force. `common` and `reread` as in [`crate::run`].
    pub(crate) fn reloader(
        &self,
        common: config::Shared,
        reread: Reread,
        own: Arc<OwnFiles>,
        upstreams: Arc<Groups>,
        lifecycle: &Lifecycle,
    ) -> Reloader {
        Reloader {
            shared: Arc::clone(&self.shared),
            directory: Arc::clone(&self.directory),
            common,
            reread,
            own,
            upstreams,
            lifecycle: lifecycle.clone(),
        }
    }

    /// What the admin listener shows.
    pub(crate) fn admin(&self, telemetry: Metrics, lifecycle: &Lifecycle) -> Admin {
        let (shared, directory) = (Arc::clone(&self.shared), Arc::clone(&self.directory));
        let (standing, identity) = (self.standing.subscribe(), Arc::clone(&self.identity));
        let cluster = self.common.cluster.clone();
        let status = move || {
            let standing = standing.borrow().clone();
            let instance = identity.get().map(Identity::instance);
            let members = directory.members();
            status::page(
                &shared,
                &status::Facts { cluster: &cluster, instance, standing: &standing, members: &members },
            )
        };
        let for_series = Arc::clone(&self.shared);
        let series = move |out: &mut String| {
            metrics::render(&for_series.apps, out);
            certificates::render(&for_series.certificates.load(), out);
        };
        Admin {
            readiness: self.readiness.clone(),
            lifecycle: lifecycle.clone(),
            metrics: telemetry,
            renderers: vec![Arc::new(series)],
            status: Arc::new(status),
        }
    }

    /// What was known of routes goes on being known: nothing has to settle.
    pub(crate) fn inherit(&self, routes: Vec<Inherited>) {
        self.directory.inherit(routes);
        self.shared.settled.store(true, Ordering::Relaxed);
    }

    /// Who gives the sockets away to a process that takes over; `given` is cancelled when it has.
    pub(crate) fn giver(&self, lifecycle: &Lifecycle, given: &CancellationToken) -> Giver {
        Giver {
            shared: Arc::clone(&self.shared),
            directory: Arc::clone(&self.directory),
            identity: Arc::clone(&self.identity),
            lifecycle: lifecycle.clone(),
            stopping: self.stopping.clone(),
            given: given.clone(),
        }
    }

    /// Until `stopping` is cancelled. Nobody is let into the registry before `open` is.
    /// `lock`: of the identity, where another process has passed it on.
    pub(crate) async fn run(
        self,
        listener: TcpListener,
        lock: Option<File>,
        open: CancellationToken,
    ) -> Result<(), ControlError> {
        let Self {
            shared,
            directory,
            stopping,
            common,
            discovery,
            disk,
            shelf,
            denied,
            identity: known,
            standing,
            latches,
            ..
        } = self;
        let Latches { enrolled, certified, settled } = latches;
        let enrol = EnrolConfig {
            cluster: common.cluster.clone(),
            role: Role::Balancer,
            data: common.data.clone(),
            token_file: common.token_file.clone(),
            sidecar: common.sidecar.clone(),
            name: host_name(),
        };
        let identity = tokio::select! {
            identity = Identity::load_or_enrol_holding(&enrol, &discovery, lock) => identity?,
            () = stopping.cancelled() => return Ok(()),
        };
        tracing::info!(instance = identity.instance(), "enrolled");
        let _ = known.set(identity.clone());
        drop(enrolled);

        let mut tasks = JoinSet::new();
        let (waiting, registrations) = (Arc::clone(&shared), directory.registrations());
        tasks.spawn(async move {
            let (first_start, hold) = (waiting.settled.load(Ordering::Relaxed), waiting.config.load().start_hold);
            readiness::settled(first_start, hold, registrations).await;
            waiting.settled.store(true, Ordering::Relaxed);
            drop(settled);
        });
        let (data, registrations) = (common.data.clone(), directory.registrations());
        tasks.spawn(async move { readiness::remember_first(&data, registrations).await });
        if let Some(certified) = certified {
            tasks.spawn(readiness::certificates(certified, standing.subscribe()));
        }
        let terms = Terms {
            connections: shared.connections.get(),
            identity: identity.clone(),
            directory: Arc::clone(&directory),
            stopping,
        };
        let follower = Follower {
            shared,
            directory,
            identity: identity.clone(),
            discovery: discovery.clone(),
            sidecar: common.sidecar,
            disk,
            shelf,
            denied,
            standing,
        };
        tasks.spawn(follower.run());
        let renewed = identity.clone();
        let alone = open.clone();
        tasks.spawn(async move {
            // until then the other process may be renewing it
            alone.cancelled().await;
            renewed.keep_renewed(&enrol, &discovery).await;
        });

        let mut serving = std::pin::pin!(async {
            open.cancelled().await;
            registry::serve(listener, terms).await
        });
        loop {
            tokio::select! {
                ended = &mut serving => return Ok(ended?),
                // Some tasks end when their work is done; none may end by a fault.
                Some(ended) = tasks.join_next() => ended?,
            }
        }
    }
}

/// What this instance would like to be called: a container's name, or the machine's.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { Role::Balancer.as_str().to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests;
