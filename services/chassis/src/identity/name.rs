//! Names in certificates. In: the URI subject alternative names of a certificate that somebody else has verified.
//! Out: cluster, role, instance and rights, or why the certificate carries no name of ours. Nothing else in a
//! certificate is ever read as a name, and this never judges whether the certificate is genuine or still good.
//!
//! `spiffe://<cluster>/<role>/<instance>` is the name (SPIFFE-ID section 2); there is exactly one. An app-server also
//! carries its rights, one URI per app: `servery://<cluster>/app/<app>?prefix=<p>&prefix=<q>`. Both have one spelling
//! only: what does not read back to the same text is refused, so that two readers never differ.

mod right;

pub use right::{AppRight, RightError};

use rustls_pki_types::CertificateDer;
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// SPIFFE-ID section 2.1.
const CLUSTER_MAX: usize = 255;
/// A DNS label, and short enough for a table's column.
const INSTANCE_MAX: usize = 63;
/// The most apps that one certificate names, so that one name stays small enough to compare for every registration.
const APPS_MAX: usize = 64;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Balancer,
    AppServer,
    CertSidecar,
}

impl Role {
    /// As in certificates, tokens, metrics and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Balancer => "balancer",
            Self::AppServer => "app_server",
            Self::CertSidecar => "cert_sidecar",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        [Self::Balancer, Self::AppServer, Self::CertSidecar]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| NameError::Role(text.chars().take(INSTANCE_MAX).collect()))
    }
}

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerId {
    pub cluster: String,
    pub role: Role,
    pub instance: String,
    /// What an app-server may serve; always empty for other roles.
    pub apps: Vec<AppRight>,
    /// The certificate's end: whoever trusts the name trusts it until then.
    pub not_after: SystemTime,
}

/// Why a certificate carries no name of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the certificate has {0} spiffe:// names instead of one")]
    Count(usize),
    #[error("{0:?} is not spiffe://<cluster>/<role>/<instance>")]
    Spiffe(String),
    #[error("no role is called {0:?}: there are balancer, app_server and cert_sidecar")]
    Role(String),
    #[error("{0:?} is not servery://<cluster>/app/<app>?prefix=<path>...")]
    Right(String),
    #[error("the right {uri:?} is for another cluster than {cluster:?}")]
    ForeignRight { uri: String, cluster: String },
    #[error("the app {0:?} is named twice")]
    AppTwice(String),
    #[error("a {0} has no apps")]
    AppsOfRole(Role),
    #[error("more than {APPS_MAX} apps")]
    TooManyApps,
}

impl PeerId {
    /// Reads the name. The caller has verified the certificate, or is about to issue it.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, NameError> {
        let unreadable = |error: String| NameError::Certificate(error);
        let (rest, certificate) =
            x509_parser::certificate::X509Certificate::from_der(der).map_err(|e| unreadable(e.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("something follows it".to_owned()));
        }
        let names = certificate.subject_alternative_name().map_err(|e| unreadable(e.to_string()))?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            // Host names and addresses are no names of processes.
            _ => None,
        });
        let not_after = certificate.validity().not_after.timestamp();
        let not_after = UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
        Self::from_uris(uris, not_after)
    }

    /// Reads the name out of a certificate's URIs. Schemes other than the two are somebody else's and ignored.
    pub fn from_uris<'a>(uris: impl Iterator<Item = &'a str>, not_after: SystemTime) -> Result<Self, NameError> {
        let (mut names, mut rights) = (Vec::new(), Vec::new());
        for uri in uris {
            match uri.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
                Some("spiffe") => names.push(uri),
                Some("servery") => rights.push(uri),
                _ => {}
            }
        }
        let [name] = names.as_slice() else { return Err(NameError::Count(names.len())) };
        let (cluster, role, instance) = parse_spiffe(name)?;
        if role != Role::AppServer && !rights.is_empty() {
            return Err(NameError::AppsOfRole(role));
        }
        if rights.len() > APPS_MAX {
            return Err(NameError::TooManyApps);
        }
        let mut apps: Vec<AppRight> = Vec::with_capacity(rights.len());
        for uri in rights {
            let (of, right) = AppRight::from_uri(uri).ok_or_else(|| NameError::Right(uri.to_owned()))?;
            if of != cluster {
                return Err(NameError::ForeignRight { uri: uri.to_owned(), cluster: cluster.to_owned() });
            }
            if apps.iter().any(|other| other.app == right.app) {
                return Err(NameError::AppTwice(right.app));
            }
            apps.push(right);
        }
        Ok(Self { cluster: cluster.to_owned(), role, instance: instance.to_owned(), apps, not_after })
    }

    /// What a certificate for this name carries: the name first, then the rights.
    pub fn uris(&self) -> Vec<String> {
        let mut uris = vec![format!("spiffe://{}/{}/{}", self.cluster, self.role, self.instance)];
        uris.extend(self.apps.iter().map(|right| right.to_uri(&self.cluster)));
        uris
    }

    /// Whether the certificate names `app` with a prefix that `prefix` equals or lies under.
    pub fn may_claim(&self, app: &str, prefix: &str) -> bool {
        self.apps.iter().any(|right| right.app == app && right.covers(prefix))
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.instance)
    }
}

fn parse_spiffe(uri: &str) -> Result<(&str, Role, &str), NameError> {
    let wrong = || NameError::Spiffe(uri.to_owned());
    let rest = uri.strip_prefix("spiffe://").ok_or_else(wrong)?;
    let mut parts = rest.split('/');
    let (Some(cluster), Some(role), Some(instance), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    if !is_cluster(cluster) || !is_instance(instance) {
        return Err(wrong());
    }
    Ok((cluster, role.parse()?, instance))
}

/// A SPIFFE trust domain.
pub fn is_cluster(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    (1..=CLUSTER_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// A SPIFFE path segment that is no relative one.
pub fn is_instance(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=INSTANCE_MAX).contains(&text.len()) && text.bytes().all(allowed) && !matches!(text, "." | "..")
}

#[cfg(test)]
mod tests;
