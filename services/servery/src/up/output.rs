//! What children write to stderr, with the name of who wrote it in front of each line. In: a pipe. Out: lines on our
//! own stderr. A line is never held back for its neighbours; one that is too long is cut into several.

use std::io::Write as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::ChildStderr,
};

/// More than any log line of ours.
const LINE_MAX: usize = 16 * 1024;

/// Copies lines until the child, and all that inherited the pipe from it, have closed it.
pub(super) async fn copy(name: &str, pipe: ChildStderr) {
    let mut pipe = BufReader::with_capacity(LINE_MAX, pipe);
    let mut line = Vec::new();
    loop {
        let Ok(here) = pipe.fill_buf().await else { return };
        if here.is_empty() {
            break;
        }
        let end = here.iter().position(|byte| *byte == b'\n').map(|newline| newline + 1);
        let taken = end.unwrap_or(here.len()).min(LINE_MAX - line.len());
        line.extend_from_slice(&here[..taken]);
        pipe.consume(taken);
        if line.ends_with(b"\n") || line.len() == LINE_MAX {
            write(name, &line);
            line.clear();
        }
    }
    if !line.is_empty() {
        write(name, &line);
    }
}

/// In one call, so that lines of different children do not mix.
fn write(name: &str, line: &[u8]) {
    let mut whole = format!("{name:<12} | ").into_bytes();
    whole.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    whole.push(b'\n');
    // A terminal that is gone does not take the cluster down.
    let _ = std::io::stderr().write_all(&whole);
}
