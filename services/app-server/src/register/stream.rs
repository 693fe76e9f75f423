//! One registration stream: come in the roster, the ledger and what the balancer says, go out reports, as soon as there is
//! something to tell and never later than the node has promised. It neither dials nor tries again.
//!
//! Another grant and a connection that is settled go out at once, no two reports within [`SPACE`]: requests wait for them. What else a
//! balancer must know (a worker that is ready, gone or draining) goes out within [`SOON`], mere load within [`LOAD`]:
//! under load every request would otherwise cost a report.

use super::{
    Desk,
    streams::{Entry, StreamState},
};
use crate::{ledger, roster::Row};
use proto::registry::{
    FromBalancer, FromNode, Leaving, Report, from_balancer::Message as Reply, from_node::Message as Word,
    registry_client::RegistryClient,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

/// Changes within this time go into one report.
const SPACE: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_millis(2);
const LOAD: Duration = Duration::from_millis(25);

/// For the balancer to answer Hello.
const WELCOME: Duration = Duration::from_secs(5);

/// A balancer that does not read for so long is lost.
const STUCK: Duration = Duration::from_secs(10);

/// Reports that may wait to be sent.
const WAITING: usize = 4;

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The balancer has nothing in flight here and sends nothing more.
    #[error("left")]
    Left,
    /// The connection broke, or either side fell silent.
    #[error("{0}")]
    Lost(String),
    /// The balancer said why.
    #[error("{1}")]
    Refused(Code, String),
}

/// An open registration.
pub(super) struct Stream {
    balancer: String,
    words: mpsc::Sender<FromNode>,
    replies: Streaming<FromBalancer>,
    rows: watch::Receiver<Vec<Row>>,
    /// Rung for what goes out at once.
    bell: Arc<Notify>,
    /// The upper half of the balancer's connections' numbers.
    connections: u32,
    /// It gives back by itself what others lack.
    yields: bool,
    leaving: watch::Receiver<bool>,
    /// The workers as the last report had them.
    told: Vec<((u32, u64), crate::roster::State, u16, u32)>,
    sent: Instant,
    due: Instant,
    /// Half of the promise: a report may be late on its way.
    heartbeat: Duration,
    said_leaving: bool,
}

impl Stream {
    /// Says Hello and waits for Welcome.
    pub(super) async fn open(desk: &Desk, channel: Channel, balancer: &str) -> Result<Self, End> {
        let rows = desk.roster.watch();
        let bell = desk.audience.grants().bell(balancer);
        let told = rows.borrow().iter().map(Row::standing).collect();
        let (words, waiting) = mpsc::channel(WAITING);
        let hello = word(Word::Hello(desk.hello(balancer)));
        // there is room: it is the first
        words.try_send(hello).map_err(|error| End::Lost(error.to_string()))?;
        let mut client = RegistryClient::new(channel);
        let welcomed = async {
            let mut replies = client.register(ReceiverStream::new(waiting)).await?.into_inner();
            let first = replies.message().await?;
            Ok::<_, Status>((first, replies))
        };
        let (first, replies) = timeout(WELCOME, welcomed)
            .await
            .map_err(|_| End::Lost("no answer to Hello in time".to_owned()))?
            .map_err(|status| End::from(&status))?;
        let Some(FromBalancer { message: Some(Reply::Welcome(welcome)) }) = first else {
            return Err(End::Lost("the balancer did not begin with Welcome".to_owned()));
        };
        if welcome.protocol_version.abs_diff(proto::PROTOCOL_VERSION) > 1 {
            let theirs = welcome.protocol_version;
            let why = format!("the balancer speaks version {theirs}, this node {}", proto::PROTOCOL_VERSION);
            return Err(End::Refused(Code::FailedPrecondition, why));
        }
        let heartbeat = desk.introduction.heartbeat / 2;
        let now = Instant::now();
        Ok(Self {
            balancer: balancer.to_owned(),
            words,
            replies,
            rows,
            bell,
            connections: welcome.connections,
            yields: welcome.yields,
            leaving: desk.leaving.subscribe(),
            told,
            sent: now,
            // what changed while we waited for the welcome
            due: now,
            heartbeat,
            said_leaving: false,
        })
    }

    pub(super) fn yields(&self) -> bool {
        self.yields
    }

    pub(super) fn connections(&self) -> u32 {
        self.connections
    }

