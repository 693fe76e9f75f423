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
                "source": if entry.from_file { "file" } else { source.map_or("self-signed", |(_, source)| source) },
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
            // of a server that does not report, what this balancer knows by itself
            let (busy, served) = match node.node.reports() {
                true => (worker.busy, worker.served),
                false => (endpoint.held, endpoint.picked),
            };
            json!({
                "position": worker.position,
                "generation": worker.generation,
                "address": worker.address.to_string(),
                "pid": worker.pid,
                "state": worker.state.as_str(),
                "slots": worker.capacity,
                "grant": worker.grant,
                "held": endpoint.held,
                "unsettled": endpoint.unsettled,
                "ejected": endpoint.ejected,
                "busy": busy,
                "on_deck": worker.on_deck,
                "served": served,
                "restarts": worker.restarts,
                "restarts_by_cause": *worker.restarts_by_cause,
                "age_s": worker.age.as_secs_f64(),
                "memory_bytes": worker.memory_bytes,
                "cpu": f64::from(worker.cpu_millicores) / 1000.0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Config,
        endpoint::{Node, WorkerState, WorkerView},
        route::{Prefix, Table},
        tls::CertificateSet,
    };
    use chassis::config::{Layers, Reader};
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    #[test]
    fn the_page_shows_who_serves_what_and_no_secret() {
        let layers = Layers::from_text("test", "", [], Vec::new());
        let config = Config::read(&mut Reader::new(&layers));
        let shared = Shared::new(config, None, CertificateSet::self_signed().unwrap());
        let app = shared.apps.obtain("demo");
        let route = |host: &str, prefix: &str| Route {
            host: HostPattern::parse(host).unwrap(),
            prefix: Prefix::parse(prefix).unwrap(),
            target: Target::App(Arc::clone(&app)),
            strip_prefix: false,
            class: crate::dispatch::Class::default(),
        };
        let routes = [route("", "/shop"), route("*.example.com", "/"), route("a.example.com", "/a")];
        shared.routes.store(Arc::new(Table::new(&[], &routes)));
        let node = Arc::new(Node::new("node-1".to_owned(), "[::ffff:10.0.0.7]:4000".parse().unwrap(), &[0xab; 32]));
        let worker = WorkerView {
            position: 3,
            generation: 7,
            address: "10.0.0.7:9000".parse().unwrap(),
            state: WorkerState::Ready,
            pid: 42,
            capacity: 8,
            grant: 4,
            busy: 2,
            served: 99,
            restarts: 1,
            age: Duration::from_millis(61_500),
            memory_bytes: 1 << 40,
            cpu_millicores: 250,
            orphaned: 0,
            service: None,
            on_deck: 0,
            restarts_by_cause: Arc::new([("crash".to_owned(), 1)].into()),
        };
        app.apply(&node, &[worker]);
        let since = SystemTime::UNIX_EPOCH;
        let standing = Standing { peer: Some("sidecar-1".to_owned()), since, sources: Vec::new() };
        let members = [MemberView { instance: "node-1".to_owned(), leaving: true, since }];
        let facts =
            Facts { cluster: "test", instance: Some("balancer-1".to_owned()), standing: &standing, members: &members };
        let page = page(&shared, &facts);
        assert_eq!(page["apps"][0]["routes"], json!(["*.example.com/", "/shop", "a.example.com/a"]));
        let node = &page["apps"][0]["nodes"][0];
        assert_eq!(
            (&node["node"], &node["address"], &node["state"]),
            (&json!("node-1"), &json!("10.0.0.7"), &json!("ready"))
        );
        let worker = json!({
            "position": 3, "generation": 7, "address": "10.0.0.7:9000", "pid": 42, "state": "ready", "slots": 8,
            "grant": 4, "held": 0, "unsettled": 0, "ejected": false, "busy": 2, "on_deck": 0, "served": 99, "restarts": 1,
            "restarts_by_cause": { "crash": 1 }, "age_s": 61.5, "memory_bytes": 1_u64 << 40, "cpu": 0.25,
        });
        assert_eq!(node["workers"], json!([worker]));
        let streams = json!([
            { "peer": "sidecar-1", "role": "cert_sidecar", "state": "open", "since": "1970-01-01T00:00:00Z" },
            { "peer": "node-1", "role": "app_server", "state": "leaving", "since": "1970-01-01T00:00:00Z" },
        ]);
        assert_eq!(page["streams"], streams);
        assert!(!page.to_string().contains("abab"), "the pass is on the page");
    }
}
