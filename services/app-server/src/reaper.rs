//! Processes that nobody waits for: where the supervisor is the first process of a container, whatever its workers leave
//! behind becomes its child, and stays in the process table until somebody asks how it ended. Come in SIGCHLD and the
//! children that the supervisor waits for itself; goes out nothing. It never takes the end of one of those.

use procfs::process::ProcState;
use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use std::{
    collections::HashSet,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};
use tokio::signal::unix::{SignalKind, signal};

/// Children that somebody waits for. Held while one is started, and while others are reaped, so that none is taken for an
/// orphan before it is known.
static AWAITED: LazyLock<Mutex<HashSet<u32>>> = LazyLock::new(Mutex::default);

/// A child that somebody waits for, until this is dropped.
#[derive(Debug)]
pub(crate) struct Awaited {
    pid: u32,
}

/// Starts a child and notes it before anybody can reap it. `pid_of` is `None` for one that is gone already.
pub(crate) fn awaited<C, E>(
    start: impl FnOnce() -> Result<C, E>,
    pid_of: impl FnOnce(&C) -> Option<u32>,
) -> Result<(C, Option<Awaited>), E> {
    let mut awaited = lock();
    let child = start()?;
    let pid = pid_of(&child);
    awaited.extend(pid);
    Ok((child, pid.map(|pid| Awaited { pid })))
}

/// Reaps orphans for ever, where they come to this process: as the first one of its PID namespace.
pub(crate) async fn reap() {
    if getpid().as_raw_nonzero().get() != 1 {
        return std::future::pending().await;
    }
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => {
            tracing::warn!(%error, "orphans will not be reaped");
            return std::future::pending().await;
        }
    };
    while children.recv().await.is_some() {
        let reaped = reap_orphans();
        if reaped > 0 {
            tracing::debug!(processes = reaped, "reaped what workers left behind");
        }
    }
}

/// How many children that nobody waits for had ended.
fn reap_orphans() -> usize {
    let Ok(all) = procfs::process::all_processes() else { return 0 };
    let us = getpid().as_raw_nonzero().get();
    let awaited = lock();
    let ended = all.filter_map(Result::ok).filter_map(|process| process.stat().ok()).filter(|stat| {
        stat.ppid == us
            && matches!(stat.state(), Ok(ProcState::Zombie))
            && !u32::try_from(stat.pid).is_ok_and(|pid| awaited.contains(&pid))
    });
    let pids: Vec<Pid> = ended.filter_map(|stat| Pid::from_raw(stat.pid)).collect();
    pids.into_iter().filter(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(Some(_)))).count()
}

fn lock() -> MutexGuard<'static, HashSet<u32>> {
    // single inserts and removes: a panic elsewhere cannot leave half of one
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Awaited {
    fn drop(&mut self) {
        lock().remove(&self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::{awaited, reap_orphans};
    use rustix::process::{Pid, test_kill_process};
    use std::{
        env,
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
        thread::sleep,
        time::{Duration, Instant},
    };

    /// Not a test but the process that the test below starts: orphans come to it, as to the first of a container.
    #[test]
    fn is_a_reaper() {
        if env::var_os("SERVERY_TEST_REAPER").is_none() {
            return;
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        // its child says who it is and ends when its parent has: an orphan of ours
        let mut parent = Command::new("/bin/sh");
        parent.args(["-c", "sh -c 'echo $$; exec sleep 0.2' & exit 7"]).stdout(Stdio::piped());
        let (mut parent, noted) = awaited(|| parent.spawn(), |child| Some(child.id())).unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let orphan = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while test_kill_process(orphan).is_ok() {
            reap_orphans();
            assert!(Instant::now() < until, "the orphan is still in the process table");
            sleep(Duration::from_millis(5));
        }
        assert_eq!(reap_orphans(), 0, "the other one is waited for");
        assert_eq!(parent.wait().unwrap().code(), Some(7), "its end was left to who waits for it");
        drop(noted);
    }

    #[test]
    fn orphans_are_reaped_and_awaited_children_are_not() {
        let name = "reaper::tests::is_a_reaper";
        let reaper = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env("SERVERY_TEST_REAPER", "1")
            .output()
            .unwrap();
        assert!(reaper.status.success(), "{}", String::from_utf8_lossy(&reaper.stderr));
    }
}
