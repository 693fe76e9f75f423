//! What hyper runs for a request, ended from outside: the stream of HTTP/2, the connection of HTTP/1.1. In: why. Out: the
//! end, and for the log the reason. hyper asks a body for nothing while the client takes nothing, so that a body cannot end
//! itself.

use crate::{reject::Reject, stalls::Stop};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
    time::Duration,
};

#[derive(Debug)]
pub(crate) struct Leash {
    /// For how long the client may take nothing of an answer.
    pub(crate) patience: Duration,
    reason: Cell<Option<Reject>>,
    /// It was polled: hyper has got room to write, or a part of the stream's window.
    moved: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Leash {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, reason: Cell::new(None), moved: Cell::new(false), waker: RefCell::new(None) }
    }

    /// Why it was ended, if it was.
    pub(crate) fn reason(&self) -> Option<Reject> {
        self.reason.get()
    }

    /// Until then. To be polled whenever what it ends is.
    pub(crate) async fn stopped(&self) {
        poll_fn(|cx| {
            self.moved.set(true);
            if self.reason.get().is_some() {
                return Poll::Ready(());
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Stop for Leash {
    fn has_moved(&self) -> bool {
        self.moved.replace(false)
    }

    fn stop(&self, reason: Reject) {
        self.reason.set(Some(reason));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
