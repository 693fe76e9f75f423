//! A whole cluster of real processes: comes in a plan, goes out the cert-sidecar, balancers and nodes it names, each with an
//! address of its own, all ready. Everything ends with it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::dns::Dns;
use crate::eventually::eventually;
use crate::member::{Member, PATIENCE, Port, Role};
use crate::site::Site;

/// First address of each kind within a site.
const SIDECAR_HOST: u8 = 10;
const FIRST_BALANCER_HOST: u8 = 20;
const DNS_HOST: u8 = 53;
const FIRST_NODE_HOST: u8 = 100;

/// The names under which the balancers are found when the plan asks for DNS: by addresses, and by service.
pub const BALANCER_NAME: &str = "balancer.test";
const BALANCER_SERVICE: &str = "_registry._tcp.test";

/// How nodes find the balancers.
#[derive(Clone, Copy, Debug)]
enum Join {
    /// They are told each one's address; later ones are not found.
    Addresses,
    /// By A records; answers are good for this many seconds.
    Name { ttl_s: u32 },
    /// By SRV records, likewise.
    Service { ttl_s: u32 },
}

pub(crate) static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    binary: PathBuf,
    balancers: u8,
    nodes: u8,
    workers: u8,
    join: Join,
    sidecar_lines: String,
    balancer_lines: String,
    node_lines: String,
    tables: String,
    plain: bool,
    alone: bool,
}

impl Plan {
    /// One balancer and one node with one worker, of the `servery` at `binary`.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            balancers: 1,
            nodes: 1,
            workers: 1,
            join: Join::Addresses,
            sidecar_lines: String::new(),
            balancer_lines: String::new(),
            node_lines: String::new(),
            tables: String::new(),
            plain: false,
            alone: false,
        }
    }

    #[must_use]
    pub fn balancers(mut self, count: u8) -> Self {
        self.balancers = count;
        self
    }

    #[must_use]
    pub fn nodes(mut self, count: u8) -> Self {
        self.nodes = count;
        self
    }

    /// Workers of each node.
    #[must_use]
    pub fn workers(mut self, count: u8) -> Self {
        self.workers = count;
        self
    }

    /// Nodes find the balancers by the name [`BALANCER_NAME`], asked of a DNS server whose answers are good for this long.
    #[must_use]
    pub fn by_dns(mut self, ttl_s: u32) -> Self {
        self.join = Join::Name { ttl_s };
        self
    }

    /// Nodes find the balancers by the SRV records of a service, likewise.
    #[must_use]
    pub fn by_service(mut self, ttl_s: u32) -> Self {
        self.join = Join::Service { ttl_s };
        self
    }

    /// One more line in the table `[balancer]`, `[app_server]` or `[cert_sidecar]` of that role's configuration.
    #[must_use]
    pub fn with(mut self, role: Role, line: &str) -> Self {
        let lines = match role {
            Role::Balancer => &mut self.balancer_lines,
            Role::AppServer => &mut self.node_lines,
            Role::CertSidecar => &mut self.sidecar_lines,
        };
        lines.push_str(line);
        lines.push('\n');
        self
    }

    /// Further tables, such as `[[balancer.route]]`, at the end of every process's configuration.
    #[must_use]
    pub fn with_tables(mut self, tables: &str) -> Self {
        self.tables.push_str(tables);
        self.tables.push('\n');
        self
    }

    /// Balancers serve everything over plain HTTP: where a measurement is not to be of TLS.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Among the plans that say so, one cluster at a time in this process: for tests under load, which would be each other's.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Starts everything at once, in no order, and waits until every balancer has every worker and all are ready.
    pub async fn start(self) -> Cluster {
        let turn = if self.alone { Some(ONE_AT_A_TIME.lock().await) } else { None };
        let site = Arc::new(Site::claim());
        let directory = tempfile::Builder::new().prefix("servery-test-").tempdir().expect("a temporary directory");
        let dns = match self.join {
            Join::Addresses => None,
            Join::Name { ttl_s: ttl } | Join::Service { ttl_s: ttl } => {
                Some(Dns::serve(site.at(DNS_HOST, Port::Dns as u16), ttl).await.expect("serve DNS"))
            }
        };
        let sidecar =
            Member::new(Role::CertSidecar, "cert-sidecar", &self.binary, directory.path(), &site, SIDECAR_HOST);
        let mut cluster = Cluster {
            sidecar,
            balancers: Vec::new(),
            nodes: Vec::new(),
            dns,
            join: Vec::new(),
            plan: self,
            site,
            directory,
            _turn: turn,
        };
        let sidecar_config = cluster.config_of(&cluster.sidecar);
        cluster.sidecar.configure(&sidecar_config);
        cluster.sidecar.start();
        for _ in 0..cluster.plan.balancers {
            cluster.start_balancer().await;
        }
        cluster.join = match cluster.plan.join {
            Join::Addresses => cluster.balancers.iter().map(|balancer| balancer.control().to_string()).collect(),
            Join::Name { .. } => vec![format!("{BALANCER_NAME}:{}", cluster.site.port(Port::Control as u16))],
            Join::Service { .. } => vec![BALANCER_SERVICE.to_owned()],
        };
        for _ in 0..cluster.plan.nodes {
            cluster.start_node();
        }
        cluster.ready().await;
        cluster
    }
}

