//! The HTTP/1.1 front of a worker: come in connections, go out requests to the application, one per slot, and its
//! answers. Behind a balancer it never queues: what it cannot run at once, or within moments, it refuses, in a way that the
//! balancer may take elsewhere. Alone it does, because there is nobody else who could.
//!
//! A request's way: its limits (4xx), the pass (403 without it), draining (503, behind a balancer only), a slot (503), the
//! application under its time limit (504, and its future is dropped) with panics caught (500), and the answer's body,
//! which holds the slot until it has ended.

use crate::{
    Error, Placement,
    access::AccessLog,
    answer::Answer,
    conversation::Conversation,
    edge::Edge,
    grpc::announce_status,
    held::{Asked, Held, Lasting},
    limits::Limits,
    open::Open,
    pass::{Pass, Seldom},
    presences::{Numbered, Presences, number},
    slots::{Slot, Slots},
    taken::Taken,
};
use axum::{Router, body::Body};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use proto::worker::{Configure, Heartbeat};
use std::{
    convert::Infallible,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, error::Elapsed, timeout, timeout_at},
};
use tower::ServiceExt;

/// Every header of ours begins so.
const OURS: &str = "servery-";

/// What all connections of a worker share.
pub(crate) struct Front {
    router: Router,
    placement: Placement,
    pass: Pass,
    pub(crate) limits: Limits,
    /// To the response head, then between two parts of its body; zero: no limit.
    limit: Duration,
    /// There when clients come by themselves.
    pub(crate) edge: Option<Edge>,
    pub(crate) slots: Arc<Slots>,
    presences: Arc<Presences>,
    pub(crate) open: Arc<Open>,
    draining: watch::Sender<bool>,
    /// Nobody follows this worker when it drains.
    last: AtomicBool,
    pub(crate) strangers: Seldom,
}

impl Front {
    pub(crate) fn new(configure: &Configure, router: Router) -> Result<Arc<Self>, Error> {
        let placement = Placement::new(configure);
        let edge = match &configure.edge {
            Some(edge) => {
                let path = Some(edge.access_log.as_str()).filter(|path| !path.is_empty());
                let access = path.map(|path| AccessLog::start(path, &placement)).transpose()?;
                Some(Edge::new(edge, access)?)
            }
            None => None,
        };
        let slots = Slots::new(configure.capacity);
        Ok(Arc::new(Self {
            router,
            placement,
            pass: Pass::new(&configure.pass),
            limits: Limits::new(configure.limits, edge.is_none()),
            limit: Duration::from_millis(configure.timeout_ms.into()),
            edge,
            presences: Presences::new(Arc::clone(&slots.counts)),
            slots,
            open: Open::new(),
            draining: watch::Sender::new(false),
            last: AtomicBool::new(false),
            strangers: Seldom::default(),
        }))
    }

    /// Clients come by themselves, to a socket that the node's other workers share.
    pub(crate) fn stands_alone(&self) -> bool {
        self.edge.is_some()
    }

    pub(crate) fn access_log(&self) -> Option<&Arc<AccessLog>> {
        self.edge.as_ref()?.access.as_ref()
    }

    /// Refuses new requests from now on and lets idle connections go. `last`: what waits at a shared socket is taken
    /// before it closes.
    pub(crate) fn drain(&self, last: bool) {
        self.last.store(last, Ordering::Release);
        self.draining.send_replace(true);
    }

    pub(crate) fn is_last(&self) -> bool {
        self.last.load(Ordering::Acquire)
    }

    /// Until [`Self::drain`] is called.
    pub(crate) async fn drained(&self) {
        // the sender is ours and lives, so this cannot fail
        let _ = self.draining.subscribe().wait_for(|draining| *draining).await;
    }

    /// Until no connection is open any more, tunnels included.
    pub(crate) async fn empty(&self) {
        self.open.none().await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.open.count()
    }

