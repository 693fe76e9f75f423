//! The demo application: what runs in a worker when there is no other, what the tests and load scenarios ask, and what a
//! person sees first. In: any request. Out: answers that show which node and worker made them. Every endpoint that
//! costs something has a bound, because it stands on the public internet wherever somebody tries Servery out.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, Request,
        ws::{WebSocket, WebSocketUpgrade},
    },
    http::{HeaderMap, StatusCode, Uri, header},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get},
};
use futures_util::{Stream, stream};
use serde::Serialize;
use servery_worker::Placement;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    hint::black_box,
    net::IpAddr,
    process,
    time::{Duration, Instant},
};
use tokio::time::sleep;

mod page;

/// Bounds of what a visitor may ask for.
const SLEEP_MAX_MS: u64 = 600_000;
const BURN_MAX_MS: u64 = 60_000;
const EVENTS_MAX: u64 = 100_000;
const BYTES_MAX: u64 = 1 << 30;

/// `/bytes` is sent in pieces of this size.
const PIECE: usize = 64 * 1024;
static PIECE_OF_BYTES: [u8; PIECE] = [b'x'; PIECE];

/// The application.
pub fn router() -> Router {
    Router::new()
        .route("/", get(index))
        .route("/hello", get(|| async { "Hello World!" }))
        .route("/whoami", any(whoami))
        .route("/sleep/{ms}", any(sleep_for))
        .route("/burn/{ms}", any(burn))
        .route("/echo", any(echo))
        .route("/stream/{n}/{ms}", get(events))
        .route("/ws", any(websocket))
        .route("/bytes/{n}", get(bytes))
        .route("/status/{code}", any(status))
        .route("/headers", any(headers))
}

/// Who answered, and what the application knows of the request.
#[derive(Debug, Serialize)]
struct Whoami {
    node: String,
    /// The worker's position.
    worker: u32,
    pid: u32,
    request_id: Option<String>,
    client_ip: Option<String>,
    scheme: Option<String>,
    host: Option<String>,
    /// As the client sent it, without the query.
    path: String,
    app: String,
}

impl Whoami {
    fn new(placement: &Placement, headers: &HeaderMap, uri: &Uri) -> Self {
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // the balancer's word; where there are trusted proxies before it, the first of the list is the client
        let client = field("x-forwarded-for").and_then(|list| list.split(',').next().map(address));
        let prefix = field("x-forwarded-prefix").unwrap_or_default();
        Self {
            node: placement.node.to_string(),
            worker: placement.position,
            pid: process::id(),
            request_id: field("x-request-id"),
            client_ip: client,
            scheme: field("x-forwarded-proto"),
            host: field("x-forwarded-host").or_else(|| field("host")),
            path: format!("{}{}", prefix.trim_end_matches('/'), uri.path()),
            app: placement.app.to_string(),
        }
    }
}

/// An entry of X-Forwarded-For without the port that some proxies add.
fn address(entry: &str) -> String {
    let entry = entry.trim();
    let socket = entry.parse::<std::net::SocketAddr>().map(|socket| socket.ip());
    let bare = entry.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    socket.or(bare).map_or_else(|_| entry.to_owned(), |address| address.to_string())
}

async fn index(placement: Placement, headers: HeaderMap, uri: Uri) -> Html<String> {
    Html(page::render(&Whoami::new(&placement, &headers, &uri)))
}

async fn whoami(placement: Placement, headers: HeaderMap, uri: Uri) -> Response {
    // every answer may come from somebody else
    ([(header::CACHE_CONTROL, "no-store")], Json(Whoami::new(&placement, &headers, &uri))).into_response()
}

async fn sleep_for(Path(ms): Path<u64>) -> Result<String, Bound> {
    let ms = Bound::check(ms, SLEEP_MAX_MS)?;
    sleep(Duration::from_millis(ms)).await;
    Ok(format!("slept {ms} ms\n"))
}

/// Busy on a thread of its own: a worker's one thread serves its other requests meanwhile.
async fn burn(Path(ms): Path<u64>) -> Result<String, Bound> {
    let ms = Bound::check(ms, BURN_MAX_MS)?;
    let burnt = tokio::task::spawn_blocking(move || {
        let until = Instant::now() + Duration::from_millis(ms);
        let mut rounds: u64 = 0;
        while Instant::now() < until {
            for _ in 0..1000 {
                rounds = black_box(rounds.wrapping_add(1));
            }
        }
        rounds
    });
    let rounds = burnt.await.unwrap_or_default();
    Ok(format!("burnt {ms} ms of a core in {rounds} rounds\n"))
}

/// The body back as it comes in.
async fn echo(request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = Response::new(request.into_body());
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

/// `n` server-sent events, the first one at once, the others `ms` apart.
async fn events(Path((n, ms)): Path<(u64, u64)>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Bound> {
    let (n, ms) = (Bound::check(n, EVENTS_MAX)?, Bound::check(ms, SLEEP_MAX_MS)?);
    let events = stream::unfold(0, move |sent| async move {
        if sent >= n {
            return None;
        }
        if sent > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        Some((Ok(Event::default().id(sent.to_string()).data(format!("event {} of {n}", sent + 1))), sent + 1))
    });
    // nobody on the way may take a pause for the end
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(converse)
}

/// Every message back. Pings are answered below this.
async fn converse(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// `n` bytes, made as they are sent.
async fn bytes(Path(n): Path<u64>) -> Result<Response, Bound> {
    let n = Bound::check(n, BYTES_MAX)?;
    let pieces = stream::unfold(n, |left| async move {
        let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        (piece > 0).then(|| (Ok::<_, Infallible>(Bytes::from_static(&PIECE_OF_BYTES[..piece])), left - piece as u64))
    });
    let headers = [(header::CONTENT_TYPE, "text/plain".to_owned()), (header::CONTENT_LENGTH, n.to_string())];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        // one below 200 would not be the last word of this answer
        Ok(status) if (200..600).contains(&code) => {
            let has_body =
                !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
            let body = if has_body { format!("{status}\n") } else { String::new() };
            (status, body).into_response()
        }
        _ => (StatusCode::BAD_REQUEST, "a status between 200 and 599, please\n").into_response(),
    }
}

/// The request's fields as the application sees them; several of one name are joined as RFC 9110, 5.3 has it.
async fn headers(headers: HeaderMap) -> Json<BTreeMap<String, String>> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in &headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let joined = fields.entry(name.as_str().to_owned()).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(&value);
    }
    Json(fields)
}

/// Somebody asked for more than there is.
#[derive(Debug)]
struct Bound {
    most: u64,
}

impl Bound {
    fn check(asked: u64, most: u64) -> Result<u64, Self> {
        if asked <= most { Ok(asked) } else { Err(Self { most }) }
    }
}

impl IntoResponse for Bound {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, format!("at most {}, please\n", self.most)).into_response()
    }
}

#[cfg(test)]
mod tests;
