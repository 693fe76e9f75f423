//! On which addresses a process listens: comes in a pid, goes out what the kernel says. For sockets whose address a process
//! tells only to those it trusts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// State of a listening TCP socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The TCP addresses on which `pid` listens; a wildcard is told as the loopback address.
pub fn listening_addresses(pid: u32) -> Vec<SocketAddr> {
    let sockets = sockets_of(pid);
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| {
            table
                .lines()
                .skip(1)
                .filter_map(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    let (address, state, inode) = (*fields.get(1)?, *fields.get(3)?, *fields.get(9)?);
                    (state == LISTEN && sockets.contains(inode)).then(|| parse(address)).flatten()
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Inodes of the sockets that `pid` holds.
fn sockets_of(pid: u32) -> BTreeSet<String> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| {
            let target = std::fs::read_link(descriptor.path()).ok()?;
            Some(Path::to_str(&target)?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect()
}

/// `0100007F:1F90`: words in the machine's byte order, the port in the network's.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u32> = address
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = match *bytes.as_slice() {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    let ip = match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        known => known,
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listeners_are_found() {
        let v4 = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let found = listening_addresses(std::process::id());
        assert!(found.contains(&v4.local_addr().expect("address")), "{found:?}");
    }
}
