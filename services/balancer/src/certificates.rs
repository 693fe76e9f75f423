//! Public certificates from the cert-sidecar. In: its manifests, over mutual TLS. Out: the set that the listeners serve
//! with, swapped whole; an acknowledgement of every entry; the list of denied instances, to the registry. A sidecar
//! that is away takes nothing from what is here.

mod disk;
pub(crate) mod files;
mod offers;
mod shelf;

pub(crate) use disk::{Disk, write_private};
pub(crate) use files::OwnFiles;
pub(crate) use offers::Offers;
pub(crate) use shelf::Shelf;

use crate::{Shared, registry::Directory, tls};
use chassis::{
    backoff::Backoff,
    config::HostPort,
    discovery::{Discovery, DiscoveryError},
    identity::{ConnectError, Identity, Role},
};
use proto::certificates::{Acknowledgement, FetchRequest, Manifest, certificates_client::CertificatesClient};
use shelf::Bodies;
use std::{
    collections::HashSet,
    fmt::Write as _,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, watch},
    time::{error::Elapsed, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

/// For one call to the sidecar; a stream that is open is watched by pings.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// A manifest lists some thousand certificates and denied instances at most.
const MANIFEST_BYTES_MAX: usize = 8 * 1024 * 1024;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_millis(500);
/// How often a sidecar that stays away is mentioned.
const MENTION_EVERY: Duration = Duration::from_secs(60);
/// Acknowledgements on their way; the sidecar sends the next manifest after the last one's.
const OUTBOX: usize = 4;

/// Where the certificates stand, for readiness and the status page.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The sidecar's instance, while its stream is open.
    pub(crate) peer: Option<String>,
    /// Since when the stream is open, or away.
    pub(crate) since: SystemTime,
    /// Name and source of every certificate that did not come from ourselves.
    pub(crate) sources: Vec<(String, String)>,
}

/// Follows the sidecar.
pub(crate) struct Follower {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) identity: Identity,
    pub(crate) discovery: Discovery,
    pub(crate) sidecar: HostPort,
    pub(crate) disk: Disk,
    pub(crate) shelf: Shelf,
    pub(crate) denied: HashSet<String>,
    pub(crate) standing: watch::Sender<Standing>,
}

