//! The keys of a route that leads to fixed upstreams: servers that are no app-servers. In: the route's table. Out: where
//! they are and how they are used, with no value that cannot be. It reads no file and resolves no name.

use super::is_app_name;
use chassis::config::{HostPort, TableReader, Value};
use http::{Uri, uri::PathAndQuery};
use rustls_pki_types::ServerName;
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// More servers than this belong behind a name. Each costs series and checks.
const SERVERS_MAX: usize = 64;
/// Weights are shares: finer ones than a hundredth nobody can see.
const WEIGHT_MAX: u32 = 100;

/// Keys that mean something only beside `upstream`.
const KEYS: [&str; 9] = [
    "name",
    "ca",
    "host_header",
    "protocol",
    "keepalive",
    "max_connections",
    "health_check",
    "health_interval",
    "health_timeout",
];

/// Fixed upstreams as one route names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// In metrics and logs: "upstream:" and a name that is a table's own or the first server's. No app can be called so.
    pub name: String,
    /// At least one; none twice.
    pub servers: Vec<Server>,
    /// Certificates that `https` servers have to be signed by; `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    pub host: HostHeader,
    pub protocol: UpstreamProtocol,
    /// How long a connection may be idle and still be used.
    pub keepalive: Duration,
    /// Requests at once to one address.
    pub max_connections: u32,
    pub health: Option<HealthConfig>,
}

/// What servers are told as `Host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// What the client asked for.
    Preserve,
    /// The server's own name.
    Upstream,
}

/// How servers are spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    Http1,
    /// Within TLS, or by prior knowledge without it (h2c; RFC 9113, section 3.3).
    Http2,
}

/// Questions that tell whether a server is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    pub path: PathAndQuery,
    pub interval: Duration,
    /// From dialling to the head of the response; at most the interval.
    pub timeout: Duration,
}

/// One server, or several behind one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub secure: bool,
    /// With a port, always.
    pub at: HostPort,
    /// Its share of the requests beside the others'; divided by what all have in common.
    pub weight: u32,
}

impl Server {
    /// It is an address itself, and no name that stands for some.
    pub fn is_address(&self) -> bool {
        self.at.host.parse::<IpAddr>().is_ok()
    }
}

impl Value for Server {
    const EXPECTED: &'static str =
        "\"http://10.0.0.5:8000\", \"https://shop.internal\" or \"http://shop:8000 weight=3\", without a path";

    fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let url: Uri = words.next()?.parse().ok()?;
        let weight = match words.next() {
            Some(word) => {
                word.strip_prefix("weight=")?.parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight))?
            }
            None => 1,
        };
        let secure = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return None,
        };
        let authority = url.authority()?.as_str().to_ascii_lowercase();
        let bare = url.path() == "/" && url.query().is_none() && !authority.contains('@');
        if words.next().is_some() || !bare || text.contains('#') {
            return None;
        }
        // a port that is no number is no host either
        let named = if url.port().is_some() || authority.ends_with(':') { "" } else { default_port(secure) };
        let at: HostPort = format!("{authority}{named}").parse().ok()?;
        if secure && ServerName::try_from(at.host.as_str()).is_err() {
            return None; // no certificate could be for it
        }
        Some(Self { secure, at, weight })
    }
}

fn default_port(secure: bool) -> &'static str {
    if secure { ":443" } else { ":80" }
}

