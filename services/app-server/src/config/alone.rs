//! Serving without a balancer: where, and what is believed of whom.

use super::LIMIT_MAX;
use chassis::{
    config::{Mismatch, Network, Reader, Toml, Value},
    listen::ListenAddr,
};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{self, PathBuf},
    time::Duration,
};

/// What `sun_path` of a Unix socket's address holds beside its final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Where a node listens that serves clients by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Never off.
    Tcp(ListenAddr),
    /// `unix:PATH`, as absolute as it can be made.
    Unix(PathBuf),
}

impl Bind {
    /// Where `servery app` serves that was not told: this machine only.
    pub(super) fn by_default() -> Self {
        Self::Tcp(ListenAddr::At((Ipv4Addr::LOCALHOST, 8000).into()))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
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
            access_log: reader.optional("app_server.access_log").map(log_path),
        }
    }

    /// Of a node behind a balancer: what would silently do nothing there.
    pub(super) fn refuse(&self, reader: &mut Reader<'_>) {
        for (key, said) in [
            ("app_server.forwarded_allow_ips", !self.forwarded_allow_ips.is_empty()),
            ("app_server.proxy_protocol", self.proxy_protocol != ProxyProtocol::Off),
            ("app_server.proxy_allow_ips", !self.proxy_allow_ips.is_empty()),
            ("app_server.access_log", self.access_log.is_some()),
        ] {
            if said {
                reader.refuse(key, "is for a node that serves clients by itself (bind): with join the balancer does");
            }
        }
    }

    pub(super) fn check(&self, reader: &mut Reader<'_>) {
        if self.keepalive > LIMIT_MAX {
            reader.refuse("app_server.keepalive", "a connection may be idle for a day at most");
        }
    }
}

/// `-` stays what it is: no file. Workers open it anew much later, so it does not depend on anybody's directory.
fn log_path(path: PathBuf) -> PathBuf {
    if path.as_os_str() == "-" { path } else { absolute(path) }
}

/// Without asking the file system; stays as it is where there is no current directory.
pub(super) fn absolute(path: PathBuf) -> PathBuf {
    path::absolute(&path).unwrap_or(path)
}

impl Value for Bind {
    const EXPECTED: &'static str = "\"127.0.0.1:8000\", \"localhost:8000\", \":8000\" (every address) or \"unix:/run/app.sock\" (107 bytes at most)";

    fn from_text(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            // as a URL has it, and Gunicorn takes it
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = (!path.is_empty()).then(|| absolute(path.into()))?;
            let fits = (..=SOCKET_PATH_MAX).contains(&path.as_os_str().len());
            return fits.then_some(Self::Unix(path));
        }
        // the one name that means the same everywhere (RFC 6761 section 6.3); others would have to be looked up
        if let Some(port) = text.strip_prefix("localhost:") {
            let address: SocketAddr = format!("127.0.0.1:{port}").parse().ok()?;
            return Some(Self::Tcp(ListenAddr::At(address)));
        }
        text.parse().ok().filter(|address: &ListenAddr| !address.is_off()).map(Self::Tcp)
    }

    fn from_toml(value: &Toml) -> Result<Self, Mismatch> {
        match value {
            Toml::Text(text) => Self::from_text(text),
            Toml::Integer(port) => u16::try_from(*port).ok().map(|port| Self::Tcp(ListenAddr::All(port))),
            _ => None,
        }
        .ok_or_else(|| Mismatch::toml::<Self>(value))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_with_gunicorn_and_as_elsewhere_in_servery() {
        for (text, wanted) in [
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("localhost:80", "127.0.0.1:80"),
            ("0.0.0.0:8000", "0.0.0.0:8000"),
            (":8000", ":8000"),
            ("8000", ":8000"),
            ("[::1]:8000", "[::1]:8000"),
            ("[::]:8000", ":8000"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(Bind::from_text(text).map(|bind| bind.to_string()).as_deref(), Some(wanted), "{text}");
        }
        let long = format!("unix:/{}", "a".repeat(SOCKET_PATH_MAX));
        for wrong in ["", "off", "unix:", "unix://", "localhost", "localhost:", "shop.example:80", "127.0.0.1", &long] {
            assert_eq!(Bind::from_text(wrong), None, "{wrong}");
        }
        assert_eq!(Bind::from_toml(&Toml::Integer(8000)), Ok(Bind::Tcp(ListenAddr::All(8000))));
    }

    #[test]
    fn a_relative_path_is_made_absolute_once() {
        let Some(Bind::Unix(path)) = Bind::from_text("unix:app.sock") else { panic!("no path") };
        assert_eq!(path, std::env::current_dir().unwrap().join("app.sock"));
        assert_eq!(log_path("-".into()), PathBuf::from("-"));
    }
}
