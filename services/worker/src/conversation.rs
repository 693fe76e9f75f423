//! What a connection's socket and its requests tell each other: when a request begins and ends, why its body broke,
//! that the connection should close. It decides nothing.

use crate::{answer::Answer, edge::Hop, presences::Numbered, slots::Slot};
use futures_util::task::AtomicWaker;
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
};
use std::task::Context;
use tokio::time::Instant;

/// No request runs: what comes is a head.
const AWAITING: u8 = 0;
const RUNNING: u8 = 1;
/// The application owns the bytes.
const TUNNEL: u8 = 2;

const WHOLE: u8 = 0;
const TOO_LARGE: u8 = 1;
const STALLED: u8 = 2;

/// Of one connection.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    phase: AtomicU8,
    /// How many have begun.
    requests: AtomicU32,
    fault: AtomicU8,
    bytes_in: AtomicU64,
    received_at: Mutex<Option<Instant>>,
    leaving: AtomicBool,
    reset: AtomicBool,
    /// The socket's reader.
    reader: AtomicWaker,
    /// For the first request.
    reserved: Mutex<Option<Slot>>,
    /// Only where clients come by themselves.
    pub(crate) hop: Option<Hop>,
    /// What the first request has said of the connection, behind a balancer.
    numbered: OnceLock<Option<Arc<Numbered>>>,
}

/// Keeps the times between two requests from running, until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Conversation>);

impl Conversation {
    pub(crate) fn new(hop: Option<Hop>, reserved: Option<Slot>) -> Arc<Self> {
        Arc::new(Self { hop, reserved: Mutex::new(reserved), ..Self::default() })
    }

    /// A head is here.
    pub(crate) fn begin(self: &Arc<Self>) -> Running {
        self.fault.store(WHOLE, Ordering::Relaxed);
        self.bytes_in.store(0, Ordering::Relaxed);
        *self.received_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.phase.store(RUNNING, Ordering::Release);
        Running(Arc::clone(self))
    }

    /// The application takes the connection over with its answer.
    pub(crate) fn become_tunnel(&self) {
        self.phase.store(TUNNEL, Ordering::Release);
        if let Some(connection) = self.numbered() {
            connection.become_tunnel();
        }
    }

    pub(crate) fn is_tunnel(&self) -> bool {
        self.phase.load(Ordering::Acquire) == TUNNEL
    }

    /// The task is woken when no request runs any more: nothing else may move then, and a request may begin and end
    /// without the socket being read in between. To be called before anything is asked, so that nothing is missed.
    pub(crate) fn wake_reader(&self, cx: &Context<'_>) {
        self.reader.register(cx.waker());
    }

    pub(crate) fn is_awaiting(&self) -> bool {
        self.phase.load(Ordering::Acquire) == AWAITING
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Notes the connection's number, as the first request says it; later ones are not asked.
    pub(crate) fn number_once(&self, first: impl FnOnce() -> Option<Arc<Numbered>>) {
        self.numbered.get_or_init(first);
    }

    /// The connection as its balancer numbers it.
    pub(crate) fn numbered(&self) -> Option<&Arc<Numbered>> {
        self.numbered.get()?.as_ref()
    }

    /// The connection has ended.
    pub(crate) fn end(&self) {
        if let Some(connection) = self.numbered() {
            connection.end();
        }
    }

    /// The slot that was kept for the first request, once.
    pub(crate) fn take_reserved(&self) -> Option<Slot> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The request's body was larger than it may be.
    pub(crate) fn body_too_large(&self) {
        self.fault.store(TOO_LARGE, Ordering::Relaxed);
    }

    /// The request's body stopped arriving.
    pub(crate) fn body_stalled(&self) {
        self.fault.store(STALLED, Ordering::Relaxed);
    }

    /// What the client is to be told about its body.
    pub(crate) fn fault(&self) -> Option<Answer> {
        match self.fault.load(Ordering::Relaxed) {
            TOO_LARGE => Some(Answer::BodyTooLarge),
            STALLED => Some(Answer::BodyStalled),
            _ => None,
        }
    }

    /// So much of the request's body has come.
    pub(crate) fn received(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        *self.received_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// When the last part of the request's body came.
    pub(crate) fn received_at(&self) -> Option<Instant> {
        *self.received_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of the request's body.
    pub(crate) fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// The connection closes when it has nothing to do.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// The answer is cut where its end cannot be told from the connection's.
    pub(crate) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
    }

    pub(crate) fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }
}

impl Running {
    pub(crate) fn conversation(&self) -> &Arc<Conversation> {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // a tunnel stays one
        let _ = self.0.phase.compare_exchange(RUNNING, AWAITING, Ordering::AcqRel, Ordering::Relaxed);
        self.0.reader.wake();
    }
}
