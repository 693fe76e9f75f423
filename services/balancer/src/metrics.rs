//! The balancer's metrics of the data plane. Counters and histograms are handles, made once per app, listener or
//! process and never per request (a handle costs 11 ns, the macro 354); gauges are read from the apps at scrape.

use crate::{app::Apps, endpoint::WorkerState, reject::Reject};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use std::fmt::Write;

/// What one attempt at an endpoint came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answered,
    Refused,
    ConnectFailed,
    Reset,
    Timeout,
    ClientGone,
}

impl Outcome {
    const ALL: [Self; 6] =
        [Self::Answered, Self::Refused, Self::ConnectFailed, Self::Reset, Self::Timeout, Self::ClientGone];

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::ConnectFailed => "connect_failed",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::ClientGone => "client_gone",
        }
    }
}

/// Handles of one app. Requests that reached no app are counted under the empty name.
pub struct AppMetrics {
    requests: [Counter; 6],
    pub duration: Histogram,
    pub queue_wait: Histogram,
    pub upstream: Histogram,
    pub retries: Counter,
    attempts: [Counter; 6],
}

impl AppMetrics {
    pub fn new(app: &str) -> Self {
        let app = app.to_owned();
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        Self {
            requests: classes
                .map(|class| counter!("servery_balancer_requests_total", "app" => app.clone(), "code_class" => class)),
            duration: histogram!("servery_balancer_request_duration_seconds", "app" => app.clone()),
            queue_wait: histogram!("servery_balancer_queue_wait_seconds", "app" => app.clone()),
            upstream: histogram!("servery_balancer_upstream_duration_seconds", "app" => app.clone()),
            retries: counter!("servery_balancer_retries_total", "app" => app.clone()),
            attempts: Outcome::ALL.map(|outcome| {
                counter!("servery_balancer_attempts_total", "app" => app.clone(), "outcome" => outcome.label())
            }),
        }
    }

    pub fn count_request(&self, status: u16) {
        self.requests.get(usize::from(status / 100)).unwrap_or(&self.requests[0]).increment(1);
    }

    pub fn count_attempt(&self, outcome: Outcome) {
        self.attempts[outcome as usize].increment(1);
    }
}

impl std::fmt::Debug for AppMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppMetrics").finish_non_exhaustive()
    }
}

/// Handles that belong to no app.
pub struct EdgeMetrics {
    pub unrouted: AppMetrics,
    rejects: [Counter; Reject::ALL.len()],
    /// Requests that hyper refused before we saw them, by reason.
    pub malformed: Counter,
    pub too_large: Counter,
    pub header_timeout: Counter,
    /// Lines the access log lost because its reader was too slow.
    pub log_lines_lost: Counter,
}

impl EdgeMetrics {
    pub fn new() -> Self {
        let rejects = |reason: &'static str| counter!("servery_balancer_rejects_total", "reason" => reason);
        Self {
            unrouted: AppMetrics::new(""),
            rejects: Reject::ALL.map(|reject| rejects(reject.label())),
            malformed: rejects("malformed"),
            too_large: rejects("header_too_large"),
            header_timeout: rejects("header_timeout"),
            log_lines_lost: counter!("servery_balancer_access_log_lost_lines_total"),
        }
    }

    pub fn count_reject(&self, reject: Reject) {
        self.rejects[reject as usize].increment(1);
    }
}

impl std::fmt::Debug for EdgeMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeMetrics").finish_non_exhaustive()
    }
}

/// Counts a connection for as long as it is in one state.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Connections of one listener ("http" or "https") that shake hands or are open.
pub struct ConnectionGauges {
    pub handshake: Gauge,
    pub open: Gauge,
}

impl ConnectionGauges {
    pub fn new(listener: &'static str) -> Self {
        let gauge = |state: &'static str| gauge!("servery_balancer_connections", "listener" => listener, "state" => state);
        Self { handshake: gauge("handshake"), open: gauge("open") }
    }
}

/// What the apps hold now, as Prometheus text: written at scrape, so a series ends with its node.
pub fn render(apps: &Apps, out: &mut String) {
    let views: Vec<_> = apps.all().iter().map(|app| app.view()).collect();
    let mut family = |name: &str, kind: &str, samples: &mut dyn FnMut(&mut dyn FnMut(std::fmt::Arguments<'_>, f64))| {
        let _ = writeln!(out, "# TYPE servery_balancer_{name} {kind}");
        samples(&mut |labels, value| {
            let _ = writeln!(out, "servery_balancer_{name}{{{labels}}} {value}");
        });
    };
    family("queue_depth", "gauge", &mut |sample| {
        for view in &views {
            sample(format_args!("app=\"{}\"", view.name), count(view.queue_depth as u64));
        }
    });
    family("in_flight", "gauge", &mut |sample| {
        for view in &views {
            sample(format_args!("app=\"{}\"", view.name), count(view.in_flight));
        }
    });
    family("retry_budget", "gauge", &mut |sample| {
        for view in &views {
            sample(format_args!("app=\"{}\"", view.name), view.retry_budget);
        }
    });
    family("permits", "gauge", &mut |sample| {
        for view in &views {
            let mut free = 0;
            for node in view.nodes.iter().filter(|node| !node.draining) {
                let ready = node.endpoints.iter().filter(|endpoint| endpoint.worker.state == WorkerState::Ready);
                free += ready.map(|endpoint| u64::from(endpoint.worker.grant.saturating_sub(endpoint.held))).sum::<u64>();
            }
            sample(format_args!("app=\"{}\",state=\"free\"", view.name), count(free));
            sample(format_args!("app=\"{}\",state=\"held\"", view.name), count(view.in_flight));
        }
    });
    family("endpoints", "gauge", &mut |sample| {
        for view in &views {
            for state in [WorkerState::Starting, WorkerState::Ready, WorkerState::Draining] {
                let endpoints = view.nodes.iter().flat_map(|node| &node.endpoints);
                let number = endpoints.filter(|endpoint| endpoint.worker.state == state).count();
                sample(format_args!("app=\"{}\",state=\"{}\"", view.name, state.as_str()), count(number as u64));
            }
        }
    });
    family("nodes", "gauge", &mut |sample| {
        for view in &views {
            let draining = view.nodes.iter().filter(|node| node.draining).count();
            sample(format_args!("app=\"{}\",state=\"ready\"", view.name), count((view.nodes.len() - draining) as u64));
            sample(format_args!("app=\"{}\",state=\"draining\"", view.name), count(draining as u64));
        }
    });
    for (name, kind) in [("endpoint_in_flight", "gauge"), ("endpoint_requests_total", "counter")] {
        family(name, kind, &mut |sample| {
            for view in &views {
                for (node, endpoint) in view.nodes.iter().flat_map(|node| node.endpoints.iter().map(move |e| (node, e))) {
                    let value = if kind == "gauge" { u64::from(endpoint.held) } else { endpoint.picked };
                    let (node, worker) = (&node.node.instance, &endpoint.worker);
                    sample(
                        format_args!(
                            "app=\"{}\",node=\"{node}\",worker=\"{}\",generation=\"{}\"",
                            view.name, worker.position, worker.generation
                        ),
                        count(value),
                    );
                }
            }
        });
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus samples are floating point")]
fn count(value: u64) -> f64 {
    value as f64
}
