//! Durations in buckets with fixed bounds. In: seconds, from every core. Out: Prometheus text at scrape. One takes as much
//! memory however much it records and whether anybody scrapes or not; the exporter's own keep every sample until then.

use metrics::{HistogramFn, Key};
use metrics_exporter_prometheus::formatting::{
    sanitize_label_key, sanitize_label_value, sanitize_metric_name, write_type_line,
};
use proto::DURATION_BOUNDS_S;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A number per bucket and a sum, so that recording is two additions.
#[derive(Debug, Default)]
struct Histogram {
    /// By bucket, each without those below; the last one has no upper bound.
    counts: [AtomicU64; DURATION_BOUNDS_S.len() + 1],
    sum_ns: AtomicU64,
}

impl HistogramFn for Histogram {
    fn record(&self, seconds: f64) {
        self.record_many(seconds, 1);
    }

    /// What is no duration is not counted.
    fn record_many(&self, seconds: f64, count: usize) {
        let (Ok(duration), count) = (Duration::try_from_secs_f64(seconds), count as u64) else { return };
        // the array is one longer than the bounds
        self.counts[DURATION_BOUNDS_S.partition_point(|bound| *bound < seconds)].fetch_add(count, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(nanoseconds.saturating_mul(count), Ordering::Relaxed);
    }
}

impl Histogram {
    /// `labels` end with a comma, or are none.
    fn render(&self, name: &str, labels: &str, out: &mut String) {
        let mut all = 0_u64;
        let bounds = DURATION_BOUNDS_S.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (count, bound) in self.counts.iter().zip(bounds) {
            all += count.load(Ordering::Relaxed);
            // writing to a string does not fail
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{bound}\"}} {all}");
        }
        let sum = Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        let labels = labels.trim_end_matches(',');
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_sum{labels} {sum}\n{name}_count{labels} {all}");
    }
}

/// All of a process's, by name and labels.
#[derive(Debug, Default)]
pub(super) struct Histograms(Mutex<BTreeMap<Key, Arc<Histogram>>>);

impl Histograms {
    /// The one of this name and these labels.
    pub(super) fn obtain(&self, key: &Key) -> metrics::Histogram {
        debug_assert!(key.name().ends_with("_seconds"), "the bounds are those of durations: {key}");
        // whole after each step, so a panic elsewhere cannot have left half of it
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        metrics::Histogram::from_arc(Arc::clone(all.entry(key.to_retained()).or_default()))
    }

    pub(super) fn render(&self, out: &mut String) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut family = None;
        for (key, histogram) in &*all {
            let name = sanitize_metric_name(key.name());
            if family.replace(key.name()) != Some(key.name()) {
                write_type_line(out, &name, None, None, "histogram");
            }
            let mut labels = String::new();
            for label in key.labels() {
                let (label, value) = (sanitize_label_key(label.key()), sanitize_label_value(label.value()));
                // writing to a string does not fail
                let _ = write!(labels, "{label}=\"{value}\",");
            }
            histogram.render(&name, &labels, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metrics::Label;
    use proptest::prelude::*;

    fn text(histograms: &Histograms) -> String {
        let mut out = String::new();
        histograms.render(&mut out);
        out
    }

    #[test]
    fn one_family_has_one_head_and_each_label_set_its_own_numbers() {
        let histograms = Histograms::default();
        let key = |app: &'static str| Key::from_parts("servery_test_seconds", vec![Label::new("app", app)]);
        // made twice it is one
        histograms.obtain(&key("a")).record(0.0005);
        histograms.obtain(&key("a")).record_many(31.0, 2);
        histograms.obtain(&key("\"b\\")).record(0.0);
        let text = text(&histograms);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# TYPE servery_test_seconds histogram");
        assert_eq!(lines.len(), 1 + 2 * (DURATION_BOUNDS_S.len() + 3), "{text}");
        for line in [
            r#"servery_test_seconds_bucket{app="a",le="0.0005"} 1"#,
            r#"servery_test_seconds_bucket{app="a",le="30"} 1"#,
            r#"servery_test_seconds_bucket{app="a",le="+Inf"} 3"#,
            r#"servery_test_seconds_sum{app="a"} 62.0005"#,
            r#"servery_test_seconds_count{app="a"} 3"#,
            r#"servery_test_seconds_count{app="\"b\\"} 1"#,
        ] {
            assert!(lines.contains(&line), "{line} in {text}");
        }
    }

    #[test]
    fn without_labels_there_are_no_empty_braces() {
        let histograms = Histograms::default();
        histograms.obtain(&Key::from_name("servery_test_seconds")).record(1.0);
        assert!(text(&histograms).ends_with("\nservery_test_seconds_sum 1\nservery_test_seconds_count 1\n"));
    }

    proptest! {
        #[test]
        fn each_bucket_counts_what_is_not_above_its_bound(values in prop::collection::vec(any::<f64>(), 0..20)) {
            let histogram = Histogram::default();
            for value in &values {
                histogram.record(*value);
            }
            let mut text = String::new();
            histogram.render("x_seconds", "", &mut text);
            let durations = || values.iter().filter(|value| Duration::try_from_secs_f64(**value).is_ok());
            for bound in DURATION_BOUNDS_S {
                let count = durations().filter(|value| **value <= bound).count();
                let line = format!("x_seconds_bucket{{le=\"{bound}\"}} {count}\n");
                prop_assert!(text.contains(&line), "{line} in {text}");
            }
            let all = format!("x_seconds_count {}\n", durations().count());
            prop_assert!(text.ends_with(&all), "{all} in {text}");
        }
    }
}
