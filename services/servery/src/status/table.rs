//! A `/status` as a table for a person. In: the JSON of any role, also one of another version with fields missing. Out:
//! text whose columns are as wide as what is in them, and that cannot move a terminal's cursor.

use serde_json::Value;
use std::fmt::Write as _;

/// A worker's columns. The last one is as long as it is.
const COLUMNS: [(&str, Align); 12] = [
    ("node", Align::Left),
    ("state", Align::Left),
    ("pos", Align::Right),
    ("gen", Align::Right),
    ("pid", Align::Right),
    ("age", Align::Right),
    ("slots", Align::Right),
    ("busy", Align::Right),
    ("served", Align::Right),
    ("cpu %", Align::Right),
    ("MiB", Align::Right),
    ("restarts", Align::Left),
];

const MIB: f64 = 1_048_576.0;

type Row = [String; COLUMNS.len()];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// The whole of it.
pub(super) fn table(status: &Value) -> String {
    let mut out = String::new();
    let ready = if status["ready"].as_bool() == Some(true) { "ready" } else { "not ready" };
    let uptime = status["uptime_s"].as_f64().unwrap_or_default().max(0.0).round();
    // writing to a String cannot fail
    let _ = writeln!(
        out,
        "{} {} {} of cluster {}, up {uptime} s, {ready}",
        text(&status["role"]),
        text(&status["instance"]),
        text(&status["version"]),
        text(&status["cluster"]),
    );
    for app in each(status, "apps") {
        let _ = writeln!(out, "\napp {}: {} waiting", text(&app["name"]), text(&app["queue_depth"]));
        let workers = each(app, "nodes").flat_map(|node| each(node, "workers").map(move |worker| row(node, worker)));
        lines(&workers.collect::<Vec<_>>(), &mut out);
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

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn row(node: &Value, worker: &Value) -> Row {
    let number = |key: &str| worker[key].as_f64().filter(|number| *number >= 0.0);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        text(&node["node"]),
        text(&worker["state"]),
        text(&worker["position"]),
        text(&worker["generation"]),
        text(&worker["pid"]),
        or_dash(worker["age_s"].as_u64().map(age)),
        text(&worker["slots"]),
        text(&worker["busy"]),
        text(&worker["served"]),
        or_dash(number("cpu").map(|cores| format!("{:.1}", cores * 100.0))),
        // no process holds nothing: nobody has looked yet
        or_dash(number("memory_bytes").filter(|bytes| *bytes > 0.0).map(|bytes| format!("{:.0}", bytes / MIB))),
        restarts(worker),
    ]
}

/// `3 (exit 2, reload 1)`, the most frequent cause first.
fn restarts(worker: &Value) -> String {
    let causes = worker["restarts_by_cause"].as_object().into_iter().flatten();
    let mut causes: Vec<(&String, u64)> =
        causes.filter_map(|(cause, count)| Some((cause, count.as_u64().filter(|count| *count > 0)?))).collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let causes: Vec<String> = causes.iter().map(|(cause, count)| format!("{} {count}", plain(cause))).collect();
    let all = text(&worker["restarts"]);
    if causes.is_empty() { all } else { format!("{all} ({})", causes.join(", ")) }
}

/// The two largest units: `45s`, `3m 10s`, `2h 5m`, `12d 4h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => plain(text),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// What a terminal would obey is no text.
fn plain(text: &str) -> String {
    text.chars().map(|sign| if sign.is_control() { '?' } else { sign }).collect()
}

fn lines(rows: &[Row], out: &mut String) {
    let head = COLUMNS.map(|(name, _)| name.to_owned());
    let width = |column: usize| {
        let cells = rows.iter().chain(std::iter::once(&head)).map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(widths).zip(COLUMNS) {
            let _ = match align {
                Align::Left => write!(line, "  {cell:<width$}"),
                Align::Right => write!(line, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(workers: &[Value]) -> Value {
        json!({
            "cluster": "servery", "role": "balancer", "instance": "b-1", "version": "0.1.0", "uptime_s": 3, "ready": true,
            "apps": [{"name": "demo", "queue_depth": 2, "nodes": [
                {"node": "node-1", "workers": workers},
                {"node": "a-node-with-a-name-that-is-longer-than-most", "workers": workers},
            ]}],
            "certificates": [{"names": ["localhost"], "not_after": "2027-01-01T00:00:00Z", "issuer": "Servery", "source": "internal"}],
        })
    }

    fn worker() -> Value {
        json!({
            "position": 1, "generation": 7, "pid": 4242, "state": "ready", "slots": 256, "busy": 3, "served": 120_000,
            "restarts": 3, "restarts_by_cause": {"reload": 1, "exit": 2, "heartbeat": 0}, "age_s": 7500,
            "cpu": 0.256, "memory_bytes": 50_331_648,
        })
    }

    #[test]
    fn a_worker_has_a_line_with_everything_that_is_known_of_it() {
        let table = table(&status(&[worker()]));
        let line = table.lines().find(|line| line.contains("node-1")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        let wanted = "node-1 ready 1 7 4242 2h 5m 256 3 120000 25.6 48 3 (exit 2, reload 1)";
        assert_eq!(cells.join(" "), wanted);
        assert!(table.contains("demo: 2 waiting") && table.contains("localhost: until 2027"), "{table}");
    }

    #[test]
    fn columns_stay_under_their_heads_whatever_is_in_them() {
        let mut wide = worker();
        wide["served"] = json!(12_345_678_901_u64);
        let table = table(&status(&[worker(), wide]));
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("  ")).collect();
        assert_eq!(lines.len(), 5, "{table}");
        let end = lines[0].find("served").unwrap() + "served".len();
        for line in &lines[1..] {
            assert!(line[..end].ends_with(|sign: char| sign.is_ascii_digit()), "{table}");
            assert_eq!(line.as_bytes()[end], b' ', "{table}");
        }
    }

    #[test]
    fn what_is_missing_is_a_dash_and_a_status_with_holes_still_a_table() {
        assert!(table(&json!({})).contains("not ready"));
        let old = json!({"position": 0, "generation": 1, "pid": 9, "state": "ready", "slots": 1, "busy": 0, "served": 0, "restarts": 0, "memory_bytes": 0});
        let table = table(&status(&[old]));
        let line = table.lines().find(|line| line.contains("node-1")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>().join(" "), "node-1 ready 0 1 9 - 1 0 0 - - 0");
    }

    #[test]
    fn a_node_by_itself_has_the_same_table() {
        let mut alone = status(&[worker()]);
        alone["role"] = json!("app_server");
        alone["instance"] = Value::Null;
        alone["certificates"] = json!([]);
        let table = table(&alone);
        assert!(table.starts_with("app_server - 0.1.0 of cluster servery, up 3 s, ready\n"), "{table}");
        assert!(table.contains("node-1"), "{table}");
    }

    #[test]
    fn an_age_has_two_units_at_most() {
        for (seconds, wanted) in [(0, "0s"), (59, "59s"), (190, "3m 10s"), (7500, "2h 5m"), (1_051_200, "12d 4h")] {
            assert_eq!(age(seconds), wanted);
        }
    }

    #[test]
    fn no_text_moves_the_cursor() {
        let mut odd = status(&[worker()]);
        odd["apps"][0]["name"] = json!("demo\u{1b}[2J\n");
        assert!(!table(&odd).contains('\u{1b}'));
    }
}
