//! The process's metrics recorder. In: what is to be counted. Out: handles for it, and the text of a scrape. Counters and
//! gauges are the exporter's, histograms our own (`histogram`).

use super::histogram::Histograms;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::{fmt, sync::Arc};

pub(super) struct Recorder {
    exporter: PrometheusRecorder,
    histograms: Arc<Histograms>,
}

/// What the recorder has counted.
#[derive(Clone)]
pub struct Metrics {
    exporter: PrometheusHandle,
    histograms: Arc<Histograms>,
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self { exporter: PrometheusBuilder::new().build_recorder(), histograms: Arc::default() }
    }

    pub(super) fn metrics(&self) -> Metrics {
        Metrics { exporter: self.exporter.handle(), histograms: Arc::clone(&self.histograms) }
    }
}

impl Metrics {
    /// As Prometheus reads it.
    pub fn render(&self) -> String {
        let mut text = self.exporter.render();
        self.histograms.render(&mut text);
        text
    }
}

/// Of a recorder that nothing uses: nothing.
impl Default for Metrics {
    fn default() -> Self {
        Recorder::new().metrics()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.exporter.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.exporter.describe_gauge(key, unit, description);
    }

    /// The README describes them.
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.exporter.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.exporter.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.histograms.obtain(key)
    }
}
