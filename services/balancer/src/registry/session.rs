//! One registration stream, from the first message to its end. In: what the node says. Out: Welcome, acknowledgements,
//! Left, the demand for its app, and at the end the reason. The node is out of rotation in the moment this returns,
//! however it does.
//!
//! Acknowledged(n) says "I hold no more permits than report n grants", and names the workers for which that is not true
//! yet, because requests run there. It is sent for the newest report, and again when a named worker is not over any more.

use super::{
    admission::{admit, workers_of},
    demand::{Demand, Said},
    directory::{Directory, Lease},
    refusal::Refusal,
};
use crate::{app::App, dispatch};
use chassis::identity::{Identity, PeerId, Role};
use futures_util::{Stream, StreamExt as _};
use proto::{
    PROTOCOL_VERSION,
    registry::{self, Acknowledged, FromBalancer, FromNode, Left, Over, Welcome, Yielded, from_balancer, from_node},
};
use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// For the first message.
pub(crate) const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Between two messages of a node; faster ones wait in the kernel. A report costs the balancer more than the node.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) type Outbound = mpsc::Sender<Result<FromBalancer, Status>>;

/// What every session of a balancer needs.
#[derive(Debug)]
pub(crate) struct Terms {
    /// This balancer's.
    pub(crate) identity: Identity,
    /// The upper half of the numbers of this process's connections to workers.
    pub(crate) connections: u32,
    pub(crate) directory: Arc<Directory>,
    /// Ends every session.
    pub(crate) stopping: CancellationToken,
}

/// Why a stream ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It never was a registration.
    Refused(Refusal),
    /// It was one, and then said something that cannot be.
    Misspoke(Refusal),
    /// A newer registration of the instance took over.
    Superseded,
    Denied,
    Expired,
    Silent(Duration),
    /// The node ended the stream after it had said that it leaves.
    Left,
    /// The stream broke, or the node ended it without a word.
    Lost(Option<Status>),
    /// This balancer stops.
    Stopping,
}

impl End {
    /// What the node is told; nothing where there is nobody to tell.
    fn status(&self) -> Option<Status> {
        match self {
            Self::Refused(refusal) | Self::Misspoke(refusal) => Some(refusal.status()),
            Self::Superseded => Some(Status::aborted("a newer registration of this instance took over")),
            Self::Denied => Some(Refusal::Denied.status()),
            Self::Expired => Some(Refusal::Expired.status()),
            Self::Silent(limit) => Some(Status::deadline_exceeded(format!("not a word for {} ms", limit.as_millis()))),
            Self::Stopping => Some(Status::unavailable(proto::STOPPING)),
            Self::Left | Self::Lost(_) => None,
        }
    }

    fn log(&self, peer: &PeerId, address: SocketAddr) {
        let instance = peer.instance.as_str();
        match self {
            Self::Refused(refusal) => refused(refusal, instance, address),
            Self::Misspoke(refusal) => {
                metrics::counter!("servery_balancer_registrations_total", "result" => "misspoke").increment(1);
                tracing::warn!(instance, %address, reason = %refusal, "registration ended: the node said what cannot be");
            }
            Self::Silent(limit) => {
                let limit_ms = limit.as_millis();
                tracing::warn!(instance, %address, limit_ms, "registration ended: the node is silent");
            }
            Self::Lost(status) => {
                let status = status.as_ref().map(Status::message).unwrap_or_default();
                tracing::warn!(instance, %address, status, "registration ended: the stream is lost");
            }
            Self::Denied => tracing::warn!(instance, %address, "registration ended: the instance is denied"),
            Self::Expired => tracing::warn!(instance, %address, "registration ended: the certificate has expired"),
            Self::Superseded => tracing::info!(instance, %address, "registration ended: a newer one took over"),
            Self::Left => tracing::info!(instance, %address, "registration ended: the node left"),
            Self::Stopping => tracing::debug!(instance, %address, "registration ended: this balancer stops"),
        }
    }
}

/// Counts and logs a registration that did not come in.
pub(crate) fn refused(refusal: &Refusal, instance: &str, address: SocketAddr) {
    metrics::counter!("servery_balancer_registrations_total", "result" => refusal.label()).increment(1);
    tracing::warn!(instance, %address, reason = %refusal, result = refusal.label(), "registration refused");
}

/// The decoder's word for a message above its limit; a connection that broke has other codes.
fn is_too_long(status: &Status) -> bool {
    status.code() == Code::OutOfRange
}

/// Judges by the certificate alone, before a word is said.
pub(crate) fn may_speak(peer: Option<&PeerId>, cluster: &str, now: SystemTime) -> Result<PeerId, Refusal> {
    let peer = peer.ok_or(Refusal::NoCertificate)?;
    if peer.cluster != cluster {
        return Err(Refusal::Cluster { theirs: peer.cluster.clone(), ours: cluster.to_owned() });
    }
    if peer.role != Role::AppServer {
        return Err(Refusal::Role(peer.role));
    }
    if peer.not_after <= now {
        return Err(Refusal::Expired);
    }
    Ok(peer.clone())
}

