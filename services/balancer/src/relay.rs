//! A worker's response body on its way to the client. Holds the permit and the connection until the last byte: then
//! the connection goes back to the pool and the permit, settled, to the app. Dropped before that, it closes the
//! connection, so that the worker sees at once that nobody wants the rest; whether its slot is free then only the worker
//! knows.

use crate::{
    app::Permit, body::BodyError, edge::Edge, patience::Patience, source::RequestSource, trailers, upstream::Connection,
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How long a connection may take to be ready again after its response was read. It is a matter of one turn of its
/// task, unless the worker answered before it had read the request's body.
const READY_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Relay {
    incoming: Incoming,
    patience: Patience,
    /// The client takes them.
    trailers: bool,
    /// `None` once the response has ended, well or not.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    edge: Rc<Edge>,
    connection: Box<Connection>,
    permit: Permit,
    request: Option<Rc<RequestSource>>,
}

impl Relay {
    pub fn new(
        edge: &Rc<Edge>,
        connection: Box<Connection>,
        permit: Permit,
        request: Option<Rc<RequestSource>>,
        incoming: Incoming,
        trailers: bool,
    ) -> Self {
        let limit = permit.endpoint().node.patience(edge.shared.config.load().response_timeout);
        let patience = Patience::new(limit);
        let held = Held { edge: Rc::clone(edge), connection, permit, request };
        let mut relay = Self { incoming, patience, trailers, held: Some(held) };
        relay.finish_if_ended();
        relay
    }

    pub fn is_end(&self) -> bool {
        self.held.is_none()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.held.is_none() {
            return Poll::Ready(None);
        }
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Pending => {
                    return self.patience.poll_over(cx).map(|()| {
                        self.held = None;
                        Some(Err(BodyError::Stalled))
                    });
                }
                Poll::Ready(None) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.held = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            self.patience.moved();
            let Some(frame) = trailers::clean_frame(frame, self.trailers) else { continue };
            // nothing follows trailers, and who passes them on does not ask
            if frame.is_trailers() {
                self.finish();
            } else {
                self.finish_if_ended();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn finish_if_ended(&mut self) {
        if self.incoming.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(Held { edge, mut connection, mut permit, request }) = self.held.take() else { return };
        let (ready, sent) = (connection.is_ready(), request.is_none_or(|request| request.is_sent()));
        // After an answer to half a request the worker may have more to do with it.
        if ready || sent {
            permit.settle();
        }
        if ready {
            edge.pool.put(connection, Instant::now());
        } else if sent && !connection.is_closed() {
            let tracker = edge.tasks.clone();
            tracker.spawn_local(async move {
                if tokio::time::timeout(READY_AGAIN, connection.ready()).await.is_ok_and(|ready| ready.is_ok()) {
                    edge.pool.put(connection, Instant::now());
                }
            });
        }
        // after the connection is back: whoever gets the permit finds it there
        drop(permit);
    }
}
