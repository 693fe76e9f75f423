//! DNS discovery.

use crate::config::HostPort;
use std::{net::SocketAddr, time::Duration};

/// Finds the addresses behind a name.
#[derive(Clone, Debug)]
pub struct Discovery {}

/// What a name stands for just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<SocketAddr>,
    pub valid_for: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("placeholder")]
    Placeholder,
}

impl Discovery {
    pub fn new(_nameservers: &[SocketAddr]) -> Result<Self, DiscoveryError> {
        unimplemented!()
    }

    pub async fn resolve(&self, _name: &HostPort) -> Result<Found, DiscoveryError> {
        unimplemented!()
    }
}
