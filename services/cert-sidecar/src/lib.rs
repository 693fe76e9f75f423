//! The cert-sidecar: the internal CA that gives every process its identity, and every balancer its certificates.

mod config;
pub mod control;

pub use config::Config;

use chassis::{config::Shared, lifecycle::Lifecycle};

/// Runs the role until the lifecycle ends.
pub async fn run(
    _config: Config,
    _shared: Shared,
    _telemetry: metrics_exporter_prometheus::PrometheusHandle,
    _lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    unimplemented!()
}
