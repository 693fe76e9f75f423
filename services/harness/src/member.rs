//! One process of a cluster: comes in its role, configuration and address, goes out a process that can be started, stopped,
//! killed, frozen and asked. Started again it has the same configuration, address and data.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::client::{Client, Protocol};
use crate::eventually::eventually;
use crate::exposition::Exposition;
use crate::process::{Kin, Process, Signal};
use crate::run::forget_servery;
use crate::site::Site;

/// How long a process may take to start or to drain before a test gives up on it: generous, a loaded machine is no bug.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Balancer,
    AppServer,
    CertSidecar,
}

impl Role {
    /// The subcommand that runs it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::AppServer => "app",
            Self::CertSidecar => "cert-sidecar",
        }
    }

    /// Its name in configuration, certificates and metrics.
    pub fn id(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::AppServer => "app_server",
            Self::CertSidecar => "cert_sidecar",
        }
    }
}

/// Ports of a site, the same for each of its processes, as in containers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Port {
    Http,
    Https,
    Control,
    Admin,
    Sidecar,
    Dns,
}

/// What else than its configuration a process is started with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Launch {
    /// A program and its words, to which the command line is appended.
    pub(crate) wrapper: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// Descriptor 0.
    pub(crate) stdin: Option<Arc<OwnedFd>>,
}

/// A process of a cluster, running or not.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    pub role: Role,
    program: PathBuf,
    directory: PathBuf,
    site: Arc<Site>,
    host: u8,
    pub(crate) launch: Launch,
    process: Option<Process>,
    /// Those before it; kept because their output belongs to the story of a failed test.
    past: Vec<Process>,
}

