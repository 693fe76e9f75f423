//! The balancer.

pub mod accesslog;
pub mod app;
pub mod endpoint;
pub mod forward;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod reject;
pub mod retry;
pub mod route;
pub mod tls;

use app::Apps;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// What the control plane writes and the data plane reads.
#[derive(Debug)]
pub struct Shared {
    pub routes: ArcSwap<route::Table>,
    pub certificates: ArcSwap<tls::CertificateSet>,
    pub apps: Arc<Apps>,
}
