//! Placeholder.

use std::{fmt, net::{IpAddr, SocketAddr}, path::PathBuf, str::FromStr, time::Duration};
use bytesize::ByteSize;
use crate::listen::ListenAddr;

/// A value as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Toml {
    Text(String),
}

/// What stood there instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {}

/// A type that configuration can hold. A type of your own needs `EXPECTED` and `from_text` only.
pub trait Value: Sized {
    /// Completes "expected ...", with an example.
    const EXPECTED: &'static str;

    /// From a variable, a flag or a string of the file.
    fn from_text(text: &str) -> Option<Self>;

    /// From the file; a type that only strings can name keeps this default.
    fn from_toml(_value: &Toml) -> Result<Self, Mismatch> {
        unimplemented!()
    }
}

macro_rules! values { ($($t:ty),*) => { $(impl Value for $t {
    const EXPECTED: &'static str = "";
    fn from_text(_text: &str) -> Option<Self> { unimplemented!() }
})* } }
values!(String, bool, u16, u32, u64, usize, Duration, ByteSize, PathBuf, Network, ListenAddr, HostPort, SocketAddr, IpAddr);

impl<T: Value> Value for Vec<T> {
    const EXPECTED: &'static str = "a list";
    fn from_text(_text: &str) -> Option<Self> { unimplemented!() }
}

/// `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network { address: IpAddr, prefix: u8 }

impl Network {
    /// An IPv4 address mapped into IPv6 counts as the IPv4 address.
    pub fn contains(&self, _address: IpAddr) -> bool { unimplemented!() }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}/{}", self.address, self.prefix) }
}

impl FromStr for Network {
    type Err = Mismatch;
    fn from_str(_s: &str) -> Result<Self, Self::Err> { unimplemented!() }
}

/// Where a peer is found: `NAME:PORT`, or a name alone, whose port DNS SRV records give.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A DNS name or an IP address without brackets.
    pub host: String,
    /// Absent: to be found by SRV records.
    pub port: Option<u16>,
}

impl HostPort {
    pub fn new(host: impl Into<String>, port: u16) -> Self { Self { host: host.into(), port: Some(port) } }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}:{:?}", self.host, self.port) }
}

impl FromStr for HostPort {
    type Err = Mismatch;
    fn from_str(_s: &str) -> Result<Self, Self::Err> { unimplemented!() }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self { Self::new(address.ip().to_string(), address.port()) }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result { unimplemented!() }
}

impl std::error::Error for Mismatch {}
