//! Bodies in both directions. A request's body is read from the client by whichever attempt is the newest, and kept up
//! to a bound so that another attempt can begin from its first byte. A response's body is what a client is sent: an
//! answer of our own or the worker's, with the record that becomes its log line when the last byte is gone.

use crate::{patience::Patience, record::Record, reject::Reject, relay::Relay};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use thiserror::Error;
use tokio::time::Instant;

/// How much of a request's body is kept for another attempt. Kept parts are shared with the connection's buffer, not
/// copied, and only until the response head is here.
const REPLAY_BYTES: u64 = 64 * 1024;

/// Ends a body before its end; the peer sees a connection that breaks or a stream that is reset.
#[derive(Debug, Error)]
pub enum BodyError {
    #[error("the client's body broke: {0:?}")]
    Request(Reject),
    #[error("another attempt reads the body now")]
    Superseded,
    #[error("the worker's response broke off")]
    Upstream(#[from] hyper::Error),
    #[error("the worker's response stopped arriving")]
    Stalled,
}

/// The limits of request bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes: u64,
    /// Between two parts.
    pub stall: Duration,
}

/// A request's body, shared by the attempts of the request.
#[derive(Debug)]
pub struct RequestSource {
    reading: RefCell<Reading>,
    limits: BodyLimits,
    /// `Content-Length`, when there is one.
    length: Option<u64>,
    received: Cell<u64>,
    ended: Cell<bool>,
    /// When the newest part came.
    arrived: Cell<Option<Instant>>,
    /// The next part is wanted, and the client has not sent it.
    awaited: Cell<bool>,
    /// Why it can never be completed.
    broken: Cell<Option<Reject>>,
    attempt: Cell<u32>,
}

#[derive(Debug)]
struct Reading {
    incoming: Incoming,
    patience: Patience,
    /// Everything received so far, in order; `None` when it was too much, or will not be needed again.
    kept: Option<Vec<Bytes>>,
}

impl RequestSource {
    /// `None` for a request without a body.
    pub fn new(incoming: Incoming, limits: BodyLimits) -> Result<Option<Rc<Self>>, Reject> {
        if incoming.is_end_stream() {
            return Ok(None);
        }
        let length = incoming.size_hint().exact();
        if length.is_some_and(|length| length > limits.bytes) {
            return Err(Reject::BodyTooLarge);
        }
        let patience = Patience::new(limits.stall);
        Ok(Some(Rc::new(Self {
            reading: RefCell::new(Reading { incoming, patience, kept: Some(Vec::new()) }),
            limits,
            length,
            received: Cell::new(0),
            ended: Cell::new(false),
            arrived: Cell::new(None),
            awaited: Cell::new(false),
            broken: Cell::new(None),
            attempt: Cell::new(0),
        })))
    }

    /// The whole body once more, for a new attempt; an earlier attempt gets nothing any more.
    pub fn begin(self: &Rc<Self>) -> RequestBody {
        self.attempt.set(self.attempt.get() + 1);
        RequestBody(Some(Reader { source: Rc::clone(self), attempt: self.attempt.get(), replayed: 0, passed: 0 }))
    }

    /// Nothing of what was received has been thrown away.
    pub fn is_replayable(&self) -> bool {
        self.broken.get().is_none() && self.reading.borrow().kept.is_some()
    }

    /// There will be no other attempt.
    pub fn forget_kept(&self) {
        self.reading.borrow_mut().kept = None;
    }

    /// Bytes received from the client.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// When it last was the client's turn to send: now, while a part of the body is awaited.
    pub fn moved(&self) -> Option<Instant> {
        if self.awaited.get() { Some(Instant::now()) } else { self.arrived.get() }
    }

    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    pub fn broken(&self) -> Option<Reject> {
        self.broken.get()
    }

