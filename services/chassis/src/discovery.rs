//! Finds the peers behind a name: comes in a `HOST:PORT` out of the configuration, goes out every address that DNS
//! gives for it, and how long that answer is good for. It keeps no list of its own and follows nothing: whoever wants
//! to follow a name asks again when [`Found::valid_for`] is over. It never connects to what it finds.
//!
//! Every question ends within [`DEADLINE`]. Names that DNS serves with a long time to live (Docker says 600 s) are asked
//! again after five seconds anyway, and a name that is not there is asked for again after half a second, because peers
//! come and go faster than that and one more question costs nothing.

use crate::config::HostPort;
use futures_util::{StreamExt, stream};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};
use std::{
    collections::HashSet,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest a question may take, all tries at all nameservers together.
pub const DEADLINE: Duration = Duration::from_secs(4);

/// Longest that an answer is believed, whatever DNS says.
const LONGEST: Duration = Duration::from_secs(5);

/// Shortest time between two questions, also where DNS says zero.
const SHORTEST: Duration = Duration::from_millis(250);

/// How long "there is no such name" is believed.
const NEGATIVE: Duration = Duration::from_millis(500);

/// One try at one nameserver.
const TRY: Duration = Duration::from_millis(1500);

/// Most addresses that one name may stand for; the rest is left out. A cluster has fewer balancers than this.
const MOST_ADDRESSES: usize = 256;

/// Most targets of one SRV name whose addresses are asked for, and how many at the same time.
const MOST_TARGETS: usize = 64;
const AT_ONCE: usize = 8;

/// Asks DNS. Cheap to clone; clones share their cache.
#[derive(Clone)]
pub struct Discovery {
    resolver: Arc<TokioResolver>,
}

/// What a name stands for just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Never empty, without duplicates. SRV targets in the order of their priority.
    pub addresses: Vec<SocketAddr>,
    /// When to ask again: the answer's time to live, between a quarter of a second and five seconds.
    pub valid_for: Duration,
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// `/etc/resolv.conf` is there but cannot be used.
    #[error("the system's nameservers cannot be read from /etc/resolv.conf: {0}")]
    System(#[source] NetError),
    /// An address or `localhost` alone, which no SRV record can complete.
    #[error("{0} needs a port: write {0}:PORT")]
    PortMissing(String),
    /// DNS answers that there is nothing under that name.
    #[error("DNS has no {kind} for {host}")]
    Absent {
        /// The name that was asked for.
        host: String,
        /// The records that were asked for.
        kind: &'static str,
    },
    /// DNS does not answer, or answers with a fault.
    #[error("DNS cannot be asked for {host}: {source}")]
    Failed {
        /// The name that was asked for.
        host: String,
        /// What the resolver says.
        source: NetError,
    },
    /// No answer within [`DEADLINE`].
    #[error("DNS did not answer for {0} in time")]
    TimedOut(String),
}

/// Addresses of one host, and until when.
struct Addresses {
    found: Vec<IpAddr>,
    valid_until: Instant,
}

impl Discovery {
    /// Asks these nameservers, or with an empty list those of the system (with its `/etc/hosts`). Touches no network.
    ///
    /// # Errors
    /// Where the system's nameservers are wanted and `/etc/resolv.conf` is there but unreadable or wrong. Where the file
    /// is not there, the nameserver is the one on this machine, as for every other program (resolv.conf(5)).
    pub fn new(nameservers: &[SocketAddr]) -> Result<Self, DiscoveryError> {
        let provider = TokioRuntimeProvider::default();
        let mut builder = if nameservers.is_empty() {
            match TokioResolver::builder(provider.clone()) {
                Ok(builder) => builder,
                Err(NetError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    let local = vec![NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST))];
                    TokioResolver::builder_with_config(ResolverConfig::from_name_servers(local), provider)
                }
                Err(error) => return Err(DiscoveryError::System(error)),
            }
        } else {
            let servers = nameservers.iter().map(nameserver).collect();
            let mut builder = TokioResolver::builder_with_config(ResolverConfig::from_name_servers(servers), provider);
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            builder
        };
        let options = builder.options_mut();
        options.timeout = TRY;
        options.attempts = 2;
        options.try_tcp_on_error = true;
        options.positive_max_ttl = Some(LONGEST);
        options.negative_max_ttl = Some(NEGATIVE);
        let resolver = builder.build().map_err(DiscoveryError::System)?;
        Ok(Self { resolver: Arc::new(resolver) })
    }

    /// The addresses behind `name`: itself where it is an address, the loopback addresses where it is `localhost`, by
    /// SRV records (and the addresses of their targets) where it begins with an underscore or has no port, and
    /// otherwise by A and AAAA records.
    ///
    /// # Errors
    /// Where there is not one address. One family that cannot be asked for does not hide the other.
    pub async fn resolve(&self, name: &HostPort) -> Result<Found, DiscoveryError> {
        let (mut addresses, valid_until) = tokio::time::timeout(DEADLINE, self.ask(name))
            .await
            .map_err(|_| DiscoveryError::TimedOut(name.host.clone()))??;
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(MOST_ADDRESSES);
        let valid_for = valid_until.saturating_duration_since(Instant::now()).clamp(SHORTEST, LONGEST);
        Ok(Found { addresses, valid_for })
    }

    async fn ask(&self, name: &HostPort) -> Result<(Vec<SocketAddr>, Instant), DiscoveryError> {
        let host = name.host.as_str();
        if let Some(known) = without_dns(host) {
            let port = name.port.ok_or_else(|| DiscoveryError::PortMissing(host.to_owned()))?;
            let addresses = known.into_iter().map(|address| SocketAddr::new(address, port)).collect();
            return Ok((addresses, Instant::now() + LONGEST));
        }
        match name.port {
            Some(port) if !host.starts_with('_') => {
                let Addresses { found, valid_until } = self.addresses(host).await?;
                Ok((found.into_iter().map(|address| SocketAddr::new(address, port)).collect(), valid_until))
            }
            _ => self.services(host).await,
        }
    }

    /// SRV (RFC 2782): the targets by priority, each with its own port. Weights are left alone: whoever registers
    /// wants every target, not one of them.
    async fn services(&self, host: &str) -> Result<(Vec<SocketAddr>, Instant), DiscoveryError> {
        let answer = self.resolver.srv_lookup(host).await.map_err(|error| failed(host, "SRV records", error))?;
        let mut targets: Vec<(u16, String, u16)> = answer
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                // a target of "." says that the service is decidedly not there
                RData::SRV(service) if !service.target.is_root() => {
                    Some((service.priority, service.target.to_ascii(), service.port))
                }
                _ => None,
            })
            .collect();
        targets.sort();
        targets.truncate(MOST_TARGETS);
        if targets.is_empty() {
            return Err(DiscoveryError::Absent { host: host.to_owned(), kind: "SRV records" });
        }
        // A target without an address is passed over while another one has some.
        let asked: Vec<(u16, Result<Addresses, DiscoveryError>)> = stream::iter(targets)
            .map(|(_, target, port)| async move { (port, self.addresses(&target).await) })
            .buffered(AT_ONCE)
            .collect()
            .await;
        let mut valid_until = answer.valid_until();
        let mut addresses = Vec::new();
        let mut fault = None;
        for (port, result) in asked {
            match result {
                Ok(of_target) => {
                    valid_until = valid_until.min(of_target.valid_until);
                    addresses.extend(of_target.found.into_iter().map(|address| SocketAddr::new(address, port)));
                }
                Err(error) => fault = Some(error),
            }
        }
        match fault {
            Some(error) if addresses.is_empty() => Err(error),
            // ask again soon for what is missing
            Some(_) => Ok((addresses, Instant::now())),
            None => Ok((addresses, valid_until)),
        }
    }

    /// A and AAAA, asked for at the same time. hickory's own `lookup_ip` would let one family hide the other's fault.
    async fn addresses(&self, host: &str) -> Result<Addresses, DiscoveryError> {
        let (four, six) =
            tokio::join!(self.resolver.lookup(host, RecordType::A), self.resolver.lookup(host, RecordType::AAAA));
        let mut addresses = Addresses { found: Vec::new(), valid_until: Instant::now() + LONGEST };
        let mut fault = None;
        for answer in [four, six] {
            match answer {
                Ok(answer) => {
                    addresses.valid_until = addresses.valid_until.min(answer.valid_until());
                    addresses.found.extend(answer.answers().iter().filter_map(|record| match &record.data {
                        RData::A(address) => Some(IpAddr::V4(address.0)),
                        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
                        _ => None,
                    }));
                }
                Err(error) if error.is_no_records_found() => {}
                Err(error) => fault = Some(error),
            }
        }
        match fault {
            _ if !addresses.found.is_empty() => Ok(addresses),
            Some(error) => Err(failed(host, "address", error)),
            None => Err(DiscoveryError::Absent { host: host.to_owned(), kind: "address" }),
        }
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

fn nameserver(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

/// Literal addresses (IPv6 also in brackets) and the names that never leave the machine (RFC 6761, 6.3).
fn without_dns(host: &str) -> Option<Vec<IpAddr>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Some(vec![address]);
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    (name == "localhost" || name.ends_with(".localhost"))
        .then(|| vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)])
}

fn failed(host: &str, kind: &'static str, source: NetError) -> DiscoveryError {
    let host = host.to_owned();
    if source.is_no_records_found() {
        DiscoveryError::Absent { host, kind }
    } else {
        DiscoveryError::Failed { host, source }
    }
}

#[cfg(test)]
mod tests;
