//! The section `[app_server]`. In: the layers' values. Out: a configuration whose values cannot be wrong; what is, is
//! reported at its line. It binds nothing, starts nothing and asks no other machine.

use chassis::{
    config::{HostPort, Reader, TableReader},
    listen::ListenAddr,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    thread,
    time::Duration,
};

mod alone;
mod limits;
mod pool;

pub use alone::{Bind, Edge, ProxyProtocol};
pub use chassis::config::Percent;
pub use limits::RequestLimits;
pub use pool::Recycling;
use pool::WorkerCount;

/// A typing error must not start a million processes; balancers refuse reports of more than twice as many.
pub(crate) const WORKERS_MAX: u32 = 256;

/// Most requests at once in one worker; each may hold a socket, and a process has tens of thousands of those.
const CAPACITY_MAX: u32 = 65_536;

/// Longest name of a node or an app: both go with every log line of a balancer.
const NAME_MAX: usize = 63;

/// Longest prefix of a route.
const PREFIX_MAX: usize = 1024;

/// Of the admin listener that nobody chose.
const ADMIN_PORT: u16 = 9180;

/// Limits are sent in milliseconds of 32 bits, and nobody means more than a day.
const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// In which limits are sent: less would be 0, which stands for none.
const MILLISECOND: Duration = Duration::from_millis(1);

/// A heartbeat shorter than this would be most of a node's work; a longer one would leave a dead node in rotation.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Everything an app-server can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, for people.
    pub name: String,
    /// The application that this node serves.
    pub app: String,
    /// Where the balancers are found; every address of every name is one. Empty with `bind`.
    pub join: Vec<HostPort>,
    /// Where the node serves clients by itself; this machine's port 8000 if neither was said. `None` with `join`.
    pub bind: Option<Bind>,
    /// What matters only with `bind`.
    pub edge: Edge,
    /// Worker processes.
    pub workers: u32,
    /// Up to how many workers there may be while requests wait; as many as `workers`: there are never more.
    pub workers_max: u32,
    pub recycling: Recycling,
    /// How many of the workers may be replaced at the same time; at least one.
    pub replace_at_once: Percent,
    pub request_limits: RequestLimits,
    /// This file holds the supervisor's process id while it runs.
    pub pid: Option<PathBuf>,
    /// Where what the supervisor and its workers write to stderr goes instead. Absolute.
    pub log_file: Option<PathBuf>,
    /// Requests at once in one worker.
    pub capacity: u32,
    /// The user's own worker program. `None`: the demo application.
    pub exec: Option<PathBuf>,
    /// To the head of the application's response. A worker that says nothing for that long is replaced, too.
    pub timeout: Duration,
    /// For what is in flight when the node stops.
    pub graceful_timeout: Duration,
    /// For a worker to become ready.
    pub start_timeout: Duration,
    /// How long this node promises its balancers to be silent at most.
    pub heartbeat: Duration,
    /// Where the first worker listens; the next ones take the free ports after it. Port 0: any.
    pub worker_bind: ListenAddr,
    /// Where balancers reach the workers. `None`: at the address they see.
    pub advertise: Option<IpAddr>,
    pub admin: ListenAddr,
    /// Nobody chose `admin`. A node that serves by itself takes another port then if that one is taken: a second
    /// one on a machine should just start.
    pub admin_is_default: bool,
    /// What the node asks to be routed to its app.
    pub routes: Vec<RouteConfig>,
}

/// One `[[app_server.route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Empty: any.
    pub host: String,
    /// Begins with `/`.
    pub prefix: String,
    pub strip_prefix: bool,
}

