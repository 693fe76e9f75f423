//! One process of the cluster under test: comes in a command, goes out a running process whose output is kept, that can be
//! signalled without ever hitting a stranger, and that dies with the test.
//!
//! The kernel sends a parent-death signal when the *thread* that spawned dies, and every test has a thread of its own. So all
//! processes are spawned by one thread that lives as long as the test binary does; `SERVERY_PARENT` tells a child to ask for
//! that signal. Signals go through a pidfd: a pid may be reused, a pidfd never is.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

pub use rustix::process::Signal;

/// How many lines of each stream are kept; older ones are forgotten.
const KEPT_LINES: usize = 20_000;

/// How many lines of each stream are printed when a test fails.
const PRINTED_LINES: usize = 300;

/// A running process, killed on drop. Its output is printed when it is dropped by a panic.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    pidfd: OwnedFd,
    stdout: Output,
    stderr: Output,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` with both its streams kept, in a process group of its own; `name` is for people.
    pub fn spawn(name: impl Into<String>, command: Command) -> io::Result<Self> {
        Self::spawn_holding(name, command, Stdio::null())
    }

    /// As [`Process::spawn`], with this as descriptor 0: the one that a process can be given without anybody's help.
    pub fn spawn_holding(name: impl Into<String>, mut command: Command, stdin: impl Into<Stdio>) -> io::Result<Self> {
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .env("SERVERY_PARENT", std::process::id().to_string());
        let mut child = spawn_from_lasting_thread(command)?;
        let pid = child.id();
        let pidfd = pidfd_open(pid_of(pid), PidfdFlags::empty())?;
        let stdout = Output::follow(child.stdout.take().expect("stdout is piped"));
        let stderr = Output::follow(child.stderr.take().expect("stderr is piped"));
        let (report, exit) = watch::channel(None);
        let waiter = std::thread::spawn(move || {
            let status = child.wait().expect("this thread alone waits for the child");
            report.send_replace(Some(status));
        });
        Ok(Self { name: name.into(), pid, pidfd, stdout, stderr, exit, waiter: Some(waiter) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; one to a process that has ended goes nowhere.
    pub fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("signal {signal:?} to {}: {error}", self.name),
        }
    }

    /// How it ended, if it has.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end; panics when it still runs after `within`.
    pub async fn exited(&self, within: Duration) -> ExitStatus {
        let mut exit = self.exit.clone();
        let ended = async { exit.wait_for(Option::is_some).await.ok().and_then(|status| *status) };
        match tokio::time::timeout(within, ended).await {
            Ok(status) => status.expect("the waiter reports before it ends"),
            Err(_) => panic!("{} (pid {}) still runs after {within:?}", self.name, self.pid),
        }
    }

    /// Asks it to end (SIGTERM), waits, and panics unless it ended with exit code 0.
    pub async fn terminate(&self, within: Duration) {
        self.signal(Signal::TERM);
        let status = self.exited(within).await;
        assert!(status.success(), "{} ended with {status} on SIGTERM", self.name);
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&self) {
        self.signal(Signal::KILL);
        let status = self.exited(Duration::from_secs(5)).await;
        assert!(status.signal().is_some() || status.code().is_some());
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lines()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lines()
    }

    /// Every process below this one, at this moment, in no order.
    pub fn descendants(&self) -> Vec<Kin> {
        descendants_of(self.pid)
    }

    fn print(&self) {
        let end = self.exit_status().map_or_else(|| "running".to_owned(), |status| status.to_string());
        let mut text = format!("---- {} (pid {}, {end})\n", self.name, self.pid);
        for (stream, output) in [("out", &self.stdout), ("err", &self.stderr)] {
            let lines = output.lines();
            let skipped = lines.len().saturating_sub(PRINTED_LINES);
            if skipped > 0 {
                let _ = writeln!(text, "{stream}| ... {skipped} lines before");
            }
            for line in &lines[skipped..] {
                let _ = writeln!(text, "{stream}| {line}");
            }
        }
        eprint!("{text}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        // SIGKILL cannot be refused: this join ends.
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
        if std::thread::panicking() {
            self.print();
        }
    }
}

/// A process found in `/proc`, told apart from a later one of the same pid by its start time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kin {
    pub pid: u32,
    pub parent: u32,
    /// Its arguments, the program's path included.
    pub command: Vec<String>,
    started: u64,
}

impl Kin {
    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        read_kin(self.pid).is_some_and(|kin| kin.started == self.started)
    }

    /// Sends it a signal; one to a process that has ended goes nowhere.
    pub fn signal(&self, signal: Signal) {
        let Ok(pidfd) = pidfd_open(pid_of(self.pid), PidfdFlags::empty()) else { return };
        // Only now is the pid pinned: is it still the same process?
        if self.is_alive() {
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }

    /// Whether `word` is among its arguments.
    pub fn has_argument(&self, word: &str) -> bool {
        self.command.iter().any(|argument| argument == word)
    }
}

/// Every process below `root`, at this moment.
pub fn descendants_of(root: u32) -> Vec<Kin> {
    let all: Vec<Kin> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| read_kin(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let mut found = Vec::new();
    let mut waiting = VecDeque::from([root]);
    while let Some(parent) = waiting.pop_front() {
        for kin in all.iter().filter(|kin| kin.parent == parent) {
            waiting.push_back(kin.pid);
            found.push(kin.clone());
        }
    }
    found
}

fn read_kin(pid: u32) -> Option<Kin> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything: count from the last bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let (state, parent, started) = (*fields.first()?, fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?);
    if matches!(state, "Z" | "X") {
        return None;
    }
    let command = std::fs::read(directory.join("cmdline")).ok()?;
    let command = command
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    Some(Kin { pid, parent, command, started })
}

/// The lines a process has written to one stream.
#[derive(Clone, Debug)]
struct Output(Arc<Mutex<VecDeque<String>>>);

impl Output {
    fn follow(stream: impl Read + Send + 'static) -> Self {
        let output = Self(Arc::default());
        let lines = output.clone();
        // Ends when the last process that inherited the stream has.
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                line.clear();
                let mut lines = lines.lock();
                if lines.len() == KEPT_LINES {
                    lines.pop_front();
                }
                lines.push_back(text);
            }
        });
        output
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> Vec<String> {
        self.lock().iter().cloned().collect()
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::sync_channel(1);
    let orders = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, reply)).expect("the spawning thread lives as long as this process");
    answer.recv().expect("the spawning thread answers every order")
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("Linux pids fit")).expect("a running process has a pid above 0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually::{ensure, eventually};

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Process::spawn("shell", command).expect("spawn")
    }

    #[tokio::test]
    async fn output_and_exit_code_are_kept() {
        let process = shell("echo one; echo two >&2; exit 3");
        assert_eq!(process.exited(SOON).await.code(), Some(3));
        eventually("both lines", SOON, async || {
            ensure(process.stdout() == ["one"] && process.stderr() == ["two"], || format!("{process:?}"))
        })
        .await;
    }

    #[tokio::test]
    async fn descendants_are_found_and_die_by_their_own_signal() {
        let process = shell("sleep 100 & wait");
        let sleeper = eventually("the sleeper", SOON, async || {
            process.descendants().into_iter().find(|kin| kin.has_argument("100")).ok_or("not there")
        })
        .await;
        assert!(sleeper.is_alive());
        sleeper.signal(Signal::KILL);
        process.exited(SOON).await;
        assert!(!sleeper.is_alive());
    }

    #[tokio::test]
    async fn dropping_kills() {
        let process = shell("exec sleep 100");
        let pid = process.pid();
        assert!(read_kin(pid).is_some());
        drop(process);
        assert!(read_kin(pid).is_none());
    }
}
