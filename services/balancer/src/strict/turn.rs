//! Whose turn it is on a connection. In: a request begins, its answer does, it is over; the stream stands between two requests.
//! Out: what the connection waits for, and the requests there were. Counts of one thread: nothing is locked.

use crate::interim::Interim;
use http::Request;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Poll,
};

/// What the requests of a connection, its stream and whoever serves it tell each other. hyper wants streams that could go
/// to another thread; this one never does.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// Requests that are being answered; of HTTP/1.1 one at a time.
    answering: AtomicU32,
    /// Requests so far, which is also the last one's number.
    begun: AtomicU64,
    /// Of these, the malformed ones.
    malformed: AtomicU64,
    /// The bytes are no HTTP any more.
    pub(super) switched: AtomicBool,
    /// Every answer is on its way, and nothing but more of this makes it go on.
    pub(super) between: AtomicBool,
    pub(super) within: AtomicBool,
    /// The request whose answer has not begun; 0 when there is none.
    unanswered: AtomicU64,
    pub(super) interim: Interim,
}

/// What a connection waits for from its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing, or what others have their patience for.
    Nothing,
    /// The first byte of a request.
    Request,
    /// The rest of a head.
    Head,
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answering {
    pub(super) turn: Arc<Turn>,
    pub(super) request: u64,
}

impl Turn {
    /// To be called before the request's future: hyper reads on before it polls that.
    pub(crate) fn begin(self: &Arc<Self>) -> Answering {
        let request = self.begun() + 1;
        self.begun.store(request, Ordering::Relaxed);
        self.unanswered.store(request, Ordering::Relaxed);
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering { turn: Arc::clone(self), request }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn well_formed(&self) -> u64 {
        self.begun() - self.malformed.load(Ordering::Relaxed)
    }

    /// Of HTTP/1.1.
    pub(crate) fn wait(&self) -> Wait {
        if self.is_busy() {
            Wait::Nothing
        } else if self.between.load(Ordering::Relaxed) {
            Wait::Request
        } else if self.within.load(Ordering::Relaxed) {
            Wait::Head
        } else {
            Wait::Nothing
        }
    }

    pub(super) fn is_unanswered(&self) -> bool {
        self.unanswered.load(Ordering::Relaxed) != 0
    }
}

impl Answering {
    /// The answer is 101: what follows is another protocol.
    pub(crate) fn switch(&self) {
        self.turn.switched.store(true, Ordering::Relaxed);
    }

    /// What came is malformed.
    pub(crate) fn disown(&self) {
        self.turn.malformed.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer is there: nothing comes before it any more but what came in time. To be called where hyper gets it.
    pub(crate) fn answered(&self) {
        self.turn.unanswered.store(0, Ordering::Relaxed);
    }

    /// Passes on the interim responses to `request`, an attempt at answering this one. Costs four allocations.
    pub(crate) async fn hear_interim<B>(&self, request: &mut Request<B>) {
        let (turn, number) = (Arc::clone(&self.turn), self.request);
        // they come in while the connection's task waits for something else
        let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        hyper::ext::on_informational(request, move |response| {
            if turn.unanswered.load(Ordering::Relaxed) == number {
                turn.interim.put(number, response.status(), response.headers());
                waker.wake_by_ref();
            }
        });
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.turn.answering.fetch_sub(1, Ordering::Relaxed);
    }
}
