//! A request on its way to a worker. In: a cleaned request and its app. Out: the response of the first attempt that
//! had one, or a `Reject`. Each attempt: a permit, a connection, the request with the node's pass, the response head in
//! time. What follows a failed attempt is decided in `retry`. Dropped at any point, it leaves the queue, gives its
//! permit back and closes the connection it used.

use crate::{
    app::{App, Permit},
    body::{Body, RequestBody, RequestSource},
    edge::{Edge, REST_TIMED_OUT},
    endpoint::EndpointId,
    fallen::Fallen,
    fields,
    metrics::Outcome,
    record::Record,
    reject::Reject,
    relay::Relay,
    retry::{Attempted, Failure, Verdict, is_idempotent},
    upstream::Connection,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// How long an endpoint looks busier than it is: after it could not be reached, ...
const REST_UNREACHED: Duration = Duration::from_millis(500);
/// ... after it said that it is leaving, ...
const REST_LEAVING: Duration = Duration::from_millis(200);
/// ... after it said that the slot is taken.
const REST_BUSY: Duration = Duration::from_millis(5);

/// A request as every attempt sends it, but for the pass.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    /// Path and query only.
    pub uri: Uri,
    pub headers: HeaderMap,
}

/// Why an attempt has no response.
struct Failed {
    failure: Failure,
    reject: Reject,
    outcome: Outcome,
    /// How long its permit stays out.
    rest: Option<Duration>,
}

pub async fn forward(
    edge: &Rc<Edge>,
    app: &Arc<App>,
    head: &Head,
    body: Option<Rc<RequestSource>>,
    record: &mut Record,
) -> Result<Response<Body>, Reject> {
    let deadline = record.start + app.queue_deadline();
    let mut tried: Vec<EndpointId> = Vec::new();
    let (mut attempts, mut refusals) = (0, 0);
    let mut fallen = Fallen::default();
    let mut failed: Option<Reject> = None;
    loop {
        let asked = Instant::now();
        let permit = app.acquire(record.client.into(), &tried, record.attempts > 0, asked, deadline).await;
        let begun = Instant::now();
        record.queue += begun - asked;
        // where a second permit cannot be had, the first failure is the reason
        let permit = permit.map_err(|reject| failed.unwrap_or(reject))?;
        record.attempts += 1;
        record.endpoint = Some(Arc::clone(permit.endpoint()));
        record.why = Some(permit.why());

        let Failed { failure, reject, outcome, rest } = {
            let mut watch = Watch { app, outcome: Outcome::ClientGone };
            match attempt(edge, &permit, head, body.as_ref()).await {
                Ok((response, connection)) => {
                    watch.outcome = Outcome::Answered;
                    app.metrics.upstream.record(begun.elapsed().as_secs_f64());
                    if let Some(body) = &body {
                        body.forget_kept();
                    }
                    return Ok(pass_on(edge, response, connection, permit, body));
                }
                Err(failed) => {
                    watch.outcome = failed.outcome;
                    failed
                }
            }
        };
        debug_assert_ne!(outcome, Outcome::Answered);
        let id = permit.endpoint().id;
        if failure == Failure::Reset {
            fallen.add(permit.endpoint());
        }
        match rest {
            Some(pause) => edge.rest(permit, pause),
            None => drop(permit),
        }
        if failure == Failure::Refused {
            refusals += 1;
        } else {
            attempts += 1;
        }
        let mut attempted = Attempted {
            failure,
            attempts,
            refusals,
            idempotent: is_idempotent(&head.method),
            replayable: body.as_ref().is_none_or(|body| body.is_replayable()),
            resets: fallen.resets(),
            deaths: None,
        };
        if attempted.verdict() == Verdict::CountDeaths {
            attempted.deaths = Some(fallen.deaths().await);
        }
        let again = match attempted.verdict() {
            Verdict::Free => true,
            Verdict::Budgeted => app.withdraw_retry(Instant::now()),
            Verdict::Poisoned => {
                fallen.accuse(record);
                return Err(Reject::Poisoned);
            }
            Verdict::CountDeaths | Verdict::GiveUp => false,
        };
        if !again {
            return Err(reject);
        }
        app.metrics.retries.increment(1);
        failed = Some(reject);
        // a connection that was stale says nothing about its endpoint
        if failure != Failure::Stale && !tried.contains(&id) {
            tried.push(id);
        }
    }
}

