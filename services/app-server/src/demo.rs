//! The built-in demo application: an ordinary `axum::Router`, as a user would write it, whose answers show how the
//! cluster behaves. What it takes from a path is bounded; it keeps no state.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Path, Request, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode, Uri, header},
    response::{
        Html, IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{any, get},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Serialize;
use servery_worker::Placement;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    hint, process,
    time::{Duration, Instant},
};

const MAX_SLEEP_MS: u64 = 600_000;
const MAX_BURN_MS: u64 = 60_000;
const MAX_EVENTS: u64 = 100_000;
const MAX_BYTES: u64 = 1 << 30;

/// The demo application's routes.
pub fn router() -> Router {
    Router::new()
        .route("/", get(page))
        .route("/hello", get("Hello World!"))
        .route("/whoami", get(whoami))
        .route("/sleep/{ms}", get(sleep))
        .route("/burn/{ms}", get(burn))
        .route("/echo", any(echo))
        .route("/stream/{n}/{ms}", get(events))
        .route("/ws", any(websocket))
        .route("/bytes/{n}", get(bytes))
        .route("/status/{code}", any(status))
        .route("/headers", any(headers))
}

async fn page(placement: Placement, fields: HeaderMap) -> Html<String> {
    let values = [
        ("{node}", &*placement.node),
        ("{worker}", &placement.position.to_string()),
        ("{pid}", &process::id().to_string()),
        ("{prefix}", field(&fields, "x-forwarded-prefix")),
    ];
    let mut page = include_str!("demo/page.html").to_owned();
    for (mark, value) in values {
        page = page.replace(mark, &escape(value));
    }
    Html(page)
}

/// The prefix is the client's word as far as it matched a route: never markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[derive(Debug, Serialize)]
struct Whoami {
    node: String,
    worker: u32,
    pid: u32,
    request_id: String,
    client_ip: String,
    scheme: String,
    host: String,
    path: String,
    app: String,
}

async fn whoami(placement: Placement, uri: Uri, fields: HeaderMap) -> Json<Whoami> {
    let first = |name| field(&fields, name).split(',').next().unwrap_or_default().trim().to_owned();
    Json(Whoami {
        node: placement.node.to_string(),
        worker: placement.position,
        pid: process::id(),
        request_id: first("x-request-id"),
        client_ip: first("x-forwarded-for"),
        scheme: first("x-forwarded-proto"),
        host: field(&fields, "host").to_owned(),
        path: uri.path().to_owned(),
        app: placement.app.to_string(),
    })
}

fn field<'a>(fields: &'a HeaderMap, name: &str) -> &'a str {
    fields.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn at_most(limit: u64, value: u64) -> Result<(), (StatusCode, String)> {
    if value <= limit { Ok(()) } else { Err((StatusCode::BAD_REQUEST, format!("at most {limit}\n"))) }
}

async fn sleep(Path(ms): Path<u64>) -> Result<String, (StatusCode, String)> {
    at_most(MAX_SLEEP_MS, ms)?;
    tokio::time::sleep(Duration::from_millis(ms)).await;
    Ok(format!("slept {ms} ms\n"))
}

async fn burn(Path(ms): Path<u64>) -> Result<String, (StatusCode, String)> {
    at_most(MAX_BURN_MS, ms)?;
    let burnt = tokio::task::spawn_blocking(move || {
        let (start, mut rounds) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_millis(ms) {
            rounds = hint::black_box(rounds + 1);
        }
    });
    match burnt.await {
        Ok(()) => Ok(format!("burnt {ms} ms of CPU\n")),
        Err(_) => Err((StatusCode::INTERNAL_SERVER_ERROR, "the worker is stopping\n".to_owned())),
    }
}

/// The body as it comes in, piece by piece, under its own type.
async fn echo(request: Request) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = Response::new(Body::from_stream(request.into_body().into_data_stream()));
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

async fn events(
    Path((n, ms)): Path<(u64, u64)>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, (StatusCode, String)> {
    at_most(MAX_EVENTS, n)?;
    at_most(MAX_SLEEP_MS, ms)?;
    let events = stream::iter(0..n).then(move |i| async move {
        if i > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        Ok(Event::default().id(i.to_string()).data(format!("event {} of {n}", i + 1)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(echo_messages)
}

async fn echo_messages(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let echoed = match message {
            Message::Text(_) | Message::Binary(_) => socket.send(message).await,
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => Ok(()), // axum answers pings
        };
        if echoed.is_err() {
            return;
        }
    }
}

async fn bytes(Path(n): Path<u64>) -> Result<Response, (StatusCode, String)> {
    const PIECE: &[u8] = &[b'x'; 64 << 10];
    at_most(MAX_BYTES, n)?;
    let pieces = stream::unfold(n, |left| async move {
        let size = left.min(PIECE.len() as u64);
        // no larger than PIECE
        let piece = Bytes::from_static(&PIECE[..usize::try_from(size).unwrap_or(PIECE.len())]);
        (left > 0).then(|| (Ok::<_, Infallible>(piece), left - size))
    });
    let fields =
        [(header::CONTENT_LENGTH, n.to_string()), (header::CONTENT_TYPE, "application/octet-stream".to_owned())];
    Ok((fields, Body::from_stream(pieces)).into_response())
}

async fn status(Path(code): Path<u16>) -> Response {
    match StatusCode::from_u16(code) {
        Ok(code) if (200..600).contains(&code.as_u16()) => (code, format!("{code}\n")).into_response(),
        Ok(_) | Err(_) => (StatusCode::BAD_REQUEST, "a status from 200 to 599, please\n").into_response(),
    }
}

/// Every field of the request as the application sees it; a field that comes twice has two values.
async fn headers(fields: HeaderMap) -> Json<BTreeMap<String, Vec<String>>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in &fields {
        all.entry(name.to_string()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    Json(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn ask(request: Request) -> (StatusCode, String) {
        let response = router().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(path: &str) -> (StatusCode, String) {
        ask(Request::get(path).body(Body::empty()).unwrap()).await
    }

    #[tokio::test]
    async fn it_says_hello() {
        assert_eq!(get("/hello").await, (StatusCode::OK, "Hello World!".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_path_asks_for_is_bounded() {
        assert_eq!(get("/sleep/100").await.1, "slept 100 ms\n");
        for path in
            ["/sleep/600001", "/burn/60001", "/stream/100001/1", "/bytes/1073741825", "/status/199", "/status/600"]
        {
            assert_eq!(get(path).await.0, StatusCode::BAD_REQUEST, "{path}");
        }
        assert_eq!(get("/sleep/x").await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test(start_paused = true)]
    async fn events_come_one_by_one() {
        let (status, body) = get("/stream/3/50").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body.matches("data: event").count(), 3);
    }

    #[tokio::test]
    async fn bytes_and_echo_are_exact() {
        for n in [0, 1, 65_536, 200_000] {
            assert_eq!(get(&format!("/bytes/{n}")).await.1.len(), n);
        }
        let request = Request::post("/echo").body(Body::from("there and back")).unwrap();
        assert_eq!(ask(request).await.1, "there and back");
    }

    #[test]
    fn a_page_never_contains_what_a_client_made_up() {
        assert_eq!(escape("/<script>\"&"), "/&lt;script&gt;&quot;&amp;");
    }
}
