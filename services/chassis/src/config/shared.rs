//! What every role reads from the top of the file: which cluster it belongs to, where its data is, how it gets its
//! identity and how it looks names up.

use super::{HostPort, Reader};
use std::{net::SocketAddr, path::PathBuf};

/// The keys outside of any section.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The trust domain of every identity: lower-case letters, digits, `.`, `-`, `_`.
    pub cluster: String,
    /// Where this instance keeps its identity and what must outlive a restart.
    pub data: PathBuf,
    /// The join token, read once, when there is no identity yet.
    pub token_file: PathBuf,
    pub sidecar: HostPort,
    /// Empty: those of the system.
    pub nameservers: Vec<SocketAddr>,
}

impl Shared {
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let shared = Self {
            cluster: reader.read("cluster", "servery".to_owned()),
            data: reader.read("data", PathBuf::from("/var/lib/servery")),
            token_file: reader.read("token_file", PathBuf::from("/run/servery/token")),
            sidecar: reader.read("sidecar", HostPort::new("cert-sidecar", 7401)),
            nameservers: reader.read("nameservers", Vec::new()),
        };
        // SPIFFE-ID section 2.1: the trust domain's characters and length.
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !(1..=255).contains(&shared.cluster.len()) || !shared.cluster.bytes().all(allowed) {
            reader.refuse("cluster", "a cluster's name is 1 to 255 lower-case letters, digits, \".\", \"-\" and \"_\"");
        }
        shared
    }
}
