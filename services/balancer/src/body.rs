//! The body of a response: what a client is sent, an answer of our own or the worker's, with the record that becomes its
//! log line when the last byte is gone.

use crate::{ahead::Ahead, record::Record, reject::Reject, relay::Relay};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use thiserror::Error;
use tokio::time::timeout;

/// How much of a response is read that nobody gets, and for how long.
const SPENT: usize = 64 * 1024;
const SPENDING: Duration = Duration::from_millis(500);

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
    Ahead(Ahead),
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

    pub(crate) fn ahead(ahead: Ahead) -> Self {
        Self { kind: Kind::Ahead(ahead), record: None }
    }

    /// Reads what nobody gets, so that the worker's slot and connection are free again; if that is a matter of a moment.
    pub(crate) async fn spend(mut self) {
        let reading = async {
            let mut read = 0;
            while let Some(Ok(frame)) = self.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > SPENT {
                    break;
                }
            }
        };
        // otherwise the worker sees at its connection that nobody wants the rest
        let _ = timeout(SPENDING, reading).await;
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
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Relay(relay) => {
                let polled = relay.poll_frame(cx);
                if relay.is_end() {
                    this.kind = Kind::Empty;
                }
                polled
            }
            Kind::Ahead(ahead) => ahead.poll_frame(cx),
        };
        if let (Some(record), Poll::Ready(Some(result))) = (&mut this.record, &polled) {
            match result {
                Ok(frame) => record.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64),
                Err(_) => record.reject = Some(Reject::CutOff),
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Relay(relay) => relay.is_end(),
            Kind::Ahead(ahead) => ahead.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Relay(relay) => relay.size_hint(),
            Kind::Ahead(ahead) => ahead.size_hint(),
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
