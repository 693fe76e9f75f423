//! An application of your own. It is an ordinary axum `Router`; the last line of `main` makes the program the inside of
//! a worker. Servery starts it once per worker process, restarts it when it dies, and sends it requests only while it
//! has a free slot:
//!
//! ```sh
//! cargo build --release -p axum-example
//! servery up --exec target/release/axum-example
//! ```

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

/// Notes in memory: every worker is a process of its own and has its own. Yours would be in a database.
type Notes = Arc<Mutex<BTreeMap<u32, Note>>>;

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Note {
    text: String,
}

fn router() -> Router {
    Router::new()
        .route("/", get(|| async { "Notes: GET or PUT /notes/1\n" }))
        .route("/notes/{id}", get(read).put(write))
        .with_state(Notes::default())
}

async fn read(State(notes): State<Notes>, Path(id): Path<u32>) -> Result<Json<Note>, StatusCode> {
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    notes.get(&id).cloned().map(Json).ok_or(StatusCode::NOT_FOUND)
}

async fn write(State(notes): State<Notes>, Path(id): Path<u32>, Json(note): Json<Note>) -> StatusCode {
    notes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, note);
    StatusCode::NO_CONTENT
}

fn main() -> ExitCode {
    servery_worker::run(router())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    // A Router is a function from request to response: it needs no server to be tested.
    #[tokio::test]
    async fn a_note_that_was_written_can_be_read() {
        let app = router();
        let put = Request::put("/notes/7").header("content-type", "application/json");
        let written = app.clone().oneshot(put.body(Body::from(r#"{"text":"milk"}"#)).unwrap()).await.unwrap();
        assert_eq!(written.status(), StatusCode::NO_CONTENT);
        let read = app.oneshot(Request::get("/notes/7").body(Body::empty()).unwrap()).await.unwrap();
        let body = axum::body::to_bytes(read.into_body(), 1_000).await.unwrap();
        assert_eq!(body, r#"{"text":"milk"}"#);
    }
}
