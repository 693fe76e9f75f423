//! Logging and metrics of a process. In: `SERVERY_LOG`. Out: log lines on stderr (which may be a `log_file` by then) and the
//! handle that renders the metrics. The access log is not here: the balancer writes it itself, on stdout.

mod histogram;
mod recorder;

pub use recorder::Metrics;

use recorder::Recorder;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// Tracing directives such as `info,balancer::registry=debug`.
const VARIABLE: &str = "SERVERY_LOG";
const DEFAULT: &str = "info";

/// Installs the process's log and metrics recorder; call it once, in `main`. A second call leaves the first recorder
/// in place and gives a handle that shows nothing, which is what a test wants. Not `measured`, where nobody can ask for
/// the metrics: then nothing is recorded, and recording costs nothing.
pub fn init(role: &str, measured: bool) -> Metrics {
    let directives = std::env::var(VARIABLE).ok();
    let parsed = directives.as_deref().map(EnvFilter::try_new).transpose();
    let (filter, refused) = match parsed {
        Ok(filter) => (filter.unwrap_or_else(|| EnvFilter::new(DEFAULT)), None),
        Err(error) => (EnvFilter::new(DEFAULT), Some(error)),
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    if let Some(error) = refused {
        tracing::warn!(%error, "{VARIABLE} is not understood, logging at {DEFAULT}");
    }

    let recorder = Recorder::new();
    let metrics = recorder.metrics();
    if measured {
        let _ = metrics::set_global_recorder(recorder);
    }
    metrics::gauge!(format!("servery_{role}_build_info"), "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_counted_in_buckets_and_the_build_is_named() {
        let metrics = init("balancer", true);
        metrics::histogram!("servery_balancer_test_seconds").record(0.3);
        let text = metrics.render();
        assert!(text.contains(r#"servery_balancer_test_seconds_bucket{le="0.25"} 0"#), "{text}");
        assert!(text.contains(r#"servery_balancer_test_seconds_bucket{le="0.5"} 1"#), "{text}");
        assert!(text.contains(&format!("servery_balancer_build_info{{version={:?}}} 1", env!("CARGO_PKG_VERSION"))));
    }
}
