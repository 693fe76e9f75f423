//! Who takes part: comes in a fleet of one-slot workers, goes out a server before it with one address. Everybody but Gunicorn has the
//! same workers; those of nginx and HAProxy are one-slot servers of their own, each of them a `servery app --bind`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs};

use futures_util::future::join_all;
use servery_harness::{
    Client, Cluster, Plan, Process, Protocol, Role, Signal, Site, Standalone, StandalonePlan, eventually,
};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// Where a contender listens in its site.
const HOST: u8 = 10;

/// One-slot workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fleet {
    pub(crate) nodes: u8,
    /// Of each node.
    pub(crate) workers: u8,
    /// The last node takes so many times the time for everything.
    pub(crate) slowness: u32,
}

/// A server before a fleet, until dropped.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    // In the order in which they end.
    front: Option<Process>,
    _backends: Vec<Standalone>,
    _cluster: Option<Cluster>,
    _site: Option<Site>,
    _directory: TempDir,
}

impl Contender {
    pub(crate) fn client(&self) -> Arc<Client> {
        Arc::new(Client::plain(self.address, Protocol::Http1).within(Duration::from_secs(120)))
    }

    /// A Servery cluster of one balancer, with these lines of its own.
    pub(crate) async fn servery(servery: &Path, fleet: Fleet) -> Self {
        let directory = directory();
        let this = exec(directory.path(), 1);
        let plan = Plan::new(servery).plain().nodes(fleet.nodes - 1).workers(fleet.workers);
        let plan = plan.with(Role::AppServer, "capacity = 1").with(Role::AppServer, &this);
        let mut cluster = plan.start().await;
        let last = cluster.prepare_node();
        let file = cluster.nodes[last].config_file();
        let text = fs::read_to_string(&file).expect("the node is configured");
        fs::write(&file, text.replace(&this, &exec(directory.path(), fleet.slowness)))
            .expect("write the configuration");
        cluster.nodes[last].start();
        cluster.ready().await;
        let address = cluster.balancers[0].http();
        let (front, _backends, _site) = (None, Vec::new(), None);
        Self { name: "Servery", address, front, _backends, _cluster: Some(cluster), _site, _directory: directory }
    }

    /// nginx with `least_conn` over all its processes, kept-alive connections to the workers.
    pub(crate) async fn nginx(servery: &Path, fleet: Fleet) -> Self {
        let server = |address: SocketAddr, _| format!("server {address};");
        Self::proxy(
            "nginx least_conn",
            servery,
            fleet,
            include_str!("contender/nginx.conf"),
            server,
            |file, directory| {
                let mut command = Command::new("nginx");
                command.arg("-p").arg(directory).arg("-e").arg("stderr").arg("-c").arg(file);
                command
            },
        )
        .await
    }

    /// HAProxy with `leastconn`, one request at a time to each worker, the others in its queue.
    pub(crate) async fn haproxy(servery: &Path, fleet: Fleet) -> Self {
        let server = |address: SocketAddr, index: usize| format!("server worker{index} {address} maxconn 1");
        let text = include_str!("contender/haproxy.cfg");
        Self::proxy("HAProxy leastconn, maxconn 1", servery, fleet, text, server, |file, _| {
            let mut command = Command::new("haproxy");
            command.args(["-db", "-f"]).arg(file);
            command
        })
        .await
    }

    async fn proxy(
        name: &'static str,
        servery: &Path,
        fleet: Fleet,
        template: &str,
        server: impl Fn(SocketAddr, usize) -> String,
        command: impl Fn(&Path, &Path) -> Command,
    ) -> Self {
        let directory = directory();
        let backends = backends(servery, fleet, directory.path()).await;
        let servers: Vec<String> =
            backends.iter().enumerate().map(|(index, backend)| server(backend.address(), index)).collect();
        let site = Site::claim();
        let address = site.at(HOST, 0);
        let text = template.replace("@listen@", &address.to_string()).replace("@servers@", &servers.join("\n        "));
        let file = directory.path().join("proxy.conf");
        fs::write(&file, text).expect("write the configuration");
        let front = Process::spawn(name, command(&file, directory.path())).expect("start the proxy");
        let (front, _site) = (Some(front), Some(site));
        let contender =
            Self { name, address, front, _backends: backends, _cluster: None, _site, _directory: directory };
        contender.answers().await;
        contender
    }

    /// Gunicorn with its own workers, of one request at a time each; it knows `/sleep` only.
    pub(crate) async fn gunicorn(fleet: Fleet) -> Self {
        let directory = directory();
        fs::write(directory.path().join("app.py"), include_str!("contender/app.py")).expect("write the application");
        let site = Site::claim();
        let address = site.at(HOST, 0);
        let workers = usize::from(fleet.nodes) * usize::from(fleet.workers);
        let mut command = Command::new("gunicorn");
        command.args([
            "--workers",
            &workers.to_string(),
            "--bind",
            &address.to_string(),
            "--timeout",
            "120",
            "app:app",
        ]);
        command.current_dir(directory.path());
        let front = Process::spawn("gunicorn", command).expect("start Gunicorn");
        let (front, _backends, _site) = (Some(front), Vec::new(), Some(site));
        let name = "Gunicorn";
        let contender = Self { name, address, front, _backends, _cluster: None, _site, _directory: directory };
        contender.answers().await;
        contender
    }

    async fn answers(&self) {
        let client = self.client();
        eventually(&format!("{} to answer", self.name), SOON, async || {
            let answer = client.get("/sleep/0").await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
            Ok(())
        })
        .await;
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // Those of nginx do not notice that the one who started them was killed; and while it lives, it starts others.
        let Some(front) = &self.front else { return };
        front.signal(Signal::STOP);
        for process in front.descendants() {
            process.signal(Signal::KILL);
        }
    }
}

/// One-slot servers.
pub(crate) async fn backends(servery: &Path, fleet: Fleet, directory: &Path) -> Vec<Standalone> {
    let fleet = (1..=fleet.nodes).flat_map(|node| {
        let slowness = if node == fleet.nodes { fleet.slowness } else { 1 };
        (0..fleet.workers).map(move |_| slowness)
    });
    let backends = fleet.map(|slowness| {
        let plan = StandalonePlan::new(servery).workers(1).with("capacity = 1").with("keepalive = \"60s\"");
        plan.with(&exec(directory, slowness)).start()
    });
    join_all(backends).await
}

pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("servery-bench-").tempdir().expect("a temporary directory")
}

/// The line of `[app_server]` that runs this program as a worker, so many times slower than it should be.
fn exec(directory: &Path, slowness: u32) -> String {
    let this = env::current_exe().expect("this program has a path");
    if slowness == 1 {
        return format!("exec = {this:?}");
    }
    let script: PathBuf = directory.join(format!("slow-{slowness}"));
    if !script.exists() {
        let shell = r#"printf '#!/bin/sh\nFACTOR=%s exec "%s"\n' "$1" "$2" > "$3" && chmod 755 "$3""#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", shell, "sh", &slowness.to_string()]).arg(this).arg(&script);
        assert!(command.status().expect("a shell").success(), "write {}", script.display());
    }
    format!("exec = {script:?}")
}