    /// Reports and listens until the stream ends. May be dropped at any point and called again.
    pub(super) async fn run(&mut self, desk: &Desk, entry: &Entry) -> End {
        loop {
            tokio::select! {
                // what is due first: a balancer that talks without a pause must not silence us
                biased;
                () = sleep_until(self.due) => {
                    if let Err(end) = self.speak(desk, entry) {
                        return end;
                    }
                }
                reply = self.replies.message() => match reply {
                    Ok(Some(reply)) => {
                        if let Some(end) = self.hear(desk, entry, &reply) {
                            return end;
                        }
                    }
                    Ok(None) => return End::Lost("the balancer ended the stream".to_owned()),
                    Err(status) => return End::from(&status),
                },
                () = left(&mut self.leaving), if !self.said_leaving => self.due = Instant::now(),
                Ok(()) = self.rows.changed() => self.workers_changed(),
                () = self.bell.notified() => {
                    if desk.audience.grants().has_news(&self.balancer) {
                        self.due = self.due.min((self.sent + SPACE).max(Instant::now()));
                    }
                }
            }
        }
    }

    fn workers_changed(&mut self) {
        let standing = self.rows.borrow_and_update().iter().map(Row::standing).eq(self.told.iter().copied());
        self.due_within(if standing { LOAD } else { SOON });
    }

    fn due_within(&mut self, long: Duration) {
        self.due = self.due.min(Instant::now() + long);
    }

    /// Sends what is due, where there is room for it.
    fn speak(&mut self, desk: &Desk, entry: &Entry) -> Result<(), End> {
        let now = Instant::now();
        let place = match self.words.try_reserve() {
            Ok(place) => place,
            Err(mpsc::error::TrySendError::Closed(())) => {
                // the connection is gone; the replies say why
                self.due = now + self.heartbeat;
                return Ok(());
            }
            Err(mpsc::error::TrySendError::Full(())) if now - self.sent > STUCK => {
                return Err(End::Lost("the balancer does not read".to_owned()));
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                self.due = now + LOAD;
                return Ok(());
            }
        };
        let rows = self.rows.borrow_and_update().clone();
        self.told = rows.iter().map(Row::standing).collect();
        let grants = desk.audience.grants();
        let report = Report { settled: grants.take_settled(&self.balancer), ..grants.report(&self.balancer, &rows) };
        entry.granted(report.workers.iter().map(|worker| u64::from(worker.grant)).sum());
        place.send(word(Word::Report(report)));
        (self.sent, self.due) = (now, now + self.heartbeat);
        if *self.leaving.borrow() && !self.said_leaving {
            match self.words.try_send(word(Word::Leaving(Leaving {}))) {
                Ok(()) => {
                    self.said_leaving = true;
                    entry.set(StreamState::Leaving);
                }
                Err(_) => self.due = now + LOAD,
            }
        }
        Ok(())
    }

    fn hear(&self, desk: &Desk, entry: &Entry, reply: &FromBalancer) -> Option<End> {
        match &reply.message {
            Some(Reply::Acknowledged(acknowledged)) => {
                desk.audience.grants().acknowledge(&self.balancer, acknowledged);
                None
            }
            Some(Reply::Yielded(yielded)) => {
                desk.audience.grants().yielded(&self.balancer, *yielded);
                None
            }
            Some(Reply::Demand(demand)) => {
                let proto::registry::Demand { waiting, wanted, wait_ms, sequence } = *demand;
                let wait = Duration::from_millis(wait_ms.into());
                let demand = ledger::Demand { waiting, wanted, wait, sequence };
                entry.demand(demand);
                desk.audience.grants().demand(&self.balancer, demand);
                None
            }
            Some(Reply::Left(_)) => {
                tracing::info!(balancer = self.balancer, "a balancer has let go of this node");
                Some(End::Left)
            }
            Some(Reply::DrainRequest(_)) => {
                tracing::info!(balancer = self.balancer, "a balancer asks this node to drain: not supported yet");
                None
            }
            // said once; and what a newer balancer says that we do not know
            Some(Reply::Welcome(_)) | None => None,
        }
    }
}

/// Until the node leaves.
async fn left(leaving: &mut watch::Receiver<bool>) {
    // its sender is in the desk, which outlives every stream
    let _ = leaving.wait_for(|leaving| *leaving).await;
}

impl From<&Status> for End {
    fn from(status: &Status) -> Self {
        Self::Refused(status.code(), status.message().to_owned())
    }
}

fn word(word: Word) -> FromNode {
    FromNode { message: Some(word) }
}
