//! `servery up`: a whole cluster from one command, as an ordinary user, and what becomes of it when parts of it die.
//!
//! One test at a time: `up` takes the usual control ports where they are free, and two that start in the same moment may
//! both find them so.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use servery_harness::cluster::nodes_of;
use servery_harness::{Client, Kin, Process, Protocol, Signal, Site, control_time, ensure, eventually, forget_servery};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Who "an ordinary user" is when the tests run as root: nobody.
const NOBODY: u32 = 65_534;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A running `servery up` and where it may be asked.
struct Up {
    process: Process,
    site: Site,
    data: PathBuf,
    _home: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Up {
    /// Runs `servery up` with a data directory of its own and `more` arguments, and waits for its first answer.
    async fn start(more: &[&str]) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("state");
        let site = Site::claim();
        let mut command = Command::new(SERVERY);
        command.arg("up").args(ports(&site)).arg("--data").arg(&data).args(more).current_dir(home.path());
        let process = Process::spawn("up", bare(command)).unwrap();
        let up = Self { process, site, data, _home: home, _turn: Some(turn) };
        up.complete().await;
        up
    }

    fn https(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.site.port(1)).into()
    }

    fn client(&self, protocol: Protocol) -> anyhow::Result<Arc<Client>> {
        Ok(Arc::new(Client::trusting(&self.data.join("root.pem"), self.https(), protocol)?))
    }

    /// Waits until the table of URLs is printed and both nodes with one worker each serve.
    async fn complete(&self) {
        eventually("`up` to be complete", SOON, async || {
            if let Some(status) = self.process.exit_status() {
                panic!("`up` ended with {status}");
            }
            let status = Client::plain(self.admin(0), Protocol::Http1).get("/status").await?.json()?;
            let nodes = nodes_of(&status);
            let ready = nodes.iter().filter(|node| node["workers"][0]["state"] == "ready").count();
            anyhow::ensure!(ready == 2, "{ready} nodes are ready: {status}");
            let answer = self.client(Protocol::Http1)?.get("/whoami").await?;
            anyhow::ensure!(answer.status == 200, "{}", answer.text());
            let table = self.process.stderr().join("\n") + &self.process.stdout().join("\n");
            anyhow::ensure!(table.contains("Ctrl-C"), "no table of URLs yet");
            Ok(())
        })
        .await;
    }

    /// The admin address of the balancer (0), the cert-sidecar (1) or a node (2, 3).
    fn admin(&self, index: u16) -> SocketAddr {
        ([127, 0, 0, 1], self.site.port(2 + index)).into()
    }

    /// The direct children that run this role.
    fn children(&self, role: &str) -> Vec<Kin> {
        let direct = |kin: &Kin| kin.parent == self.process.pid() && kin.has_argument(role);
        self.process.descendants().into_iter().filter(direct).collect()
    }
}

fn ports(site: &Site) -> Vec<String> {
    let flags = [("--http", 0), ("--https", 1), ("--admin", 2)];
    let mut arguments: Vec<String> =
        flags.iter().flat_map(|(flag, index)| [(*flag).to_owned(), site.port(*index).to_string()]).collect();
    arguments.extend(["--nodes", "2", "--workers", "1"].map(str::to_owned));
    arguments
}

/// Without what the environment of the tests may say.
fn bare(mut command: Command) -> Command {
    forget_servery(&mut command);
    command
}

async fn all_gone(what: &str, kin: &[Kin], within: Duration) {
    eventually(what, within, async || {
        let alive: Vec<_> = kin.iter().filter(|kin| kin.is_alive()).collect();
        ensure(alive.is_empty(), || format!("still there: {alive:?}"))
    })
    .await;
}

