//! A request's body as the application reads it: comes in what the client sends, goes out the same, up to a size and
//! without too long a gap while the application waits. Never waits for what nobody asks for.

use crate::{conversation::Conversation, limits::Limits};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use proto::alarm::Alarm;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the request's body is larger than it may be")]
    TooLarge,
    #[error("the request's body has stopped arriving")]
    Stalled,
}

/// Tells the conversation when it breaks, so that the client hears why.
pub(crate) struct Taken {
    body: Incoming,
    limits: Limits,
    received: u64,
    /// Since when the application has waited.
    waiting: Option<Instant>,
    alarm: Alarm,
    conversation: Arc<Conversation>,
}

impl Taken {
    pub(crate) fn new(body: Incoming, limits: Limits, conversation: Arc<Conversation>) -> Self {
        Self { body, limits, received: 0, waiting: None, alarm: Alarm::default(), conversation }
    }
}

impl Body for Taken {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => {
                let since = *this.waiting.get_or_insert_with(Instant::now);
                ready!(this.alarm.poll(since + this.limits.stall, cx));
                this.conversation.body_stalled();
                return Poll::Ready(Some(Err(axum::Error::new(Broken::Stalled))));
            }
            Poll::Ready(frame) => frame,
        };
        this.waiting = None;
        let frame = frame.map(|frame| frame.map_err(axum::Error::new)).transpose();
        if let Ok(Some(data)) = frame.as_ref().map(|frame| frame.as_ref().and_then(Frame::data_ref)) {
            let bytes = data.len() as u64;
            this.received += bytes;
            this.conversation.received(bytes);
            if this.received > this.limits.body {
                this.conversation.body_too_large();
                return Poll::Ready(Some(Err(axum::Error::new(Broken::TooLarge))));
            }
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
