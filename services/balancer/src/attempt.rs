//! One attempt at one endpoint. In: a permit and a cleaned request. Out: the response head with the connection its body
//! comes over, or why there is none. It tells the permit when its slot may be busy, when it surely is not, and what the
//! attempt says of its endpoint. What follows a failure is decided in `retry`.

use crate::{
    app::Permit,
    dispatch::Ended,
    edge::Edge,
    endpoint::Endpoint,
    fields,
    forward::Head,
    metrics::Outcome,
    reject::Reject,
    retry::Failure,
    source::{RequestBody, RequestSource},
    strict::Answering,
    upstream::{Connection, Ending, ending},
};
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// How long an endpoint looks busier than it is: after it could not be reached, ...
const REST_UNREACHED: Duration = Duration::from_millis(500);
/// ... after it said that it is leaving, ...
const REST_LEAVING: Duration = Duration::from_millis(200);
/// ... after it said that the slot is taken.
const REST_BUSY: Duration = Duration::from_millis(5);
/// How often a request that waits at an endpoint looks whether its node is lost. Nothing would tell it: a connection
/// whose packets are dropped stays open. Looking costs less than being told, which takes a lock per request.
const GLANCE: Duration = Duration::from_millis(250);

/// Why an attempt has no response.
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) reject: Reject,
    pub(crate) outcome: Outcome,
    /// How long its permit stays out.
    pub(crate) rest: Option<Duration>,
    /// What that says of the endpoint.
    ended: Ended,
    /// The slot is surely not occupied by this request.
    settled: bool,
}

/// `begun`: when the permit was there. `client`: takes interim responses.
pub(crate) async fn attempt(
    edge: &Edge,
    permit: &mut Permit,
    begun: Instant,
    head: &Head,
    body: Option<&Rc<RequestSource>>,
    client: Option<&Answering>,
) -> Result<(Response<Incoming>, Box<Connection>), Failed> {
    let result = exchange(edge, permit, begun, head, body, client).await;
    if let Err(failed) = &result {
        if failed.settled {
            permit.settle();
        }
        permit.judge(failed.ended);
    }
    result
}

async fn exchange(
    edge: &Edge,
    permit: &mut Permit,
    begun: Instant,
    head: &Head,
    body: Option<&Rc<RequestSource>>,
    client: Option<&Answering>,
) -> Result<(Response<Incoming>, Box<Connection>), Failed> {
    let endpoint = permit.endpoint();
    if head.upgrade.is_some() && endpoint.node.speaks_http2() {
        return Err(Failed::not_spoken());
    }
    let mut connection = match edge.pool.take(endpoint, begun) {
        Some(connection) => connection,
        None => dial(edge, endpoint).await?,
    };
    // The one copy of the head that a second attempt would need: the first consumes it.
    let mut request = Request::new(body.map_or_else(RequestBody::empty, RequestSource::begin));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    endpoint.node.sign(request.headers_mut(), &connection.name);
    // our own workers send none
    if let Some(client) = client.filter(|_| !endpoint.node.reports()) {
        client.hear_interim(&mut request).await;
    }
    let limit = endpoint.node.patience(edge.shared.config.load().response_timeout);

    permit.begin(connection.number);
    let mut answer = pin!(connection.send(request));
    // what a connection that was kept has cost until here is nothing beside a limit
    let mut now = if connection.reused { begun } else { Instant::now() };
    let mut due = now + limit;
    let answer = loop {
        let glance = due.min(now + GLANCE);
        let alarm = &mut connection.alarm;
        let answered = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => alarm.poll(glance, cx).map(|()| None),
        });
        if let Some(answer) = answered.await {
            break answer;
        }
        if permit.endpoint().is_lost() && may_be_sent_twice(head, body) {
            return Err(Failed::lost());
        }
        now = Instant::now();
        if now < due {
            continue;
        }
        // the worker cannot answer what is still on its way; a body that stops has a limit of its own
        match body.and_then(|body| body.moved()).map(|moved| moved + limit) {
            Some(later) if later > due => due = later,
            _ => return Err(Failed::timed_out()),
        }
    };
    let response = answer.map_err(|mut error| {
        if error.take_message().is_some() {
            // of fresh connections that are closed at once there would be no end
            return if connection.reused { Failed::stale() } else { Failed::not_connected(Reject::UpstreamReset) };
        }
        let error = error.into_error();
        let failed = Failed::from_error(&error, body.and_then(|body| body.broken()));
        match ending(&error) {
            Some(Ending::Refused) => return Failed::refused(true),
            Some(Ending::GoneAway) => {
                edge.pool.forget(permit.endpoint());
                return if connection.reused { Failed::stale() } else { Failed::not_connected(Reject::UpstreamReset) };
            }
            Some(Ending::Reset) => return failed,
            None => {}
        }
        if failed.failure != Failure::Reset || !connection.reused || permit.endpoint().node.reports() {
            return failed;
        }
        // most likely it was closing this connection while we wrote, and the other idle ones with it
        edge.pool.forget(permit.endpoint());
        Failed::aged()
    })?;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE
        && permit.endpoint().node.reports()
        && let Some(reason) = response.headers().get(fields::SERVERY_REFUSED)
    {
        let busy = reason == "busy";
        return Err(Failed::refused(busy));
    }
    if !is_framed_once(response.headers()) {
        return Err(Failed::malformed());
    }
    // nobody changes to another protocol unasked
    let agreed = || head.upgrade.as_ref().is_some_and(|asked| asked.is_agreed(response.headers()));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && !agreed() {
        return Err(Failed::malformed());
    }
    Ok((response, connection))
}

