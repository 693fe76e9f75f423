//! A request's body on the way to a worker. In: its source, and which attempt this is. Out: its frames, until another attempt
//! has begun. While it waits for the client it holds a place because of it, and says so.

use super::RequestSource;
use crate::{
    body::BodyError,
    stalls::{Pace, Stall},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// A request's body as one attempt sends it.
#[derive(Debug)]
pub struct RequestBody(Option<Reader>);

#[derive(Debug)]
struct Reader {
    source: Rc<RequestSource>,
    attempt: u32,
    passed: u64,
    /// It has passed on the trailers.
    trailed: bool,
    /// While it awaits a part.
    waiting: Option<(Instant, Stall)>,
    pace: Pace,
}

impl RequestBody {
    /// The whole body once more; an earlier attempt gets nothing any more.
    pub(super) fn of(source: &Rc<RequestSource>) -> Self {
        let (source, attempt) = (Rc::clone(source), source.attempt.get());
        let (passed, trailed, waiting, pace) = (0, false, None, Pace::default());
        Self(Some(Reader { source, attempt, passed, trailed, waiting, pace }))
    }

    pub fn empty() -> Self {
        Self(None)
    }
}

impl Reader {
    fn has_passed_all(&self) -> bool {
        let all = self.source.ended.get() && self.passed == self.source.received.get();
        all && (self.trailed || self.source.trailers.borrow().is_none())
    }

    /// Once, behind the last part.
    fn trailers(&mut self) -> Option<HeaderMap> {
        let trailers = if self.trailed { None } else { self.source.trailers.borrow().clone() };
        self.trailed = true;
        trailers
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
        let polled = source.poll_next(cx);
        if polled.is_pending() {
            if reader.waiting.is_none() {
                let now = Instant::now();
                reader.waiting = Some((now, source.stall(reader.pace.since(now), now)));
            }
            return Poll::Pending;
        }
        let waited = reader.waiting.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let polled = ready!(polled).transpose().map_err(BodyError::Request)?;
        let length = polled.as_ref().map_or(0, |data| data.len() as u64);
        reader.pace.came(length, waited);
        reader.passed += length;
        let frame = polled.map(Frame::data).or_else(|| reader.trailers().map(Frame::trailers));
        reader.source.sent.set(reader.has_passed_all());
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Reader::has_passed_all)
    }

    fn size_hint(&self) -> SizeHint {
        let length =
            self.0.as_ref().map_or(Some(0), |reader| reader.source.length.map(|length| length - reader.passed));
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
