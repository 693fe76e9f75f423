//! `[cert_sidecar]`: what it listens on, whom it lets in, which host names it certifies. Values in, checked values out.

use chassis::{
    config::{Reader, TableReader},
    identity::{self, AppRight, Role},
    listen::ListenAddr,
};
use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

/// The section `[cert_sidecar]`, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Enrolment and certificates, for every process of the cluster.
    pub listen: ListenAddr,
    /// Metrics, health, status.
    pub admin: ListenAddr,
    /// How long an identity is good. Renewed by its owner at a seventh of it.
    pub identity_lifetime: Duration,
    pub certificates: Vec<CertificateConfig>,
    pub tokens: Vec<TokenConfig>,
}

/// A public certificate that every balancer gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateConfig {
    /// Its name in metrics, logs and files.
    pub name: String,
    /// Host names, lower case, `*.` at most once and in front; or IP addresses.
    pub hosts: Vec<String>,
}

/// A join token that the sidecar writes to a file for a process to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    pub right: Right,
    /// Where it is written; `None`: `<data>/tokens/<role>` or `<data>/tokens/app_server-<app>`.
    pub file: Option<PathBuf>,
}

/// What the bearer of a token may become.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "role")]
pub enum Right {
    Balancer,
    AppServer { app: String, prefixes: Vec<String> },
}

/// Why a right cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RightError {
    #[error("a cert_sidecar needs no token: it makes its own identity")]
    Sidecar,
    #[error("a token for an app_server names its app (and the route prefixes it may claim)")]
    NoApp,
    #[error("app and prefixes belong to tokens of the role app_server")]
    NotAnApp,
    #[error(transparent)]
    Names(#[from] identity::RightError),
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balancer => f.write_str("the role balancer"),
            Self::AppServer { app, prefixes } => write!(f, "the app {app} under {}", prefixes.join(", ")),
        }
    }
}

impl Right {
    /// Checks the parts of a right; no prefix means "/".
    pub fn new(role: Role, app: Option<String>, mut prefixes: Vec<String>) -> Result<Self, RightError> {
        match (role, app) {
            (Role::CertSidecar, _) => Err(RightError::Sidecar),
            (Role::Balancer, None) if prefixes.is_empty() => Ok(Self::Balancer),
            (Role::Balancer, _) => Err(RightError::NotAnApp),
            (Role::AppServer, None) => Err(RightError::NoApp),
            (Role::AppServer, Some(app)) => {
                if prefixes.is_empty() {
                    prefixes.push("/".to_owned());
                }
                let AppRight { app, prefixes } = AppRight::new(&app, &prefixes)?;
                Ok(Self::AppServer { app, prefixes })
            }
        }
    }

    /// The role that this right gives.
    pub fn role(&self) -> Role {
        match self {
            Self::Balancer => Role::Balancer,
            Self::AppServer { .. } => Role::AppServer,
        }
    }

    /// The right as a certificate carries it.
    pub(crate) fn apps(&self) -> Result<Vec<AppRight>, RightError> {
        match self {
            Self::Balancer => Ok(Vec::new()),
            Self::AppServer { app, prefixes } => Ok(vec![AppRight::new(app, prefixes)?]),
        }
    }

    /// Rights with the same slot share one token: one per role, and per app for app-servers.
    pub fn slot(&self) -> String {
        match self {
            Self::Balancer => "balancer".to_owned(),
            Self::AppServer { app, .. } => format!("app_server-{app}"),
        }
    }
}

impl Config {
    /// Reads and checks the section.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let config = Self {
            listen: reader.read("cert_sidecar.listen", ListenAddr::All(7401)),
            admin: reader.read("cert_sidecar.admin", ListenAddr::All(9180)),
            identity_lifetime: reader.read("cert_sidecar.identity_lifetime", Duration::from_secs(7 * 24 * 3600)),
            certificates: certificates(reader),
            tokens: tokens(reader),
        };
        if config.listen.is_off() {
            reader.refuse("cert_sidecar.listen", "without it nobody can enrol; give an address");
        }
        let year = Duration::from_secs(365 * 24 * 3600);
        if config.identity_lifetime < Duration::from_secs(2) || config.identity_lifetime > year / 4 {
            reader.refuse("cert_sidecar.identity_lifetime", "an identity is good for at least 2s and at most 91 days");
        }
        config
    }
}

