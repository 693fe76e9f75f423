//! Serving without a balancer: where, and what is believed of whom.

use chassis::config::{Network, Reader, Value};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a node listens that serves clients by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// Which header every connection has to begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    #[default]
    Off,
    V1,
    V2,
    Auto,
}

/// What a node needs to know that is reached by clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// How long a connection may be idle between two requests. Zero: it is closed after the first.
    pub keepalive: Duration,
    /// Whose forwarding fields are believed.
    pub forwarded_allow_ips: Vec<Network>,
    pub proxy_protocol: ProxyProtocol,
    /// Who may send the header of the PROXY protocol.
    pub proxy_allow_ips: Vec<Network>,
    /// A file, or `-` for stdout.
    pub access_log: Option<PathBuf>,
}

impl Edge {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            keepalive: reader.read("app_server.keepalive", Duration::from_secs(2)),
            forwarded_allow_ips: reader.read("app_server.forwarded_allow_ips", Vec::new()),
            proxy_protocol: reader.read("app_server.proxy_protocol", ProxyProtocol::Off),
            proxy_allow_ips: reader.read("app_server.proxy_allow_ips", Vec::new()),
            access_log: reader.optional("app_server.access_log"),
        }
    }
}

impl Value for Bind {
    const EXPECTED: &'static str = "\"127.0.0.1:8000\", \":8000\" (every address) or \"unix:/run/app.sock\"";

    fn from_text(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(Path::new(path).to_owned()));
        }
        text.parse().ok().map(Self::Tcp)
    }
}

impl Value for ProxyProtocol {
    const EXPECTED: &'static str = "\"off\", \"v1\", \"v2\" or \"auto\"";

    fn from_text(text: &str) -> Option<Self> {
        Some(match text {
            "off" => Self::Off,
            "v1" => Self::V1,
            "v2" => Self::V2,
            "auto" => Self::Auto,
            _ => return None,
        })
    }
}
