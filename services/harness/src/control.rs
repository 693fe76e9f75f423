//! What a latency contract is measured beside: comes in a binary, goes out the time this machine takes, in this moment, to run it
//! for nothing. A test that must hold on a machine with other work to do adds a multiple of it to its limit and prints both.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::Process;

/// Runs `servery --version` to its end.
pub async fn control_time(binary: impl AsRef<Path>) -> Duration {
    let started = Instant::now();
    let mut command = Command::new(binary.as_ref());
    command.arg("--version");
    let process = Process::spawn("a process that does nothing", command).expect("spawn the binary under test");
    process.exited(Duration::from_secs(20)).await;
    started.elapsed()
}
