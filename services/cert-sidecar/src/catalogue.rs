//! The public certificates on offer: configured host names in, a manifest and bodies by hash out. Issues and renews
//! from the internal CA, keeps what it has issued; knows nothing about who fetches it.

use crate::{
    config::CertificateConfig,
    internal_ca::{HOST_LIFETIME, InternalCa, IssueError},
    schedule,
    store::{Store, StoreError},
};
use aws_lc_rs::digest;
use proto::certificates::{Certificate, Entry, Manifest};
use rustls::{
    RootCertStore, client::verify_server_cert_signed_by_trust_anchor, server::ParsedCertificate, sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject as _};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates by name.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    entries: BTreeMap<String, Offer>,
}

/// One certificate on offer.
#[derive(Debug)]
struct Offer {
    hosts: Vec<String>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    sha256: [u8; 32],
    not_after: SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogueError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no certificate for {name}: {source}")]
    Issue { name: String, source: IssueError },
}

impl Offer {
    fn new(
        hosts: Vec<String>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
        not_after: SystemTime,
    ) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        for der in &chain {
            hash.update(der);
        }
        hash.update(key.secret_pkcs8_der());
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(hash.finish().as_ref());
        Self { hosts, chain, key, sha256, not_after }
    }

    /// From the store's file: chain, then key, PEM. `None`: not for these hosts, not by this CA, not in time, or damaged.
    fn from_pem(text: &str, hosts: &[String], root: &CertificateDer<'_>, now: SystemTime) -> Option<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok()?;
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let not_after = Duration::from_secs(u64::try_from(leaf.validity().not_after.timestamp()).ok()?);
        let mut certified: Vec<_> = names_of(&leaf);
        let mut wanted = hosts.to_vec();
        certified.sort();
        wanted.sort();
        let good = certified == wanted && is_good(&chain, &key, root, now);
        good.then(|| Self::new(hosts.to_vec(), chain.clone(), key, SystemTime::UNIX_EPOCH + not_after))
    }

    fn to_pem(&self) -> String {
        let blocks = self.chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec()));
        let key = pem::Pem::new("PRIVATE KEY", self.key.secret_pkcs8_der());
        pem::encode_many(&blocks.chain([key]).collect::<Vec<_>>())
    }
}

/// Whether key and chain belong together, and the chain leads to `root` now.
fn is_good(
    chain: &[CertificateDer<'static>],
    key: &PrivatePkcs8KeyDer<'static>,
    root: &CertificateDer<'_>,
    now: SystemTime,
) -> bool {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verify = || {
        let key = provider.key_provider.load_private_key(key.clone_key().into())?;
        CertifiedKey::new(chain.to_vec(), key).keys_match()?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let (leaf, above) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let algorithms = provider.signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, above, UnixTime::since_unix_epoch(since), algorithms)
    };
    verify().is_ok()
}

/// The host names and addresses in a certificate, as the configuration writes them.
fn names_of(leaf: &X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let sans = leaf.subject_alternative_name().ok().flatten();
    let names = sans.iter().flat_map(|san| &san.value.general_names);
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| std::net::Ipv4Addr::from(octets).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string()),
        },
        _ => None,
    };
    names.filter_map(text).collect()
}

impl Catalogue {
    /// Makes every wanted certificate be there and good: from the store, else issued, else renewed.
    ///
    /// A file that cannot be used is replaced, unlike those of the CA: nothing is lost with it.
    pub(crate) fn refresh(
        &mut self,
        wanted: &[CertificateConfig],
        ca: &InternalCa,
        store: &Store,
        now: SystemTime,
    ) -> Result<(), CatalogueError> {
        self.entries.retain(|name, _| wanted.iter().any(|certificate| certificate.name == *name));
        for CertificateConfig { name, hosts } in wanted {
            let file = format!("certificates/{name}.pem");
            if !self.entries.contains_key(name) {
                let text = match store.read(&file) {
                    Err(StoreError::Damaged { .. }) => Some(String::new()),
                    read => read?,
                };
                match text.map(|text| Offer::from_pem(&text, hosts, ca.root(), now)) {
                    Some(Some(offer)) => drop(self.entries.insert(name.clone(), offer)),
                    Some(None) => {
                        tracing::warn!(name, file, "the kept certificate is damaged, too old, or for other hosts");
                    }
                    None => {}
                }
            }
            let due = |offer: &Offer| schedule::renew_at(offer.not_after, HOST_LIFETIME) <= now;
            if self.entries.get(name).is_none_or(due) {
                let issued = ca.host(hosts, now);
                let (issued, key) = issued.map_err(|source| CatalogueError::Issue { name: name.clone(), source })?;
                let offer = Offer::new(hosts.clone(), issued.chain, key, issued.not_after);
                store.write(&file, &offer.to_pem())?;
                tracing::info!(name, hosts = hosts.join(","), "issued a certificate from the internal CA");
                self.entries.insert(name.clone(), offer);
            }
        }
        Ok(())
    }