/// The binary where everybody may run it, and a directory that belongs to an ordinary user.
fn for_an_ordinary_user(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let program = directory.join("servery");
    std::fs::copy(SERVERY, &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
    let (home, empty) = (directory.join("home"), directory.join("empty"));
    for made in [&home, &empty] {
        std::fs::create_dir(made).unwrap();
        std::fs::set_permissions(made, PermissionsExt::from_mode(0o700)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(made, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    (program, home, empty)
}

#[tokio::test]
async fn an_ordinary_user_in_an_empty_directory_has_https_in_under_three_seconds() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let (program, home, empty) = for_an_ordinary_user(directory.path());
    let site = Site::claim();
    let mut command = Command::new(program);
    command.arg("up").args(ports(&site)).current_dir(&empty);
    command.env_clear().env("HOME", &home).env("PATH", "/usr/bin:/bin");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let control = control_time(SERVERY).await;
    let started = Instant::now();
    let process = Process::spawn("up", command).unwrap();
    let root = home.join(".local/state/servery/root.pem");
    let address: SocketAddr = ([127, 0, 0, 1], site.port(1)).into();
    let who = eventually("the first answer over HTTPS", SOON, async || {
        assert!(process.exit_status().is_none(), "`up` ended: {:?}", process.exit_status());
        let client = Client::trusting(&root, address, Protocol::Http2)?;
        let answer = client.get("/whoami").await?;
        anyhow::ensure!(answer.status == 200, "{}", answer.text());
        answer.json()
    })
    .await;
    let took = started.elapsed();
    println!("the first answer over HTTPS after {took:?}; control: {control:?}");
    // Three seconds, and what a machine adds that is too busy to start a process in a few milliseconds.
    let limit = Duration::from_secs(3) + 20 * control;
    assert!(took < limit, "the first answer took {took:?}, which is above {limit:?}");
    assert_eq!(who["app"], "demo");
    let left_behind: Vec<_> = std::fs::read_dir(&empty).unwrap().collect();
    assert!(left_behind.is_empty(), "`up` wrote into the current directory: {left_behind:?}");
    let mode = std::fs::metadata(home.join(".local/state/servery")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "others may look into the cluster's state");
    // The table says where to look and how to trust the root.
    eventually("the table of URLs", SOON, async || {
        let told = process.stderr().join("\n") + &process.stdout().join("\n");
        let wanted = [format!("https://localhost:{}/", site.port(1)), "root.pem".to_owned(), "/metrics".to_owned()];
        let missing: Vec<_> = wanted.iter().filter(|text| !told.contains(*text)).collect();
        ensure(missing.is_empty(), || format!("{missing:?} is not told"))
    })
    .await;
    let children = process.descendants();
    process.signal(Signal::INT);
    let status = process.exited(SOON).await;
    assert!(status.success(), "`up` ended with {status} on Ctrl-C");
    all_gone("all of its processes to be gone", &children, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_child_that_is_killed_is_started_again_and_serves() {
    let up = Up::start(&[]).await;
    for role in ["app", "cert-sidecar", "balancer"] {
        let before = up.children(role);
        let victim = before.first().unwrap_or_else(|| panic!("no child runs {role}"));
        victim.signal(Signal::KILL);
        eventually(&format!("another {role}"), SOON, async || {
            let now = up.children(role);
            let reborn = now.len() == before.len() && now.iter().all(|kin| kin != victim);
            ensure(reborn && !victim.is_alive(), || format!("{now:?}"))
        })
        .await;
        up.complete().await;
        for index in 0..4 {
            let ready = Client::plain(up.admin(index), Protocol::Http1);
            eventually(&format!("process {index} to be ready after {role} was killed"), SOON, async || {
                let answer = ready.get("/readyz").await?;
                anyhow::ensure!(answer.status == 200, "{}", answer.text());
                Ok(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn when_up_is_killed_its_children_are_gone_within_a_second() {
    let up = Up::start(&[]).await;
    let everybody = up.process.descendants();
    assert_eq!(everybody.len(), 6, "cert-sidecar, balancer, two nodes with a worker each: {everybody:#?}");
    up.process.signal(Signal::KILL);
    all_gone("every child to be gone", &everybody, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn when_a_supervisor_is_killed_its_workers_are_gone_within_a_second() {
    let up = Up::start(&[]).await;
    for (supervisor, frozen) in up.children("app").into_iter().zip([false, true]) {
        let workers: Vec<Kin> = servery_harness::descendants_of(supervisor.pid);
        assert_eq!(workers.len(), 1, "{workers:?}");
        if frozen {
            // It cannot see that its control socket closes: only the kernel can end it.
            workers[0].signal(Signal::STOP);
        }
        supervisor.signal(Signal::KILL);
        all_gone("its workers to be gone", &workers, Duration::from_secs(1)).await;
    }
    up.complete().await;
}

#[tokio::test]
async fn a_second_up_on_the_same_ports_or_data_says_so_and_ends() {
    let up = Up::start(&[]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other_site = Site::claim();
    let taken = up.https().port().to_string();
    let mut same_ports = Command::new(SERVERY);
    same_ports.arg("up").args(ports(&up.site)).arg("--data").arg(elsewhere.path());
    let mut same_data = Command::new(SERVERY);
    same_data.arg("up").args(ports(&other_site)).arg("--data").arg(&up.data);
    let mut same_https_port = ports(&other_site);
    same_https_port[3].clone_from(&taken);
    let mut same_https = Command::new(SERVERY);
    same_https.arg("up").args(same_https_port).arg("--data").arg(elsewhere.path());
    for (what, command, told) in [
        ("the same ports", same_ports, up.site.port(0).to_string()),
        ("the same HTTPS port", same_https, taken.clone()),
        ("the same data", same_data, up.data.display().to_string()),
    ] {
        let second = Process::spawn(format!("up with {what}"), bare(command)).unwrap();
        let status = second.exited(SOON).await;
        assert_eq!(status.code(), Some(1), "with {what} the second `up` ended with {status}");
        eventually("its reason", SOON, async || {
            let said = second.stderr().join("\n");
            ensure(said.contains(&told) && said.contains("use"), || format!("{told} is not told: {said}"))
        })
        .await;
    }
    // The first one did not notice.
    up.complete().await;
}

#[tokio::test]
async fn ctrl_c_lets_a_request_finish() {
    let up = Up::start(&[]).await;
    let everybody = up.process.descendants();
    let slow = Protocol::BOTH.map(|protocol| {
        let client = up.client(protocol).unwrap();
        tokio::spawn(async move { client.get("/sleep/1500").await })
    });
    let admin = Client::plain(up.admin(0), Protocol::Http1);
    eventually("both requests in flight", SOON, async || {
        let metrics = servery_harness::Exposition::parse(&admin.get("/metrics").await?.text())?;
        let in_flight = metrics.sum("servery_balancer_in_flight", &[("app", "demo")]);
        anyhow::ensure!(in_flight > 1.5, "{in_flight} in flight");
        Ok(())
    })
    .await;
    up.process.signal(Signal::INT);
    for task in slow {
        let answer = task.await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let status = up.process.exited(SOON).await;
    assert!(status.success(), "`up` ended with {status}");
    all_gone("every child to be gone", &everybody, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_second_ctrl_c_stops_at_once() {
    let up = Up::start(&[]).await;
    let everybody = up.process.descendants();
    let client = up.client(Protocol::Http1).unwrap();
    let endless = tokio::spawn(async move { client.get("/sleep/25000").await });
    let admin = Client::plain(up.admin(0), Protocol::Http1);
    eventually("the request in flight", SOON, async || {
        let metrics = servery_harness::Exposition::parse(&admin.get("/metrics").await?.text())?;
        anyhow::ensure!(metrics.sum("servery_balancer_in_flight", &[("app", "demo")]) > 0.5, "none");
        Ok(())
    })
    .await;
    up.process.signal(Signal::INT);
    eventually("the drain", SOON, async || {
        ensure(up.process.stderr().iter().any(|line| line.contains("drain")), || "not told yet".to_owned())
    })
    .await;
    let again = Instant::now();
    up.process.signal(Signal::INT);
    up.process.exited(Duration::from_secs(5)).await;
    println!("gone {:?} after the second Ctrl-C", again.elapsed());
    all_gone("every child to be gone", &everybody, Duration::from_secs(1)).await;
    assert!(endless.await.unwrap().is_err(), "the request was answered although everything was stopped");
}

#[tokio::test]
async fn http_only_serves_without_tls() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let data = tempfile::tempdir().unwrap();
    let site = Site::claim();
    let (port, admin) = (site.port(0).to_string(), site.port(2).to_string());
    let mut command = Command::new(SERVERY);
    command.args(["up", "--http-only", "--http", &port, "--admin", &admin, "--nodes", "1", "--workers", "1"]);
    command.arg("--data").arg(data.path()).current_dir(data.path());
    let process = Process::spawn("up", bare(command)).unwrap();
    let client = Client::plain(([127, 0, 0, 1], site.port(0)).into(), Protocol::Http1);
    let who = eventually("an answer over plain HTTP", SOON, async || {
        assert!(process.exit_status().is_none(), "`up` ended: {:?}", process.exit_status());
        let answer = client.get("/whoami").await?;
        anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
        answer.json()
    })
    .await;
    assert_eq!(who["scheme"], "http", "{who}");
    process.terminate(SOON).await;
}

#[tokio::test]
async fn a_restarted_up_keeps_its_root() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("state");
    let site = Site::claim();
    let mut roots = Vec::new();
    for _ in 0..2 {
        let mut command = Command::new(SERVERY);
        command.arg("up").args(ports(&site)).arg("--data").arg(&data).current_dir(home.path());
        let process = Process::spawn("up", bare(command)).unwrap();
        let root = data.join("root.pem");
        eventually("an answer", SOON, async || {
            assert!(process.exit_status().is_none(), "`up` ended: {:?}", process.exit_status());
            let client = Client::trusting(&root, ([127, 0, 0, 1], site.port(1)).into(), Protocol::Http1)?;
            let answer = client.get("/whoami").await?;
            anyhow::ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        })
        .await;
        roots.push(std::fs::read_to_string(&root).unwrap());
        process.terminate(SOON).await;
    }
    assert_eq!(roots[0], roots[1], "whoever trusted the first root is left alone");
}

#[tokio::test]
async fn a_hangup_and_moved_log_files_are_passed_on_and_the_new_routes_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("servery.toml");
    let log = directory.path().join("access.log");
    let first = format!("[balancer]\naccess_log = {log:?}\n");
    std::fs::write(&file, &first).unwrap();
    let up = Up::start(&["--config", file.to_str().unwrap()]).await;
    let children = up.children("balancer");
    let client = up.client(Protocol::Http1).unwrap();
    assert_eq!(client.get("/moved").await.unwrap().status, 404);
    std::fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    up.process.signal(Signal::USR1);
    eventually("a new log file", SOON, async || {
        anyhow::ensure!(log.exists(), "there is none");
        Ok(())
    })
    .await;
    std::fs::write(&file, first + "[[balancer.route]]\nprefix = \"/moved\"\nredirect = \"/whoami\"\n").unwrap();
    up.process.signal(Signal::HUP);
    eventually("the new route", SOON, async || {
        let status = client.get("/moved").await?.status;
        anyhow::ensure!(status == 308, "{status}");
        Ok(())
    })
    .await;
    eventually("new workers", SOON, async || {
        let metrics = Client::plain(up.admin(2), Protocol::Http1).get("/metrics").await?.text();
        anyhow::ensure!(metrics.contains("worker_restarts_total{cause=\"reload\"} 1"), "{metrics}");
        Ok(())
    })
    .await;
    assert_eq!(up.children("balancer"), children, "the same process");
    up.process.terminate(SOON).await;
}