fn certificates(reader: &mut Reader<'_>) -> Vec<CertificateConfig> {
    let mut names = BTreeSet::new();
    let listed = reader.tables("cert_sidecar.certificate", |table| {
        let hosts: Vec<String> = table.read("hosts", Vec::new());
        let hosts: Vec<_> = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        if hosts.is_empty() {
            table.refuse("hosts", "list the host names of this certificate, such as hosts = [\"localhost\"]");
        }
        for host in hosts.iter().filter(|host| !is_host(host)) {
            table.refuse("hosts", format!("`{host}` is neither a host name nor an IP address"));
        }
        let name = table.optional("name").unwrap_or_else(|| hosts.first().cloned().unwrap_or_default());
        // it becomes a file's name
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*:".contains(&byte);
        if name.starts_with('.') || name.len() > 128 || !name.bytes().all(fits) {
            table.refuse("name", "a certificate's name is letters, digits, \"-\", \"_\" and \".\"");
        }
        if !names.insert(name.clone()) {
            table.refuse("name", format!("there is another certificate named `{name}`"));
        }
        CertificateConfig { name, hosts }
    });
    if !listed.is_empty() {
        return listed;
    }
    let hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    vec![CertificateConfig { name: "localhost".to_owned(), hosts }]
}

/// RFC 952 and 1123 host names, one wildcard label in front, or an address.
fn is_host(host: &str) -> bool {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn tokens(reader: &mut Reader<'_>) -> Vec<TokenConfig> {
    let mut slots = BTreeSet::new();
    let listed = reader.tables("cert_sidecar.token", |table: &mut TableReader<'_>| {
        let role: String = table.read("role", String::new());
        let app = table.optional("app");
        let prefixes = table.read("prefixes", Vec::new());
        let file = table.optional("file");
        let Ok(role) = role.parse() else {
            table.refuse("role", "say for which role: role = \"balancer\" or \"app_server\"");
            return None;
        };
        match Right::new(role, app, prefixes) {
            Ok(right) => {
                if !slots.insert(right.slot()) {
                    table.refuse(
                        "role",
                        format!("there is another token for {}; list all its prefixes in one", right.slot()),
                    );
                }
                Some(TokenConfig { right, file })
            }
            Err(error) => {
                table.refuse("role", error.to_string());
                None
            }
        }
    });
    if !listed.is_empty() {
        return listed.into_iter().flatten().collect();
    }
    let demo = Right::AppServer { app: "demo".to_owned(), prefixes: vec!["/".to_owned()] };
    [Right::Balancer, demo].map(|right| TokenConfig { right, file: None }).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_checked_and_made_canonical() {
        let right = |prefixes: &[&str]| {
            Right::new(Role::AppServer, Some("shop".to_owned()), prefixes.iter().map(|p| (*p).to_owned()).collect())
        };
        assert_eq!(right(&[]), right(&["/"]));
        assert_eq!(right(&["/b/", "/a", "/a"]), right(&["/a", "/b"]));
        for bad in ["", "a", "/a//b", "/a?b", "/a#b", "/a/../b"] {
            assert!(right(&[bad]).is_err(), "{bad:?}");
        }
        assert_eq!(Right::new(Role::AppServer, None, Vec::new()), Err(RightError::NoApp));
        assert_eq!(Right::new(Role::CertSidecar, None, Vec::new()), Err(RightError::Sidecar));
        assert_eq!(Right::new(Role::Balancer, Some("a".to_owned()), Vec::new()), Err(RightError::NotAnApp));
        assert!(Right::new(Role::AppServer, Some("a/b".to_owned()), Vec::new()).is_err());
    }

    #[test]
    fn hosts_are_names_wildcards_or_addresses() {
        for good in ["localhost", "*.example.com", "a-b.example", "127.0.0.1", "::1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "*", "a.*.b", "-a", "a..b", "a b", "https://a", "a:80"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
