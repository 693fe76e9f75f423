//! The JSON of `/status`. In: the apps, the route table, the certificates, the streams. Out: one object as DESIGN 8
//! names its fields. No secret is in it: no pass, no key, no token.

use crate::{
    Shared,
    app::AppView,
    certificates::Standing,
    registry::MemberView,
    route::{HostPattern, Route, Target},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// What the page is made of, besides the data plane's own.
pub(crate) struct Facts<'a> {
    pub(crate) cluster: &'a str,
    /// `None` before enrolment.
    pub(crate) instance: Option<String>,
    pub(crate) standing: &'a Standing,
    pub(crate) members: &'a [MemberView],
}

/// The page, without what the admin listener adds.
pub(crate) fn page(shared: &Shared, facts: &Facts<'_>) -> Value {
    let table = shared.routes.load();
    let apps: Vec<Value> =
        shared.apps.all().iter().map(|app| app_of(&app.view(), table.routes().map(AsRef::as_ref))).collect();
    let certificates: Vec<Value> = shared
        .certificates
        .load()
        .entries()
        .iter()
        .map(|entry| {
            let source = facts.standing.sources.iter().find(|(name, _)| *name == entry.name);
            json!({
                "name": entry.name,
                "names": entry.hosts,
                "not_after": text(entry.not_after),
                "issuer": entry.issuer,
                "source": source.map_or("self-signed", |(_, source)| source),
            })
        })
        .collect();
    let sidecar = json!({
        "peer": facts.standing.peer.as_deref().unwrap_or("cert-sidecar"),
        "role": "cert_sidecar",
        "state": if facts.standing.peer.is_some() { "open" } else { "away" },
        "since": text(facts.standing.since.into()),
    });
    let nodes = facts.members.iter().map(|member| {
        json!({
            "peer": member.instance,
            "role": "app_server",
            "state": if member.leaving { "leaving" } else { "open" },
            "since": text(member.since.into()),
        })
    });
    json!({
        "cluster": facts.cluster,
        "role": "balancer",
        "instance": facts.instance,
        "apps": apps,
        "certificates": certificates,
        "streams": std::iter::once(sidecar).chain(nodes).collect::<Vec<_>>(),
    })
}

fn app_of<'a>(app: &AppView, routes: impl Iterator<Item = &'a Route>) -> Value {
    let mut routes: Vec<String> = routes
        .filter(|route| matches!(&route.target, Target::App(target) if target.name() == &*app.name))
        .map(|route| format!("{}{}", host_of(&route.host), route.prefix))
        .collect();
    routes.sort();
    let nodes = app.nodes.iter().map(|node| {
        let workers = node.endpoints.iter().map(|endpoint| {
            let worker = &endpoint.worker;
            json!({
                "position": worker.position,
                "generation": worker.generation,
                "address": worker.address.to_string(),
                "pid": worker.pid,
                "state": worker.state.as_str(),
                "slots": worker.capacity,
                "grant": worker.grant,
                "held": endpoint.held,
                "busy": worker.busy,
                // Requests are sent to free slots only.
                "on_deck": 0,
                "served": worker.served,
                "restarts": worker.restarts,
            })
        });
        json!({
            "node": node.node.instance,
            "address": node.node.address.ip().to_canonical().to_string(),
            "state": if node.draining { "draining" } else { "ready" },
            "workers": workers.collect::<Vec<_>>(),
        })
    });
    json!({
        "name": &*app.name,
        "routes": routes,
        "queue_depth": app.queue_depth,
        "in_flight": app.in_flight,
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

fn host_of(host: &HostPattern) -> String {
    match host {
        HostPattern::Any => String::new(),
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Wildcard(host) => format!("*.{host}"),
    }
}

/// RFC 3339, whole seconds.
fn text(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}
