//! A balancer: the shipped `Dispatch` and the shipped `Demand` of each session, and when they are asked, as `app.rs` and
//! `registry/session.rs` do it.

use super::{host::whole_millis, wire::Stream};
use crate::{scenario::Scenario, world::RequestId};
use app_server::ledger::{self, WorkerKey};
use balancer::{
    client::Client,
    dispatch::{Class, Dispatch, Ended, Held, NoRoom, Queued, Request, Room, Ticket, Yielded},
    endpoint::{EndpointId, Node, WorkerView},
    registry::demand::{Demand, Said},
};
use rand::rngs::SmallRng;
use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Between two looks at what only time changes, as in `app.rs`.
pub(super) const TURN: Duration = Duration::from_millis(100);
/// The defaults of the configuration.
const ROOM: Room = Room { all: 1024, client: 512 };
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Front {
    pub(super) name: String,
    dispatch: Dispatch<RequestId>,
    rng: SmallRng,
    /// By request.
    held: Vec<Option<Held>>,
    /// Where requests were refused.
    tried: HashMap<RequestId, Vec<EndpointId>>,
    /// Who waits until when, the first one first; most of them wait no longer.
    waiting: VecDeque<(Instant, Ticket)>,
    /// By node.
    sessions: Vec<Session>,
    looks_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Session {
    node: Option<Arc<Node>>,
    unacknowledged: Option<u64>,
    /// The last acknowledgement.
    acknowledged: Acknowledged,
    demand: Demand,
    /// Others lack something there.
    lacked: bool,
}

/// Which report is known, and where more is held than it grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) sequence: u64,
    pub(super) over: Box<[(WorkerKey, u32)]>,
}

/// What a request gets.
pub(super) enum Answer {
    Permit(SocketAddr),
    /// `first`: nobody else waits. `shed`: who had to leave for it.
    Wait {
        first: bool,
        shed: Option<RequestId>,
    },
    Refusal,
}

impl Front {
    pub(super) fn new(name: String, scenario: &Scenario, rng: SmallRng) -> Self {
        Self {
            name,
            dispatch: Dispatch::new(ROOM, &[]),
            rng,
            held: Vec::new(),
            tried: HashMap::new(),
            waiting: VecDeque::new(),
            sessions: (0..scenario.nodes).map(|_| Session::default()).collect(),
            looks_at: None,
        }
    }

    pub(super) fn register(&mut self, stream: Stream, node: Arc<Node>) {
        self.sessions[stream.node()] = Session { node: Some(node), ..Session::default() };
    }

    pub(super) fn lose(&mut self, stream: Stream) {
        if let Some(node) = std::mem::take(&mut self.sessions[stream.node()]).node {
            self.dispatch.remove_node(&node.instance);
        }
    }

    pub(super) fn apply(&mut self, stream: Stream, sequence: u64, workers: &[WorkerView], now: Instant) {
        let session = &mut self.sessions[stream.node()];
        if let Some(node) = &session.node {
            self.dispatch.apply(node, workers, now);
            session.unacknowledged = Some(sequence);
        }
    }

    /// What the report said that others lack at the node.
    pub(super) fn lack(&mut self, stream: Stream, lack: ledger::Lack, now: Instant) {
        let session = &mut self.sessions[stream.node()];
        let Some(node) = session.node.as_ref().filter(|_| session.lacked || lack.permits > 0) else { return };
        session.lacked = lack.permits > 0;
        self.dispatch.lack(&node.instance, lack.permits, lack.wait, now);
    }

    /// What was given back to the node and not said, with the report that it is meant of.
    pub(super) fn take_yielded(&mut self, stream: Stream) -> (u64, Vec<Yielded>) {
        let session = &self.sessions[stream.node()];
        let yielded = session.node.as_ref().map(|node| self.dispatch.take_yielded(&node.instance));
        (session.acknowledged.sequence, yielded.unwrap_or_default())
    }

    /// What is owed to the node: its newest report is known, and what was over has been given back.
    pub(super) fn acknowledgement(&mut self, stream: Stream) -> Option<Acknowledged> {
        let session = &mut self.sessions[stream.node()];
        let node = session.node.as_ref()?;
        if session.unacknowledged.is_none() && session.acknowledged.over.is_empty() {
            return None;
        }
        let over = self.dispatch.over(&node.instance).into_iter();
        let acknowledged = Acknowledged {
            sequence: session.unacknowledged.unwrap_or(session.acknowledged.sequence),
            over: over.map(|over| ((over.position, over.generation), over.held)).collect(),
        };
        if session.unacknowledged.take().is_none() && acknowledged == session.acknowledged {
            return None;
        }
        session.acknowledged.clone_from(&acknowledged);
        Some(acknowledged)
    }

