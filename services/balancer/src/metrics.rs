//! The balancer's metrics of the data plane. Counters and histograms are handles, made once per app, listener or
//! process and never per request (a handle costs 11 ns, the macro 354); gauges are read from the apps at scrape.

use crate::{
    app::{AppView, Apps, EndpointView, NodeView},
    dispatch::Reason,
    endpoint::WorkerState,
    reject::Reject,
};
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
    /// Its node was lost before it had an answer.
    Lost,
    ClientGone,
}

impl Outcome {
    const ALL: [Self; 7] =
        [Self::Answered, Self::Refused, Self::ConnectFailed, Self::Reset, Self::Timeout, Self::Lost, Self::ClientGone];

    fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::ConnectFailed => "connect_failed",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
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
    pub tunnels: Gauge,
    attempts: [Counter; Outcome::ALL.len()],
}

impl AppMetrics {
    pub fn register(app: &str) -> Self {
        let app = app.to_owned();
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
        Self {
            requests: classes
                .map(|class| counter!("servery_balancer_requests_total", "app" => app.clone(), "code_class" => class)),
            duration: histogram!("servery_balancer_request_duration_seconds", "app" => app.clone()),
            queue_wait: histogram!("servery_balancer_queue_wait_seconds", "app" => app.clone()),
            upstream: histogram!("servery_balancer_upstream_duration_seconds", "app" => app.clone()),
            retries: counter!("servery_balancer_retries_total", "app" => app.clone()),
            tunnels: gauge!("servery_balancer_tunnels", "app" => app.clone()),
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
    /// Lines the access log lost because its reader was too slow.
    pub log_lines_lost: Counter,
}

impl EdgeMetrics {
    pub fn register() -> Self {
        let rejects = |reason: &'static str| counter!("servery_balancer_rejects_total", "reason" => reason);
        Self {
            unrouted: AppMetrics::register(""),
            rejects: Reject::ALL.map(|reject| rejects(reject.label())),
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

/// Counts a connection or a tunnel for as long as it is in one state.
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
        let gauge =
            |state: &'static str| gauge!("servery_balancer_connections", "listener" => listener, "state" => state);
        Self { handshake: gauge("handshake"), open: gauge("open") }
    }
}

/// What the apps hold now, as Prometheus text: written at scrape, so a series ends with its node.
pub fn render(apps: &Apps, out: &mut String) {
    let views: Vec<AppView> = apps.all().iter().map(|app| app.view()).collect();
    let mut text = Text { out, name: "" };
    text.per_app("queue_depth", &views, |view| count(view.queue_depth as u64));
    text.per_app("in_flight", &views, |view| count(view.in_flight));
    text.per_app("retry_budget", &views, |view| view.retry_budget);
    text.family("permits", "gauge");
    for view in &views {
        let free: u32 = endpoints(view).map(|(_, endpoint)| endpoint.free).sum();
        text.sample(format_args!("app=\"{}\",state=\"free\"", view.name), f64::from(free));
        text.sample(format_args!("app=\"{}\",state=\"held\"", view.name), count(view.in_flight));
        text.sample(format_args!("app=\"{}\",state=\"unsettled\"", view.name), count(view.unsettled));
    }
    text.family("ejections_total", "counter");
    for view in &views {
        for (reason, ejections) in Reason::ALL.into_iter().zip(view.ejections) {
            text.sample(format_args!("app=\"{}\",reason=\"{}\"", view.name, reason.as_str()), count(ejections));
        }
    }
    text.family("endpoints", "gauge");
    for view in &views {
        for state in WorkerState::ALL {
            let number = endpoints(view).filter(|(_, endpoint)| endpoint.worker.state == state).count();
            text.sample(format_args!("app=\"{}\",state=\"{}\"", view.name, state.as_str()), count(number as u64));
        }
        // of the ready ones
        let ejected = endpoints(view).filter(|(_, endpoint)| endpoint.ejected).count();
        text.sample(format_args!("app=\"{}\",state=\"ejected\"", view.name), count(ejected as u64));
    }
    text.family("nodes", "gauge");
    for view in &views {
        let draining = view.nodes.iter().filter(|node| node.draining).count();
        let ready = view.nodes.len() - draining;
        text.sample(format_args!("app=\"{}\",state=\"ready\"", view.name), count(ready as u64));
        text.sample(format_args!("app=\"{}\",state=\"draining\"", view.name), count(draining as u64));
    }
    text.per_endpoint("endpoint_in_flight", "gauge", &views, |endpoint| u64::from(endpoint.held));
    text.per_endpoint("endpoint_requests_total", "counter", &views, |endpoint| endpoint.picked);
}

fn endpoints(view: &AppView) -> impl Iterator<Item = (&NodeView, &EndpointView)> {
    view.nodes.iter().flat_map(|node| node.endpoints.iter().map(move |endpoint| (node, endpoint)))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus samples are floating point")]
fn count(value: u64) -> f64 {
    value as f64
}

/// Families of samples, one after the other. Names and labels come from registrations, which allow no quotes.
struct Text<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl Text<'_> {
    // writing to a string does not fail
    fn family(&mut self, name: &'static str, kind: &str) {
        self.name = name;
        let _ = writeln!(self.out, "# TYPE servery_balancer_{name} {kind}");
    }

    fn sample(&mut self, labels: std::fmt::Arguments<'_>, value: f64) {
        let _ = writeln!(self.out, "servery_balancer_{}{{{labels}}} {value}", self.name);
    }

    fn per_app(&mut self, name: &'static str, views: &[AppView], value: impl Fn(&AppView) -> f64) {
        self.family(name, "gauge");
        for view in views {
            self.sample(format_args!("app=\"{}\"", view.name), value(view));
        }
    }

    fn per_endpoint(
        &mut self,
        name: &'static str,
        kind: &str,
        views: &[AppView],
        value: impl Fn(&EndpointView) -> u64,
    ) {
        self.family(name, kind);
        for view in views {
            for (node, endpoint) in endpoints(view) {
                let (app, node, worker) = (&view.name, &node.node.instance, &endpoint.worker);
                let (position, generation) = (worker.position, worker.generation);
                let labels =
                    format_args!("app=\"{app}\",node=\"{node}\",worker=\"{position}\",generation=\"{generation}\"");
                self.sample(labels, count(value(endpoint)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        app::Limits,
        endpoint::{Node, WorkerView},
    };
    use std::{sync::Arc, time::Duration};

    #[test]
    fn a_nodes_series_end_with_it() {
        let apps = Apps::new(Limits {
            queue_length: 1,
            client_share: chassis::config::Percent(50),
            stalled_share: chassis::config::Percent(50),
            queue_deadline: Duration::ZERO,
        });
        let app = apps.obtain("demo");
        let node = Arc::new(Node::new("node-1".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"));
        let worker = WorkerView { generation: 3, ..WorkerView::ready(2, ([127, 0, 0, 1], 9000).into(), 5) };
        let stalled =
            WorkerView { state: WorkerState::Stalled, ..WorkerView::ready(4, ([127, 0, 0, 1], 9001).into(), 5) };
        app.apply(&node, &[worker, stalled]);
        let text = || {
            let mut out = String::new();
            render(&apps, &mut out);
            out
        };
        for line in [
            "# TYPE servery_balancer_queue_depth gauge",
            "servery_balancer_permits{app=\"demo\",state=\"free\"} 5",
            "servery_balancer_endpoints{app=\"demo\",state=\"ready\"} 1",
            "servery_balancer_endpoints{app=\"demo\",state=\"stalled\"} 1",
            "servery_balancer_nodes{app=\"demo\",state=\"ready\"} 1",
            "servery_balancer_retry_budget{app=\"demo\"} 100",
            "servery_balancer_endpoint_requests_total{app=\"demo\",node=\"node-1\",worker=\"2\",generation=\"3\"} 0",
        ] {
            assert!(text().lines().any(|other| other == line), "{line} in {}", text());
        }
        app.remove_node("node-1");
        assert!(!text().contains("node-1"));
        assert!(text().contains("servery_balancer_nodes{app=\"demo\",state=\"ready\"} 0"));
    }
}
