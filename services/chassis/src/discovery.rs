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
mod tests {
    use super::{Discovery, DiscoveryError, LONGEST, SHORTEST};
    use crate::config::HostPort;
    use hickory_resolver::proto::{
        op::{Message, OpCode, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, AAAA, SRV},
        },
    };
    use std::{net::SocketAddr, time::Duration};
    use tokio::{net::UdpSocket, task::JoinHandle};

    /// A nameserver on a free port that answers from a list, until it is dropped.
    struct Nameserver {
        address: SocketAddr,
        task: JoinHandle<()>,
    }

    impl Drop for Nameserver {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    impl Nameserver {
        /// `broken`: a type that is answered with a fault instead.
        async fn bind(records: Vec<(&'static str, u32, RData)>, broken: Option<RecordType>) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = socket.local_addr().unwrap();
            let task = tokio::spawn(async move {
                let mut packet = [0; 1500];
                loop {
                    let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                    let question = Message::from_vec(&packet[..length]).unwrap();
                    let query = question.queries[0].clone();
                    let mut answer = Message::response(question.metadata.id, OpCode::Query);
                    answer.metadata.recursion_available = true;
                    answer.add_query(query.clone());
                    let named: Vec<_> =
                        records.iter().filter(|(name, ..)| query.name() == &Name::from_ascii(name).unwrap()).collect();
                    if broken == Some(query.query_type()) {
                        answer.metadata.response_code = ResponseCode::ServFail;
                    } else if named.is_empty() {
                        answer.metadata.response_code = ResponseCode::NXDomain;
                    }
                    for (name, ttl, data) in named {
                        if data.record_type() == query.query_type() && broken != Some(query.query_type()) {
                            answer.add_answer(Record::from_rdata(Name::from_ascii(name).unwrap(), *ttl, data.clone()));
                        }
                    }
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            });
            Self { address, task }
        }

        fn discovery(&self) -> Discovery {
            Discovery::new(&[self.address]).unwrap()
        }
    }

    fn a(address: &str) -> RData {
        RData::A(A(address.parse().unwrap()))
    }

    fn aaaa(address: &str) -> RData {
        RData::AAAA(AAAA(address.parse().unwrap()))
    }

    fn srv(priority: u16, port: u16, target: &str) -> RData {
        RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(target).unwrap()))
    }

    fn without_port(host: &str) -> HostPort {
        HostPort { host: host.to_owned(), port: None }
    }

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_name_gives_its_addresses_of_both_families_and_no_duplicate() {
        let dns = Nameserver::bind(
            vec![
                ("balancer.test.", 2, a("192.0.2.1")),
                ("balancer.test.", 2, a("192.0.2.2")),
                ("balancer.test.", 2, a("192.0.2.1")),
                ("balancer.test.", 2, aaaa("2001:db8::1")),
            ],
            None,
        )
        .await;
        let found = dns.discovery().resolve(&HostPort::new("balancer.test", 7400)).await.unwrap();
        let mut addresses = found.addresses.clone();
        addresses.sort();
        assert_eq!(addresses, sockets(&["192.0.2.1:7400", "192.0.2.2:7400", "[2001:db8::1]:7400"]));
        assert!(found.valid_for <= Duration::from_secs(2) && found.valid_for > Duration::from_secs(1), "{found:?}");
    }

    #[tokio::test]
    async fn an_answer_is_good_for_five_seconds_at_most_and_never_for_none() {
        let dns =
            Nameserver::bind(vec![("long.test.", 600, a("192.0.2.1")), ("none.test.", 0, a("192.0.2.1"))], None).await;
        let discovery = dns.discovery();
        let long = discovery.resolve(&HostPort::new("long.test", 1)).await.unwrap();
        assert!(long.valid_for <= LONGEST && long.valid_for > LONGEST - Duration::from_secs(1), "{long:?}");
        assert_eq!(discovery.resolve(&HostPort::new("none.test", 1)).await.unwrap().valid_for, SHORTEST);
    }

    #[tokio::test]
    async fn srv_records_name_the_ports_and_the_nearest_priority_comes_first() {
        let dns = Nameserver::bind(
            vec![
                ("_registry._tcp.test.", 60, srv(20, 7402, "far.test.")),
                ("_registry._tcp.test.", 60, srv(10, 7401, "near.test.")),
                ("_registry._tcp.test.", 60, srv(30, 7403, "lost.test.")),
                ("near.test.", 60, a("192.0.2.1")),
                ("near.test.", 60, aaaa("2001:db8::1")),
                ("far.test.", 60, a("192.0.2.2")),
            ],
            None,
        )
        .await;
        let expected = sockets(&["192.0.2.1:7401", "[2001:db8::1]:7401", "192.0.2.2:7402"]);
        for name in [HostPort::new("_registry._tcp.test", 9), without_port("_registry._tcp.test")] {
            let found = dns.discovery().resolve(&name).await.unwrap();
            assert_eq!(found.addresses, expected, "{name}");
            assert_eq!(found.valid_for, SHORTEST, "a target without an address is asked for again soon");
        }
    }

    #[tokio::test]
    async fn a_name_without_a_port_is_asked_for_by_srv() {
        let dns =
            Nameserver::bind(vec![("web.test.", 60, srv(1, 81, "a.test.")), ("a.test.", 60, a("192.0.2.1"))], None)
                .await;
        let found = dns.discovery().resolve(&without_port("web.test")).await.unwrap();
        assert_eq!(found.addresses, sockets(&["192.0.2.1:81"]));
    }

    #[tokio::test]
    async fn one_family_that_cannot_be_asked_for_does_not_hide_the_other() {
        let dns = Nameserver::bind(vec![("half.test.", 60, a("192.0.2.1"))], Some(RecordType::AAAA)).await;
        let found = dns.discovery().resolve(&HostPort::new("half.test", 80)).await.unwrap();
        assert_eq!(found.addresses, sockets(&["192.0.2.1:80"]));
    }

    #[tokio::test]
    async fn a_name_that_is_not_there_is_told_from_dns_that_fails() {
        let dns = Nameserver::bind(vec![], None).await;
        let absent = dns.discovery().resolve(&HostPort::new("nobody.test", 80)).await.unwrap_err();
        assert!(matches!(absent, DiscoveryError::Absent { .. }), "{absent}");
        let absent = dns.discovery().resolve(&without_port("nobody.test")).await.unwrap_err();
        assert!(matches!(absent, DiscoveryError::Absent { kind: "SRV records", .. }), "{absent}");

        let broken = Nameserver::bind(vec![], Some(RecordType::A)).await;
        let failed = broken.discovery().resolve(&HostPort::new("nobody.test", 80)).await.unwrap_err();
        assert!(matches!(failed, DiscoveryError::Failed { .. }), "{failed}");
    }

    #[tokio::test]
    async fn a_nameserver_that_never_answers_is_given_up_in_time() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let discovery = Discovery::new(&[silent.local_addr().unwrap()]).unwrap();
        let started = std::time::Instant::now();
        let error = discovery.resolve(&HostPort::new("balancer.test", 80)).await.unwrap_err();
        assert!(matches!(error, DiscoveryError::TimedOut(_) | DiscoveryError::Failed { .. }), "{error}");
        assert!(started.elapsed() < super::DEADLINE + Duration::from_secs(2));
    }

    #[tokio::test]
    async fn addresses_and_localhost_ask_nobody() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let discovery = Discovery::new(&[silent.local_addr().unwrap()]).unwrap();
        for (host, expected) in [
            ("192.0.2.7", sockets(&["192.0.2.7:80"])),
            ("2001:db8::7", sockets(&["[2001:db8::7]:80"])),
            ("[2001:db8::7]", sockets(&["[2001:db8::7]:80"])),
            ("localhost", sockets(&["127.0.0.1:80", "[::1]:80"])),
            ("App.LocalHost.", sockets(&["127.0.0.1:80", "[::1]:80"])),
        ] {
            assert_eq!(discovery.resolve(&HostPort::new(host, 80)).await.unwrap().addresses, expected, "{host}");
            let error = discovery.resolve(&without_port(host)).await.unwrap_err();
            assert!(matches!(error, DiscoveryError::PortMissing(_)), "{error}");
        }
    }
}
