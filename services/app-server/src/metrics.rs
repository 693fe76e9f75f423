//! What the app-server counts. In: what happens to workers. Out: the recorder's counters, made once, and the gauges, which
//! are written from the roster when somebody asks.

use crate::roster::{Row, State};
use ::metrics::{Counter, counter, describe_counter};
use proto::worker::Heartbeat;
use std::fmt::Write as _;

/// Why a worker was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Cause {
    const ALL: [Self; 7] = [
        Self::Exit,
        Self::Spawn,
        Self::StartTimeout,
        Self::Heartbeat,
        Self::Control,
        Self::Version,
        Self::DrainTimeout,
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
        }
    }
}

/// The counters' handles.
#[derive(Clone)]
pub(crate) struct Counters {
    codes: [Counter; 5],
    denied: Counter,
    refused: Counter,
    restarts: [Counter; Cause::ALL.len()],
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
    }
}

/// Writes the gauges in the exposition format.
pub(crate) fn render(rows: &[Row], streams: &[(&'static str, usize)], out: &mut String) {
    let ready = || rows.iter().filter(|row| row.state != State::Starting);
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
}

fn gauge(out: &mut String, noun: &str, help: &str, values: &[(&str, u64)]) {
    // writing to a String cannot fail
    let _ = writeln!(out, "# HELP servery_app_server_{noun} {help}\n# TYPE servery_app_server_{noun} gauge");
    for (state, value) in values {
        let _ = writeln!(out, "servery_app_server_{noun}{{state=\"{state}\"}} {value}");
    }
}