/// A running cluster.
pub struct Cluster {
    pub sidecar: Member,
    pub balancers: Vec<Member>,
    pub nodes: Vec<Member>,
    pub dns: Option<Dns>,
    join: Vec<String>,
    plan: Plan,
    site: Arc<Site>,
    // Last: the processes are gone before their directory is, and before the next cluster starts.
    directory: TempDir,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// Everything's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The binary under test.
    pub fn binary(&self) -> &Path {
        &self.plan.binary
    }

    /// The join token of a balancer, or of a node that serves `demo`.
    pub fn token_file(&self, role: Role) -> PathBuf {
        let name = match role {
            Role::Balancer => "balancer",
            Role::AppServer => "app_server-demo",
            Role::CertSidecar => panic!("the cert-sidecar needs no token"),
        };
        self.sidecar.data().join("tokens").join(name)
    }

    /// Starts one more balancer, found by DNS from now on where the plan says so; does not wait for it.
    pub async fn start_balancer(&mut self) -> usize {
        let index = self.balancers.len();
        let host = FIRST_BALANCER_HOST + u8::try_from(index).expect("few balancers");
        let name = format!("balancer-{index}");
        let mut member = Member::new(Role::Balancer, &name, &self.plan.binary, self.directory(), &self.site, host);
        member.configure(&self.config_of(&member));
        member.start();
        self.balancers.push(member);
        self.publish_balancers().await;
        index
    }

    /// Starts one more node; does not wait for it.
    pub fn start_node(&mut self) -> usize {
        let index = self.prepare_node();
        self.nodes[index].start();
        index
    }

    /// Configures one more node and does not start it.
    pub fn prepare_node(&mut self) -> usize {
        let index = self.nodes.len();
        let host = FIRST_NODE_HOST + u8::try_from(index).expect("few nodes");
        let name = format!("node-{index}");
        let member = Member::new(Role::AppServer, &name, &self.plan.binary, self.directory(), &self.site, host);
        member.configure(&self.config_of(&member));
        self.nodes.push(member);
        index
    }

    /// Tells DNS about the balancers that are in [`Cluster::balancers`] now.
    pub async fn publish_balancers(&self) {
        let Some(dns) = &self.dns else { return };
        let addresses: Vec<_> = self.balancers.iter().map(Member::ip).collect();
        dns.set(BALANCER_NAME, &addresses).await;
        let mut targets = Vec::new();
        for balancer in &self.balancers {
            let host = format!("{}.test", balancer.name);
            dns.set(&host, &[balancer.ip()]).await;
            targets.push((host, balancer.control().port()));
        }
        dns.set_srv(BALANCER_SERVICE, &targets).await;
    }

