//! The balancer: terminates TLS, routes, holds the one queue of each app, picks a worker, forwards. In reading order:
//! `listener`, `tls`, `http`, `route`, `app` (with `dispatch`, `queue`, `levels`), `endpoint`, `forward`, `retry`,
//! `reject`, `accesslog`, `metrics` are the data plane, one runtime per core; `registry`, `certificates`, `readiness`,
//! `status` are the control plane, on the process's first runtime. The two meet in [`Shared`] only.

pub mod accesslog;
pub mod app;
pub mod body;
pub mod config;
pub mod dispatch;
pub mod endpoint;
pub mod forward;
pub mod http;
pub mod levels;
pub mod listener;
pub mod metrics;
pub mod queue;
pub mod reject;
pub mod retry;
pub mod route;
pub mod tls;

pub use config::Config;

use app::Apps;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// What the control plane writes and the data plane reads.
#[derive(Debug)]
pub struct Shared {
    pub config: Config,
    /// What a redirect to HTTPS names: `public_https_port`, or the port that `https` was bound to. `None`: HTTPS is
    /// off, and the routes are served over plain HTTP.
    pub https_port: Option<u16>,
    pub routes: ArcSwap<route::Table>,
    pub certificates: ArcSwap<tls::CertificateSet>,
    pub apps: Arc<Apps>,
}
