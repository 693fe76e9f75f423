//! A guest book: an axum application as you would write it anyway, run by Servery.
//!
//! Build it, and let an app-server start it, once per core:
//!
//! ```text
//! cargo build --release -p axum-example
//! servery up --exec ./target/release/axum-example         # a whole cluster on this machine
//! servery app --exec ./target/release/axum-example --join balancer:7400   # one node of a cluster
//! ```
//!
//! Nothing in the application knows about TLS, ports, processes or restarts. What to keep in mind is the same as with
//! every server that runs more than one process: a worker's memory is its own. The entries below are kept in memory to
//! keep the example short, so every worker has a book of its own; a real application keeps them in a database.

mod book;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::get,
};
use book::{Book, Entry, Refused};
use serde::Serialize;
use servery_worker::Placement;
use std::{process::ExitCode, sync::Arc};

/// The whole of it: a router, and `run`.
///
/// `run` brings a runtime and a log on stderr, takes the sockets that the app-server hands over, and returns when the
/// app-server says so. If your router needs a runtime to be made (a database pool, say), write `#[tokio::main]` and
/// `servery_worker::serve(router).await` instead.
fn main() -> ExitCode {
    servery_worker::run(router(Book::default()))
}

fn router(book: Book) -> Router {
    Router::new().route("/", get(read).post(write)).with_state(Arc::new(book))
}

/// The book, and which worker's it is.
#[derive(Serialize)]
struct Page {
    entries: Vec<Entry>,
    /// `Placement` is an extractor that every handler may use: which node and worker this process is.
    node: String,
    worker: u32,
}

async fn read(State(book): State<Arc<Book>>, placement: Placement) -> Json<Page> {
    Json(Page { entries: book.entries(), node: placement.node.to_string(), worker: placement.position })
}

/// The body is what is written, the client's address is who wrote it. `X-Forwarded-For` can be believed here, because the
/// balancer drops what a client says of itself and nobody but a balancer reaches a worker.
async fn write(
    State(book): State<Arc<Book>>,
    headers: HeaderMap,
    text: String,
) -> Result<StatusCode, (StatusCode, &'static str)> {
    let client = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok()).unwrap_or("unknown");
    match book.write(client, &text) {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(Refused::Empty) => Err((StatusCode::BAD_REQUEST, "an entry has a text\n")),
        Err(Refused::TooLong) => Err((StatusCode::PAYLOAD_TOO_LARGE, "an entry has at most 500 characters\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::{Book, router};
    use axum::{
        body::Body,
        http::{Request, StatusCode},
    };
    use http_body_util::BodyExt;
    use servery_worker::Placement;
    use tower::ServiceExt;

    /// A router can be tested without any server: it is a `tower::Service`. The one thing that a worker adds is the
    /// placement.
    #[tokio::test]
    async fn what_is_written_can_be_read() {
        let app = router(Book::default());
        let post =
            Request::post("/").header("x-forwarded-for", "203.0.113.9").body(Body::from("It was nice here.")).unwrap();
        assert_eq!(app.clone().oneshot(post).await.unwrap().status(), StatusCode::CREATED);

        let read =
            Request::get("/").extension(Placement::for_test("guests", "node-1", 2, 1)).body(Body::empty()).unwrap();
        let page = app.oneshot(read).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        let page: serde_json::Value = serde_json::from_slice(&page).unwrap();
        let entries = serde_json::json!([{"client": "203.0.113.9", "text": "It was nice here."}]);
        assert_eq!(page, serde_json::json!({"entries": entries, "node": "node-1", "worker": 2}));
    }

    #[tokio::test]
    async fn nothing_and_too_much_are_refused() {
        let app = router(Book::default());
        for (text, expected) in
            [(String::new(), StatusCode::BAD_REQUEST), ("x".repeat(501), StatusCode::PAYLOAD_TOO_LARGE)]
        {
            let post = Request::post("/").body(Body::from(text)).unwrap();
            assert_eq!(app.clone().oneshot(post).await.unwrap().status(), expected);
        }
    }
}
