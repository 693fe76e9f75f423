//! The app-server.

use chassis::{config::Shared, lifecycle::Lifecycle, telemetry::PrometheusHandle};

pub mod demo;

/// The section `[app_server]`.
#[derive(Clone, Debug)]
pub struct Config {}

impl Config {
    pub fn read(_reader: &mut chassis::config::Reader<'_>) -> Self {
        unimplemented!()
    }
}

/// The life of an app-server.
pub async fn run(
    _config: Config,
    _shared: Shared,
    _telemetry: PrometheusHandle,
    _lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    unimplemented!()
}
