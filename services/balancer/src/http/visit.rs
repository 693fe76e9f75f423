//! One visit of a client's: what a connection has beside its protocol, whatever that is. In: its requests, and the pauses
//! between them. Out: answers, and when to give up. The bytes are `connection`'s business.

use super::{connection::Protocol, handle};
use crate::{
    body::Body,
    config::Config,
    edge::Edge,
    idle::{BETWEEN, HTTP2, Readable, SILENT, TLS},
    leash::Leash,
    origin::Hop,
    patience::{Patience, Patient},
    reject::Reject,
    strict::{Turn, Wait},
    tunnel::Tunnels,
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a connection of HTTP/2 has no request until it counts as idle.
const QUIET_HTTP2: Duration = Duration::from_secs(1);

/// How HTTP/1.1 ended on a connection.
#[derive(Debug)]
pub(crate) enum Ended {
    Http(hyper::Result<()>),
    /// A head did not come to its end in time.
    Late,
}

/// The patience for a connection's next request, beside hyper.
pub(super) struct Waiting<'a> {
    turn: &'a Turn,
    /// Requests there had been when it was last looked at.
    begun: u64,
    quiet: Patience,
    head: Patience,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(turn: &'a Turn, quiet: Duration, head: Duration) -> Self {
        Self { turn, begun: turn.begun(), quiet: Patience::new(quiet), head: Patience::new(head) }
    }

    /// `None`: nothing has happened for a while.
    pub(super) fn poll<F>(&mut self, connection: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<Option<Ended>>
    where
        F: Future<Output = hyper::Result<()>>,
    {
        if let Poll::Ready(ended) = connection.poll(cx) {
            return Poll::Ready(Some(Ended::Http(ended)));
        }
        let wait = self.turn.wait();
        let begun = std::mem::replace(&mut self.begun, self.turn.begun());
        if wait != Wait::Request || begun != self.begun {
            self.quiet.moved();
        }
        if wait != Wait::Head || begun != self.begun {
            self.head.moved();
        }
        match wait {
            Wait::Nothing => Poll::Pending,
            Wait::Request => self.quiet.poll_over(cx).map(|()| None),
            Wait::Head => self.head.poll_over(cx).map(|()| Some(Ended::Late)),
        }
    }
}

/// One connection, whatever it speaks.
pub(super) struct Visit<'a> {
    pub(super) edge: &'a Rc<Edge>,
    pub(super) hop: Rc<Hop>,
    pub(super) config: Arc<Config>,
    pub(super) redirect_to: Option<u16>,
    pub(super) turn: Arc<Turn>,
    pub(super) served: Cell<usize>,
    /// The last request was over, or the connection began.
    pub(super) since: Cell<Instant>,
    /// HTTP/2 has had as many requests as it may.
    pub(super) worn: Notify,
    /// It has to go, but its client had just said something: after that.
    pub(super) leaving: Cell<bool>,
    pub(super) tunnels: Rc<Tunnels>,
    pub(super) draining: &'a CancellationToken,
}

impl Visit<'_> {
    /// For a request over HTTP/2, or the requests over HTTP/1.1.
    pub(super) fn leash(&self) -> Rc<Leash> {
        Rc::new(Leash::new(self.config.body_timeout))
    }

    pub(super) fn request(
        &self,
        request: Request<Incoming>,
        protocol: Protocol,
        leash: Rc<Leash>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
        self.served.set(self.served.get() + 1);
        let most = self.config.requests_per_connection;
        let last = self.leaving.get() || most.is_some_and(|most| self.served.get() >= most.get());
        if last {
            self.worn.notify_one();
        }
        let answering = self.turn.begin();
        let (edge, hop, tunnels) = (Rc::clone(self.edge), Rc::clone(&self.hop), Rc::clone(&self.tunnels));
        let redirect_to = self.redirect_to;
        async move {
            // not a part of the connection, which keeps room for one even while it is idle
            let mut response = Box::pin(handle(edge, &hop, redirect_to, request, (answering, leash), &tunnels)).await;
            if last && protocol == Protocol::Http1 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // said, so that the client sends nothing more that would be lost
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    }

    /// Until the client has something to say. `false`: it had nothing for too long, or has to go.
    pub(super) async fn wait<S: Readable>(&self, stream: &Patient<S>) -> bool {
        if self.leaving.get() {
            return false;
        }
        let first = self.served.get() == 0;
        let limit = if first { self.config.header_timeout } else { self.config.keepalive_timeout };
        let bytes = if first { SILENT } else { BETWEEN } + if S::SECURE { TLS } else { 0 };
        let place = self.edge.idle.enter(self.hop.peer.into(), bytes);
        let drained = async {
            if !self.draining.is_cancelled() {
                self.draining.cancelled().await;
                if !self.edge.shared.taken_over.load(Ordering::Relaxed) {
                    return;
                }
            }
            // where another process serves there is time: the next answer says that it is the last
            sleep(self.config.header_timeout).await;
        };
        tokio::select! {
            biased;
            readable = poll_fn(|cx| stream.poll_readable(cx)) => {
                self.leaving.set(place.is_lost());
                readable.is_ok()
            }
            () = place.lost() => false,
            () = drained => false,
            () = sleep_until(self.since.get() + limit) => {
                if first {
                    self.edge.metrics.count_reject(Reject::HeaderTimeout);
                }
                false
            }
        }
    }

    /// Until a connection of HTTP/2 has had no request for too long, or has to go.
    pub(super) async fn idled(&self) {
        loop {
            let begun = self.turn.begun();
            let idle = || !self.turn.is_busy() && self.turn.begun() == begun;
            sleep(QUIET_HTTP2).await;
            if !idle() {
                continue;
            }
            let place = self.edge.idle.enter(self.hop.peer.into(), HTTP2);
            // more time than it would take to ask each time
            drop(timeout(self.config.keepalive_timeout.saturating_sub(QUIET_HTTP2), place.lost()).await);
            if idle() {
                return;
            }
        }
    }

    /// After GOAWAY: until what is in flight is answered, and what was under way to us within this time.
    pub(super) async fn leave<F>(&self, mut connection: Pin<&mut F>, within: Duration) -> hyper::Result<()>
    where
        F: Future<Output = hyper::Result<()>>,
    {
        loop {
            match timeout(within, connection.as_mut()).await {
                Ok(ended) => return ended,
                Err(_) if self.turn.is_busy() => {}
                Err(_) => return Ok(()),
            }
        }
    }

    pub(super) fn complain(&self, error: &hyper::Error) {
        let metrics = &self.edge.metrics;
        if error.is_parse_too_large() {
            metrics.count_reject(Reject::HeadTooLarge);
        } else if error.is_parse() {
            metrics.count_reject(Reject::Malformed);
        }
        tracing::debug!(peer = %self.hop.peer, %error, "a client's connection ended early");
    }
}
