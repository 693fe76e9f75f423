//! `servery status`: the balancer's `/status` as a table for a person, or as it is for a program.

use crate::{USAGE, ask, cli};
use clap::ArgMatches;
use serde_json::Value;
use std::{fmt::Write as _, process::ExitCode, time::Duration};

const LIMIT: Duration = Duration::from_secs(5);

/// Exit 0 with the status on stdout, 1 when nobody answers.
pub(crate) fn run(given: &ArgMatches) -> ExitCode {
    let address = match ask::addresses(given, &[cli::Role::Balancer]) {
        Ok(addresses) => addresses.first().copied(),
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(USAGE);
        }
    };
    let Some(address) = address else {
        eprintln!("servery status: the balancer's admin listener is off: name another process with --admin");
        return ExitCode::from(USAGE);
    };
    let answer = cli::runtime().and_then(|runtime| runtime.block_on(ask::get(address, "/status", LIMIT)));
    let body = match answer {
        Ok((200, body)) => body,
        Ok((status, _)) => {
            eprintln!("servery status: {address} answers {status}: is that a Servery admin address? See --admin.");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("servery status: {address} does not answer ({error}). Name the admin address with --admin.");
            return ExitCode::FAILURE;
        }
    };
    match serde_json::from_slice::<Value>(&body) {
        Ok(status) if given.get_flag("json") => cli::print(&format!("{status:#}\n")),
        Ok(status) => cli::print(&table(&status)),
        Err(error) => {
            eprintln!("servery status: {address} answered no JSON: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn table(status: &Value) -> String {
    let mut out = String::new();
    let ready = if status["ready"].as_bool() == Some(true) { "ready" } else { "not ready" };
    // writing to a String cannot fail
    let _ = writeln!(
        out,
        "{} {} {} of cluster {}, up {} s, {ready}",
        text(&status["role"]),
        text(&status["instance"]),
        text(&status["version"]),
        text(&status["cluster"]),
        status["uptime_s"].as_f64().unwrap_or_default().round(),
    );
    for app in each(status, "apps") {
        let _ = writeln!(out, "\napp {}: {} waiting", text(&app["name"]), text(&app["queue_depth"]));
        let _ = writeln!(
            out,
            "  {:<28} {:<10} {:>3} {:>4} {:>8} {:>6} {:>6} {:>10} {:>8}",
            "node", "state", "pos", "gen", "pid", "slots", "busy", "served", "restarts"
        );
        for node in each(app, "nodes") {
            for worker in each(node, "workers") {
                let _ = writeln!(
                    out,
                    "  {:<28} {:<10} {:>3} {:>4} {:>8} {:>6} {:>6} {:>10} {:>8}",
                    text(&node["node"]),
                    text(&worker["state"]),
                    text(&worker["position"]),
                    text(&worker["generation"]),
                    text(&worker["pid"]),
                    text(&worker["slots"]),
                    text(&worker["busy"]),
                    text(&worker["served"]),
                    text(&worker["restarts"]),
                );
            }
        }
    }
    for certificate in each(status, "certificates") {
        let names: Vec<_> = each(certificate, "names").map(text).collect();
        let _ = writeln!(
            out,
            "\ncertificate {}: until {}, by {} ({})",
            names.join(", "),
            text(&certificate["not_after"]),
            text(&certificate["issuer"]),
            text(&certificate["source"]),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_has_a_line_for_every_worker_and_certificate() {
        let worker = |position| json!({"position": position, "generation": 7, "pid": 42, "state": "ready", "slots": 256, "busy": 3, "served": 12, "restarts": 0});
        let status = json!({
            "cluster": "servery", "role": "balancer", "instance": "b-1", "version": "0.1.0", "uptime_s": 3, "ready": true,
            "apps": [{"name": "demo", "queue_depth": 2, "nodes": [{"node": "node-1", "workers": [worker(0), worker(1)]}]}],
            "certificates": [{"names": ["localhost"], "not_after": "2027-01-01T00:00:00Z", "issuer": "Servery", "source": "internal"}],
        });
        let table = table(&status);
        assert_eq!(table.lines().filter(|line| line.contains("node-1")).count(), 2);
        assert!(table.contains("demo: 2 waiting") && table.contains("localhost: until 2027"), "{table}");
    }

    #[test]
    fn a_status_with_holes_is_still_a_table() {
        assert!(table(&json!({})).contains("not ready"));
    }
}