    /// Waits until every process is ready and every balancer has every worker of every node.
    pub async fn ready(&self) {
        self.sidecar.ready().await;
        for balancer in &self.balancers {
            balancer.ready().await;
        }
        for node in &self.nodes {
            node.ready().await;
        }
        for balancer in &self.balancers {
            self.complete(balancer, self.nodes.len(), PATIENCE).await;
        }
    }

    /// Waits until `balancer` has `nodes` nodes with all their workers ready.
    pub async fn complete(&self, balancer: &Member, nodes: usize, within: Duration) {
        ready_workers(balancer, &vec![usize::from(self.plan.workers); nodes], within).await;
    }

    fn config_of(&self, member: &Member) -> String {
        let plan = &self.plan;
        let mut text = format!("data = {:?}\nsidecar = \"{}\"\n", member.data(), self.sidecar.sidecar());
        if member.role != Role::CertSidecar {
            let _ = writeln!(text, "token_file = {:?}", self.token_file(member.role));
        }
        if let Some(dns) = &self.dns {
            let _ = writeln!(text, "nameservers = [\"{}\"]", dns.address());
        }
        let admin = member.admin();
        let _ = match member.role {
            Role::CertSidecar => {
                let listen = member.sidecar();
                writeln!(text, "[cert_sidecar]\nlisten = \"{listen}\"\nadmin = \"{admin}\"\n{}", plan.sidecar_lines)
            }
            Role::Balancer => {
                let https = if plan.plain { "off".to_owned() } else { member.https().to_string() };
                let (http, control) = (member.http(), member.control());
                writeln!(
                    text,
                    "[balancer]\nhttp = \"{http}\"\nhttps = \"{https}\"\ncontrol = \"{control}\"\nadmin = \"{admin}\"\n{}",
                    plan.balancer_lines
                )
            }
            Role::AppServer => {
                let (name, workers, join) = (&member.name, plan.workers, &self.join);
                // A worker is reached where its node's stream comes from: on one machine that is 127.0.0.1.
                writeln!(
                    text,
                    "[app_server]\nname = \"{name}\"\nworkers = {workers}\njoin = {join:?}\nadmin = \"{admin}\"\n{}{}",
                    if plan.node_lines.contains("worker_bind") { "" } else { "worker_bind = \"127.0.0.1:0\"\n" },
                    plan.node_lines
                )
            }
        };
        text.push_str(&plan.tables);
        text
    }
}

/// The nodes of the app `demo` in a balancer's `/status`.
pub fn nodes_of(status: &Value) -> Vec<Value> {
    let apps = status["apps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let demo = apps.iter().find(|app| app["name"] == "demo");
    demo.and_then(|app| app["nodes"].as_array()).cloned().unwrap_or_default()
}

fn ready_workers_of(node: &Value) -> usize {
    let workers = node["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
    workers.iter().filter(|worker| worker["state"] == "ready").count()
}

/// Waits until `balancer` has as many nodes as `wanted` has entries, each with so many ready workers.
pub async fn ready_workers(balancer: &Member, wanted: &[usize], within: Duration) {
    eventually(&format!("{} to have {wanted:?} ready workers", balancer.name), within, async || {
        let status = balancer.status().await?;
        let ready: Vec<usize> = nodes_of(&status).iter().map(ready_workers_of).collect();
        anyhow::ensure!(ready == wanted, "it has {ready:?}: {status}");
        Ok(())
    })
    .await;
}

/// The name (with its suffix) of the node whose configured name is `name`, in a balancer's `/status`.
pub fn instance_of(status: &Value, name: &str) -> anyhow::Result<String> {
    nodes_of(status)
        .iter()
        .filter_map(|node| node["node"].as_str())
        .find(|node| node.starts_with(name))
        .map(str::to_owned)
        .with_context(|| format!("no node {name} in {status}"))
}
