//! The inside of a worker.

use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("placeholder")]
    Placeholder,
}

/// Serves the router on the runtime that the caller runs.
pub async fn serve(_router: axum::Router) -> Result<(), Error> {
    unimplemented!()
}

/// The whole of a worker's `main`: logging, a runtime, `serve`, and the exit code.
pub fn run(_router: axum::Router) -> ExitCode {
    unimplemented!()
}
