//! A response's body on its way out: it holds its request's slot until it has ended, failed or been dropped, and cuts
//! the answer of an application that produces nothing for too long. Time in which the client takes nothing is not the
//! application's: then nobody asks this body for more.

use crate::{
    access::Entry,
    answer::{REQUEST_ID, plain_id},
    conversation::Running,
    slots::Run,
};
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri};
use http_body::{Frame, SizeHint};
use proto::alarm::Alarm;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// What the log says of a request.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) id: Option<HeaderValue>,
}

/// What lasts as long as a request. Dropped in this order.
#[derive(Debug)]
pub(crate) struct Lasting {
    /// `None`: the application was not asked.
    pub(crate) _run: Option<Run>,
    pub(crate) entry: Option<Box<Entry>>,
    pub(crate) running: Running,
}

/// The application waited for its own next part for too long.
#[derive(Debug, thiserror::Error)]
#[error("the application has stopped producing its answer")]
struct Stopped;

/// What a client is sent.
pub(crate) struct Held {
    body: Body,
    lasting: Option<Lasting>,
    asked: Asked,
    /// Between two parts; zero: no limit.
    limit: Duration,
    /// Since when the connection has waited for the application.
    waiting: Option<Instant>,
    alarm: Alarm,
    /// A client takes the connection's end for the body's.
    ends_with_connection: bool,
}

impl Asked {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let id = request.headers().get(REQUEST_ID).cloned();
        Self { method: request.method().clone(), uri: request.uri().clone(), id }
    }

    /// The request's id, where it can stand in a log line as it is.
    pub(crate) fn id(&self) -> Option<&str> {
        plain_id(self.id.as_ref())
    }
}

impl Held {
    pub(crate) fn new(body: Body, lasting: Lasting, asked: Asked, limit: Duration, ends_with_connection: bool) -> Self {
        let (lasting, alarm) = (Some(lasting), Alarm::default());
        Self { body, lasting, asked, limit, waiting: None, alarm, ends_with_connection }
    }

    fn poll_gap(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        let since = *self.waiting.get_or_insert_with(Instant::now);
        self.alarm.poll(since + self.limit, cx)
    }

    fn cut(&mut self) {
        if let Some(lasting) = &self.lasting
            && self.ends_with_connection
        {
            lasting.running.conversation().reset();
        }
        self.lasting = None;
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(this.poll_gap(cx));
                let (method, path, request_id, limit) =
                    (&this.asked.method, this.asked.uri.path(), this.asked.id(), this.limit);
                tracing::warn!(%method, path, request_id, ?limit, "the application stopped in the middle of its answer");
                // what it has is dropped, so that it stops
                this.body = Body::empty();
                Some(Err(axum::Error::new(Stopped)))
            }
        };
        this.waiting = None;
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(Lasting { entry: Some(entry), .. })) = (frame.data_ref(), &mut this.lasting) {
                    entry.sent(data.len() as u64);
                }
                if this.body.is_end_stream() {
                    this.lasting = None;
                }
            }
            Some(Err(_)) => this.cut(),
            None => this.lasting = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Held {
    /// A panic of the application while its answer was being sent.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cut();
        }
    }
}
