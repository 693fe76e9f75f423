//! TLS: the handshake's settings, and which certificate a client gets. In: certificates from the cert-sidecar, swapped
//! whole. Out: one rustls configuration for every core, which reads the newest set at each handshake, so that a
//! renewal touches no connection. It never writes a key anywhere.

use crate::Shared;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{Ticketer, default_provider},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};
use thiserror::Error;
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

/// One certificate in use.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in the cert-sidecar's configuration; "self-signed" before that has spoken; the path of an own one.
    pub name: String,
    /// Host names, "*.example.com", and addresses, in lower case.
    pub hosts: Vec<String>,
    pub key: Arc<CertifiedKey>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub issuer: String,
    /// One of the operator's own.
    pub from_file: bool,
}

impl Entry {
    pub fn is_good_at(&self, now: OffsetDateTime) -> Result<(), CertificateError> {
        if now > self.not_after {
            return Err(CertificateError::Expired(self.not_after));
        }
        if now < self.not_before {
            return Err(CertificateError::NotYetValid(self.not_before));
        }
        Ok(())
    }
}

/// The certificates of one snapshot.
#[derive(Debug)]
pub struct CertificateSet {
    entries: Vec<Entry>,
    /// Host, or the part behind "*." with its dot, to the place in `entries`.
    by_host: HashMap<String, usize>,
}

impl CertificateSet {
    /// One self-signed certificate made in memory: what the listener shows until the cert-sidecar has spoken.
    pub fn self_signed() -> Result<Self, CertificateError> {
        let hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(hosts.to_vec()).map_err(CertificateError::Generate)?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
            .map_err(|reason| CertificateError::Unreadable(reason.to_owned()))?;
        let chain = vec![made.cert.der().clone()];
        certified_key("self-signed", chain, key, &hosts, OffsetDateTime::now_utc()).map(|entry| Self::new(vec![entry]))
    }

    /// The first entry is also the default, for clients that name no host or an unknown one.
    pub fn new(entries: Vec<Entry>) -> Self {
        let mut by_host = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            for host in &entry.hosts {
                let host = host.strip_prefix('*').unwrap_or(host);
                by_host.entry(host.to_owned()).or_insert(at);
            }
        }
        Self { entries, by_host }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The exact name first, then the wildcard of its parent, then the default.
    fn find(&self, server_name: Option<&str>) -> Option<&Entry> {
        let at = server_name.and_then(|name| {
            let lower = name.to_ascii_lowercase();
            let parent = || lower.find('.').filter(|dot| *dot > 0).and_then(|dot| self.by_host.get(&lower[dot..]));
            self.by_host.get(&lower).or_else(parent)
        });
        self.entries.get(at.copied().unwrap_or(0))
    }
}

/// Why a certificate is not taken.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("the chain is empty")]
    NoCertificate,
    #[error("the certificate or its key cannot be read: {0}")]
    Unreadable(String),
    #[error("the certificate names no host: it has no alternative name (subjectAltName)")]
    NoHost,
    #[error("the key does not fit the certificate: {0}")]
    Key(#[source] rustls::Error),
    #[error("it is not valid before {0}")]
    NotYetValid(OffsetDateTime),
    #[error("it expired at {0}")]
    Expired(OffsetDateTime),
    #[error("it does not cover {0}")]
    Host(String),
    #[error("no self-signed certificate could be made: {0}")]
    Generate(#[source] rcgen::Error),
}

/// Checks what came from the cert-sidecar: the key fits the certificate, it is valid at `now`, and every host is covered.
pub fn certified_key(
    name: &str,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    hosts: &[String],
    now: OffsetDateTime,
) -> Result<Entry, CertificateError> {
    let leaf = chain.first().ok_or(CertificateError::NoCertificate)?.clone();
    let (_, parsed) =
        X509Certificate::from_der(&leaf).map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    let hosts: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
    if let Some(host) = hosts.iter().find(|host| !covers(&parsed, host)) {
        return Err(CertificateError::Host(host.clone()));
    }
    let entry = Entry { hosts, ..unnamed(name, &parsed, chain, key)? };
    entry.is_good_at(now)?;
    Ok(entry)
}

/// Takes one of the operator's own: the key fits the certificate, which says for which hosts it is. Its time is not judged.
pub fn own(
    name: &str,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Entry, CertificateError> {
    let leaf = chain.first().ok_or(CertificateError::NoCertificate)?.clone();
    let (_, parsed) =
        X509Certificate::from_der(&leaf).map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    let hosts = hosts_of(&parsed);
    if hosts.is_empty() {
        return Err(CertificateError::NoHost);
    }
    Ok(Entry { hosts, from_file: true, ..unnamed(name, &parsed, chain, key)? })
}

/// Whatever hosts it is for.
fn unnamed(
    name: &str,
    leaf: &X509Certificate<'_>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Entry, CertificateError> {
    let validity = leaf.validity();
    let key = CertifiedKey::from_der(chain, key, &default_provider()).map_err(CertificateError::Key)?;
    Ok(Entry {
        name: name.to_owned(),
        hosts: Vec::new(),
        key: Arc::new(key),
        not_before: validity.not_before.to_datetime(),
        not_after: validity.not_after.to_datetime(),
        issuer: leaf.issuer().to_string(),
        from_file: false,
    })
}

/// The alternative names that a client may ask for.
fn hosts_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let extensions = certificate.extensions().iter();
    let names = extensions.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.flatten().filter_map(host).collect()
}

/// Whether the certificate names the host: only its alternative names count (RFC 6125 and every browser).
fn covers(certificate: &X509Certificate<'_>, host: &str) -> bool {
    let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    let extensions = certificate.extensions().iter();
    let mut names = extensions.filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names.any(|names| {
        names.iter().any(|name| match (name, address) {
            (GeneralName::DNSName(name), None) => {
                let name = name.to_ascii_lowercase();
                let under_star = name
                    .strip_prefix('*')
                    .zip(host.find('.'))
                    .is_some_and(|(rest, dot)| dot > 0 && host[dot..] == *rest);
                name == host || under_star
            }
            (GeneralName::IPAddress(bytes), Some(IpAddr::V4(address))) => **bytes == address.octets(),
            (GeneralName::IPAddress(bytes), Some(IpAddr::V6(address))) => **bytes == address.octets(),
            _ => false,
        })
    })
}

/// Reads the newest set at each handshake.
struct Newest(Arc<Shared>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.0.certificates.load();
        set.find(hello.server_name()).map(|entry| Arc::clone(&entry.key))
    }
}

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Newest").finish_non_exhaustive()
    }
}

