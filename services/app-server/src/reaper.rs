//! The duty of a process to which orphans are handed down: process 1 of a container, or a child subreaper. In: the
//! children that the supervisor has started, and SIGCHLD. Out: no zombies of processes that dead workers have left. It
//! never waits for a child of the supervisor's own: that child's status belongs to who started it.

use procfs::process::all_processes;
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, WaitOptions, child_subreaper, getpid, waitid, waitpid},
};
use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// Between two looks through all processes.
const PAUSE: Duration = Duration::from_millis(100);

/// The supervisor's own children. They are the process's, so it has one set of them. Held while one is started and
/// while orphans are waited for: a child that ends before it is noted would else pass for an orphan.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn children() -> MutexGuard<'static, BTreeSet<u32>> {
    // a set is whole after every step
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a child that is no orphan. Every child has to be started by this.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut children = children();
    let child = command.spawn()?;
    children.extend(child.id());
    Ok(child)
}

/// Its status has been fetched; the next process with this number may be an orphan. A child that was given up without
/// that is forgotten by itself once it is gone.
pub(crate) fn ended(pid: u32) {
    children().remove(&pid);
}

/// Whether orphans come to this process.
pub(crate) fn is_needed() -> bool {
    getpid().is_init() || child_subreaper().is_ok_and(|reaper| reaper.is_some())
}

/// Reaps orphans as they end. Runs forever.
pub(crate) async fn keep_reaping() {
    let mut ends = match signal(SignalKind::child()) {
        Ok(ends) => ends,
        Err(error) => {
            tracing::warn!(%error, "processes that workers leave behind stay as zombies");
            return;
        }
    };
    loop {
        // first of all, then after every signal: one that comes meanwhile is kept by the stream
        match reap() {
            Ok(0) => {}
            Ok(orphans) => tracing::debug!(orphans, "reaped what workers have left behind"),
            Err(error) => tracing::warn!(%error, "cannot look for processes that workers have left behind"),
        }
        sleep(PAUSE).await;
        ends.recv().await;
    }
}

/// Waits for all orphans that have ended. How many those were.
fn reap() -> io::Result<usize> {
    let mut children = children();
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::All, peek) {
        Ok(Some(_)) => {}
        // nobody has ended, or there is nobody: no need to look at every process
        Ok(None) | Err(Errno::CHILD) => return Ok(0),
        Err(error) => return Err(error.into()),
    }
    let mut reaped = 0;
    let mut alive = BTreeSet::new();
    let ours = getpid().as_raw_nonzero().get();
    for process in all_processes().map_err(io::Error::other)? {
        // one that is gone meanwhile was no zombie of ours
        let Ok(stat) = process.and_then(|process| process.stat()) else { continue };
        if stat.ppid != ours {
            continue;
        }
        let Ok(number) = u32::try_from(stat.pid) else { continue };
        if children.contains(&number) {
            alive.insert(number);
        } else if stat.state == 'Z'
            && let Some(pid) = Pid::from_raw(stat.pid)
            && waitpid(Some(pid), WaitOptions::NOHANG).is_ok_and(|ended| ended.is_some())
        {
            reaped += 1;
        }
    }
    children.retain(|child| alive.contains(child));
    Ok(reaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::set_child_subreaper;
    use std::env;

    const CHILD: &str = "SERVERY_TEST_REAPS";

    /// Ends with 7 and leaves a process behind that ends a little later.
    fn leaver() -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "sh -c 'exit 3' & exit 7"]);
        command
    }

    async fn run() -> Option<i32> {
        let mut child = spawn(&mut leaver()).unwrap();
        let pid = child.id().unwrap();
        let status = child.wait().await.unwrap();
        ended(pid);
        status.code()
    }

    /// Does nothing unless the test below starts it: reaping is the whole process's business.
    #[test]
    fn child() {
        if env::var_os(CHILD).is_none() {
            return;
        }
        assert!(!is_needed());
        set_child_subreaper(Some(getpid())).unwrap();
        assert!(is_needed());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert_eq!(run().await, Some(7));
            // it stays until somebody waits for it
            let orphan = waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap().unwrap();
            assert_eq!(orphan.exit_status(), Some(3));
            assert_eq!(reap().unwrap(), 1);
            assert!(matches!(waitid(WaitId::All, WaitIdOptions::EXITED), Err(Errno::CHILD)));

            // a child of the supervisor's that has ended and was not asked yet
            let mut late = spawn(Command::new("sh").args(["-c", "exit 5"])).unwrap();
            waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            assert_eq!(reap().unwrap(), 0);
            let pid = late.id().unwrap();
            assert_eq!(late.wait().await.unwrap().code(), Some(5));
            ended(pid);

            tokio::spawn(keep_reaping());
            let mut runs = tokio::task::JoinSet::new();
            for _ in 0..50 {
                runs.spawn(run());
            }
            while let Some(code) = runs.join_next().await {
                assert_eq!(code.unwrap(), Some(7), "the status was stolen");
            }
            assert!(children().is_empty());
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let none_left = async {
                while !matches!(waitid(WaitId::All, peek), Err(Errno::CHILD)) {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), none_left).await.expect("zombies stay");
        });
    }

    #[test]
    fn orphans_are_reaped_and_no_childs_status_is_stolen() {
        let output = std::process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "reaper::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
