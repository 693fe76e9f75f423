//! What runs in a worker process: work that takes its time, `FACTOR` times that where the variable says so. Answers with the node
//! and the process that did it.

use std::convert::Infallible;
use std::env;
use std::process;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request};
use axum::response::Response;
use axum::routing::{any, get};
use bytes::Bytes;
use servery_worker::Placement;

const PIECE: usize = 64 * 1024;

static FACTOR: LazyLock<u32> =
    LazyLock::new(|| env::var("FACTOR").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1));

pub(crate) fn router() -> Router {
    Router::new()
        .route("/sleep/{ms}", get(sleep))
        .route("/block/{ms}", get(block))
        .route("/bytes/{n}", get(bytes))
        .route("/echo", any(echo))
}

async fn sleep(Path(ms): Path<u64>, placement: Placement) -> String {
    tokio::time::sleep(Duration::from_millis(ms) * *FACTOR).await;
    format!("{} {}", placement.node, process::id())
}

/// Cannot be cancelled.
async fn block(Path(ms): Path<u64>, placement: Placement) -> String {
    thread::sleep(Duration::from_millis(ms) * *FACTOR);
    format!("{} {}", placement.node, process::id())
}

async fn bytes(Path(n): Path<usize>) -> Response {
    let pieces = (0..n.div_ceil(PIECE)).map(move |index| PIECE.min(n - index * PIECE));
    let pieces = pieces.map(|length| Ok::<_, Infallible>(Bytes::from(vec![b'x'; length])));
    Response::new(Body::from_stream(tokio_stream::iter(pieces)))
}

async fn echo(request: Request) -> Response {
    Response::new(request.into_body())
}