/// The configuration of every core: TLS 1.2 and 1.3, HTTP/2 or HTTP/1.1, and resumption by tickets under one key, so
/// that a client may come back on another core. Nothing is kept per client.
pub fn server_config(shared: &Arc<Shared>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Newest(Arc::clone(shared))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use time::Duration;

    fn made(names: &[&str]) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
        let certificate = params.self_signed(&key).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn entry(name: &str, names: &[&str]) -> Entry {
        let (chain, key) = made(names);
        let hosts: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        certified_key(name, chain, key, &hosts, OffsetDateTime::now_utc()).unwrap()
    }

    #[test]
    fn the_exact_name_beats_the_wildcard_and_strangers_get_the_default() {
        let set = CertificateSet::new(vec![
            entry("default", &["first.org"]),
            entry("wild", &["*.x.org"]),
            entry("exact", &["a.x.org", "10.0.0.1"]),
        ]);
        let name = |host| set.find(host).unwrap().name.as_str();
        assert_eq!(name(Some("A.x.org")), "exact");
        assert_eq!(name(Some("b.x.org")), "wild");
        assert_eq!(name(Some("b.b.x.org")), "default");
        assert_eq!(name(Some("x.org")), "default");
        assert_eq!(name(None), "default");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (chain, _) = made(&["a.org"]);
        let (_, key) = made(&["a.org"]);
        let refused = certified_key("a", chain, key, &["a.org".to_owned()], OffsetDateTime::now_utc());
        assert!(matches!(refused, Err(CertificateError::Key(_))));
    }

    #[test]
    fn time_and_hosts_are_checked() {
        let now = OffsetDateTime::now_utc();
        let check = |hosts: &[&str], now| {
            let (chain, key) = made(&["a.org", "*.b.org", "10.0.0.1"]);
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            certified_key("a", chain, key, &hosts, now)
        };
        assert!(check(&["a.org", "x.b.org", "*.b.org", "10.0.0.1"], now).is_ok());
        assert!(matches!(check(&["x.y.b.org"], now), Err(CertificateError::Host(_))));
        assert!(matches!(check(&["10.0.0.2"], now), Err(CertificateError::Host(_))));
        assert!(matches!(check(&["a.org"], now + Duration::days(2)), Err(CertificateError::Expired(_))));
        assert!(matches!(check(&["a.org"], now - Duration::days(2)), Err(CertificateError::NotYetValid(_))));
        let none = certified_key("a", Vec::new(), made(&["a.org"]).1, &[], now);
        assert!(matches!(none, Err(CertificateError::NoCertificate)));
    }

    #[test]
    fn the_self_signed_set_is_for_this_machine() {
        let set = CertificateSet::self_signed().unwrap();
        assert_eq!(set.entries()[0].hosts, ["localhost", "127.0.0.1", "::1"]);
    }
}
