//! What the app-server counts. In: what happens to workers. Out: the recorder's counters, made once, and the gauges, which
//! are written from the roster when somebody asks.

use crate::roster::{Row, State};
use ::metrics::{Counter, counter, describe_counter};
use proto::{
    DURATION_BOUNDS_S,
    worker::{Durations, Heartbeat},
};
use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

/// Why a worker was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// It ended by itself.
    Exit,
    /// It could not be started at all.
    Spawn,
    /// It was not ready in time.
    StartTimeout,
    /// It said nothing for too long.
    Heartbeat,
    /// It closed its control socket and lived on.
    Control,
    /// It speaks another version of the control protocol.
    Version,
    /// It did not end in time when it was told to.
    DrainTimeout,
    /// It has served as many requests as it was to.
    MaxRequests,
    /// It is as old as it was to become.
    MaxLifetime,
    /// It holds more memory than it should.
    MaxRss,
    /// It holds more memory than it may.
    MaxRssHard,
    /// All of them were to be replaced.
    Reload,
}

impl Cause {
    const ALL: [Self; 12] = [
        Self::Exit,
        Self::Spawn,
        Self::StartTimeout,
        Self::Heartbeat,
        Self::Control,
        Self::Version,
        Self::DrainTimeout,
        Self::MaxRequests,
        Self::MaxLifetime,
        Self::MaxRss,
        Self::MaxRssHard,
        Self::Reload,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Spawn => "spawn",
            Self::StartTimeout => "start_timeout",
            Self::Heartbeat => "heartbeat",
            Self::Control => "control",
            Self::Version => "version",
            Self::DrainTimeout => "drain_timeout",
            Self::MaxRequests => "max_requests",
            Self::MaxLifetime => "max_lifetime",
            Self::MaxRss => "max_rss",
            Self::MaxRssHard => "max_rss_hard",
            Self::Reload => "reload",
        }
    }
}

/// The counters' handles, and what the workers have counted themselves. Clones share them.
#[derive(Clone)]
pub(crate) struct Counters {
    codes: [Counter; 5],
    denied: Counter,
    refused: Counter,
    restarts: [Counter; Cause::ALL.len()],
    durations: Arc<Mutex<Histogram>>,
}

/// How long requests took, in the buckets in which the workers count: the recorder takes single observations only.
#[derive(Debug, Default)]
struct Histogram {
    /// Each without the ones before it; the last one for what is above all bounds.
    counts: [u64; DURATION_BOUNDS_S.len() + 1],
    sum_s: f64,
}

impl Counters {
    pub(crate) fn new() -> Self {
        const REQUESTS: &str = "servery_app_server_requests_total";
        const RESTARTS: &str = "servery_app_server_worker_restarts_total";
        const DENIED: &str = "servery_app_server_requests_denied_total";
        const REFUSED: &str = "servery_app_server_requests_refused_total";
        describe_counter!(REQUESTS, "Requests that the workers have answered, by class of status code.");
        describe_counter!(RESTARTS, "Workers that had to be replaced, by cause.");
        describe_counter!(DENIED, "Requests without the node's pass, answered 403.");
        describe_counter!(REFUSED, "Requests sent back to the balancer: over capacity or while draining.");
        Self {
            codes: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| counter!(REQUESTS, "code_class" => class)),
            denied: counter!(DENIED),
            refused: counter!(REFUSED),
            restarts: Cause::ALL.map(|cause| counter!(RESTARTS, "cause" => cause.as_str())),
            durations: Arc::default(),
        }
    }

    pub(crate) fn restart(&self, cause: Cause) {
        if let Some(place) = Cause::ALL.iter().position(|other| *other == cause) {
            self.restarts[place].increment(1);
        }
    }

    pub(crate) fn heartbeat(&self, heartbeat: &Heartbeat) {
        for code in &heartbeat.codes {
            let place = usize::try_from(code.code_class).unwrap_or(0).wrapping_sub(1);
            if let Some(counter) = self.codes.get(place) {
                counter.increment(code.count);
            }
        }
        // answered, by us
        self.codes[3].increment(heartbeat.denied);
        self.denied.increment(heartbeat.denied);
        self.refused.increment(heartbeat.refused);
        if let Some(durations) = &heartbeat.durations {
            // adding leaves it whole, so a panic elsewhere cannot have left half of it
            self.durations.lock().unwrap_or_else(PoisonError::into_inner).add(durations);
        }
    }

    /// Writes what the recorder does not have.
    pub(crate) fn render(&self, out: &mut String) {
        self.durations.lock().unwrap_or_else(PoisonError::into_inner).render(out);
    }
}

impl Histogram {
    fn add(&mut self, durations: &Durations) {
        for (count, more) in self.counts.iter_mut().zip(&durations.counts) {
            *count = count.saturating_add(*more);
        }
        // what a worker says is not trusted with the type's special values
        if durations.sum_s.is_finite() && durations.sum_s >= 0.0 {
            self.sum_s += durations.sum_s;
        }
    }

