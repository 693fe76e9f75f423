//! A real DNS server: comes in names and addresses, which may change at any moment, goes out answers with the chosen TTL over
//! UDP and TCP. Knows the zone `test.` only and never asks anybody else.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hickory_server::Server;
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::proto::rr::rdata::{A, AAAA, SOA, SRV};
use hickory_server::proto::rr::{LowerName, Name, RData, Record, RecordSet, RecordType, RrKey};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use tokio::net::{TcpListener, UdpSocket};

type Zone = InMemoryZoneHandler<TokioRuntimeProvider>;

/// The server, until dropped.
pub struct Dns {
    address: SocketAddr,
    ttl: u32,
    zone: Arc<Zone>,
    _server: Server<Catalog>,
}

impl Dns {
    /// Serves the zone `test.` at `address`; every answer may be kept for `ttl_s` seconds.
    pub async fn serve(address: SocketAddr, ttl_s: u32) -> anyhow::Result<Self> {
        let origin = name("test.")?;
        let zone = Arc::new(Zone::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny));
        let soa = SOA::new(name("ns.test.")?, name("person.test.")?, 1, 60, 60, 60, 0);
        zone.upsert(Record::from_rdata(origin.clone(), ttl_s, RData::SOA(soa)), 1).await;

        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&origin), vec![Arc::<Zone>::clone(&zone)]);
        let mut server = Server::new(catalog);
        server.register_socket(UdpSocket::bind(address).await.context("bind UDP for the DNS server")?);
        let tcp = TcpListener::bind(address).await.context("bind TCP for the DNS server")?;
        server.register_listener(tcp, Duration::from_secs(5), 4096);
        Ok(Self { address, ttl: ttl_s, zone, _server: server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `host` (such as `balancer.test`) has exactly these addresses; none: the name is unknown.
    pub async fn set(&self, host: &str, addresses: &[IpAddr]) {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for address in addresses {
            match address {
                IpAddr::V4(ip) => v4.push(RData::A(A(*ip))),
                IpAddr::V6(ip) => v6.push(RData::AAAA(AAAA(*ip))),
            }
        }
        self.replace(host, RecordType::A, v4).await;
        self.replace(host, RecordType::AAAA, v6).await;
    }

    /// From now on the service `host` (such as `_registry._tcp.test`) is at exactly these hosts and ports.
    pub async fn set_srv(&self, host: &str, targets: &[(String, u16)]) {
        let records = targets
            .iter()
            .map(|(target, port)| RData::SRV(SRV::new(1, 1, *port, name(target).expect("a valid host name"))))
            .collect();
        self.replace(host, RecordType::SRV, records).await;
    }

    async fn replace(&self, host: &str, kind: RecordType, records: Vec<RData>) {
        let host = name(host).expect("a valid host name");
        let key = RrKey::new(LowerName::new(&host), kind);
        let mut zone = self.zone.records_mut().await;
        if records.is_empty() {
            zone.remove(&key);
            return;
        }
        let mut set = RecordSet::with_ttl(host, kind, self.ttl);
        for record in records {
            set.add_rdata(record);
        }
        zone.insert(key, Arc::new(set));
    }
}

fn name(text: &str) -> anyhow::Result<Name> {
    let mut name = Name::from_ascii(text)?;
    name.set_fqdn(true);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use hickory_resolver::TokioResolver;
    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_server::net::runtime::TokioRuntimeProvider;

    use super::*;
    use crate::site::Site;

    #[tokio::test]
    async fn a_changed_record_is_the_next_answer() {
        let site = Site::claim();
        let dns = Dns::serve(site.at(53, 5), 0).await.expect("serve");
        let mut udp = ConnectionConfig::udp();
        udp.port = dns.address().port();
        let server = NameServerConfig::new(dns.address().ip(), true, vec![udp]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let resolver =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().expect("build");
        for addresses in [vec![site.ip(1)], vec![site.ip(2), site.ip(3)]] {
            dns.set("balancer.test", &addresses).await;
            let mut found: Vec<_> = resolver.lookup_ip("balancer.test.").await.expect("found").iter().collect();
            found.sort();
            assert_eq!(found, addresses);
        }
        dns.set("balancer.test", &[]).await;
        assert!(resolver.lookup_ip("balancer.test.").await.is_err());
    }
}
