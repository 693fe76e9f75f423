//! What a person is told when the cluster is up: where to look, how to trust it, how to end it.

use super::plan::Plan;
use chassis::listen::ListenAddr;
use std::{fmt::Write as _, path::Path};

/// The table of URLs.
pub(super) fn render(plan: &Plan, home: &Path) -> String {
    let mut rows = Vec::new();
    match (url("https", plan.https), url("http", plan.http)) {
        (Some(https), http) => {
            rows.push((https, "your application".to_owned()));
            rows.extend(http.map(|http| (http, "redirects to HTTPS".to_owned())));
        }
        (None, http) => rows.extend(http.map(|http| (http, "your application, without TLS".to_owned()))),
    }
    let admin = plan.balancer.admin;
    rows.push((format!("http://{admin}/status"), format!("nodes, workers, queue: servery status --admin {admin}")));
    rows.push((format!("http://{admin}/metrics"), "for Prometheus, like those below".to_owned()));
    for member in [&plan.cert_sidecar].into_iter().chain(&plan.nodes) {
        rows.push((format!("http://{}/metrics", member.admin), member.name.clone()));
    }
    let width = rows.iter().map(|(url, _)| url.len()).max().unwrap_or_default();

    let mut out = String::new();
    // writing to a String cannot fail
    let _ = writeln!(out, "\nServery is up with {} nodes; its state is in {}\n", plan.nodes.len(), home.display());
    for (url, what) in rows {
        let _ = writeln!(out, "  {url:<width$}  {what}");
    }
    if let Some(https) = url("https", plan.https) {
        let root = home.join("root.pem");
        let _ = writeln!(
            out,
            "\nIts certificates are from its own authority. To trust it:\n  curl --cacert {root} {https}\n  \
             in a browser or the system's store: import {root} as an authority for web sites",
            root = root.display(),
        );
    }
    let _ = writeln!(out, "\nCtrl-C finishes what is in flight and stops.\n");
    out
}

fn url(scheme: &str, address: ListenAddr) -> Option<String> {
    let port = match address {
        ListenAddr::Off => return None,
        ListenAddr::All(port) => port,
        ListenAddr::At(address) if address.ip().is_loopback() => address.port(),
        ListenAddr::At(address) => return Some(format!("{scheme}://{address}/")),
    };
    Some(format!("{scheme}://localhost:{port}/"))
}

#[cfg(test)]
mod tests {
    use super::{super::plan::Member, *};
    use std::time::Duration;

    fn render_with(https: ListenAddr) -> String {
        let member = |name: &str, port| Member {
            name: name.to_owned(),
            arguments: Vec::new(),
            admin: ([127, 0, 0, 1], port).into(),
            grace: Duration::ZERO,
        };
        let plan = Plan {
            cert_sidecar: member("cert-sidecar", 9181),
            balancer: member("balancer", 9180),
            nodes: vec![member("node-1", 9182), member("node-2", 9183)],
            http: ListenAddr::At(([127, 0, 0, 1], 8080).into()),
            https,
            tokens: Vec::new(),
            _reserved: Vec::new(),
        };
        render(&plan, Path::new("/state"))
    }

    #[test]
    fn the_table_names_every_url_and_the_root() {
        let table = render_with(ListenAddr::All(8443));
        for text in [
            "https://localhost:8443/",
            "http://localhost:8080/",
            ":9180/status",
            ":9183/metrics",
            "--cacert /state/root.pem",
        ] {
            assert!(table.contains(text), "{text} is missing from {table}");
        }
    }

    #[test]
    fn without_tls_there_is_nothing_to_trust() {
        let table = render_with(ListenAddr::Off);
        assert!(!table.contains("root.pem") && table.contains("without TLS"), "{table}");
    }
}
