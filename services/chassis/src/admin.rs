//! The admin listener.

use crate::lifecycle::Lifecycle;
use metrics_exporter_prometheus::PrometheusHandle;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct Readiness {}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn latch(&self, _reason: &'static str) -> Latch {
        unimplemented!()
    }

    pub fn is_ready(&self) -> bool {
        unimplemented!()
    }

    pub fn reasons(&self) -> Vec<&'static str> {
        unimplemented!()
    }
}

#[derive(Debug)]
pub struct Latch {}

impl Latch {
    pub fn release(&self) {
        unimplemented!()
    }

    pub fn hold(&self) {
        unimplemented!()
    }
}

pub type Renderer = Arc<dyn Fn(&mut String) + Send + Sync>;
pub type StatusPage = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

#[derive(Clone)]
pub struct Admin {
    pub readiness: Readiness,
    pub lifecycle: Lifecycle,
    pub metrics: PrometheusHandle,
    pub renderers: Vec<Renderer>,
    pub status: StatusPage,
}

pub async fn serve(_listener: tokio::net::TcpListener, _admin: Admin) {
    unimplemented!()
}
