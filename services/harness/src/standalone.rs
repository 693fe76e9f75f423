//! A node that serves clients by itself: comes in a plan, goes out one running app-server with an address of its own, ready. It
//! needs no balancer, no cert-sidecar and no identity. It ends with what it is held by.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::MutexGuard;

use crate::client::{Client, Protocol};
use crate::cluster::ONE_AT_A_TIME;
use crate::member::{Launch, Member, Port, Role};
use crate::site::Site;

const HOST: u8 = 100;

/// What it is to be.
#[derive(Clone, Debug)]
pub struct StandalonePlan {
    binary: PathBuf,
    workers: u8,
    /// `None`: as the site has it.
    bind: Option<String>,
    lines: String,
    launch: Launch,
    alone: bool,
}

impl StandalonePlan {
    /// One worker, of the `servery` at `binary`.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            workers: 1,
            bind: None,
            lines: String::new(),
            launch: Launch::default(),
            alone: false,
        }
    }

    #[must_use]
    pub fn workers(mut self, count: u8) -> Self {
        self.workers = count;
        self
    }

    /// Where it listens, instead of at [`Standalone::address`].
    #[must_use]
    pub fn bind(mut self, bind: &str) -> Self {
        self.bind = Some(bind.to_owned());
        self
    }

    /// One more line in `[app_server]`.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// One more variable in its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.launch.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started by this program, which gets the command line behind its own words, with `stdin` as its descriptor 0.
    #[must_use]
    pub fn through(mut self, wrapper: &[&str], stdin: OwnedFd) -> Self {
        self.launch.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self.launch.stdin = Some(Arc::new(stdin));
        self
    }

    /// As [`Plan::alone`](crate::Plan::alone).
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Configures it and does not start it.
    pub async fn prepare(self) -> Standalone {
        let turn = if self.alone { Some(ONE_AT_A_TIME.lock().await) } else { None };
        let site = Arc::new(Site::claim());
        let directory = tempfile::Builder::new().prefix("servery-test-").tempdir().expect("a temporary directory");
        let mut member = Member::new(Role::AppServer, "alone", &self.binary, directory.path(), &site, HOST);
        member.launch = self.launch;
        let bind = self.bind.unwrap_or_else(|| member.http().to_string());
        let mut text = format!("data = {:?}\n", member.data());
        let _ = writeln!(
            text,
            "[app_server]\nname = \"alone\"\nworkers = {}\nbind = {bind:?}\nadmin = \"{}\"\n{}",
            self.workers,
            member.admin(),
            self.lines
        );
        member.configure(&text);
        Standalone { member, directory, _turn: turn }
    }

    /// Starts it, and waits until it is ready.
    pub async fn start(self) -> Standalone {
        let mut node = self.prepare().await;
        node.start();
        node.ready().await;
        node
    }
}

/// The node.
#[derive(Debug)]
pub struct Standalone {
    member: Member,
    // Last: the process is gone before its directory is, and before the next one starts.
    directory: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Standalone {
    /// Where it listens unless the plan says otherwise.
    pub fn address(&self) -> SocketAddr {
        self.member.at(Port::Http)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client that speaks plain HTTP with it.
    pub fn client(&self, protocol: Protocol) -> Arc<Client> {
        Arc::new(Client::plain(self.address(), protocol))
    }
}

impl Deref for Standalone {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

impl DerefMut for Standalone {
    fn deref_mut(&mut self) -> &mut Member {
        &mut self.member
    }
}
