//! What a measurement was made on: comes in nothing, goes out a line for the report, and what this process has used of the CPU.

use std::process::Command;
use std::time::Duration;

/// How many of the kernel's ticks are a second; the same on every Linux that this runs on.
const TICKS: f64 = 100.0;

/// Cores, kernel, and the versions of the others.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, Into::into);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or_default();
    let versions =
        [("nginx", "-v"), ("haproxy", "-v"), ("gunicorn", "--version")].map(|(program, flag)| said(program, flag));
    format!("{cores} cores, Linux {}, load average before {load}; {}.", kernel.trim(), versions.join("; "))
}

fn said(program: &str, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return format!("no {program}") };
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
    line.split(" - ").next().unwrap_or_default().trim_start_matches("nginx version: ").to_owned()
}

/// User's and system's time of this process.
pub(crate) fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // the second field may hold anything: count from its last bracket
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(ticks / TICKS)
}
