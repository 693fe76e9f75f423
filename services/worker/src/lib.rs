//! The inside of a Servery worker: turns any [`axum::Router`] into a worker process of an app-server.
//!
//! An app-server (`servery app --exec ./my-app`) starts your program once per worker, hands it a listening socket and
//! a control socket, restarts it when it dies, and lets it finish its requests before it stops. Your program's `main`
//! is one line:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     let router = Router::new().route("/", get(|| async { "Hello World!" }));
//!     servery_worker::run(router)
//! }
//! ```
//!
//! [`run`] brings a runtime and a log. Where the router needs a runtime to be made (a database pool, say), or where
//! you want another one, call [`serve`] on yours:
//!
//! ```no_run
//! # async fn connect() -> axum::Router { axum::Router::new() }
//! #[tokio::main]
//! async fn main() -> Result<(), servery_worker::Error> {
//!     let router = connect().await;
//!     servery_worker::serve(router).await
//! }
//! ```
//!
//! What a handler sees: the request as the client sent it, with `X-Forwarded-For`, `X-Forwarded-Proto`,
//! `X-Forwarded-Host`, `X-Forwarded-Port` and `X-Request-Id` set by the balancer, which can be believed because nobody but
//! a balancer reaches a worker, or, on a node that serves clients by itself (`--bind`), set by this crate, which believes
//! only the proxies that are named in `app_server.forwarded_allow_ips`; and, as an extractor, the worker's [`Placement`]. What it can
//! rely on:
//!
//! - at most `--capacity` requests run at once; behind a balancer one more waits for 20 ms at most, then it is refused and
//!   tried at another worker, without one it waits for up to `--timeout`;
//! - a handler that has not answered within `--timeout` is dropped at its next `.await` and the client gets 504; work
//!   that must not be cut belongs into a task of its own;
//! - an answer whose next part takes longer than `--timeout` is cut in a way that no client takes for its end; one that
//!   keeps moving, or waits for its client, is not, however long it is;
//! - a request whose head is too large, or whose body is too large or stops arriving, is answered with 4xx; a handler that
//!   reads such a body gets an error, and what it then answers is not sent;
//! - a handler that panics is answered with 500 and harms no other request;
//! - on a stop no new request comes in, the ones that run get `--graceful-timeout` to end, then `serve` returns.
//!
//! Handlers share one thread per worker under [`run`]: there are as many workers as cores. Blocking work belongs into
//! [`tokio::task::spawn_blocking`]; a worker whose thread is blocked for longer than `--timeout` is killed and replaced.

use axum::{Router, extract::FromRequestParts};
use http::{StatusCode, request::Parts};
use proto::worker::Configure;
use std::{io, io::IsTerminal, process::ExitCode, sync::Arc};

mod accept;
mod access;
mod answer;
mod connection;
mod control;
mod conversation;
mod counts;
mod edge;
mod frames;
mod front;
mod grpc;
mod guarded;
mod held;
mod inherited;
mod limits;
mod log_file;
mod open;
mod pass;
mod presences;
mod proxy_protocol;
mod service;
mod slots;
mod socket;
mod stream;
mod taken;

/// For app-servers, not for applications: no promise is made about what is in here.
#[doc(hidden)]
pub mod supervision;

#[cfg(test)]
mod tests;

/// Wrong usage (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;

/// Where the log's directives stand, as for every Servery process.
const LOG: &str = "SERVERY_LOG";

/// Why a worker could not start, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program was started by hand.
    #[error(
        "this program is the inside of a worker and is started by an app-server: run `servery app --exec {}` \
         (SERVERY_LISTEN_FD and SERVERY_CONTROL_FD are not set)",
        program()
    )]
    NotStartedByServery,
    /// [`serve`] was called a second time in one process.
    #[error("the worker's sockets have been taken already: call `serve` once")]
    ServedTwice,
    /// A descriptor that the supervisor names is not there or not what it should be.
    #[error("{variable} {problem}")]
    Descriptor {
        /// The variable that names it.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refused to tie this process's life to its supervisor's.
    #[error("cannot ask for a signal on the supervisor's death: {0}")]
    ParentDeathSignal(#[source] io::Error),
    /// The supervisor died, or is not this process's parent.
    #[error(
        "the process that started this worker is not its supervisor (SERVERY_PARENT={0}): that one has ended, or a script \
         in between must start this program with `exec`"
    )]
    Orphan(String),
    /// The supervisor did not say what to do.
    #[error("the supervisor sent no configuration")]
    Unconfigured,
    /// The supervisor's configuration has a value that means nothing.
    #[error("the supervisor's configuration is wrong: {0}")]
    Configuration(String),
    /// The access log cannot be written.
    #[error("cannot open the access log {path}: {error}")]
    AccessLog {
        /// As it is configured.
        path: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// Supervisor and worker are more than one version apart.
    #[error(
        "the supervisor speaks version {theirs} of the control protocol, this worker version {ours}: build both anew"
    )]
    Version {
        /// This crate's.
        ours: u32,
        /// The supervisor's.
        theirs: u32,
    },
    /// The supervisor is gone, so the worker ended.
    #[error("the supervisor has closed the control socket")]
    SupervisorGone,
    /// The control socket carried what is no message.
    #[error("the control socket failed: {0}")]
    Control(#[source] io::Error),
}

/// Which worker this is. An extractor: `async fn handler(placement: Placement)`; also an extension of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Placement {
    /// The application's name in the cluster.
    pub app: Arc<str>,
    /// The node's name: by default the host's.
    pub node: Arc<str>,
    /// The worker's place among the node's workers, from 0.
    pub position: u32,
    /// Counts the processes that have had this place, from 1.
    pub generation: u64,
}

impl Placement {
    /// For tests of an application: put it into a request's extensions.
    pub fn for_test(app: &str, node: &str, position: u32, generation: u64) -> Self {
        Self { app: app.into(), node: node.into(), position, generation }
    }

    fn new(configure: &Configure) -> Self {
        Self {
            app: configure.app.as_str().into(),
            node: configure.node.as_str().into(),
            position: configure.position,
            generation: configure.generation,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Placement {
    /// The router is not run by [`serve`].
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let missing = (StatusCode::INTERNAL_SERVER_ERROR, "this router is not run by a Servery worker\n");
        parts.extensions.get::<Self>().cloned().ok_or(missing)
    }
}

/// Serves the router on the runtime that this is called on, until the supervisor ends the worker. Call it once.
///
/// # Errors
/// Where the program was not started by an app-server, where the two do not understand each other, and where the
/// app-server has gone. A worker that was told to stop, or has drained, ends with `Ok`.
pub async fn serve(router: Router) -> Result<(), Error> {
    let (listener, control) = inherited::take()?;
    control::serve_on(listener, control, router).await
}

/// The whole `main` of a worker: a log on stderr (`SERVERY_LOG`, by default `info`), a single-threaded runtime with a pool
/// for blocking work, [`serve`], and the exit code: 0 told to end, 1 a fault, 64 not started by an app-server.
pub fn run(router: Router) -> ExitCode {
    log();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot make a runtime");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(serve(router));
    // blocking work that is left has had its time
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ Error::NotStartedByServery) => {
            eprintln!("{error}");
            ExitCode::from(USAGE)
        }
        Err(error) => {
            tracing::error!(%error, "the worker ends");
            ExitCode::FAILURE
        }
    }
}

/// A program that has set up its own log keeps it.
fn log() {
    use tracing_subscriber::EnvFilter;
    let directives = std::env::var(LOG).unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "./my-app".to_owned())
}