    fn render(&self, out: &mut String) {
        const NAME: &str = "servery_app_server_request_duration_seconds";
        // writing to a String cannot fail
        let _ =
            writeln!(out, "# HELP {NAME} From a request's head to the end of its response.\n# TYPE {NAME} histogram");
        let mut all = 0_u64;
        for (count, bound) in self.counts.iter().zip(DURATION_BOUNDS_S) {
            all = all.saturating_add(*count);
            let _ = writeln!(out, "{NAME}_bucket{{le=\"{bound}\"}} {all}");
        }
        all = all.saturating_add(self.counts[DURATION_BOUNDS_S.len()]);
        let _ = writeln!(out, "{NAME}_bucket{{le=\"+Inf\"}} {all}\n{NAME}_sum {}\n{NAME}_count {all}", self.sum_s);
    }
}

/// Writes the gauges in the exposition format.
pub(crate) fn render(rows: &[Row], streams: &[(&'static str, usize)], out: &mut String) {
    let ready = || rows.iter().filter(|row| !matches!(row.state, State::Starting | State::Dead));
    let busy: u64 = ready().map(|row| u64::from(row.busy)).sum();
    let free: u64 = ready().map(|row| u64::from(row.capacity.saturating_sub(row.busy))).sum();
    let workers = State::ALL.map(|state| {
        let count = rows.iter().filter(|row| row.state == state).count();
        (state.as_str(), count as u64)
    });
    let streams: Vec<_> = streams.iter().map(|(state, count)| (*state, *count as u64)).collect();
    gauge(out, "workers", "Worker processes by state.", &workers);
    // a retired slot is one whose request could not be cancelled: there are none in a Rust worker
    gauge(out, "slots", "Slots of the workers by state.", &[("busy", busy), ("free", free), ("retired", 0)]);
    gauge(out, "streams", "Registrations with balancers by state.", &streams);
    per_worker(out, "worker_memory_bytes", "Resident memory of each worker.", rows, |row| row.memory as f64);
    per_worker(out, "worker_cpu_cores", "CPU that each worker uses, of the last second or so.", rows, |row| {
        f64::from(row.cpu_millicores) / 1000.0
    });
    per_worker(out, "worker_age_seconds", "Time since each worker was started.", rows, |row| {
        row.started.elapsed().as_secs_f64()
    });
}

/// Writes how many permits were given to another balancer because it wanted them.
pub(crate) fn render_moves(moves: u64, out: &mut String) {
    const NAME: &str = "servery_app_server_grant_moves_total";
    const HELP: &str = "Permits that were given to another balancer because it wanted them.";
    // writing to a String cannot fail
    let _ = writeln!(out, "# HELP {NAME} {HELP}\n# TYPE {NAME} counter\n{NAME} {moves}");
}

/// A position may have two workers for a while, so both labels name one.
fn per_worker(out: &mut String, noun: &str, help: &str, rows: &[Row], value: impl Fn(&Row) -> f64) {
    let _ = writeln!(out, "# HELP servery_app_server_{noun} {help}\n# TYPE servery_app_server_{noun} gauge");
    for row in rows {
        let (worker, generation) = row.key();
        let value = value(row);
        let _ = writeln!(out, "servery_app_server_{noun}{{worker=\"{worker}\",generation=\"{generation}\"}} {value}");
    }
}

fn gauge(out: &mut String, noun: &str, help: &str, values: &[(&str, u64)]) {
    // writing to a String cannot fail
    let _ = writeln!(out, "# HELP servery_app_server_{noun} {help}\n# TYPE servery_app_server_{noun} gauge");
    for (state, value) in values {
        let _ = writeln!(out, "servery_app_server_{noun}{{state=\"{state}\"}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::{Counters, render};
    use crate::roster::{Row, State};
    use proto::worker::{Durations, Heartbeat};

    #[test]
    fn durations_of_all_workers_add_up_and_buckets_are_cumulative() {
        let counters = Counters::new();
        let mut counts = vec![0; 16];
        (counts[0], counts[2], counts[15]) = (1, 2, 1);
        for _ in 0..2 {
            let durations = Some(Durations { counts: counts.clone(), sum_s: 40.5 });
            counters.heartbeat(&Heartbeat { durations, ..Heartbeat::default() });
        }
        let nonsense = Durations { counts: vec![1; 100], sum_s: f64::NAN };
        counters.heartbeat(&Heartbeat { durations: Some(nonsense), ..Heartbeat::default() });
        let mut text = String::new();
        counters.render(&mut text);
        for line in [
            r#"_bucket{le="0.0005"} 3"#,
            r#"_bucket{le="0.001"} 4"#,
            r#"_bucket{le="0.0025"} 9"#,
            r#"_bucket{le="+Inf"} 24"#,
            "_sum 81",
            "_count 24",
        ] {
            let line = format!("servery_app_server_request_duration_seconds{line}\n");
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn every_worker_has_its_memory_and_none_that_is_gone() {
        let row =
            Row { position: 1, generation: 3, memory: 4096, state: State::Stalled, capacity: 2, ..Row::starting() };
        let mut text = String::new();
        render(&[row], &[("registered", 1)], &mut text);
        assert!(
            text.contains("servery_app_server_worker_memory_bytes{worker=\"1\",generation=\"3\"} 4096\n"),
            "{text}"
        );
        assert!(text.contains("servery_app_server_workers{state=\"stalled\"} 1\n"), "{text}");
        let mut text = String::new();
        render(&[], &[], &mut text);
        assert!(!text.contains("worker="), "{text}");
    }
}
