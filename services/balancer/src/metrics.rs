//! The balancer's metrics.

use crate::app::Apps;

/// Per-app and per-node gauges, written at scrape: queue depth, permits, endpoints, nodes.
pub fn render(_apps: &Apps, _out: &mut String) {
    unimplemented!()
}
