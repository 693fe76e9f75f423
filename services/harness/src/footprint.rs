//! What a process holds of the machine: comes in a pid, goes out what the kernel counts for it. For tests that look for what
//! is left over; a process that has ended holds nothing.

use std::fmt;
use std::path::PathBuf;

use crate::process::descendants_of;

/// At one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    pub descriptors: usize,
    pub threads: u64,
    /// Memory that is there, in KiB.
    pub rss_kib: u64,
    /// Living processes below it.
    pub descendants: usize,
    /// Children that have ended and that it has not asked about.
    pub zombies: usize,
}

impl Footprint {
    pub fn of(pid: u32) -> Self {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let status = std::fs::read_to_string(directory.join("status")).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
        };
        Self {
            descriptors: std::fs::read_dir(directory.join("fd")).map(Iterator::count).unwrap_or_default(),
            threads: number("Threads:"),
            rss_kib: number("VmRSS:"),
            descendants: descendants_of(pid).len(),
            zombies: zombies_of(pid),
        }
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, threads, rss_kib, descendants, zombies } = self;
        write!(
            f,
            "{descriptors} descriptors, {threads} threads, {rss_kib} KiB, {descendants} descendants, {zombies} zombies"
        )
    }
}

fn zombies_of(parent: u32) -> usize {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_zombie = |stat: &str| {
        let mut fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
        fields.next() == Some("Z") && fields.next().and_then(|parent| parent.parse().ok()) == Some(parent)
    };
    processes
        .filter_map(|process| {
            process.file_name().to_str()?.parse::<u32>().ok()?;
            std::fs::read_to_string(process.path().join("stat")).ok()
        })
        .filter(|stat| is_zombie(stat))
        .count()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::eventually::{ensure, eventually};
    use crate::process::Process;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::spawn("shell", command).expect("spawn")
    }

    #[tokio::test]
    async fn descriptors_children_and_zombies_are_counted() {
        // The shell becomes a program that never asks about its child.
        let plain = shell("exec sleep 100");
        let process = shell("sleep 0.1 & sleep 100 & exec 7</dev/null; exec sleep 100");
        eventually("the child to be a zombie", Duration::from_secs(10), async || {
            let (plain, found) = (Footprint::of(plain.pid()), Footprint::of(process.pid()));
            let one_more = found.descriptors == plain.descriptors + 1 && found.rss_kib > 0;
            let family = (found.descendants, found.zombies, found.threads);
            ensure(one_more && family == (1, 1, 1), || format!("{found}; without: {plain}"))
        })
        .await;
        let sleepers = process.descendants();
        drop(process);
        for sleeper in sleepers {
            sleeper.signal(crate::process::Signal::KILL);
        }
    }

    #[test]
    fn nobody_holds_nothing() {
        assert_eq!(Footprint::of(u32::MAX), Footprint::default());
    }
}