/// Nothing has been sent, so that a lost node is left whatever the request is.
async fn dial(edge: &Edge, endpoint: &Arc<Endpoint>) -> Result<Box<Connection>, Failed> {
    let mut dialled = pin!(edge.pool.dial(endpoint));
    loop {
        if let Ok(dialled) = timeout(GLANCE, &mut dialled).await {
            return dialled.map_err(Failed::not_connected);
        }
        if endpoint.is_lost() {
            return Err(Failed { settled: true, ..Failed::lost() });
        }
    }
}

/// Whether every reader sees the same end of the body (RFC 9112, sections 6.1 and 6.3): several lengths, or one beside a
/// transfer coding, are a lie that the next reader might believe, and another coding than chunks nobody would undo.
fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none(),
        (None, Some(length)) => length.as_bytes().iter().all(u8::is_ascii_digit) && lengths.next().is_none(),
        (Some(_), Some(_)) => false,
    }
}

fn may_be_sent_twice(head: &Head, body: Option<&Rc<RequestSource>>) -> bool {
    head.is_idempotent() && body.is_none_or(|body| body.is_replayable())
}

impl Failed {
    /// Something was sent, so the slot may be busy for as long as the worker does not say that it is not.
    fn unsettled(failure: Failure, reject: Reject, outcome: Outcome) -> Self {
        Self { failure, reject, outcome, rest: None, ended: Ended::Unjudged, settled: false }
    }

    fn settled(failure: Failure, reject: Reject, outcome: Outcome) -> Self {
        Self { settled: true, ..Self::unsettled(failure, reject, outcome) }
    }

    fn not_connected(reject: Reject) -> Self {
        let failed = Self::settled(Failure::NotConnected, reject, Outcome::ConnectFailed);
        Self { rest: Some(REST_UNREACHED), ended: Ended::Failed, ..failed }
    }

    fn stale() -> Self {
        Self::settled(Failure::Stale, Reject::UpstreamReset, Outcome::Reset)
    }

    fn aged() -> Self {
        Self::settled(Failure::Aged, Reject::UpstreamReset, Outcome::Reset)
    }

    fn refused(busy: bool) -> Self {
        let (rest, ended) = if busy { (REST_BUSY, Ended::Busy) } else { (REST_LEAVING, Ended::Unjudged) };
        let failed = Self::settled(Failure::Refused, Reject::Refused, Outcome::Refused);
        Self { rest: Some(rest), ended, ..failed }
    }

    /// Nobody there could change to another protocol.
    fn not_spoken() -> Self {
        Self::settled(Failure::Client, Reject::UnknownProtocol, Outcome::ClientGone)
    }

    fn timed_out() -> Self {
        let failed = Self::unsettled(Failure::TimedOut, Reject::ResponseTimeout, Outcome::Timeout);
        Self { ended: Ended::Failed, ..failed }
    }

    fn lost() -> Self {
        Self::unsettled(Failure::Lost, Reject::UpstreamReset, Outcome::Lost)
    }

    fn malformed() -> Self {
        Self { ended: Ended::Failed, ..Self::unsettled(Failure::Malformed, Reject::BadResponse, Outcome::Reset) }
    }

    fn from_error(error: &hyper::Error, broken: Option<Reject>) -> Self {
        if let Some(reject) = broken {
            return Self::unsettled(Failure::Client, reject, Outcome::ClientGone);
        }
        if error.is_parse() {
            return Self::malformed();
        }
        Self { ended: Ended::Failed, ..Self::unsettled(Failure::Reset, Reject::UpstreamReset, Outcome::Reset) }
    }
}

#[cfg(test)]
mod tests;
