//! `/status` of an app-server: comes in what is known of the node, goes out the JSON that `servery status --json` has for a
//! node. It asks nobody.

use crate::{
    Config,
    register::{StreamRow, Streams},
    roster::{Roster, Row, State},
};
use chassis::{
    identity::Identity,
    lifecycle::{Lifecycle, Phase},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

/// Makes the page.
pub(crate) struct Status {
    pub(crate) cluster: String,
    pub(crate) config: Config,
    /// Once the node has one.
    pub(crate) identity: Arc<OnceLock<Identity>>,
    pub(crate) roster: Roster,
    pub(crate) streams: Streams,
    pub(crate) lifecycle: Lifecycle,
}

impl Status {
    /// The admin listener adds `version`, `uptime_s` and `ready`.
    pub(crate) fn render(&self) -> Value {
        let rows = self.roster.rows();
        let routes: Vec<Value> = self
            .config
            .routes
            .iter()
            .map(|route| json!({"host": route.host, "prefix": route.prefix, "strip_prefix": route.strip_prefix}))
            .collect();
        let node = json!({
            "node": self.config.name,
            "address": self.config.advertise.map(|address| address.to_string()),
            "state": self.state(&rows),
            "workers": rows.iter().map(worker).collect::<Vec<_>>(),
        });
        json!({
            "cluster": self.cluster,
            "role": "app_server",
            "instance": self.identity.get().map(Identity::instance),
            "apps": [{"name": self.config.app, "routes": routes, "queue_depth": 0, "nodes": [node]}],
            "certificates": [],
            "streams": self.streams.rows().iter().map(stream).collect::<Vec<_>>(),
        })
    }

    fn state(&self, rows: &[Row]) -> &'static str {
        if self.lifecycle.phase() >= Phase::Draining {
            State::Draining.as_str()
        } else if rows.iter().any(|row| row.state == State::Ready) {
            State::Ready.as_str()
        } else {
            State::Starting.as_str()
        }
    }
}

fn worker(row: &Row) -> Value {
    json!({
        "position": row.position,
        "generation": row.generation,
        "pid": row.pid,
        "port": row.port,
        "state": row.state.as_str(),
        "slots": row.capacity,
        "busy": row.busy,
        "on_deck": row.on_deck,
        "served": row.served,
        "restarts": row.restarts(),
        "restarts_by_cause": row.causes.iter().map(|(cause, count)| (cause.as_str(), *count)).collect::<BTreeMap<_, _>>(),
        "waiting": row.waiting,
        "service_ms": f64::from(row.service_us) / 1000.0,
        "age_s": row.started.elapsed().as_secs(),
        "memory_bytes": row.memory,
        "cpu": f64::from(row.cpu_millicores) / 1000.0,
    })
}

fn stream(row: &StreamRow) -> Value {
    json!({
        "peer": row.instance,
        "address": row.address.to_string(),
        "state": row.state.as_str(),
        "since": rfc3339(row.since),
        "granted": row.granted,
        "demand": {
            "waiting": row.demand.waiting,
            "wanted": row.demand.wanted,
            "wait_ms": u64::try_from(row.demand.wait.as_millis()).unwrap_or(u64::MAX),
        },
    })
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
