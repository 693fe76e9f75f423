//! Addresses that configuration names: a peer and a network. Pure text and arithmetic; nothing is looked up here.

use super::value::Mismatch;
use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Where a peer is found: `NAME:PORT`, or a name alone, whose port its SRV records give.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// Absent: to be found by SRV records. An IP address always has one.
    pub port: Option<u16>,
}

impl HostPort {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port: Some(port) }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().to_string(), address.port())
    }
}

impl FromStr for HostPort {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(Mismatch::text::<Self>(text)) } else { Ok(address.into()) };
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                match port.parse::<u16>() {
                    Ok(port) if digits && port > 0 => (host, Some(port)),
                    _ => return Err(Mismatch::text::<Self>(text)),
                }
            }
            None => (text, None),
        };
        if is_name(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(Mismatch::text::<Self>(text)) }
    }
}

/// A name that DNS can hold: RFC 1035 section 2.3.4, with the underscore of service names (RFC 2782). An IP address
/// is none.
fn is_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253
        && labels.split('.').all(label)
        // A name whose last label is a number is an address gone wrong ("10.0.0.300").
        && labels.rsplit('.').next().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host.contains(':')) {
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
            (None, _) => f.write_str(&self.host),
        }
    }
}

/// `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its host bits are zero.
    first: IpAddr,
    /// Leading bits that all members share; at most 32 or 128.
    prefix: u8,
}

impl Network {
    /// `None` if `prefix` is longer than the address or `first` has bits beyond it: `10.1.0.0/8` is a mistake more
    /// often than it is `10.0.0.0/8`.
    pub fn new(first: IpAddr, prefix: u8) -> Option<Self> {
        let width = if first.is_ipv4() { 32 } else { 128 };
        (prefix <= width && bits(first) & !mask(first, prefix) == 0).then_some(Self { first, prefix })
    }

    /// An IPv4 address mapped into IPv6, as a dual-stack listener sees it, counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && bits(address) & mask(address, self.prefix) == bits(self.first)
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { first: address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }
}

/// The address as the low bits of a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Ones where the first `prefix` bits of such an address are.
fn mask(address: IpAddr, prefix: u8) -> u128 {
    let width: u32 = if address.is_ipv4() { 32 } else { 128 };
    let all = u128::MAX >> (128 - width);
    // A shift by the full width (prefix 0) has no bits left.
    all.checked_shl(width.saturating_sub(u32::from(prefix))).unwrap_or(0) & all
}

impl FromStr for Network {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        let wrong = || Mismatch::text::<Self>(text);
        let Some((first, prefix)) = text.split_once('/') else {
            return text.parse::<IpAddr>().map(|address| address.to_canonical().into()).map_err(|_| wrong());
        };
        let first: IpAddr = first.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        // ::ffff:10.0.0.0/104 would otherwise match nothing.
        let mapped = matches!(first, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some());
        let prefix = if mapped { prefix.checked_sub(96).ok_or_else(wrong)? } else { prefix };
        Self::new(first.to_canonical(), prefix).ok_or_else(wrong)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn peers_are_names_or_addresses_with_a_port_or_names_with_srv_records() {
        for (text, host, port) in [
            ("balancer:7400", "balancer", Some(7400)),
            ("balancer.prod.svc.cluster.local.:7400", "balancer.prod.svc.cluster.local.", Some(7400)),
            ("10.0.0.5:7400", "10.0.0.5", Some(7400)),
            ("[fd00::5]:7400", "fd00::5", Some(7400)),
            ("_registry._tcp.balancer", "_registry._tcp.balancer", None),
            ("balancer", "balancer", None),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!(parsed, HostPort { host: host.to_owned(), port });
            assert_eq!(parsed.to_string(), text);
        }
        for wrong in [
            "",
            ":7400",
            "balancer:",
            "balancer:0",
            "balancer:70000",
            "balancer:+1",
            "10.0.0.5",
            "::1",
            "fd00::5:7400",
            "10.0.0.300:1",
            "a b:1",
            "-a:1",
            "a..b:1",
            "http://balancer:7400",
            "10.0.0.5:0",
        ] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_hold_their_own_family_only() {
        let holds =
            |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(holds("0.0.0.0/0", "192.0.2.1"));
        assert!(!holds("0.0.0.0/0", "::1"));
        assert!(holds("::/0", "fd00::1"));
        assert!(holds("fd00::/8", "fdff::1"));
        assert!(holds("192.0.2.7", "192.0.2.7"));
        assert!(!holds("192.0.2.7", "192.0.2.8"));
        for wrong in ["10.1.0.0/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10/8", "", "localhost"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_network_holds_exactly_the_addresses_that_share_its_prefix(address: u32, other: u32, prefix in 0_u8..=32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let network = Network::new(IpAddr::V4((address & mask).into()), prefix).unwrap();
            prop_assert!(network.contains(IpAddr::V4(address.into())));
            prop_assert_eq!(network.contains(IpAddr::V4(other.into())), address & mask == other & mask);
            prop_assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }
    }
}
