//! HTTP, the client's side. In: the requests of a client's `connection`. Out: for each exactly one answer, and one record
//! of it. What every request goes through, in this order: the checks on its head, the redirect to HTTPS, the route, the
//! cleaning of its fields, the queue and the worker (`forward`).

mod connection;
mod leashed;
mod target;
mod visit;

pub use connection::{Protocol, Server};
pub(crate) use visit::Ended;

use crate::{
    body::Body,
    edge::Edge,
    fields,
    forward::{Answer, Head, forward},
    hops,
    host::{self, Host},
    leash::Leash,
    origin::{Hop, Origin},
    record::Record,
    redirect,
    reject::Reject,
    route::Target,
    source::{BodyLimits, RequestSource, Sender},
    strict::Answering,
    trace::Trace,
    trailers,
    tunnel::{Tunnel, Tunnels, Wish},
    words::Words,
};
use http::{HeaderValue, Method, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Header fields of a request. hyper's own limit for HTTP/1.1; HTTP/2 has none, so we count.
const FIELDS: usize = 100;

/// One request. Dropped when the client leaves: then everything it holds is given back, and the record says so.
async fn handle(
    edge: Rc<Edge>,
    hop: &Hop,
    redirect_to: Option<u16>,
    mut request: Request<Incoming>,
    (answering, leash): (Answering, Rc<Leash>),
    tunnels: &Tunnels,
) -> Response<Body> {
    let wish = Wish::of(&mut request, &edge, tunnels);
    let (head, incoming) = request.into_parts();
    let config = edge.shared.config.load();
    let origin = hop.origin(&head.headers, &config.trusted_proxies);
    let debug = head.headers.contains_key(fields::SERVERY_DEBUG)
        && config.debug_networks.iter().any(|network| network.contains(origin.client));
    let style = config.access_log_style;
    drop(config);
    let id = fields::believed_id(&head.headers, hop.trusted).unwrap_or_else(|| edge.request_id());
    let asked = (head.method.clone(), Words::of(&head, style), head.version);
    let mut record = Record::begin(&edge, style, id, origin.client, asked);
    record.trace = Trace::of(&head.headers);
    record.answering = Some(answering);
    record.leash = Some(leash);
    let answered = answer(&edge, (hop, &origin), redirect_to, (head, incoming), wish, &mut record).await;
    let (mut response, tunnel) = match answered {
        Ok(answered) => answered,
        Err(reject) => {
            record.reject = Some(reject);
            if let Some(answering) = record.answering.as_ref().filter(|_| reject.is_malformed()) {
                answering.disown();
            }
            let id = record.id.to_str().expect("ids are made of visible characters");
            let busy = record.app.as_ref().filter(|_| reject.is_for_now());
            let retry_after = busy.map_or(Duration::ZERO, |app| app.retry_after());
            (reject.response(id, record.version, retry_after), None)
        }
    };
    response.headers_mut().entry(fields::X_REQUEST_ID).or_insert_with(|| record.id.clone());
    if let Some(value) = debug.then(|| record.debug()).flatten() {
        response.headers_mut().insert(fields::SERVERY_DEBUG, value);
    }
    if record.version < Version::HTTP_2 && tunnel.is_none() && edge.shared.taken_over.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.status = response.status().as_u16();
    if let Some(answering) = &record.answering {
        answering.answered();
    }
    let head_only = record.method == Method::HEAD;
    match tunnel {
        Some(tunnel) => {
            if let Some(answering) = &record.answering {
                answering.switch();
            }
            tunnels.begin(tunnel, record);
        }
        None => response.body_mut().attach(record, head_only),
    }
    response
}

async fn answer(
    edge: &Rc<Edge>,
    (hop, origin): (&Hop, &Origin),
    redirect_to: Option<u16>,
    (mut head, incoming): (Parts, Incoming),
    wish: Option<Wish>,
    record: &mut Record,
) -> Result<(Response<Body>, Option<Tunnel>), Reject> {
    if head.headers.len() > FIELDS {
        return Err(Reject::TooManyFields);
    }
    let value = host::of_request(&head)?;
    record.words.put_host(value.as_bytes());
    let text = value.to_str().map_err(|_| Reject::BadHost)?;
    let host = Host::parse(text).ok_or(Reject::BadHost)?;
    if let Some(response) = hops::ends_here(&mut head)? {
        return Ok((response, None));
    }
    // of HTTP/1.1 no such target has come so far
    if head.version >= Version::HTTP_2 && !head.uri.path_and_query().is_some_and(|target| target.as_str().is_ascii()) {
        return Err(Reject::BadTarget);
    }
    // a trusted proxy may have taken off the TLS
    if let Some(port) = redirect_to.filter(|_| origin.scheme != "https") {
        return Ok((redirect::to_https(&host, &head.uri, port), None));
    }
    // the one snapshot of this request
    let routes = edge.shared.routes.load();
    let route = routes.lookup(&host.name, head.uri.path()).map(Arc::clone);
    // before the first node has come, or while others may come back, "not found" would be a lie
    let known = !routes.is_empty() && edge.shared.settled.load(Ordering::Relaxed);
    let route = route.ok_or(if known { Reject::NoRoute } else { Reject::NoEndpoint })?;
    drop(routes);
    let app = match &route.target {
        Target::App(app) => app,
        Target::Redirect(to) => return Ok((redirect::along(to, &route.prefix, &head.uri), None)),
    };
    record.app = Some(Arc::clone(app));

    let config = edge.shared.config.load();
    let limits = BodyLimits { bytes: config.max_body.as_u64(), stall: config.body_timeout };
    drop(config);
    let length = http_body::Body::size_hint(&incoming).exact();
    let body = RequestSource::new(incoming, Sender::new(edge, record.client.into(), app), limits, &edge.buffers)?;
    record.body.clone_from(&body);

    let uri = target::of_route(&head.uri, &route)?;
    let headers = &mut head.headers;
    let trailers = trailers::are_wanted(headers);
    fields::clean_request(headers, hop.trusted);
    if length.is_some() {
        headers.remove(header::TRAILER);
    } else {
        trailers::announce(headers);
    }
    fields::say_length(headers, length);
    fields::join_cookies(headers);
    let stripped = route.strip_prefix.then(|| route.prefix.as_str()).filter(|prefix| *prefix != "/");
    hop.forward(headers, origin, &value, host.port, stripped);
    hops::say_via(headers, head.version);
    headers.insert(header::HOST, value.clone());
    headers.insert(fields::X_REQUEST_ID, record.id.clone());
    let client = record.trace.is_some();
    let trace = record.trace.get_or_insert_with(|| edge.trace());
    trace.pass_on(headers, &edge.values, edge.random(), client);
    let (upgrade, admitted) = wish.map(|wish| wish.admit(&edge.shared)).transpose()?.unzip();
    if let Some(asked) = &upgrade {
        asked.ask(headers);
    } else if trailers {
        trailers::ask(headers);
    }
    let connects = head.method == Method::CONNECT;
    // what is asked so over HTTP/2 is a GET over HTTP/1.1
    let method = if connects { Method::GET } else { head.method };
    let head = Head { method, uri, headers: head.headers, upgrade, trailers };
    match (forward(edge, app, route.class, &head, body, record).await?, admitted) {
        (Answer::Switched(response, agreed), Some(admitted)) => Ok((response, Some(admitted.begin(edge, app, agreed)))),
        // not without having been asked
        (Answer::Switched(..), None) => Err(Reject::BadResponse),
        // to CONNECT any 2xx says that the tunnel is there
        (Answer::Whole(response), _) if connects && response.status().is_success() => {
            response.into_body().spend().await;
            Err(Reject::BadResponse)
        }
        (Answer::Whole(response), _) => Ok((response, None)),
    }
}

#[cfg(test)]
mod tests;