impl Member {
    /// A process named `name` at address `host` of the site, with its configuration and data below `directory`. Not started.
    pub(crate) fn new(role: Role, name: &str, program: &Path, directory: &Path, site: &Arc<Site>, host: u8) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).expect("make a directory below the temporary one");
        Self {
            name: name.to_owned(),
            role,
            program: program.to_owned(),
            directory,
            site: Arc::clone(site),
            host,
            launch: Launch::default(),
            process: None,
            past: Vec::new(),
        }
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("servery.toml")
    }

    pub(crate) fn configure(&self, text: &str) {
        std::fs::write(self.config_file(), text).expect("write below the temporary directory");
    }

    pub fn ip(&self) -> IpAddr {
        self.site.ip(self.host)
    }

    pub(crate) fn at(&self, port: Port) -> SocketAddr {
        self.site.at(self.host, port as u16)
    }

    /// A balancer's plain HTTP listener.
    pub fn http(&self) -> SocketAddr {
        self.at(Port::Http)
    }

    /// A balancer's HTTPS listener.
    pub fn https(&self) -> SocketAddr {
        self.at(Port::Https)
    }

    /// Where nodes register with a balancer.
    pub fn control(&self) -> SocketAddr {
        self.at(Port::Control)
    }

    /// Where the cert-sidecar listens.
    pub fn sidecar(&self) -> SocketAddr {
        self.at(Port::Sidecar)
    }

    pub fn admin(&self) -> SocketAddr {
        self.at(Port::Admin)
    }

    /// A client of its HTTPS listener that trusts the cluster's root.
    pub fn client(&self, protocol: Protocol) -> Arc<Client> {
        let root = self.data().join("identity/root.pem");
        let client = Client::trusting(&root, self.https(), protocol).expect("a ready balancer has the root on disk");
        Arc::new(client.within(PATIENCE))
    }

    /// A client of its plain HTTP listener.
    pub fn plain_client(&self, protocol: Protocol) -> Arc<Client> {
        Arc::new(Client::plain(self.http(), protocol).within(PATIENCE))
    }

    /// Starts it; does not wait until it serves.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        self.process = Some(self.spawn(&[]));
    }

    /// Starts another process of the same configuration, with these words more, beside the one that runs.
    pub fn spawn(&self, more: &[&str]) -> Process {
        let mut command = match self.launch.wrapper.split_first() {
            None => Command::new(&self.program),
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(&self.program);
                command
            }
        };
        command.args([self.role.command(), "--config"]).arg(self.config_file()).args(more).current_dir(&self.directory);
        forget_servery(&mut command);
        command.env("RUST_BACKTRACE", "1").env("SERVERY_LOG", "info,servery=debug,balancer=debug,app_server=debug");
        command.envs(self.launch.variables.iter().cloned());
        let stdin = self.launch.stdin.as_ref().map_or_else(Stdio::null, |descriptor| {
            descriptor.try_clone().expect("descriptors are not that rare").into()
        });
        Process::spawn_holding(self.name.clone(), command, stdin).expect("spawn the binary under test")
    }

    /// Another process takes this one's place (`--takeover`), and serves. The old one drains; it is the result.
    pub async fn take_over(&mut self) -> &Process {
        let heir = self.spawn(&["--takeover"]);
        eventually(&format!("{} to be taken over", self.name), PATIENCE, async || {
            if let Some(status) = heir.exit_status() {
                panic!("it ended with {status} instead of taking over");
            }
            let taken = heir.stderr().iter().any(|line| line.contains("took over"));
            crate::ensure(taken, || "not yet".to_owned())
        })
        .await;
        self.past.extend(self.process.replace(heir));
        self.ready().await;
        self.past.last().expect("it was just put there")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// Those before it, the oldest first: ended, or taken over from.
    pub fn past(&self) -> &[Process] {
        &self.past
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("{} is not running", self.name))
    }

    /// SIGTERM; panics unless it ends by itself with exit code 0.
    pub async fn stop(&mut self) {
        self.process().terminate(PATIENCE).await;
        self.past.extend(self.process.take());
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process().kill().await;
        self.past.extend(self.process.take());
    }

    /// Waits for its end, however it came about, and tells it.
    pub async fn ended(&mut self) -> ExitStatus {
        let status = self.process().exited(PATIENCE).await;
        self.past.extend(self.process.take());
        status
    }

    /// Stops it, starts it again, and waits until it is ready.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start();
        self.ready().await;
    }

    /// Waits until `/readyz` answers 200; panics with its reasons, or as soon as the process has ended.
    pub async fn ready(&self) {
        let admin = Client::plain(self.admin(), Protocol::Http1).within(Duration::from_secs(2));
        let what = format!("{} to be ready", self.name);
        eventually(&what, PATIENCE, async || {
            if let Some(status) = self.process().exit_status() {
                panic!("{} ended with {status} instead of becoming ready", self.name);
            }
            let answer = admin.get("/readyz").await?;
            anyhow::ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
            Ok(())
        })
        .await;
    }

    /// What `/readyz` says now.
    pub async fn is_ready(&self) -> bool {
        let admin = Client::plain(self.admin(), Protocol::Http1).within(Duration::from_secs(2));
        admin.get("/readyz").await.is_ok_and(|answer| answer.status == 200)
    }

    /// Its `/status`.
    pub async fn status(&self) -> anyhow::Result<Value> {
        let answer = Client::plain(self.admin(), Protocol::Http1).get("/status").await?;
        anyhow::ensure!(answer.status == 200, "/status of {}: {} {}", self.name, answer.status, answer.text());
        answer.json()
    }

    /// Its `/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<Exposition> {
        let answer = Client::plain(self.admin(), Protocol::Http1).get("/metrics").await?;
        anyhow::ensure!(answer.status == 200, "/metrics of {}: {} {}", self.name, answer.status, answer.text());
        Exposition::parse(&answer.text()).with_context(|| format!("/metrics of {}", self.name))
    }

    /// A node's worker processes.
    pub fn workers(&self) -> Vec<Kin> {
        self.process().descendants().into_iter().filter(|kin| kin.parent == self.process().pid()).collect()
    }

    /// What it has logged, all its lives long.
    pub fn log(&self) -> Vec<String> {
        self.past.iter().chain(&self.process).flat_map(Process::stderr).collect()
    }

    /// Waits until it has logged a line with all of `words` in it.
    pub async fn logged(&self, words: &[&str]) {
        eventually(&format!("{} to log {words:?}", self.name), PATIENCE, async || {
            let found = self.log().iter().any(|line| words.iter().all(|word| line.contains(word)));
            crate::ensure(found, || "no such line".to_owned())
        })
        .await;
    }

    /// Its access log, as far as it is written.
    pub fn access_log(&self) -> Vec<Value> {
        let lines = self.past.iter().chain(&self.process).flat_map(Process::stdout);
        lines
            .map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in stdout line {line:?}")))
            .collect()
    }

    /// Stops it from running without ending it, as a debugger or an overcommitted machine does.
    pub fn freeze(&self) {
        self.process().signal(Signal::STOP);
    }

    /// Ends [`Member::freeze`].
    pub fn thaw(&self) {
        self.process().signal(Signal::CONT);
    }
}
