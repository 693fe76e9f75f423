//! Names in certificates.
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Balancer,
    AppServer,
    CertSidecar,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::AppServer => "app_server",
            Self::CertSidecar => "cert_sidecar",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Role {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "balancer" => Ok(Self::Balancer),
            "app_server" => Ok(Self::AppServer),
            "cert_sidecar" => Ok(Self::CertSidecar),
            _ => Err(NameError::Role(text.to_owned())),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppRight {
    pub app: String,
    pub prefixes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    pub cluster: String,
    pub role: Role,
    pub instance: String,
    pub apps: Vec<AppRight>,
    pub not_after: SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub enum NameError {
    #[error("unknown role {0:?}")]
    Role(String),
}

impl PeerId {
    pub fn from_certificate(_der: &CertificateDer<'_>) -> Result<Self, NameError> {
        unimplemented!()
    }

    pub fn may_claim(&self, _app: &str, _prefix: &str) -> bool {
        unimplemented!()
    }
}
