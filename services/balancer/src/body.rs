//! The body of a response: what a client is sent, an answer of our own or the worker's, with the record that becomes its
//! log line when the last byte is gone.

use crate::{ahead::Ahead, record::Record, reject::Reject, relay::Relay, stalls::Stall};
use bytes::Bytes;
use http::Version;
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
    /// From each part on until the next one is asked for.
    stall: Option<Stall>,
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
        Self::of(Kind::Empty)
    }

    pub fn full(bytes: Bytes) -> Self {
        Self::of(Kind::Full(bytes))
    }

    pub fn relay(relay: Relay) -> Self {
        Self::of(if relay.is_end() { Kind::Empty } else { Kind::Relay(Box::new(relay)) })
    }

    pub(crate) fn ahead(ahead: Ahead) -> Self {
        Self::of(Kind::Ahead(ahead))
    }

    fn of(kind: Kind) -> Self {
        Self { kind, record: None, stall: None }
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

impl Kind {
    fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Relay(relay) => relay.is_end(),
            Self::Ahead(ahead) => ahead.is_end(),
        }
    }

    /// The worker has not ended it, and so the request holds its permit.
    fn is_placed(&self) -> bool {
        match self {
            Self::Empty | Self::Full(_) => false,
            Self::Relay(relay) => !relay.is_end(),
            Self::Ahead(ahead) => ahead.is_placed(),
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        this.stall = None;
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
            // hyper is done with an HTTP/1.1 answer that has ended, but not with an HTTP/2 stream that has no window
            let goes_on = !this.kind.is_end() || record.version >= Version::HTTP_2;
            if result.is_ok() && goes_on {
                this.stall = record.stall(this.kind.is_placed());
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end()
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
            && (!ended || record.is_stopped())
        {
            record.abandon();
        }
    }
}
