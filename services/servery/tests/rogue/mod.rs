//! Worker programs that misbehave on request: this test's own program, started again through a script that a mood can be told.
//! A good one serves the demo application and, besides, what it takes to go wrong.
#![allow(dead_code, reason = "every file of tests has a part of it")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use std::{env, hint, process, thread};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Path as Segment;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{any, get};
use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Signal, getpid, kill_process, pidfd_getfd, pidfd_open, set_parent_process_death_signal,
};
use servery_worker::Placement;
use tempfile::TempDir;

/// What one request to `/leak` costs.
pub(crate) const LEAK: usize = 10 << 20;

static CONTROL_IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Requests to `/alone` in this process now.
static TOGETHER: AtomicU32 = AtomicU32::new(0);

/// Not a test but what the worker processes run: does nothing unless an app-server has started it.
#[test]
fn worker() {
    if env::var_os("SERVERY_LISTEN_FD").is_none() {
        return;
    }
    if env::var("MOOD").is_ok_and(|mood| mood == "mute") {
        set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
        park();
    }
    let _ = servery_worker::run(router());
    if CONTROL_IS_CLOSED.load(Ordering::SeqCst) {
        park();
    }
    process::exit(0);
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

fn router() -> Router {
    app_server::demo::router()
        .route("/nap/{ms}", any(nap))
        .route("/alone/{ms}", any(alone))
        .route("/block/{ms}", any(block))
        .route("/take", any(take))
        .route("/leak", get(leak))
        .route("/spin", any(spin))
        .route("/freeze", any(freeze))
        .route("/panic", any(panic))
        .route("/abort", any(abort))
        .route("/close-control", any(close_control))
        .fallback(record)
}

/// Writes down that it came, and that it came to its end.
async fn record(method: Method, uri: Uri, body: Body) -> Result<String, StatusCode> {
    let note = |what: &str| {
        let mut notes = OpenOptions::new().create(true).append(true).open(env::var_os("NOTES").unwrap()).unwrap();
        notes.write_all(format!("{method} {} {what}\n", uri.path()).as_bytes()).unwrap();
    };
    note("begins");
    let whole = to_bytes(body, usize::MAX).await;
    note(if whole.is_ok() { "ends" } else { "breaks" });
    whole.map(|body| format!("recorded {}", body.len())).map_err(|_| StatusCode::BAD_REQUEST)
}

/// Sleeps, and tells in which process.
async fn nap(Segment(ms): Segment<u64>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    process::id().to_string()
}

/// Sleeps, and says so when somebody else is here too.
async fn alone(Segment(ms): Segment<u64>, placement: Placement) -> (StatusCode, String) {
    struct Here;
    impl Drop for Here {
        fn drop(&mut self) {
            TOGETHER.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let others = TOGETHER.fetch_add(1, Ordering::SeqCst);
    let _here = Here;
    tokio::time::sleep(Duration::from_millis(ms)).await;
    let status = if others == 0 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, format!("{others} others at worker {} of {}", placement.position, placement.node))
}

/// What cannot be cancelled: goes on when its client has left, and nothing else runs in this process meanwhile.
async fn block(Segment(ms): Segment<u64>) -> String {
    thread::sleep(Duration::from_millis(ms));
    process::id().to_string()
}

/// Says nothing before it has the whole body.
async fn take(body: Bytes) -> String {
    body.len().to_string()
}

/// The first worker of a node leaks, the others do not.
async fn leak(placement: Placement) -> &'static str {
    if placement.position > 0 {
        return "nothing";
    }
    let leaked = Box::leak(vec![1_u8; LEAK].into_boxed_slice());
    hint::black_box(leaked);
    "leaked"
}

/// Blocks the worker's one thread.
async fn spin() -> &'static str {
    while hint::black_box(true) {}
    "never"
}

/// As by SIGSTOP from outside, but of the very worker that has this request.
async fn freeze() -> &'static str {
    kill_process(getpid(), Signal::STOP).unwrap();
    // Another of this process's threads may be the one that takes the signal: this one is stopped a moment later.
    thread::sleep(Duration::from_secs(1));
    "thawed"
}

async fn panic() -> &'static str {
    panic!("the handler's own fault")
}

async fn abort() -> &'static str {
    process::abort()
}

/// Says nothing to the supervisor any more, and does not end.
async fn close_control() -> &'static str {
    let number = env::var("SERVERY_CONTROL_FD").unwrap().parse().unwrap();
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let control = UnixStream::from(pidfd_getfd(this, number, PidfdGetfdFlags::empty()).unwrap());
    CONTROL_IS_CLOSED.store(true, Ordering::SeqCst);
    control.shutdown(std::net::Shutdown::Both).unwrap();
    "closed"
}

/// What the program does from its next start on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mood {
    Good,
    /// Two seconds later.
    Slow,
    ExitsAtOnce,
    NeverReady,
}

/// The script.
#[derive(Debug)]
pub(crate) struct Program {
    directory: TempDir,
}

impl Program {
    /// A good one.
    pub(crate) fn new() -> Self {
        Self::running("rogue::worker")
    }

    /// One whose workers run this test of the same program.
    pub(crate) fn running(test: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("servery-program-").tempdir().unwrap();
        let program = Self { directory };
        let this = env::current_exe().unwrap();
        let text = format!(
            "#!/bin/sh\nulimit -c 0\nMOOD=good\n[ -e \"$0.mood\" ] && read MOOD < \"$0.mood\"\nexport MOOD NOTES=\"$0.notes\"\n\
             case $MOOD in\nexits) exit 3 ;;\nslow) sleep 2 ;;\nesac\n\
             exec {this:?} --exact {test} --nocapture --quiet\n"
        );
        program.write("app", &text);
        program.is_now(Mood::Good);
        program
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    /// What its workers have recorded, in the order in which they did.
    pub(crate) fn notes(&self) -> Vec<String> {
        let notes = std::fs::read_to_string(self.directory.path().join("app.notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    /// The line of `[app_server]` that runs it.
    pub(crate) fn line(&self) -> String {
        format!("exec = {:?}", self.path())
    }

    pub(crate) fn is_now(&self, mood: Mood) {
        let word = match mood {
            Mood::Good => "good",
            Mood::Slow => "slow",
            Mood::ExitsAtOnce => "exits",
            Mood::NeverReady => "mute",
        };
        self.write("app.mood", &format!("{word}\n"));
    }

    /// At once, and by another process: while this one writes, one of its other threads may start a child, which would hold
    /// the program open for writing, and the kernel runs no such program.
    fn write(&self, name: &str, text: &str) {
        let script = "printf %s \"$2\" > \"$1.new\" && chmod 755 \"$1.new\" && mv \"$1.new\" \"$1\"";
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script, "sh"]).arg(self.directory.path().join(name)).arg(text).stdin(Stdio::null());
        assert!(shell.status().unwrap().success());
    }
}
