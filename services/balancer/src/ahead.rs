//! A response that is read ahead of its client, so that the worker's slot and connection are free when the whole
//! response is here and not when the client has it. In: a worker's response body. Out: the same bytes in the same order
//! with the same end, each part as soon as it has come. What is complete at once costs no task. Otherwise one reads, as
//! far as `buffers` allows. When the client leaves, it stops in that moment.

use crate::{
    body::{Body, BodyError},
    buffers::{Buffers, Share},
    edge::Edge,
    relay::Relay,
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};
use tokio::task::AbortHandle;

/// What has come and the client has not got yet.
#[derive(Debug)]
struct Shelf {
    parts: VecDeque<Bytes>,
    /// Behind all parts.
    trailers: Option<HeaderMap>,
    share: Share,
    /// Where the rest comes from; `None` when it has ended, or nobody wants it.
    relay: Option<Relay>,
    /// Why it ended early.
    error: Option<BodyError>,
    /// The client's side waits for a part.
    wants: Option<Waker>,
    /// The reading side waits for room.
    waits: Option<Waker>,
}

/// The client's side.
#[derive(Debug)]
pub(crate) struct Ahead {
    shelf: Rc<RefCell<Shelf>>,
    /// Bytes that the client has not got yet, where that is known.
    left: Option<u64>,
    /// The task that reads, if there is one.
    reading: Option<AbortHandle>,
}

/// Reads what is there. The body that is returned is read on its own from then on.
pub(crate) async fn read_ahead(edge: &Rc<Edge>, relay: Relay) -> Body {
    let left = relay.size_hint().exact();
    let mut shelf = Shelf::new(&edge.buffers, relay);
    poll_fn(|cx| {
        let _ = shelf.poll_read(cx);
        Poll::Ready(())
    })
    .await;
    if shelf.relay.is_none() && shelf.error.is_none() && left.is_some() && shelf.parts.len() < 2 {
        return shelf.parts.pop_front().map_or_else(Body::empty, Body::full);
    }
    let ended = shelf.relay.is_none();
    let shelf = Rc::new(RefCell::new(shelf));
    let reading = (!ended).then(|| {
        let shelf = Rc::clone(&shelf);
        edge.tasks.spawn_local(poll_fn(move |cx| shelf.borrow_mut().poll_read(cx))).abort_handle()
    });
    Body::ahead(Ahead { shelf, left, reading })
}

impl Shelf {
    fn new(buffers: &Rc<Buffers>, relay: Relay) -> Self {
        let share = buffers.share();
        Self {
            parts: VecDeque::new(),
            trailers: None,
            share,
            relay: Some(relay),
            error: None,
            wants: None,
            waits: None,
        }
    }

    /// Reads as long as there are parts and room. Ready when there is nothing more to read.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(relay) = &mut self.relay {
            // without any room to spare it goes on part by part
            if self.share.is_used_up() && !self.share.is_empty() {
                self.waits = Some(cx.waker().clone());
                return Poll::Pending;
            }
            match std::task::ready!(relay.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(part) => {
                        let part = self.share.keep(part);
                        self.parts.push_back(part);
                    }
                    // bounded by hyper, as heads are
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                Some(Err(error)) => self.error = Some(error),
                None => {}
            }
            if relay.is_end() {
                self.relay = None;
            }
            if let Some(client) = self.wants.take() {
                client.wake();
            }
        }
        Poll::Ready(())
    }
}

impl Ahead {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shelf = self.shelf.borrow_mut();
        if let Some(part) = shelf.parts.pop_front() {
            shelf.share.give_back(&part);
            if let Some(reader) = shelf.waits.take() {
                reader.wake();
            }
            self.left = self.left.map(|left| left.saturating_sub(part.len() as u64));
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if let Some(error) = shelf.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if shelf.relay.is_none() {
            return Poll::Ready(shelf.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        shelf.wants = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn is_end(&self) -> bool {
        let shelf = self.shelf.borrow();
        shelf.relay.is_none() && shelf.parts.is_empty() && shelf.error.is_none() && shelf.trailers.is_none()
    }

    /// It still comes, over a connection and with a permit.
    pub(crate) fn is_placed(&self) -> bool {
        self.shelf.borrow().relay.is_some()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // now, and not when the task's turn comes: it closes a connection that was not read to its end
        self.shelf.borrow_mut().relay = None;
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}
