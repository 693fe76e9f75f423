//! The Identity service: tokens and certificates of peers in, identities out. Reads a peer's name only from its
//! certificate; every refusal is logged with the peer's address and counted.

use crate::{
    attempts::{Attempts, Verdict},
    records::Refusal,
    trust::{EnrolError, Issued, Trust},
};
use chassis::identity::PeerInfo;
use proto::identity::{EnrolRequest, Issued as IssuedMessage, RenewRequest, identity_server::Identity};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};
use tonic::{Request, Response, Status};

/// Serves `Enrol` to whoever has a token, `Renew` to whoever has an identity.
#[derive(Clone)]
pub(crate) struct Enrolment {
    trust: Arc<Trust>,
    failed: Arc<Mutex<Attempts>>,
}

impl Enrolment {
    pub(crate) fn new(trust: Arc<Trust>) -> Self {
        Self { trust, failed: Arc::default() }
    }
}

fn count(role: &str, result: &'static str) {
    metrics::counter!("servery_cert_sidecar_enrolments_total", "role" => role.to_owned(), "result" => result)
        .increment(1);
}

fn refuse(error: &EnrolError, role: &str, peer: &PeerInfo) -> Status {
    let (label, status) = match error {
        EnrolError::Refused(refusal @ Refusal::Malformed) => {
            (refusal.label(), Status::invalid_argument(error.to_string()))
        }
        EnrolError::Refused(refusal @ Refusal::Denied) => {
            (refusal.label(), Status::permission_denied(error.to_string()))
        }
        EnrolError::Refused(refusal) => (refusal.label(), Status::unauthenticated(error.to_string())),
        EnrolError::Issue(_) | EnrolError::Right(_) => ("bad_request", Status::invalid_argument(error.to_string())),
        EnrolError::Full => ("full", Status::resource_exhausted(error.to_string())),
        EnrolError::Store(_) => ("store", Status::unavailable("the cert-sidecar cannot write its store; see its log")),
    };
    count(role, label);
    let instance = peer.peer.as_ref().map(|peer| peer.instance.as_str());
    tracing::warn!(peer = %peer.address, instance, reason = %error, "refused an identity");
    status
}

fn message(Issued { instance, issued, root }: Issued) -> Response<IssuedMessage> {
    let chain = issued.chain.iter().map(|der| der.to_vec()).collect();
    Response::new(IssuedMessage { instance, chain, root })
}

/// Who is at the other end; `incoming` puts it there for every connection.
pub(crate) fn peer_of<T>(request: &Request<T>) -> Result<PeerInfo, Status> {
    request.extensions().get::<PeerInfo>().cloned().ok_or_else(|| Status::internal("the connection has no peer"))
}

#[tonic::async_trait]
impl Identity for Enrolment {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<IssuedMessage>, Status> {
        let peer = peer_of(&request)?;
        let EnrolRequest { token, csr, name } = request.into_inner();
        match self.trust.enrol(&token, &csr, &name, SystemTime::now()) {
            Ok((issued, role)) => {
                count(role.as_str(), "enrolled");
                tracing::info!(peer = %peer.address, instance = issued.instance, role = %role, "enrolled");
                Ok(message(issued))
            }
            Err(error) => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                let verdict = failed.fail(peer.address.ip(), Instant::now());
                drop(failed);
                if verdict == Verdict::CutShort {
                    count("unknown", "throttled");
                    return Err(Status::resource_exhausted(
                        "too many failed enrolments from this address: wait a minute",
                    ));
                }
                if verdict == Verdict::LastHeard {
                    tracing::warn!(peer = %peer.address, "too many failed enrolments: from here on they are only counted");
                }
                Err(refuse(&error, "unknown", &peer))
            }
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<IssuedMessage>, Status> {
        let info = peer_of(&request)?;
        let Some(peer) = &info.peer else {
            count("unknown", "no_certificate");
            tracing::warn!(peer = %info.address, "refused a renewal without a client certificate");
            return Err(Status::unauthenticated("renewal needs the current identity as client certificate"));
        };
        let role = peer.role;
        match self.trust.renew(peer, &request.get_ref().csr, SystemTime::now()) {
            Ok(issued) => {
                count(role.as_str(), "renewed");
                tracing::info!(peer = %info.address, instance = issued.instance, role = %role, "renewed");
                Ok(message(issued))
            }
            Err(error) => Err(refuse(&error, role.as_str(), &info)),
        }
    }
}
