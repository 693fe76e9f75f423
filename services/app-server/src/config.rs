//! The section `[app_server]`. In: the layers' values. Out: a configuration whose values cannot be wrong; what is, is
//! reported at its line. It binds nothing, starts nothing and asks no other machine.

use chassis::{
    config::{HostPort, Reader, TableReader},
    listen::ListenAddr,
};
use std::{net::IpAddr, path::PathBuf, thread, time::Duration};

mod alone;
mod limits;
mod pool;

pub use alone::{Bind, Edge, ProxyProtocol};
pub use limits::RequestLimits;
use pool::WorkerCount;
pub use pool::{Percent, Recycling};

/// A typing error must not start a million processes; balancers refuse reports of more than twice as many.
const WORKERS_MAX: u32 = 256;

/// Most requests at once in one worker; each may hold a socket, and a process has tens of thousands of those.
const CAPACITY_MAX: u32 = 65_536;

/// Longest name of a node or an app: both go with every log line of a balancer.
const NAME_MAX: usize = 63;

/// Longest prefix of a route.
const PREFIX_MAX: usize = 1024;

/// Limits are sent in milliseconds of 32 bits, and nobody means more than a day.
const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

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
    /// Where the node serves clients by itself. `None` with `join`.
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
    /// Holds the supervisor's process id while it runs.
    pub pid: Option<PathBuf>,
    /// Where what the supervisor and its workers write to stderr goes instead.
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
        let mut config = Self {
            name: reader.optional("app_server.name").unwrap_or_else(host_name),
            app: reader.read("app_server.app", "demo".to_owned()),
            join: reader.read("app_server.join", Vec::new()),
            bind: reader.optional("app_server.bind"),
            edge: Edge::read(reader),
            workers: reader.read("app_server.workers", WorkerCount::Auto).or_cores(cores()),
            workers_max: 0,
            recycling: Recycling::read(reader),
            replace_at_once: reader.read("app_server.replace_at_once", Percent(25)),
            request_limits: RequestLimits::read(reader),
            pid: reader.optional("app_server.pid"),
            log_file: reader.optional("app_server.log_file"),
            capacity: reader.read("app_server.capacity", 256),
            exec: reader.optional("app_server.exec"),
            timeout: reader.read("app_server.timeout", Duration::from_secs(30)),
            graceful_timeout: reader.read("app_server.graceful_timeout", Duration::from_secs(30)),
            start_timeout: reader.read("app_server.start_timeout", Duration::from_secs(30)),
            heartbeat: reader.read("app_server.heartbeat", Duration::from_secs(1)),
            worker_bind: reader.read("app_server.worker_bind", ListenAddr::All(9000)),
            advertise: reader.optional("app_server.advertise"),
            admin: reader.read("app_server.admin", ListenAddr::All(9180)),
            routes: reader.tables("app_server.route", route),
        };
        config.workers_max = reader.read("app_server.workers_max", config.workers);
        config.check(reader);
        if config.routes.is_empty() {
            config.routes.push(RouteConfig { host: String::new(), prefix: "/".to_owned(), strip_prefix: false });
        }
        config
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
            if limit.is_zero() || limit > LIMIT_MAX {
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
mod tests {
    use super::{Config, RouteConfig};
    use chassis::{
        config::{HostPort, Layers, Reader},
        listen::ListenAddr,
    };
    use std::time::Duration;

    fn read(text: &str) -> Result<Config, String> {
        let layers = Layers::from_text("servery.toml", text, [], vec![]);
        let mut reader = Reader::new(&layers);
        let config = Config::read(&mut reader);
        reader.finish().map(|()| config).map_err(|problems| problems.to_string())
    }

    #[test]
    fn nothing_said_gives_the_documented_defaults() {
        let config = read("").unwrap();
        assert_eq!((config.app.as_str(), config.capacity), ("demo", 256));
        assert!(config.join.is_empty() && config.exec.is_none() && !config.name.is_empty() && config.workers >= 1);
        assert_eq!((config.timeout, config.heartbeat), (Duration::from_secs(30), Duration::from_secs(1)));
        assert_eq!((config.worker_bind, config.admin), (ListenAddr::All(9000), ListenAddr::All(9180)));
        assert_eq!(config.routes, [RouteConfig { host: String::new(), prefix: "/".to_owned(), strip_prefix: false }]);
    }

    #[test]
    fn what_is_said_is_taken() {
        let config = read(
            "[app_server]\nname = \"node-1\"\napp = \"shop\"\njoin = [\"balancer:7400\"]\nworkers = 3\ncapacity = 7\n\
             exec = \"/bin/app\"\nworker_bind = \"127.0.0.1:0\"\n[[app_server.route]]\nprefix = \"/shop\"\nstrip_prefix = true\n",
        )
        .unwrap();
        assert_eq!(config.join, [HostPort::new("balancer", 7400)]);
        assert_eq!((config.workers, config.capacity, config.name.as_str()), (3, 7, "node-1"));
        assert_eq!(config.routes.len(), 1);
        assert!(config.routes[0].strip_prefix && config.routes[0].prefix == "/shop");
    }

    #[test]
    fn every_mistake_is_told_at_its_line() {
        let problems = read(
            "[app_server]\nname = \"a b\"\nworkers = 0\ncapacity = 100000\ntimeout = \"0s\"\nheartbeat = \"1ms\"\n\
             worker_bind = \"off\"\nbind = \":8000\"\nadvertise = \"::\"\n[[app_server.route]]\nprefix = \"shop\"\n",
        )
        .unwrap_err();
        for line in [2, 3, 4, 5, 6, 7, 8, 9, 11] {
            assert!(problems.contains(&format!("servery.toml:{line}: ")), "line {line} is missing in:\n{problems}");
        }
        assert!(read("[app_server]\napp = \"Shop\"\n").unwrap_err().contains("servery.toml:2: "));
        assert!(read("[app_server]\nworker_bind = \":80\"\n").unwrap_err().contains("below 1024"));
    }
}