    /// What there is to tell the supervisor.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        Heartbeat { settled: self.presences.take_settled(), presences: self.presences.tell(), ..self.slots.heartbeat() }
    }

    /// One request to the head of its answer.
    pub(crate) async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: Option<SocketAddr>,
        conversation: Arc<Conversation>,
    ) -> Result<Response<Body>, Infallible> {
        let began = Instant::now();
        let running = conversation.begin();
        if !self.stands_alone() {
            conversation.number_once(|| self.number(request.headers()));
        }
        let mut checked = self.limits.check(&request);
        let mut entry = None;
        if let (Some(edge), Some(hop)) = (&self.edge, &conversation.hop) {
            checked = checked.and_then(|()| Edge::check(&request));
            Edge::receive(request.headers_mut(), hop);
            if let Some(access) = &edge.access {
                let client = edge.client(request.headers(), hop);
                entry = Some(access.enter(&request, Asked::of(&request), client, &conversation, began));
            }
        }
        let asked = Asked::of(&request);
        let is_connect = request.method() == Method::CONNECT;
        let ends_with_connection = request.version() < Version::HTTP_11;

        let admitted = match checked {
            Ok(()) => self.admit(request.headers(), peer, &conversation).await,
            Err(answer) => {
                let (method, path, status) = (&asked.method, asked.uri.path(), answer.status().as_u16());
                tracing::debug!(%method, path, request_id = asked.id(), status, "refused a request");
                self.slots.counts.answered(answer.status());
                self.slots.counts.touch();
                Err(answer)
            }
        };
        if let Some(entry) = &mut entry {
            entry.queued(began.elapsed());
        }
        let (mut response, run) = match admitted {
            Err(answer) => (answer.response(asked.id.as_ref()), None),
            Ok(slot) => {
                let mut run = slot.run(began);
                let response = self.ask(request, &asked, &conversation).await;
                run.answered(response.status());
                (response, Some(run))
            }
        };
        let status = response.status();
        if let Some(entry) = &mut entry {
            entry.answered(status);
        }
        if run.is_some() {
            if status == StatusCode::SWITCHING_PROTOCOLS || is_connect && status.is_success() {
                conversation.become_tunnel();
            } else if *self.draining.borrow() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        let lasting = Lasting { _run: run, entry, running };
        Ok(response.map(|body| Body::new(Held::new(body, lasting, asked, self.limit, ends_with_connection))))
    }

    /// A slot for a request, or why there is none.
    async fn admit(
        &self,
        headers: &HeaderMap,
        peer: Option<SocketAddr>,
        conversation: &Conversation,
    ) -> Result<Slot, Answer> {
        if self.stands_alone() {
            return self.queue(conversation).await;
        }
        if !self.pass.admits(headers) {
            self.slots.counts.denied();
            self.pass.log_denial(peer);
            return Err(Answer::Denied);
        }
        match self.next_slot().await {
            Ok(slot) => Ok(match conversation.numbered() {
                Some(connection) => slot.occupied_by(connection),
                None => slot,
            }),
            Err(answer) => {
                self.slots.counts.refused();
                Err(answer)
            }
        }
    }

    /// The balancer's number of a connection, whose first request has these fields.
    fn number(&self, headers: &HeaderMap) -> Option<Arc<Numbered>> {
        // whoever could say anything could fill all the places
        let number = number(headers).filter(|_| self.pass.admits(headers))?;
        self.presences.enter(number)
    }

    /// A slot that is free, or becomes free within moments. Those on deck do not stay there when the worker drains.
    pub(crate) async fn next_slot(&self) -> Result<Slot, Answer> {
        if *self.draining.borrow() {
            return Err(Answer::Draining);
        }
        if let Some(slot) = self.slots.take() {
            return Ok(slot);
        }
        tokio::select! {
            biased;
            () = self.drained() => Err(Answer::Draining),
            slot = self.slots.wait_on_deck() => slot.ok_or(Answer::Busy),
        }
    }

    /// The slot that the connection came with, or the next one that is free.
    async fn queue(&self, conversation: &Conversation) -> Result<Slot, Answer> {
        if let Some(slot) = conversation.take_reserved().or_else(|| self.slots.take()) {
            return Ok(slot);
        }
        if self.limit.is_zero() {
            return Ok(self.slots.wait().await);
        }
        timeout(self.limit, self.slots.wait()).await.map_err(|_| {
            // nobody else could count what the client was told
            self.slots.counts.answered(Answer::Crowded.status());
            self.slots.counts.refused();
            Answer::Crowded
        })
    }

    /// The application's answer, or ours in its place.
    async fn ask(
        &self,
        mut request: Request<Incoming>,
        asked: &Asked,
        conversation: &Arc<Conversation>,
    ) -> Response<Body> {
        strip_ours(request.headers_mut());
        request.extensions_mut().insert(self.placement.clone());
        let request = request.map(|body| {
            if hyper::body::Body::is_end_stream(&body) {
                Body::empty()
            } else {
                Body::new(Taken::new(body, self.limits, Arc::clone(conversation)))
            }
        });
        let asking = AssertUnwindSafe(self.router.clone().oneshot(request)).catch_unwind();
        let answered = if self.limit.is_zero() { Ok(asking.await) } else { self.in_time(asking, conversation).await };
        let (method, path, request_id) = (&asked.method, asked.uri.path(), asked.id());
        // it could not read the request, so what it says of it is of no use to the client
        if let Some(answer) = conversation.fault() {
            let (status, received) = (answer.status().as_u16(), conversation.bytes_in());
            tracing::info!(%method, path, request_id, status, received, "a request's body was not taken whole");
            return answer.response(asked.id.as_ref());
        }
        match answered {
            Ok(Ok(Ok(mut response))) => {
                strip_ours(response.headers_mut());
                announce_status(response.headers_mut());
                response
            }
            Ok(Ok(Err(never))) => match never {},
            Ok(Err(_)) => {
                tracing::error!(%method, path, request_id, "the application panicked");
                Answer::Panicked.response(asked.id.as_ref())
            }
            Err(_) => {
                tracing::warn!(%method, path, request_id, limit = ?self.limit, "no answer in time");
                Answer::TimedOut.response(asked.id.as_ref())
            }
        }
    }

    /// The application's time does not run while a client is still sending what the application reads: that has a limit
    /// of its own.
    async fn in_time<T>(&self, asking: impl Future<Output = T>, conversation: &Conversation) -> Result<T, Elapsed> {
        let mut asking = pin!(asking);
        let mut until = Instant::now() + self.limit;
        loop {
            match timeout_at(until, &mut asking).await {
                Err(elapsed) => match conversation.received_at().map(|at| at + self.limit) {
                    Some(later) if later > until => until = later,
                    _ => return Err(elapsed),
                },
                answered => return answered,
            }
        }
    }
}

/// Removes every header that only Servery's own processes may say.
fn strip_ours(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}