/// Counts an attempt however it ends, also when the client leaves during it.
struct Watch<'a> {
    app: &'a App,
    outcome: Outcome,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.app.metrics.count_attempt(self.outcome);
    }
}

async fn attempt(
    edge: &Edge,
    permit: &Permit,
    head: &Head,
    body: Option<&Rc<RequestSource>>,
) -> Result<(Response<Incoming>, Connection), Failed> {
    let endpoint = permit.endpoint();
    let mut connection = match edge.pool.take(endpoint) {
        Some(connection) => connection,
        None => edge.pool.dial(endpoint).await.map_err(Failed::not_connected)?,
    };
    // The one copy of the head that a second attempt would need: the first consumes it.
    let mut request = Request::new(body.map_or_else(RequestBody::empty, RequestSource::begin));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    request.headers_mut().insert(fields::SERVERY_PASS, endpoint.node.pass.clone());

    let mut answer = std::pin::pin!(connection.sender.try_send_request(request));
    let limit = endpoint.node.patience(edge.shared.config.response_timeout);
    let mut due = Instant::now() + limit;
    let answer = loop {
        if let Ok(answer) = timeout_at(due, &mut answer).await {
            break answer;
        }
        // the worker cannot answer what is still on its way; a body that stops has a limit of its own
        match body.and_then(|body| body.moved()).map(|moved| moved + limit) {
            Some(later) if later > due => due = later,
            _ => return Err(Failed::timed_out()),
        }
    };
    let response = answer.map_err(|mut error| {
        if error.take_message().is_some() {
            return Failed::stale();
        }
        Failed::from_error(&error.into_error(), body.and_then(|body| body.broken()))
    })?;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE
        && let Some(reason) = response.headers().get(fields::SERVERY_REFUSED)
    {
        let busy = reason == "busy";
        return Err(Failed::refused(busy));
    }
    // we asked for no other protocol
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failed::malformed());
    }
    Ok((response, connection))
}

fn pass_on(
    edge: &Rc<Edge>,
    response: Response<Incoming>,
    connection: Connection,
    permit: Permit,
    request: Option<Rc<RequestSource>>,
) -> Response<Body> {
    let (mut head, incoming) = response.into_parts();
    fields::clean_response(&mut head.headers);
    // an HTTP/1.0 worker must not make the client's connection one
    head.version = Version::HTTP_11;
    Response::from_parts(head, Body::relay(Relay::new(edge, connection, permit, request, incoming)))
}

impl Failed {
    fn not_connected(reject: Reject) -> Self {
        Self { failure: Failure::NotConnected, reject, outcome: Outcome::ConnectFailed, rest: Some(REST_UNREACHED) }
    }

    fn stale() -> Self {
        Self { failure: Failure::Stale, reject: Reject::UpstreamReset, outcome: Outcome::Reset, rest: None }
    }

    fn refused(busy: bool) -> Self {
        let rest = if busy { REST_BUSY } else { REST_LEAVING };
        Self { failure: Failure::Refused, reject: Reject::Refused, outcome: Outcome::Refused, rest: Some(rest) }
    }

    fn timed_out() -> Self {
        let (failure, reject) = (Failure::TimedOut, Reject::ResponseTimeout);
        Self { failure, reject, outcome: Outcome::Timeout, rest: Some(REST_TIMED_OUT) }
    }

    fn malformed() -> Self {
        Self { failure: Failure::Malformed, reject: Reject::BadResponse, outcome: Outcome::Reset, rest: None }
    }

    fn from_error(error: &hyper::Error, broken: Option<Reject>) -> Self {
        if let Some(reject) = broken {
            return Self { failure: Failure::Client, reject, outcome: Outcome::ClientGone, rest: None };
        }
        if error.is_parse() {
            return Self::malformed();
        }
        Self { failure: Failure::Reset, reject: Reject::UpstreamReset, outcome: Outcome::Reset, rest: None }
    }
}

#[cfg(test)]
mod tests;
