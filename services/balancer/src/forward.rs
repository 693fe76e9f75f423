//! A request on its way to a worker. In: a cleaned request and its app. Out: the response of the first attempt that
//! had one, or a `Reject`. Each attempt has a permit of its own. What follows a failed one is decided in `retry`. Dropped
//! at any point, it leaves the queue, gives its permit back and closes the connection it used.

use crate::{
    ahead,
    app::{App, Asker, Permit, Why},
    attempt::{Failed, attempt},
    body::Body,
    dispatch::{Class, Ended},
    edge::Edge,
    endpoint::EndpointId,
    fallen::Fallen,
    fields,
    metrics::Outcome,
    record::Record,
    reject::Reject,
    relay::Relay,
    retry::{Attempted, Failure, Verdict, is_idempotent},
    source::RequestSource,
    trailers,
    tunnel::{Agreed, Asked},
    upstream::Connection,
};
use http::{HeaderMap, Method, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use std::{rc::Rc, sync::Arc};
use tokio::time::Instant;

/// A request as every attempt sends it, but for the pass.
#[derive(Debug)]
pub struct Head {
    pub method: Method,
    /// Path and query only.
    pub uri: Uri,
    pub headers: HeaderMap,
    /// It asks for another protocol.
    pub(crate) upgrade: Option<Asked>,
    /// The client takes trailers.
    pub trailers: bool,
}

impl Head {
    /// Nobody knows what a request for another protocol has begun.
    pub(crate) fn is_idempotent(&self) -> bool {
        is_idempotent(&self.method) && self.upgrade.is_none()
    }
}

/// How a request was answered.
pub(crate) enum Answer {
    Whole(Response<Body>),
    /// With 101, or 200 over HTTP/2: the bytes that follow are no HTTP.
    Switched(Response<Body>, Agreed),
}

pub(crate) async fn forward(
    edge: &Rc<Edge>,
    app: &Arc<App>,
    class: Class,
    head: &Head,
    body: Option<Rc<RequestSource>>,
    record: &mut Record,
) -> Result<Answer, Reject> {
    let asker = Asker { client: record.client.into(), class };
    let few_slots = app.has_few_slots();
    let mut arrived = record.start;
    if let Some(body) = body.as_ref().filter(|_| few_slots) {
        body.read_ahead().await?;
        arrived = Instant::now();
    }
    let deadline = arrived + app.queue_deadline();
    let mut tried: Vec<EndpointId> = Vec::new();
    let (mut attempts, mut refusals) = (0, 0);
    let mut fallen = Fallen::default();
    let mut failed: Option<Reject> = None;
    let mut asked = arrived;
    loop {
        let permit = app.acquire(asker, &tried, record.attempts > 0, asked, deadline).await;
        let at_once = permit.as_ref().is_ok_and(|permit| permit.why() != Why::Queued);
        let begun = if at_once { asked } else { Instant::now() };
        record.queue += begun - asked;
        // where a second permit cannot be had, the first failure is the reason
        let mut permit = permit.map_err(|reject| failed.unwrap_or(reject))?;
        record.attempts += 1;
        record.endpoint = Some(Arc::clone(permit.endpoint()));
        record.why = Some(permit.why());

        let Failed { failure, reject, outcome, rest, .. } = {
            let mut watch = Watch { app, outcome: Outcome::ClientGone };
            match attempt(edge, &mut permit, begun, head, body.as_ref(), record.hears_interim()).await {
                Ok((response, connection)) => {
                    watch.outcome = Outcome::Answered;
                    let took = begun.elapsed();
                    permit.judge(Ended::Answered(took));
                    app.metrics.upstream.record(took.as_secs_f64());
                    if let Some(body) = &body {
                        body.forget_kept();
                    }
                    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                        return Ok(switch(response, connection, permit, head.upgrade.as_ref()));
                    }
                    return Ok(pass_on(edge, response, (connection, permit, body), few_slots, head.trailers).await);
                }
                Err(failed) => {
                    watch.outcome = failed.outcome;
                    failed
                }
            }
        };
        debug_assert_ne!(outcome, Outcome::Answered);
        let endpoint = Arc::clone(permit.endpoint());
        if failure == Failure::Reset {
            fallen.add(&endpoint);
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
            idempotent: head.is_idempotent(),
            replayable: body.as_ref().is_none_or(|body| body.is_replayable()),
            resets: fallen.resets(),
            deaths: None,
        };
        if attempted.verdict() == Verdict::CountDeaths {
            attempted.deaths = Some(fallen.deaths().await);
        }
        asked = Instant::now();
        let again = match attempted.verdict() {
            Verdict::Free => true,
            Verdict::Budgeted => app.withdraw_retry(asked),
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
        if matches!(failure, Failure::Stale | Failure::Aged) {
            continue;
        }
        let beside = if failure == Failure::Reset { app.companions(&endpoint) } else { Vec::new() };
        for id in beside.into_iter().chain([endpoint.id]) {
            if !tried.contains(&id) {
                tried.push(id);
            }
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

/// A tunnel is no request, so that it holds no slot.
fn switch(
    mut response: Response<Incoming>,
    connection: Box<Connection>,
    mut permit: Permit,
    asked: Option<&Asked>,
) -> Answer {
    permit.settle();
    drop(permit);
    let agreed = Agreed::new(&mut response, connection);
    let mut response = response.map(|_| Body::empty());
    if let Some(asked) = asked {
        asked.pass_on(&mut response);
    }
    Answer::Switched(response, agreed)
}

async fn pass_on(
    edge: &Rc<Edge>,
    response: Response<Incoming>,
    (connection, permit, request): (Box<Connection>, Permit, Option<Rc<RequestSource>>),
    few_slots: bool,
    trailers: bool,
) -> Answer {
    let (mut head, incoming) = response.into_parts();
    fields::clean_response(&mut head.headers);
    if trailers {
        trailers::announce(&mut head.headers);
    } else {
        head.headers.remove(header::TRAILER);
    }
    // an HTTP/1.0 worker must not make the client's connection one
    head.version = Version::HTTP_11;
    let relay = Relay::new(edge, connection, permit, request, incoming, trailers);
    let body = if few_slots && !relay.is_end() { ahead::read_ahead(edge, relay).await } else { Body::relay(relay) };
    Answer::Whole(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests;
