//! What children write to stderr, with the name of who wrote it in front of each line. In: a pipe. Out: lines on our
//! own stderr. A line is never held back for its neighbours; one that is too long is cut into several.

use std::io::Write as _;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// More than any log line of ours.
const LINE_MAX: usize = 16 * 1024;

/// Copies lines until the child, and all that inherited the pipe from it, have closed it.
pub(super) async fn copy(name: &str, pipe: impl AsyncRead + Unpin) {
    // A terminal that is gone does not take the cluster down.
    each_line(pipe, |line| drop(std::io::stderr().write_all(&named(name, line)))).await;
}

async fn each_line(pipe: impl AsyncRead + Unpin, mut write: impl FnMut(&[u8])) {
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
            write(&line);
            line.clear();
        }
    }
    if !line.is_empty() {
        write(&line);
    }
}

/// To be written in one call, so that lines of different children do not mix.
fn named(name: &str, line: &[u8]) -> Vec<u8> {
    let mut whole = format!("{name:<12} | ").into_bytes();
    whole.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
    whole.push(b'\n');
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        each_line(text, |line| lines.push(line.to_vec())).await;
        lines
    }

    #[tokio::test]
    async fn every_line_is_passed_on_the_last_one_also_without_its_end() {
        assert_eq!(lines(b"one\n\ntwo").await, [&b"one\n"[..], b"\n", b"two"]);
        assert!(lines(b"").await.is_empty());
    }

    #[tokio::test]
    async fn a_line_that_never_ends_is_cut() {
        let cut: Vec<usize> = lines(&vec![b'x'; LINE_MAX * 2 + 5]).await.iter().map(Vec::len).collect();
        assert_eq!(cut, [LINE_MAX, LINE_MAX, 5]);
    }

    #[test]
    fn a_line_has_the_name_of_who_wrote_it() {
        assert_eq!(named("node-1", b"hello\n"), b"node-1       | hello\n");
    }
}