    /// The next part that no attempt has seen yet.
    fn poll_new(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut reading = self.reading.borrow_mut();
        let Reading { incoming, patience, kept } = &mut *reading;
        let broken = |reject| {
            self.broken.set(Some(reject));
            Poll::Ready(Some(Err(BodyError::Request(reject))))
        };
        if let Some(reject) = self.broken.get() {
            return broken(reject);
        }
        loop {
            let data = match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Pending if patience.poll_over(cx).is_ready() => return broken(Reject::BodyTimeout),
                Poll::Pending => {
                    self.awaited.set(true);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    self.awaited.set(false);
                    self.ended.set(true);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(_))) => return broken(Reject::BadBody),
                Poll::Ready(Some(Ok(frame))) => frame.into_data(),
            };
            patience.moved();
            self.awaited.set(false);
            self.arrived.set(Some(Instant::now()));
            // trailers are not forwarded
            let Ok(data) = data else { continue };
            let received = self.received.get() + data.len() as u64;
            self.received.set(received);
            if received > self.limits.bytes {
                return broken(Reject::BodyTooLarge);
            }
            if incoming.is_end_stream() {
                self.ended.set(true);
            }
            match kept {
                Some(kept) if received <= REPLAY_BYTES => kept.push(data.clone()),
                _ => *kept = None,
            }
            return Poll::Ready(Some(Ok(data)));
        }
    }
}

/// A request's body as one attempt sends it.
#[derive(Debug)]
pub struct RequestBody(Option<Reader>);

#[derive(Debug)]
struct Reader {
    source: Rc<RequestSource>,
    attempt: u32,
    /// Kept parts that this attempt has passed on.
    replayed: usize,
    passed: u64,
}

impl RequestBody {
    pub fn empty() -> Self {
        Self(None)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(reader) = &mut self.0 else { return Poll::Ready(None) };
        let source = &reader.source;
        if reader.attempt != source.attempt.get() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let replay = source.reading.borrow().kept.as_ref().and_then(|kept| kept.get(reader.replayed).cloned());
        let data = match replay {
            Some(data) => data,
            None => match std::task::ready!(source.poll_new(cx)) {
                Some(Ok(data)) => data,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            },
        };
        reader.replayed += 1;
        reader.passed += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let Some(reader) = &self.0 else { return true };
        reader.source.has_ended() && reader.passed == reader.source.received()
    }

    fn size_hint(&self) -> SizeHint {
        let length =
            self.0.as_ref().map_or(Some(0), |reader| reader.source.length.map(|length| length - reader.passed));
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// What a client is sent.
#[derive(Debug)]
pub struct Body {
    kind: Kind,
    /// Becomes the log line when this is dropped.
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Kind {
    Empty,
    Full(Bytes),
    Relay(Box<Relay>),
}

impl Body {
    pub fn empty() -> Self {
        Self { kind: Kind::Empty, record: None }
    }

    pub fn full(bytes: Bytes) -> Self {
        Self { kind: Kind::Full(bytes), record: None }
    }

    pub fn relay(relay: Relay) -> Self {
        if relay.is_end() { Self::empty() } else { Self { kind: Kind::Relay(Box::new(relay)), record: None } }
    }

    /// The record ends with this body. `head_only`: the client gets no body at all (HEAD).
    pub fn attach(&mut self, record: Box<Record>, head_only: bool) {
        if head_only {
            self.kind = Kind::Empty;
        }
        self.record = Some(record);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let polled = match &mut this.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = Kind::Empty;
                Poll::Ready(Some(Ok(bytes)))
            }
            Kind::Relay(relay) => {
                let polled = relay.poll_data(cx);
                if relay.is_end() {
                    this.kind = Kind::Empty;
                }
                polled
            }
        };
        if let (Some(record), Poll::Ready(Some(result))) = (&mut this.record, &polled) {
            match result {
                Ok(data) => record.bytes_out += data.len() as u64,
                Err(_) => record.reject = Some(Reject::CutOff),
            }
        }
        polled.map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Relay(relay) => relay.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Relay(relay) => relay.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let ended = self.is_end_stream();
        if let Some(record) = &mut self.record
            && !ended
        {
            record.abandon();
        }
    }
}
