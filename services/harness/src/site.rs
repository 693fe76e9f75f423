//! A private corner of the loopback network for one cluster: comes in nothing, goes out addresses and ports that nobody
//! else uses.
//!
//! "Bind port 0, close, hope" races every other process on the machine, and a balancer that is restarted has to come back
//! on the very same port. So each site claims, by locks the kernel drops with the process (names in the abstract socket
//! namespace, which lives exactly as long and as wide as the network does):
//!
//! - a loopback network 127.a.b.0/24, one address for each process, like containers have, and
//! - a block of ports below the ephemeral range, where no outgoing connection can sit by chance, that was free on every
//!   address when it was claimed.
//!
//! Never binds a port of the block itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

/// How many ports a site has.
const PORTS: u16 = 32;

/// Where the blocks of ports begin; they end at the machine's ephemeral range.
const FIRST_PORT: u16 = 10_240;

/// Addresses and ports of one cluster, until dropped.
#[derive(Debug)]
pub struct Site {
    network: [u8; 2],
    first_port: u16,
    _locks: [UnixListener; 2],
}

impl Site {
    /// Claims a free site; panics when the machine has none left.
    pub fn claim() -> Self {
        let (network, network_lock) = claim_network();
        let (first_port, ports_lock) = claim_ports();
        Self { network, first_port, _locks: [network_lock, ports_lock] }
    }

    /// Address number `host` of this site's network.
    pub fn ip(&self, host: u8) -> IpAddr {
        let [a, b] = self.network;
        Ipv4Addr::new(127, a, b, host).into()
    }

    /// This site's network, as `127.a.b.0/24`.
    pub fn network(&self) -> String {
        format!("{}/24", self.ip(0))
    }

    /// Port number `index` of this site's block.
    pub fn port(&self, index: u16) -> u16 {
        assert!(index < PORTS, "a site has {PORTS} ports");
        self.first_port + index
    }

    /// Address and port together.
    pub fn at(&self, host: u8, index: u16) -> SocketAddr {
        (self.ip(host), self.port(index)).into()
    }
}

fn claim_network() -> ([u8; 2], UnixListener) {
    for _ in 0..1000 {
        let network = [rand::random_range(1..=254), rand::random_range(0..=254)];
        if let Some(lock) = lock(&format!("servery-harness-net-{}-{}", network[0], network[1])) {
            return (network, lock);
        }
    }
    panic!("no free loopback network");
}

fn claim_ports() -> (u16, UnixListener) {
    let end = ephemeral_from();
    assert!(end > FIRST_PORT + PORTS, "the ephemeral range starts at {end}: no room for the tests' ports");
    for _ in 0..1000 {
        let block = rand::random_range(0..(end - FIRST_PORT) / PORTS);
        let first = FIRST_PORT + block * PORTS;
        let Some(lock) = lock(&format!("servery-harness-ports-{first}")) else { continue };
        if (first..first + PORTS).all(is_free) {
            return (first, lock);
        }
    }
    panic!("no free block of {PORTS} ports");
}

fn lock(name: &str) -> Option<UnixListener> {
    let address = UnixAddr::from_abstract_name(name).expect("the name is short and has no NUL");
    UnixListener::bind_addr(&address).ok()
}

/// Whether nobody listens on `port`, on whatever address. A listener on one loopback address is found by the wildcard bind.
fn is_free(port: u16) -> bool {
    let everywhere: SocketAddr = (Ipv4Addr::UNSPECIFIED, port).into();
    TcpListener::bind(everywhere).is_ok()
}

fn ephemeral_from() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sites_share_neither_network_nor_port() {
        let sites: Vec<Site> = (0..20).map(|_| Site::claim()).collect();
        for (i, one) in sites.iter().enumerate() {
            for other in &sites[i + 1..] {
                assert_ne!(one.ip(1), other.ip(1));
                assert!(one.port(0).abs_diff(other.port(0)) >= PORTS);
            }
        }
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_free() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
        assert!(!is_free(taken.local_addr().expect("address").port()));
    }
}
