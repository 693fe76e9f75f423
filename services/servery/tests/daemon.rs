//! A node that serves clients by itself, as an operator of Gunicorn or systemd runs it: signals, its process id, log files that
//! are moved away, readiness, and a socket that is handed to it.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rogue::Program;
use serde_json::Value;
use servery_harness::{Kin, Protocol, Raw, Signal, Site, Standalone, StandalonePlan, ensure, eventually, run};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::task::JoinHandle;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

fn plan() -> StandalonePlan {
    StandalonePlan::new(SERVERY)
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("servery-daemon-").tempdir().unwrap()
}

/// A request on a connection of its own, and everything that came back until the server closed it.
async fn get(address: SocketAddr, path: &'static str) -> String {
    let mut connection = Raw::dial(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n");
    connection.send(request).await.unwrap();
    connection.to_the_end().await.unwrap()
}

/// A request that is in work at the node's only worker.
async fn in_work(node: &Standalone, path: &'static str) -> JoinHandle<String> {
    let asking = tokio::spawn(get(node.address(), path));
    node.rows_with("a request in work", SOON, |rows| rows.iter().any(|row| row.busy == 1)).await;
    asking
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_work() {
    let mut node = plan().start().await;
    let mut idle = Raw::dial(node.address()).await.unwrap();
    idle.send("GET /hello HTTP/1.1\r\nHost: shop.test\r\n\r\n").await.unwrap();
    idle.until("Hello World!").await.unwrap();
    let asking = in_work(&node, "/sleep/1000").await;
    node.signal(Signal::TERM);
    let answer = asking.await.unwrap();
    assert!(answer.ends_with("slept 1000 ms\n"), "{answer}");
    let status = node.ended().await;
    assert!(status.success(), "{status}");
    assert!(idle.to_the_end().await.unwrap().ends_with("Hello World!"), "closed without a word");
    assert!(TcpStream::connect(node.address()).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn sigint_and_sigquit_stop_at_once() {
    for signal in [Signal::INT, Signal::QUIT] {
        let mut node = plan().start().await;
        let workers = node.workers();
        let asking = in_work(&node, "/sleep/20000").await;
        let asked = Instant::now();
        node.signal(signal);
        let status = node.ended().await;
        println!("{signal:?}: {status} after {:?}", asked.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
        let answer = asking.await.unwrap();
        assert!(!answer.contains("slept"), "{answer}");
        eventually("its workers to be gone", Duration::from_secs(1), async || {
            ensure(!workers.iter().any(Kin::is_alive), || format!("{workers:?}"))
        })
        .await;
    }
}

#[tokio::test]
async fn the_pid_file_names_the_supervisor_and_keeps_a_second_one_out() {
    let directory = directory();
    let file = directory.path().join("servery.pid");
    let mut node = plan().with(&format!("pid = {file:?}")).start().await;
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(written.trim(), node.process().pid().to_string());
    let site = Site::claim();
    let [bind, name] = [site.at(1, 0).to_string(), file.display().to_string()];
    let second = ["app", "--bind", &bind, "--admin", "off", "--workers", "1", "--pid", &name];
    let second = run(SERVERY, &second, &[]).await;
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains(written.trim()), "who is it? {second:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);

    // One that nobody could remove is no hindrance.
    node.kill().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    node.start();
    node.ready().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), node.process().pid().to_string());
    node.stop().await;
    assert!(!file.exists(), "it is gone with the node");
}

/// Waits until the file has a line with this in it.
async fn written(file: &Path, word: &str) {
    eventually(&format!("{word:?} in {}", file.display()), SOON, async || {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        ensure(text.contains(word), || text)
    })
    .await;
}

#[tokio::test]
async fn log_files_that_are_moved_away_are_opened_anew() {
    let (directory, program) = (directory(), Program::new());
    let file = |name: &str| directory.path().join(name);
    let (log, access) = (file("servery.log"), file("access.log"));
    let plan = plan().workers(2).with(&program.line());
    let node = plan.with(&format!("log_file = {log:?}")).with(&format!("access_log = {access:?}")).start().await;
    let client = node.client(Protocol::Http1);
    client.get("/hello?before").await.unwrap();
    client.get("/panic").await.unwrap();
    written(&access, "\"/hello\"").await;
    written(&log, "the handler's own fault").await;
    assert!(node.process().stderr().is_empty(), "{:?}", node.process().stderr());

    let (old_log, old_access) = (file("servery.log.1"), file("access.log.1"));
    std::fs::rename(&log, &old_log).unwrap();
    std::fs::rename(&access, &old_access).unwrap();
    node.signal(Signal::USR1);
    eventually("the files to be there again", SOON, async || {
        ensure(log.exists() && access.exists(), || "they are not".to_owned())
    })
    .await;
    // Every worker has its own descriptors: ask until all of them have changed over.
    let size = |file: &Path| std::fs::metadata(file).unwrap().len();
    let lines = |file: &Path| std::fs::read_to_string(file).unwrap().matches("/status/418").count();
    let mut asked = 0;
    eventually("everything to go to the new files", SOON, async || {
        let before = [size(&old_log), size(&old_access)];
        for _ in 0..10 {
            get(node.address(), "/status/418").await;
            get(node.address(), "/panic").await;
        }
        asked += 10;
        eventually("every line to be written", SOON, async || {
            let written = lines(&old_access) + lines(&access);
            ensure(written == asked, || format!("{written} of {asked} are"))
        })
        .await;
        let after = [size(&old_log), size(&old_access)];
        ensure(before == after, || format!("the old ones grew from {before:?} to {after:?}"))
    })
    .await;
    written(&log, "the handler's own fault").await;
    let text = std::fs::read_to_string(&access).unwrap();
    let line: Value = serde_json::from_str(text.lines().find(|line| line.contains("/status/418")).unwrap()).unwrap();
    println!("{line}");
    for (key, value) in [("method", "GET"), ("path", "/status/418"), ("client_ip", "127.0.0.1"), ("host", "shop.test")]
    {
        assert_eq!(line[key], value, "{line}");
    }
    assert_eq!(line["status"], 418);
    assert!(line["request_id"].as_str().is_some_and(|id| id.len() == 32), "{line}");
    assert!(std::fs::read_to_string(&old_access).unwrap().lines().all(|line| !line.contains("before")), "the query");
}

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    /// Hears on until this is said once more.
    async fn told(&mut self, word: &str) -> String {
        let mut buffer = [0; 4096];
        eventually(&format!("{word} to be told"), SOON, async || {
            let length = self.socket.recv(&mut buffer).await.map_err(|error| error.to_string())?;
            self.heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            let last = self.heard.last().cloned().unwrap_or_default();
            ensure(last.lines().any(|line| line.starts_with(word)), || format!("{:?}", self.heard)).map(|()| last)
        })
        .await
    }
}

#[tokio::test]
async fn systemd_is_told_how_it_goes() {
    let directory = directory();
    let path = directory.path().join("notify");
    let mut manager = Manager { socket: UnixDatagram::bind(&path).unwrap(), heard: Vec::new() };
    let mut node = plan().workers(2).variable("NOTIFY_SOCKET", path.to_str().unwrap()).start().await;
    manager.told("READY=1").await;
    let before = node.ready_rows(2, SOON).await;
    node.signal(Signal::HUP);
    let reloading = manager.told("RELOADING=1").await;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading:?}");
    manager.told("READY=1").await;
    node.replaced(&before, 2, SOON).await;
    node.signal(Signal::TERM);
    manager.told("STOPPING=1").await;
    assert!(node.ended().await.success());
    println!("{:?}", manager.heard);
    assert!(manager.heard.iter().any(|words| words.contains("STATUS=workers: 2 ready")), "{:?}", manager.heard);
}

#[tokio::test]
async fn a_socket_passed_by_systemd_is_served_and_never_closed() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // As systemd does it: descriptor 3, and the process's own id.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"";
    let passed = OwnedFd::from(listener.try_clone().unwrap());
    let mut node = plan().workers(2).through(&["/bin/sh", "-c", script, "sh"], passed).prepare().await;
    // A connection that comes before anybody serves is not refused.
    let early = tokio::spawn(get(address, "/hello"));
    node.start();
    node.ready().await;
    assert!(early.await.unwrap().ends_with("Hello World!"));
    assert!(TcpStream::connect(node.address()).await.is_err(), "the socket takes precedence over the configuration");
    assert!(get(address, "/hello").await.ends_with("Hello World!"));
    node.stop().await;
    // Between two lives of the process the socket keeps what comes.
    let between = tokio::spawn(get(address, "/hello"));
    node.start();
    node.ready().await;
    assert!(between.await.unwrap().ends_with("Hello World!"));
}
