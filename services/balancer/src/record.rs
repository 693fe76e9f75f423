//! One request, from its first line to the last byte of its answer: what the access log and the metrics will say about
//! it. Written when it is dropped, so that nothing that happens to a request goes without its line.

use crate::{
    accesslog::{Line, Style},
    app::{App, Why},
    edge::Edge,
    endpoint::Endpoint,
    leash::Leash,
    reject::Reject,
    source::RequestSource,
    stalls::{Exchange, Stall},
    strict::Answering,
    trace::Trace,
    words::Words,
};
use http::{HeaderValue, Method, Version};
use std::{
    fmt::{self, Write as _},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

pub struct Record {
    pub(crate) edge: Rc<Edge>,
    pub(crate) start: Instant,
    pub(crate) id: HeaderValue,
    pub(crate) client: IpAddr,
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) words: Words,
    /// How its line is written.
    pub(crate) style: Style,
    pub(crate) trace: Option<Trace>,
    pub(crate) body: Option<Rc<RequestSource>>,
    /// Bytes from the client that were no HTTP any more.
    pub(crate) tunnelled: u64,
    pub(crate) bytes_out: u64,
    /// Time in the queue, over all attempts.
    pub(crate) queue: Duration,
    pub(crate) attempts: u32,
    pub(crate) app: Option<Arc<App>>,
    /// Of the last attempt.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// Why it went there.
    pub(crate) why: Option<Why>,
    /// Zero until there is an answer.
    pub(crate) status: u16,
    pub(crate) reject: Option<Reject>,
    /// Of an HTTP/1.1 connection.
    pub(crate) answering: Option<Answering>,
    /// Ends it, whatever hyper is waiting for.
    pub(crate) leash: Option<Rc<Leash>>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Record {
    /// A request of which no more is known yet.
    pub(crate) fn begin(
        edge: &Rc<Edge>,
        style: Style,
        id: HeaderValue,
        client: IpAddr,
        asked: (Method, Words, Version),
    ) -> Box<Self> {
        let (method, words, version) = asked;
        Box::new(Self {
            edge: Rc::clone(edge),
            start: Instant::now(),
            id,
            client,
            method,
            version,
            words,
            style,
            trace: None,
            body: None,
            tunnelled: 0,
            bytes_out: 0,
            queue: Duration::ZERO,
            attempts: 0,
            app: None,
            endpoint: None,
            why: None,
            status: 0,
            reject: None,
            answering: None,
            leash: None,
        })
    }

    /// The same for a client that asked and may know: a dictionary of RFC 9651.
    pub(crate) fn debug(&self) -> Option<HeaderValue> {
        let mut text = format!("queue_ms={:.3}, attempts={}", self.queue.as_secs_f64() * 1000.0, self.attempts);
        if let (Some(endpoint), Some(why)) = (&self.endpoint, self.why) {
            let (node, worker, generation) = (&endpoint.node.instance, endpoint.position, endpoint.generation);
            // writing to a string does not fail
            let _ = write!(text, ", node=\"{node}\", worker={worker}, generation={generation}, why={}", why.as_str());
        }
        HeaderValue::try_from(text).ok()
    }

    /// It is the client's turn to take what it was sent of the answer. `placed`: the request holds a permit meanwhile.
    pub(crate) fn stall(&self, placed: bool) -> Option<Stall> {
        let leash = self.leash.as_ref()?;
        let stop = Rc::downgrade(leash);
        let exchange = Exchange {
            client: self.client.into(),
            place: self.app.clone().filter(|_| placed),
            // what an HTTP/1.1 client takes is watched at its connection
            patience: (self.version >= Version::HTTP_2).then_some(leash.patience),
            stop,
        };
        let now = Instant::now();
        Some(self.edge.stalls.begin(exchange, now, now))
    }

    /// It was ended while the client had not taken all of its answer.
    pub(crate) fn is_stopped(&self) -> bool {
        self.leash.as_ref().is_some_and(|leash| leash.reason().is_some())
    }

    /// The client, where interim responses can go to it: HTTP/1.0 has none (RFC 9110, section 15.2).
    pub(crate) fn hears_interim(&self) -> Option<&Answering> {
        self.answering.as_ref().filter(|_| self.version == Version::HTTP_11)
    }

    /// It ended before its answer did, and nobody else is to blame: the client left, or we cut it off.
    pub(crate) fn abandon(&mut self) {
        let stopped = self.leash.as_ref().and_then(|leash| leash.reason());
        let left = if self.edge.cutting.get() { Reject::Drained } else { Reject::ClientGone };
        let reason = stopped.unwrap_or(left);
        self.reject.get_or_insert(reason);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.status == 0 {
            self.abandon();
        }
        let status = match (self.status, self.reject) {
            (0, Some(reject)) => reject.status().as_u16(),
            (status, _) => status,
        };
        let duration = self.start.elapsed();
        let metrics = self.app.as_ref().map_or(&self.edge.metrics.unrouted, |app| &app.metrics);
        metrics.count_request(status);
        // how long a tunnel lives says nothing of how long requests take; over HTTP/2 it is a CONNECT
        if status != 101 && (status, &self.method) != (200, &Method::CONNECT) {
            metrics.duration.record(duration.as_secs_f64());
        }
        if self.app.is_some() {
            metrics.queue_wait.record(self.queue.as_secs_f64());
        }
        if let Some(reject) = self.reject {
            self.edge.metrics.count_reject(reject);
        }
        // what went wrong is always told
        let well = self.reject.is_none() && status < 500;
        if self.edge.log.is_off() || well && !self.edge.is_within(self.style.sample) {
            return;
        }
        let line = Line {
            request_id: &self.id,
            client_ip: self.client,
            method: &self.method,
            host: self.words.host(),
            path: self.words.path(),
            query: self.words.query(),
            version: self.version,
            status,
            bytes_in: self.body.as_ref().map_or(self.tunnelled, |body| body.received()),
            bytes_out: self.bytes_out,
            duration,
            queue: self.queue,
            attempts: self.attempts,
            app: self.app.as_ref().map(|app| app.name()),
            node: self.endpoint.as_ref().map(|endpoint| endpoint.node.instance.as_str()),
            worker: self.endpoint.as_ref().map(|endpoint| endpoint.position),
            why: self.why.map(Why::as_str),
            reject: self.reject.map(Reject::label),
            trace_id: self.trace.as_ref().map(Trace::id),
            referer: self.words.referer(),
            user_agent: self.words.user_agent(),
        };
        self.edge.log.push(&line, self.style, SystemTime::now());
    }
}