/// Runs a stream to its end.
pub(crate) async fn run(
    terms: &Terms,
    peer: &PeerId,
    address: SocketAddr,
    inbound: impl Stream<Item = Result<FromNode, Status>>,
    outbound: Outbound,
) {
    let end = converse(terms, peer, address, inbound, &outbound).await;
    end.log(peer, address);
    if let Some(status) = end.status() {
        // A peer that does not read loses the reason, not the end.
        let _ = outbound.try_send(Err(status));
    }
}

async fn converse(
    terms: &Terms,
    peer: &PeerId,
    address: SocketAddr,
    inbound: impl Stream<Item = Result<FromNode, Status>>,
    outbound: &Outbound,
) -> End {
    let mut inbound = pin!(inbound);
    let first = tokio::select! {
        biased; // a balancer that stops takes nobody in
        () = terms.stopping.cancelled() => return End::Stopping,
        first = timeout(HELLO_LIMIT, inbound.next()) => first,
    };
    let hello = match first {
        Ok(Some(Ok(FromNode { message: Some(from_node::Message::Hello(hello)) }))) => hello,
        Ok(Some(Ok(_))) => return End::Refused(Refusal::HelloFirst),
        Ok(Some(Err(status))) if is_too_long(&status) => return End::Refused(Refusal::TooLong),
        Ok(Some(Err(status))) => return End::Lost(Some(status)),
        Ok(None) => return End::Lost(None),
        Err(_) => return End::Refused(Refusal::NoHello(HELLO_LIMIT.as_secs())),
    };
    let admitted = admit(&hello, peer, address, &terms.directory.advertised_networks());
    let registration = match admitted {
        Ok(registration) => registration,
        Err(refusal) => return End::Refused(refusal),
    };
    let (host, sequence, silence) = (registration.host, registration.sequence, registration.silence);
    let workers = registration.workers.len();
    let lease = match terms.directory.register(registration) {
        Ok(lease) => lease,
        Err(refusal) => return End::Refused(refusal),
    };
    metrics::counter!("servery_balancer_registrations_total", "result" => "accepted").increment(1);
    tracing::info!(instance = lease.instance(), %address, app = lease.app().name(), workers, "registered");
    let lifetime = peer.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let welcome = Welcome {
        protocol_version: PROTOCOL_VERSION,
        instance: terms.identity.instance(),
        connections: terms.connections,
        yields: true,
    };
    let mut session = Session {
        lease,
        host,
        unacknowledged: sequence,
        acknowledged: Acknowledged::default(),
        yielded: VecDeque::new(),
        lacked: false,
        welcome: Some(welcome),
        silence,
        leaving: false,
        left: false,
        demand: Demand::default(),
    };
    session.follow(terms, lifetime, inbound, outbound).await
}

struct Session {
    lease: Lease,
    /// Where the workers are.
    host: SocketAddr,
    welcome: Option<Welcome>,
    /// The newest report, until it is acknowledged.
    unacknowledged: Option<u64>,
    /// The last one that was, with the workers that were over their grants then.
    acknowledged: Acknowledged,
    /// What is given back since the newest report, and the node does not know yet.
    yielded: VecDeque<dispatch::Yielded>,
    /// Other balancers lacked something, as the newest report had it.
    lacked: bool,
    silence: Duration,
    /// The node said so.
    leaving: bool,
    /// We answered it.
    left: bool,
    demand: Demand,
}

impl Session {
    async fn follow(
        &mut self,
        terms: &Terms,
        lifetime: Duration,
        mut inbound: impl Stream<Item = Result<FromNode, Status>> + Unpin,
        outbound: &Outbound,
    ) -> End {
        let app = Arc::clone(self.lease.app());
        let mut expired = pin!(sleep(lifetime));
        let mut heard = Instant::now();
        loop {
            // Before looking, so that a change between the look and the wait is not missed.
            let mut changed = pin!(app.changed().notified());
            changed.as_mut().enable();
            let mut waiting = pin!(app.waiting().notified());
            waiting.as_mut().enable();
            // A node that leaves needs no workers any more.
            if !self.leaving {
                self.demand.notice(length(&app), Instant::now());
            }
            let look_at = self.demand.look_at().filter(|_| !self.leaving);
            if self.lacked {
                self.yielded.extend(app.take_yielded(self.lease.instance()));
            }
            let word = self.word();
            let next = async {
                sleep_until(heard + PAUSE).await;
                inbound.next().await
            };
            tokio::select! {
                biased; // what ends the stream first, then what we owe, then what the node wants
                () = terms.stopping.cancelled() => return End::Stopping,
                end = self.lease.ended() => return end,
                () = &mut expired => return End::Expired,
                place = outbound.reserve(), if word.is_some() => match (place, word) {
                    (Ok(place), Some(word)) => {
                        self.said(&word);
                        place.send(Ok(FromBalancer { message: Some(word) }));
                    }
                    _ => return self.lost(None),
                },
                message = timeout_at(heard + self.silence, next) => match message {
                    Ok(Some(Ok(message))) => {
                        heard = Instant::now();
                        if let Err(refusal) = self.hear(message) {
                            return End::Misspoke(refusal);
                        }
                    }
                    Ok(Some(Err(status))) if is_too_long(&status) => return End::Misspoke(Refusal::TooLong),
                    Ok(Some(Err(status))) => return self.lost(Some(status)),
                    Ok(None) => return self.lost(None),
                    Err(_) => return End::Silent(self.silence),
                },
                () = sleep_until(look_at.unwrap_or(heard)), if look_at.is_some() => {
                    let now = Instant::now();
                    let (wanted, wait) = app.wanted(self.lease.instance(), now);
                    let sequence = self.unacknowledged.unwrap_or(self.acknowledged.sequence);
                    self.demand.look(length(&app), wanted, wait, sequence, now);
                }
                () = changed, if word.is_none() => {}
                () = waiting, if look_at.is_none() && !self.leaving => {}
            }
        }
    }