    /// The whole wanted state of every balancer, without its version.
    pub(crate) fn manifest<'a>(&self, denied: impl Iterator<Item = &'a str>) -> Manifest {
        let entries = self.entries.iter().map(|(name, offer)| Entry {
            name: name.clone(),
            hosts: offer.hosts.clone(),
            sha256: offer.sha256.to_vec(),
            source: "internal".to_owned(),
        });
        Manifest { version: 0, entries: entries.collect(), denied: denied.map(str::to_owned).collect() }
    }

    /// The body behind a manifest's hash.
    pub(crate) fn body(&self, sha256: &[u8]) -> Option<Certificate> {
        let offer = self.entries.values().find(|offer| offer.sha256 == sha256)?;
        Some(Certificate {
            chain: offer.chain.iter().map(|der| der.to_vec()).collect(),
            key: offer.key.secret_pkcs8_der().to_vec(),
        })
    }

    /// Name, hosts and end of each certificate.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, &[String], SystemTime)> {
        self.entries.iter().map(|(name, offer)| (name.as_str(), offer.hosts.as_slice(), offer.not_after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HOURS: Duration = Duration::from_secs(3600);

    fn wanted(hosts: &[&str]) -> Vec<CertificateConfig> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        vec![CertificateConfig { name: "site".to_owned(), hosts }]
    }

    fn refreshed(store: &Store, ca: &InternalCa, hosts: &[&str], now: SystemTime) -> Entry {
        let mut catalogue = Catalogue::default();
        catalogue.refresh(&wanted(hosts), ca, store, now).unwrap();
        let entry = catalogue.manifest(std::iter::empty()).entries.remove(0);
        let body = catalogue.body(&entry.sha256).unwrap();
        let hashed = digest::digest(&digest::SHA256, &[body.chain.concat(), body.key].concat());
        assert_eq!(entry.sha256, hashed.as_ref());
        entry
    }

    #[test]
    fn a_certificate_is_kept_until_two_thirds_of_its_life() {
        let home = tempfile::tempdir().unwrap();
        let (store, now) = (Store::open(home.path()).unwrap(), SystemTime::now());
        let ca = InternalCa::open(&store, "servery", now).unwrap();
        let hosts = ["shop.example", "*.shop.example", "127.0.0.1", "::1"];
        let first = refreshed(&store, &ca, &hosts, now);
        assert_eq!(first.hosts, hosts);
        assert_eq!(refreshed(&store, &ca, &hosts, now + HOST_LIFETIME * 2 / 3 - HOURS), first);
        assert_ne!(refreshed(&store, &ca, &hosts, now + HOST_LIFETIME * 2 / 3 + HOURS).sha256, first.sha256);
    }

    #[test]
    fn a_kept_certificate_that_cannot_be_used_is_issued_anew() {
        let home = tempfile::tempdir().unwrap();
        let (store, now) = (Store::open(home.path()).unwrap(), SystemTime::now());
        let ca = InternalCa::open(&store, "servery", now).unwrap();
        let file = home.path().join("certificates/site.pem");
        let issue = || {
            let hash = refreshed(&store, &ca, &["localhost"], now).sha256;
            (hash, fs::read_to_string(&file).unwrap())
        };
        let (_, text) = issue();
        let (_, other) = ca.host(&["localhost".to_owned()], now).unwrap();
        let key_at = text.find("-----BEGIN PRIVATE KEY").unwrap();
        let other = pem::encode(&pem::Pem::new("PRIVATE KEY", other.secret_pkcs8_der()));
        let elsewhere = tempfile::tempdir().unwrap();
        let foreign = Store::open(elsewhere.path()).unwrap();
        let foreign_ca = InternalCa::open(&foreign, "servery", now).unwrap();
        refreshed(&foreign, &foreign_ca, &["localhost"], now);
        for damage in [
            Vec::new(),
            vec![0xff; 10],
            text.as_bytes()[..text.len() / 2].to_vec(),
            format!("{}{other}", &text[..key_at]).into_bytes(),
            fs::read(elsewhere.path().join("certificates/site.pem")).unwrap(),
        ] {
            fs::write(&file, &damage).unwrap();
            let (hash, _) = issue();
            assert_eq!(issue().0, hash, "what was issued anew is kept");
            assert_ne!(fs::read(&file).unwrap(), damage);
        }
        // Other hosts: another certificate.
        let before = issue().0;
        assert_ne!(refreshed(&store, &ca, &["localhost", "shop.example"], now).sha256, before);
    }
}