    pub(super) fn ask(&mut self, request: RequestId, comes_back: bool, now: Instant) -> Answer {
        let tried = self.tried.get(&request).map_or(&[][..], Vec::as_slice);
        let class = Class::default();
        if let Some((endpoint, held, _)) = self.dispatch.pick(client(request), class, tried, now, &mut self.rng) {
            let address = endpoint.address;
            self.hold(request, held);
            return Answer::Permit(address);
        }
        let deadline = now + DEADLINE;
        let asked = Request { waiter: request, client: client(request), class, tried, comes_back, deadline };
        match self.dispatch.enqueue(asked, now) {
            Ok(Queued { ticket, displaced }) => {
                self.waiting.push_back((deadline, ticket));
                let shed = displaced.map(|displaced| match displaced {
                    NoRoom::Queue(request) | NoRoom::Client(request) | NoRoom::Late(request) => request,
                });
                Answer::Wait { first: self.dispatch.queue_depth() == 1, shed }
            }
            Err(_) => Answer::Refusal,
        }
    }

    fn hold(&mut self, request: RequestId, held: Held) {
        if self.held.len() <= request.index() {
            self.held.resize(request.index() + 1, None);
        }
        self.held[request.index()] = Some(held);
    }

    /// True when a session may owe something because of it.
    pub(super) fn give_back(&mut self, request: RequestId, refused: bool, now: Instant) -> bool {
        let held = self.held[request.index()].take().expect("a request that was sent holds a permit");
        let ended = if refused {
            self.tried.entry(request).or_default().push(held.id);
            Ended::Busy
        } else {
            self.tried.remove(&request);
            Ended::Answered(now.saturating_duration_since(held.since))
        };
        self.dispatch.release(held, ended, now)
    }

    /// Who waited and has a permit now.
    pub(super) fn hand_over(&mut self, now: Instant) -> Vec<(RequestId, SocketAddr)> {
        let mut served = Vec::new();
        while let Some((request, endpoint, held)) = self.dispatch.handover(now, &mut self.rng) {
            self.hold(request, held);
            served.push((request, endpoint.address));
        }
        served
    }

    /// Time has passed: who is turned away.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<RequestId> {
        self.dispatch.turn(now);
        let mut shed: Vec<RequestId> = std::iter::from_fn(|| self.dispatch.shed(now)).collect();
        while let Some((_, ticket)) = self.waiting.pop_front_if(|(deadline, _)| *deadline <= now) {
            shed.extend(self.dispatch.leave(ticket));
        }
        shed
    }

    /// A request waits where none did: every session that is not waiting for its next look has one now.
    pub(super) fn notice(&mut self, now: Instant) {
        let waiting = self.length();
        for session in self.sessions.iter_mut().filter(|session| session.node.is_some()) {
            session.demand.notice(waiting, now);
        }
        self.looks_at = None;
    }

    /// Which sessions have something to say.
    pub(super) fn look(&mut self, balancer: u32, now: Instant) -> Vec<(Stream, ledger::Demand)> {
        self.looks_at = None;
        let (waiting, wait) = (self.length(), self.dispatch.expected_wait(now).unwrap_or_default());
        let mut said = Vec::new();
        for (node, session) in (0_u32..).zip(&mut self.sessions) {
            let Some(registered) = &session.node else { continue };
            session.demand.notice(waiting, now);
            if session.demand.look_at().is_none_or(|at| at > now) {
                continue;
            }
            let wanted = self.dispatch.wanted(&registered.instance, &mut self.rng);
            let sequence = session.unacknowledged.unwrap_or(session.acknowledged.sequence);
            session.demand.look(waiting, wanted, wait, sequence, now);
            if let Some(owed) = session.demand.owed() {
                session.demand.told(owed, now);
                let Said { waiting, wanted, wait, sequence } = owed;
                let demand = ledger::Demand { waiting, wanted, wait: whole_millis(wait), sequence };
                said.push((Stream { node, balancer }, demand));
            }
        }
        said
    }

    /// When the next session looks, if that is news.
    pub(super) fn looks_next(&mut self) -> Option<Instant> {
        let next = self.sessions.iter().filter_map(|session| session.demand.look_at()).min()?;
        (self.looks_at.replace(next) != Some(next)).then_some(next)
    }

    pub(super) fn is_to_look(&self, at: Instant) -> bool {
        self.looks_at == Some(at)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.dispatch.queue_depth()).unwrap_or(u32::MAX)
    }
}

/// So many clients that none of them has more than its share.
fn client(request: RequestId) -> Client {
    let number = u32::try_from(request.index() % 4096).unwrap_or_default();
    Client::from(IpAddr::from(Ipv4Addr::from(number)))
}
