//! The Certificates service: one stream per balancer, manifests down, acknowledgements up. Balancers only; a denied one
//! or one whose certificate ends is cut off.

use crate::{
    attempts::{Attempts, Verdict},
    enrolment::peer_of,
    trust::Trust,
};
use chassis::{
    identity::{PeerId, PeerInfo, Role},
    lifecycle::{Lifecycle, Phase},
};
use futures_util::{Stream, stream::unfold};
use proto::certificates::{Acknowledgement, Certificate, FetchRequest, Manifest, certificates_server::Certificates};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};
use tokio::{
    sync::watch,
    time::{Sleep, sleep},
};
use tonic::{Request, Response, Status, Streaming};

/// More balancers than this at once are a runaway.
const MAX_STREAMS: usize = 1_000;

/// Serves `Watch` and `Fetch`.
#[derive(Clone)]
pub(crate) struct Push {
    trust: Arc<Trust>,
    watchers: Arc<Watchers>,
    lifecycle: Lifecycle,
    /// A denied balancer asks again and again: beyond a burst it is only counted.
    refused: Arc<Mutex<Attempts>>,
}

/// The balancers that listen just now, and what each has acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    acknowledged: Mutex<BTreeMap<String, (u64, u64)>>, // instance: (stream, version)
    streams: std::sync::atomic::AtomicU64,
}

/// A balancer's place among the watchers, until it is dropped.
struct Place {
    watchers: Arc<Watchers>,
    instance: String,
    stream: u64,
}

impl Watchers {
    fn enter(self: &Arc<Self>, instance: &str) -> Result<Place, Status> {
        let stream = self.streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut acknowledged = lock(&self.acknowledged);
        if acknowledged.len() >= MAX_STREAMS {
            return Err(Status::resource_exhausted(format!("there are {MAX_STREAMS} balancers already")));
        }
        acknowledged.insert(instance.to_owned(), (stream, 0));
        Ok(Place { watchers: Arc::clone(self), instance: instance.to_owned(), stream })
    }

    /// Instance and version of every listening balancer.
    pub(crate) fn each(&self) -> Vec<(String, u64)> {
        let acknowledged = lock(&self.acknowledged);
        acknowledged.iter().map(|(instance, (_, version))| (instance.clone(), *version)).collect()
    }

    /// The series `push_acknowledged_version`: it ends with its balancer, so it is not the recorder's.
    pub(crate) fn render(&self, out: &mut String) {
        out.push_str("# TYPE servery_cert_sidecar_push_acknowledged_version gauge\n");
        for (instance, version) in self.each() {
            // writing to a String cannot fail; an instance's name needs no escape
            let _ =
                writeln!(out, "servery_cert_sidecar_push_acknowledged_version{{instance=\"{instance}\"}} {version}");
        }
    }
}

impl Place {
    fn acknowledge(&self, version: u64) {
        let mut acknowledged = lock(&self.watchers.acknowledged);
        if let Some(entry) = acknowledged.get_mut(&self.instance).filter(|entry| entry.0 == self.stream) {
            entry.1 = version;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut acknowledged = lock(&self.watchers.acknowledged);
        // a newer stream of the same balancer keeps its place
        if acknowledged.get(&self.instance).is_some_and(|entry| entry.0 == self.stream) {
            acknowledged.remove(&self.instance);
        }
    }
}

/// Every change is a single insert, remove or count: a panic elsewhere cannot leave half of one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Push {
    pub(crate) fn new(trust: Arc<Trust>, watchers: Arc<Watchers>, lifecycle: Lifecycle) -> Self {
        Self { trust, watchers, lifecycle, refused: Arc::default() }
    }

