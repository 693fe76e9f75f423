//! Listening addresses.

use std::{fmt, io, net::{SocketAddr, TcpListener}};

/// Where a listener listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    Off,
    All(u16),
    At(SocketAddr),
}

impl ListenAddr {
    pub fn bind(&self) -> io::Result<TcpListener> {
        unimplemented!()
    }

    pub fn bind_reuseport(&self, _n: usize) -> io::Result<Vec<TcpListener>> {
        unimplemented!()
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::All(port) => write!(f, ":{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}
