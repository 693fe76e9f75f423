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
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates by name.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    entries: BTreeMap<String, Offer>,
    version: u64,
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

    /// From the store's file: chain, then key, PEM. What cannot be used is issued anew: nothing is lost with it.
    fn from_pem(text: &str, hosts: &[String]) -> Option<Self> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok()?;
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        let not_after = Duration::from_secs(u64::try_from(leaf.validity().not_after.timestamp()).ok()?);
        let mut certified: Vec<_> = names_of(&leaf);
        let mut wanted = hosts.to_vec();
        certified.sort();
        wanted.sort();
        (certified == wanted).then(|| Self::new(hosts.to_vec(), chain.clone(), key, SystemTime::UNIX_EPOCH + not_after))
    }

    fn to_pem(&self) -> String {
        let blocks = self.chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec()));
        let key = pem::Pem::new("PRIVATE KEY", self.key.secret_pkcs8_der());
        pem::encode_many(&blocks.chain([key]).collect::<Vec<_>>())
    }
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
    /// Makes every wanted certificate be there and good: from the store, else issued, else renewed. True if the offer
    /// has changed.
    pub(crate) fn refresh(
        &mut self,
        wanted: &[CertificateConfig],
        ca: &InternalCa,
        store: &Store,
        now: SystemTime,
    ) -> Result<bool, CatalogueError> {
        let mut changed = false;
        self.entries.retain(|name, _| {
            let stays = wanted.iter().any(|certificate| certificate.name == *name);
            changed |= !stays;
            stays
        });
        for CertificateConfig { name, hosts } in wanted {
            let file = format!("certificates/{name}.pem");
            if !self.entries.contains_key(name)
                && let Some(offer) = store.read(&file)?.and_then(|text| Offer::from_pem(&text, hosts))
                && offer.chain.get(1..).is_some_and(|issuers| !issuers.is_empty())
            {
                self.entries.insert(name.clone(), offer);
                changed = true;
            }
            let due = |offer: &Offer| schedule::renew_at(offer.not_after, HOST_LIFETIME) <= now;
            if self.entries.get(name).is_none_or(due) {
                let issued = ca.host(hosts, now);
                let (issued, key) = issued.map_err(|source| CatalogueError::Issue { name: name.clone(), source })?;
                let offer = Offer::new(hosts.clone(), issued.chain, key, issued.not_after);
                store.write(&file, &offer.to_pem())?;
                tracing::info!(name, hosts = hosts.join(","), "issued a certificate from the internal CA");
                self.entries.insert(name.clone(), offer);
                changed = true;
            }
        }
        if changed {
            self.touch(now);
        }
        Ok(changed)
    }

    /// A version that grows, also over a restart: the clock's milliseconds, or one more than the last.
    pub(crate) fn touch(&mut self, now: SystemTime) {
        let clock = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        self.version = u64::try_from(clock).unwrap_or(u64::MAX).max(self.version + 1);
    }

    /// The whole wanted state of every balancer.
    pub(crate) fn manifest<'a>(&self, denied: impl Iterator<Item = &'a str>) -> Manifest {
        let entries = self.entries.iter().map(|(name, offer)| Entry {
            name: name.clone(),
            hosts: offer.hosts.clone(),
            sha256: offer.sha256.to_vec(),
            source: "internal".to_owned(),
        });
        Manifest { version: self.version, entries: entries.collect(), denied: denied.map(str::to_owned).collect() }
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