impl Config {
    /// Asks `reader` for the section; every mistake is told to the reader, which keeps a default in its place.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let workers = reader.read("app_server.workers", WorkerCount::Auto).or_cores(cores());
        let mut config = Self {
            name: reader.optional("app_server.name").unwrap_or_else(host_name),
            app: reader.read("app_server.app", "demo".to_owned()),
            join: reader.read("app_server.join", Vec::new()),
            bind: reader.optional("app_server.bind"),
            edge: Edge::read(reader),
            workers,
            workers_max: workers,
            recycling: Recycling::read(reader),
            replace_at_once: reader.read("app_server.replace_at_once", Percent(25)),
            request_limits: RequestLimits::read(reader),
            pid: reader.optional("app_server.pid").map(alone::absolute),
            log_file: reader.optional("app_server.log_file").filter(|path| path != "-").map(alone::absolute),
            capacity: reader.read("app_server.capacity", 256),
            exec: reader.optional("app_server.exec"),
            timeout: reader.read("app_server.timeout", Duration::from_secs(30)),
            graceful_timeout: reader.read("app_server.graceful_timeout", Duration::from_secs(30)),
            start_timeout: reader.read("app_server.start_timeout", Duration::from_secs(30)),
            heartbeat: reader.read("app_server.heartbeat", Duration::from_secs(1)),
            worker_bind: reader.read("app_server.worker_bind", ListenAddr::All(9000)),
            advertise: reader.optional("app_server.advertise"),
            admin: ListenAddr::All(ADMIN_PORT),
            admin_is_default: false,
            routes: reader.tables("app_server.route", route),
        };
        if let Some(most) = reader.optional("app_server.workers_max") {
            config.workers_max = most;
            if !(workers..=WORKERS_MAX).contains(&most) {
                let message = format!("at least as many as workers ({workers}) and at most {WORKERS_MAX} are possible");
                reader.refuse("app_server.workers_max", message);
            }
        }
        config.choose_where(reader);
        config.check(reader);
        if config.routes.is_empty() {
            config.routes.push(RouteConfig { host: String::new(), prefix: "/".to_owned(), strip_prefix: false });
        }
        config
    }

    /// Whom the node serves: balancers or clients, and which addresses follow from that.
    fn choose_where(&mut self, reader: &mut Reader<'_>) {
        if self.join.is_empty() {
            self.bind.get_or_insert_with(Bind::by_default);
        } else if self.bind.is_some() {
            let message = "a node serves clients by itself (bind) or registers with balancers (join): leave one out";
            reader.refuse("app_server.bind", message);
        } else {
            self.edge.refuse(reader);
        }
        let admin = reader.optional("app_server.admin");
        self.admin_is_default = admin.is_none();
        self.admin = admin.unwrap_or_else(|| match self.bind {
            // nothing in front of it keeps strangers away
            Some(_) => ListenAddr::At((Ipv4Addr::LOCALHOST, ADMIN_PORT).into()),
            None => ListenAddr::All(ADMIN_PORT),
        });
    }

    fn check(&self, reader: &mut Reader<'_>) {
        if !is_name(&self.name) {
            let message = format!("a node's name is 1 to {NAME_MAX} letters, digits, \"-\", \"_\" and \".\"");
            reader.refuse("app_server.name", message);
        }
        if !is_app_name(&self.app) {
            let message = format!(
                "an app's name is 1 to {NAME_MAX} lower-case letters, digits, \"-\", \"_\" and \".\", beginning with a \
                 letter or digit"
            );
            reader.refuse("app_server.app", message);
        }
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            reader.refuse("app_server.workers", format!("between 1 and {WORKERS_MAX} workers are possible"));
        }
        if !(1..=CAPACITY_MAX).contains(&self.capacity) {
            reader.refuse("app_server.capacity", format!("between 1 and {CAPACITY_MAX} requests at once are possible"));
        }
        for (key, limit) in [
            ("app_server.timeout", self.timeout),
            ("app_server.graceful_timeout", self.graceful_timeout),
            ("app_server.start_timeout", self.start_timeout),
        ] {
            if limit < MILLISECOND || limit > LIMIT_MAX {
                reader.refuse(key, "a time limit is more than nothing and at most a day");
            }
        }
        if !HEARTBEAT.contains(&self.heartbeat) {
            reader.refuse("app_server.heartbeat", "a heartbeat is between 100ms and 60s");
        }
        if self.worker_bind.is_off() {
            reader.refuse("app_server.worker_bind", "workers have to listen somewhere");
        }
        if self.worker_bind.port().is_some_and(|port| (1..1024).contains(&port)) {
            reader.refuse("app_server.worker_bind", "balancers refuse workers on ports below 1024");
        }
        if self.advertise.is_some_and(|address| address.is_unspecified() || address.is_multicast()) {
            reader.refuse("app_server.advertise", "not an address that a balancer could connect to");
        }
        self.edge.check(reader);
        self.recycling.check(reader);
        self.request_limits.check(reader);
    }
}

fn route(table: &mut TableReader<'_>) -> RouteConfig {
    let route = RouteConfig {
        host: table.read("host", String::new()),
        prefix: table.read("prefix", "/".to_owned()),
        strip_prefix: table.read("strip_prefix", false),
    };
    if !route.prefix.starts_with('/') || route.prefix.len() > PREFIX_MAX {
        table.refuse("prefix", format!("a prefix begins with \"/\" and has at most {PREFIX_MAX} characters"));
    }
    route
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain)
}

/// As balancers and certificates have it: it is a label, a part of a URI and a word in log lines.
fn is_app_name(name: &str) -> bool {
    let lower = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    is_name(name) && name.bytes().all(|byte| !byte.is_ascii_uppercase()) && name.as_bytes().first().is_some_and(lower)
}

/// What the process may use: the machine's, its affinity's, or those of its cgroup's quota, whichever is least.
fn cores() -> u32 {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(WORKERS_MAX).min(WORKERS_MAX)
}

/// The machine's name as a node's; what is not allowed in one is left out.
fn host_name() -> String {
    let system = rustix::system::uname();
    let name: String = system.nodename().to_string_lossy().chars().filter(|sign| is_name(&sign.to_string())).collect();
    let name: String = name.chars().take(NAME_MAX).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

#[cfg(test)]
mod tests;