/// `None` if there is no `upstream`, or something is wrong with it, which the table knows by then.
pub(super) fn read(table: &mut TableReader<'_>) -> Option<UpstreamConfig> {
    if !table.has("upstream") {
        for key in KEYS {
            if table.has(key) {
                table.refuse(key, "goes with an upstream: remove it, or say upstream = \"http://...\"");
            }
        }
        return None;
    }
    let name = table.optional::<String>("name");
    if name.as_ref().is_some_and(|name| !is_app_name(name)) {
        table.refuse("name", format!("the name of an upstream is {}", super::APP_NAME));
    }
    let ca = table.optional("ca");
    let host = match table.read("host_header", "preserve".to_owned()).as_str() {
        "preserve" => HostHeader::Preserve,
        "upstream" => HostHeader::Upstream,
        _ => {
            table.refuse("host_header", "expected \"preserve\" (what the client asked for) or \"upstream\"");
            HostHeader::Preserve
        }
    };
    let said = table.read("protocol", "http1".to_owned());
    let protocol = if said == "http1" { UpstreamProtocol::Http1 } else { UpstreamProtocol::Http2 };
    // in HTTP/2 a server says that it is about to close, and what it had not seen
    let kept = match protocol {
        UpstreamProtocol::Http1 => Duration::from_millis(1500),
        UpstreamProtocol::Http2 => Duration::from_secs(60),
    };
    let keepalive = table.read("keepalive", kept);
    let max_connections: u32 = table.read("max_connections", 1024);
    let health = read_health(table);
    let servers = read_servers(table)?;
    let fits = match said.as_str() {
        "http1" => true,
        "h2c" => servers.iter().all(|server| !server.secure),
        "h2" => servers.iter().all(|server| server.secure),
        _ => false,
    };
    if !fits {
        table.refuse(
            "protocol",
            "expected \"http1\", \"h2c\" (HTTP/2 to http:// servers) or \"h2\" (to https:// servers)",
        );
    }
    if ca.is_some() && servers.iter().all(|server| !server.secure) {
        table.refuse("ca", "goes with https: none of the servers is one");
    }
    if servers.iter().any(|server| server.weight > max_connections) {
        table.refuse("max_connections", "must be at least the largest weight, of which each unit needs one");
    }
    let first = servers.first()?;
    let name = format!("upstream:{}", name.unwrap_or_else(|| first.at.to_string()));
    Some(UpstreamConfig { name, servers, ca, host, protocol, keepalive, max_connections, health })
}

fn read_servers(table: &mut TableReader<'_>) -> Option<Vec<Server>> {
    let mut servers: Vec<Server> = table.optional("upstream")?;
    if !(1..=SERVERS_MAX).contains(&servers.len()) {
        table.refuse("upstream", format!("expected 1 to {SERVERS_MAX} servers; more of them go behind one name"));
        return None;
    }
    for (at, server) in servers.iter().enumerate() {
        if servers[..at].iter().any(|other| (other.secure, &other.at) == (server.secure, &server.at)) {
            table.refuse("upstream", format!("{} is there twice: give it a weight instead", server.at));
        }
    }
    let common = servers.iter().fold(0, |common, server| divisor(common, server.weight));
    for server in &mut servers {
        server.weight /= common;
    }
    Some(servers)
}

/// The greatest common one.
fn divisor(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { divisor(other, one % other) }
}

fn read_health(table: &mut TableReader<'_>) -> Option<HealthConfig> {
    let path = table.optional::<String>("health_check");
    let interval = table.optional("health_interval");
    let timeout = table.optional("health_timeout");
    let Some(path) = path else {
        for (key, given) in [("health_interval", interval), ("health_timeout", timeout)] {
            if given.is_some() && !table.has("health_check") {
                table.refuse(key, "goes with a health_check, such as health_check = \"/healthz\"");
            }
        }
        return None;
    };
    let parsed = PathAndQuery::try_from(path.as_str()).ok().filter(|_| path.starts_with('/') && !path.contains('#'));
    if parsed.is_none() {
        table.refuse("health_check", "expected a path, such as \"/healthz\"");
    }
    let interval = interval.unwrap_or(Duration::from_secs(5));
    if interval < SHORTEST_INTERVAL {
        table.refuse("health_interval", "expected 100ms or more");
    }
    let timeout = timeout.unwrap_or(Duration::from_secs(2)).min(interval);
    if timeout.is_zero() {
        table.refuse("health_timeout", "with no time at all every server would fail");
    }
    Some(HealthConfig { path: parsed?, interval, timeout })
}

/// Questions more often than this are load.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);