    /// The balancer behind the request, or a refusal that is logged and counted.
    fn balancer<T>(&self, request: &Request<T>) -> Result<PeerId, Status> {
        let PeerInfo { address, peer } = peer_of(request)?;
        let refuse = |result: &'static str, status: Status| {
            metrics::counter!("servery_cert_sidecar_watch_refusals_total", "result" => result).increment(1);
            let instance = peer.as_ref().map(|peer| peer.instance.as_str());
            let verdict = lock(&self.refused).fail(address.ip(), Instant::now());
            if verdict != Verdict::CutShort {
                tracing::warn!(peer = %address, instance, reason = status.message(), "refused certificates");
            }
            status
        };
        let Some(peer) = peer.clone() else {
            return Err(refuse("no_certificate", Status::unauthenticated("certificates need an identity")));
        };
        if peer.role != Role::Balancer {
            let text = format!("certificates are for balancers, not for the role {}", peer.role);
            return Err(refuse("wrong_role", Status::permission_denied(text)));
        }
        if self.trust.is_denied(&peer.instance) {
            return Err(refuse("denied", Status::permission_denied("this instance is denied")));
        }
        if peer.not_after <= SystemTime::now() {
            return Err(refuse("expired", Status::unauthenticated("this identity has expired")));
        }
        Ok(peer)
    }
}

#[tonic::async_trait]
impl Certificates for Push {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Manifest, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<Acknowledgement>>) -> Result<Response<Self::WatchStream>, Status> {
        let peer = self.balancer(&request)?;
        let place = self.watchers.enter(&peer.instance)?;
        tracing::info!(instance = peer.instance, "a balancer listens for certificates");
        let mut newest = self.trust.manifests();
        newest.mark_changed();
        let life = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let watch = Watch {
            trust: Arc::clone(&self.trust),
            lifecycle: self.lifecycle.clone(),
            place,
            peer,
            newest,
            acknowledgements: request.into_inner(),
            end: Box::pin(sleep(life)),
        };
        // Lives in the response, and ends with its connection: there is no task to outlive it.
        let manifests = unfold(Some(watch), |watch| async move {
            let mut watch = watch?;
            match watch.next().await {
                Some(Ok(manifest)) => Some((Ok(manifest), Some(watch))),
                Some(Err(status)) => Some((Err(status), None)),
                None => None,
            }
        });
        Ok(Response::new(Box::pin(manifests)))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Certificate>, Status> {
        self.balancer(&request)?;
        let body = self.trust.body(&request.get_ref().sha256);
        body.map(Response::new).ok_or_else(|| Status::not_found("the newest manifest has no such certificate"))
    }
}

/// One balancer's stream: sends every manifest, takes every acknowledgement.
struct Watch {
    trust: Arc<Trust>,
    lifecycle: Lifecycle,
    place: Place,
    peer: PeerId,
    newest: watch::Receiver<Manifest>,
    acknowledgements: Streaming<Acknowledgement>,
    /// Of the balancer's certificate.
    end: Pin<Box<Sleep>>,
}

impl Watch {
    /// The next manifest; an error is the last word, and `None` is for who has gone.
    async fn next(&mut self) -> Option<Result<Manifest, Status>> {
        let reason = loop {
            tokio::select! {
                changed = self.newest.changed() => {
                    if changed.is_err() {
                        break Status::unavailable("the cert-sidecar is stopping");
                    }
                    if self.trust.is_denied(&self.peer.instance) {
                        break Status::permission_denied("this instance is denied");
                    }
                    return Some(Ok(self.newest.borrow_and_update().clone()));
                }
                message = self.acknowledgements.message() => match message {
                    Ok(Some(acknowledgement)) => self.acknowledged(&acknowledgement),
                    Ok(None) | Err(_) => {
                        tracing::info!(instance = self.peer.instance, "a balancer listens no more");
                        return None;
                    }
                },
                () = &mut self.end => break Status::unauthenticated("this identity has expired"),
                () = self.lifecycle.reached(Phase::Draining) => break Status::unavailable("the cert-sidecar is stopping"),
            }
        };
        tracing::info!(instance = self.peer.instance, reason = reason.message(), "ended a balancer's stream");
        Some(Err(reason))
    }

    fn acknowledged(&self, acknowledgement: &Acknowledgement) {
        let Acknowledgement { version, results } = acknowledgement;
        self.place.acknowledge(*version);
        for result in results.iter().filter(|result| !result.accepted) {
            metrics::counter!("servery_cert_sidecar_push_refusals_total").increment(1);
            tracing::error!(
                instance = self.peer.instance,
                certificate = result.name,
                reason = result.reason,
                "a balancer refused a certificate and keeps its last good one"
            );
        }
        tracing::debug!(instance = self.peer.instance, version, "acknowledged");
    }
}