#[derive(Debug, Error)]
enum Away {
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it answered: {}", .0.message())]
    Status(#[from] Status),
    #[error("it did not answer within {} seconds", CALL_LIMIT.as_secs())]
    TimedOut(#[from] Elapsed),
    #[error("it ended the stream")]
    Ended,
    #[error("the stream is opened again with the renewed identity")]
    Rotated,
}

impl Standing {
    /// Before anything was heard.
    pub(crate) fn new(shelf: &Shelf) -> Self {
        Self { peer: None, since: SystemTime::now(), sources: sources(shelf) }
    }
}

fn sources(shelf: &Shelf) -> Vec<(String, String)> {
    shelf.held().iter().map(|held| (held.wanted.name.clone(), held.wanted.source.clone())).collect()
}

impl Follower {
    /// For ever.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut mentioned: Option<tokio::time::Instant> = None;
        loop {
            let Err(away) = self.connect(&mut backoff, &mut mentioned).await;
            self.standing.send_if_modified(|standing| {
                let was_open = standing.peer.take().is_some();
                if was_open {
                    standing.since = SystemTime::now();
                }
                was_open
            });
            if matches!(away, Away::Rotated) {
                tracing::debug!(reason = %away, "certificates");
                continue;
            }
            if mentioned.is_none_or(|at| at.elapsed() >= MENTION_EVERY) {
                mentioned = Some(tokio::time::Instant::now());
                tracing::warn!(sidecar = %self.sidecar, reason = %away, "the cert-sidecar is away: serving on with what is here");
            } else {
                tracing::debug!(sidecar = %self.sidecar, reason = %away, "the cert-sidecar is away");
            }
            let delay = backoff.next(&mut rand::rng());
            sleep(delay).await;
        }
    }

    /// One stream, to its end.
    async fn connect(
        &mut self,
        backoff: &mut Backoff,
        mentioned: &mut Option<tokio::time::Instant>,
    ) -> Result<std::convert::Infallible, Away> {
        // Before dialling, so that a renewal while we dial is not missed.
        let mut rotations = self.identity.rotations();
        rotations.mark_unchanged();
        let (channel, instance) = self.dial().await?;
        let mut client = CertificatesClient::new(channel).max_decoding_message_size(MANIFEST_BYTES_MAX);
        let (acknowledgements, outgoing) = mpsc::channel(OUTBOX);
        let mut manifests = timeout(CALL_LIMIT, client.watch(ReceiverStream::new(outgoing))).await??.into_inner();
        tracing::info!(sidecar = instance, "following the cert-sidecar");
        self.standing.send_modify(|standing| {
            standing.peer = Some(instance);
            standing.since = SystemTime::now();
        });
        backoff.reset();
        *mentioned = None;
        loop {
            let manifest = tokio::select! {
                manifest = manifests.message() => manifest?.ok_or(Away::Ended)?,
                _ = rotations.changed() => return Err(Away::Rotated),
            };
            let acknowledgement = self.take(&mut client, &manifest).await?;
            timeout(CALL_LIMIT, acknowledgements.send(acknowledgement)).await?.map_err(|_| Away::Ended)?;
        }
    }

    /// The first address that lets us in.
    async fn dial(&self) -> Result<(Channel, String), Away> {
        let mut last = None;
        for address in self.discovery.resolve(&self.sidecar).await?.addresses {
            match self.identity.connect(address, Role::CertSidecar).await {
                Ok((channel, peer)) => return Ok((channel, peer.instance)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or(Away::Ended, Away::Connect))
    }

    /// Makes a manifest true here, as far as it can be.
    async fn take(
        &mut self,
        client: &mut CertificatesClient<Channel>,
        manifest: &Manifest,
    ) -> Result<Acknowledgement, Away> {
        // First, because it is about keeping somebody out.
        self.deny(manifest.denied.iter().cloned().collect()).await;
        let mut bodies = Bodies::new();
        for sha256 in self.shelf.missing(manifest) {
            let fetched = timeout(CALL_LIMIT, client.fetch(FetchRequest { sha256: sha256.clone() })).await?;
            let body = match fetched {
                Ok(body) => Ok(body.into_inner()),
                // Overtaken by a newer manifest, which is on its way.
                Err(status) if status.code() == Code::NotFound => Err("it is no longer offered".to_owned()),
                Err(status) => return Err(status.into()),
            };
            bodies.insert(sha256, body);
        }
        let before = self.hashes();
        let results = self.shelf.settle(manifest, &bodies, OffsetDateTime::now_utc());
        for refused in results.iter().filter(|result| !result.accepted) {
            tracing::warn!(
                name = refused.name,
                reason = refused.reason,
                "certificate refused: its last good one stays"
            );
        }
        if self.hashes() != before {
            self.publish();
            let (disk, held) = (self.disk.clone(), Shelf::of(self.shelf.held()));
            if disk.keeps_certificates() {
                kept(tokio::task::spawn_blocking(move || disk.keep_certificates(&held)).await, "certificates");
            }
        }
        Ok(Acknowledgement { version: manifest.version, results })
    }

    /// What tells one state of the shelf from another.
    fn hashes(&self) -> Vec<(Vec<String>, Vec<u8>)> {
        self.shelf.held().iter().map(|held| (held.wanted.hosts.clone(), held.wanted.sha256.clone())).collect()
    }

    fn publish(&self) {
        self.shared.offer(|offers| offers.pushed = self.shelf.entries());
        self.standing.send_modify(|standing| standing.sources = sources(&self.shelf));
    }

    async fn deny(&mut self, denied: HashSet<String>) {
        if denied == self.denied {
            return;
        }
        self.denied.clone_from(&denied);
        self.directory.deny(denied.clone());
        let disk = self.disk.clone();
        kept(tokio::task::spawn_blocking(move || disk.keep_denied(&denied)).await, "denied instances");
    }
}

fn kept(written: Result<io::Result<()>, tokio::task::JoinError>, what: &str) {
    match written {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, what, "cannot be written to the data directory"),
        Err(error) => tracing::warn!(%error, what, "cannot be written to the data directory"),
    }
}

/// Looks after the operator's own files, for ever.
pub(crate) async fn keep_looking(shared: Arc<Shared>, own: Arc<OwnFiles>) {
    loop {
        sleep(files::LOOK).await;
        let files = Arc::clone(&own);
        match tokio::task::spawn_blocking(move || files.look()).await {
            Ok(Some(entries)) => shared.offer(|offers| offers.own = entries),
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "looking at the certificates' files ended by a fault"),
        }
    }
}

/// When each certificate ends, as Prometheus text: a series ends with its certificate.
pub(crate) fn render(set: &tls::CertificateSet, out: &mut String) {
    out.push_str("# TYPE servery_balancer_certificate_not_after_seconds gauge\n");
    for entry in set.entries() {
        let name = entry.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let seconds = entry.not_after.unix_timestamp();
        // writing to a String cannot fail
        let _ = writeln!(out, "servery_balancer_certificate_not_after_seconds{{name=\"{name}\"}} {seconds}");
    }
}

#[cfg(test)]
pub(crate) mod tests;