    fn hear(&mut self, message: FromNode) -> Result<(), Refusal> {
        match message.message {
            Some(from_node::Message::Hello(_)) => return Err(Refusal::HelloFirst),
            Some(from_node::Message::Report(report)) => {
                let workers = workers_of(&report, self.host)?;
                self.lease.apply(&workers);
                // it grants anew what was given back and not said
                self.yielded.clear();
                let lack = report.lack.unwrap_or_default();
                if self.lacked || lack.permits > 0 {
                    let wait = Duration::from_millis(lack.wait_ms.into());
                    self.lease.app().lack(self.lease.instance(), lack.permits, wait);
                }
                self.lacked = lack.permits > 0;
                if !report.settled.is_empty() {
                    self.lease.app().settle(self.lease.instance(), &report.settled);
                }
                self.unacknowledged = Some(report.sequence);
            }
            Some(from_node::Message::Leaving(_)) => {
                if !self.leaving {
                    tracing::info!(instance = self.lease.instance(), "the node is leaving");
                }
                self.lease.leave();
                self.leaving = true;
            }
            // A newer node says what we do not know. It is alive.
            None => {}
        }
        Ok(())
    }

    /// What is true now and the node does not know yet.
    fn word(&self) -> Option<from_balancer::Message> {
        if let Some(welcome) = &self.welcome {
            return Some(from_balancer::Message::Welcome(welcome.clone()));
        }
        let (app, instance) = (self.lease.app(), self.lease.instance());
        if self.unacknowledged.is_some() || !self.acknowledged.over.is_empty() {
            let over = app.over(instance).iter().map(said_of).collect();
            let sequence = self.unacknowledged.unwrap_or(self.acknowledged.sequence);
            let acknowledged = Acknowledged { sequence, over };
            if self.unacknowledged.is_some() || acknowledged != self.acknowledged {
                return Some(from_balancer::Message::Acknowledged(acknowledged));
            }
        }
        if let Some(dispatch::Yielded { position, generation, permits }) = self.yielded.front().copied() {
            let sequence = self.acknowledged.sequence;
            return Some(from_balancer::Message::Yielded(Yielded { sequence, position, generation, permits }));
        }
        if self.leaving {
            let done = !self.left && app.in_flight(instance) == 0;
            return done.then_some(from_balancer::Message::Left(Left {}));
        }
        let Said { waiting, wanted, wait, sequence } = self.demand.owed()?;
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        Some(from_balancer::Message::Demand(registry::Demand { waiting, wanted, wait_ms, sequence }))
    }

    fn said(&mut self, word: &from_balancer::Message) {
        match word {
            from_balancer::Message::Welcome(_) => self.welcome = None,
            from_balancer::Message::Acknowledged(acknowledged) => {
                self.unacknowledged = None;
                self.acknowledged.clone_from(acknowledged);
            }
            from_balancer::Message::Left(_) => self.left = true,
            from_balancer::Message::Demand(said) => {
                let registry::Demand { waiting, wanted, wait_ms, sequence } = *said;
                let wait = Duration::from_millis(wait_ms.into());
                self.demand.told(Said { waiting, wanted, wait, sequence }, Instant::now());
            }
            from_balancer::Message::Yielded(_) => drop(self.yielded.pop_front()),
            from_balancer::Message::DrainRequest(_) => {}
        }
    }

    fn lost(&self, status: Option<Status>) -> End {
        if self.leaving { End::Left } else { End::Lost(status) }
    }
}

fn said_of(over: &dispatch::Over) -> Over {
    Over { position: over.position, generation: over.generation, held: over.held }
}

fn length(app: &App) -> u32 {
    u32::try_from(app.queue_depth()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
