//! What an identity is made of: a key, the chain up to the internal root, the root. In: their DER. Out: a bundle that
//! fits together and carries one of our names. A [`Material`] that exists is whole; whether it is still in time is
//! asked with a clock.

use super::{NameError, PeerId, RootHash, tls};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::FromDer as _;

/// A part of its life after which an identity is renewed: daily, for one of seven days.
const RENEWED_AFTER: u32 = 7;

/// One identity. Its key is in no `Debug`.
#[derive(Clone)]
pub struct Material {
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    root_hash: RootHash,
    peer: PeerId,
    not_before: SystemTime,
    key: Arc<CertifiedKey>,
}

/// Why parts are no identity.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error("there is no certificate")]
    Empty,
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the certificate has no name of ours: {0}")]
    Name(#[from] NameError),
    #[error("the key cannot be used: {0}")]
    Key(rustls::Error),
    #[error("the key does not belong to the certificate")]
    Mismatch,
    #[error("the certificate was not issued under the root beside it: {}", tls::explain(.0))]
    Chain(rustls::Error),
}

impl Material {
    /// `chain` begins with the leaf; the root may end it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        root: CertificateDer<'static>,
    ) -> Result<Self, MaterialError> {
        let leaf = chain.first().ok_or(MaterialError::Empty)?;
        let peer = PeerId::from_certificate(leaf)?;
        let not_before = not_before(leaf)?;
        let root_hash = root_hash(&root)?;
        let key = tls::provider().key_provider.load_private_key(key).map_err(MaterialError::Key)?;
        let key = CertifiedKey::new(chain.clone(), key);
        key.keys_match().map_err(|_| MaterialError::Mismatch)?;

        let material = Self { chain, root, root_hash, peer, not_before, key: Arc::new(key) };
        // Whether it is in time now is another question.
        let now = SystemTime::now().clamp(material.not_before, material.peer.not_after.max(material.not_before));
        material.verify(now)?;
        Ok(material)
    }

    fn verify(&self, now: SystemTime) -> Result<(), MaterialError> {
        let leaf = ParsedCertificate::try_from(&self.chain[0]).map_err(MaterialError::Chain)?;
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        let algorithms = tls::provider().signature_verification_algorithms;
        let roots = Arc::unwrap_or_clone(self.roots());
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &self.chain[1..], now, algorithms.all)
            .map_err(MaterialError::Chain)
    }

    /// The name it proves.
    pub fn peer(&self) -> &PeerId {
        &self.peer
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// As in join tokens.
    pub fn root_hash(&self) -> &RootHash {
        &self.root_hash
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When to ask for the next one.
    pub fn renewal_due(&self) -> SystemTime {
        self.renewal_due_from(self.not_before)
    }

    /// The same for one that was issued at `issued`.
    pub fn renewal_due_from(&self, issued: SystemTime) -> SystemTime {
        issued + self.peer.not_after.duration_since(issued).unwrap_or_default() / RENEWED_AFTER
    }

    /// How long it is good for in all.
    pub fn lifetime(&self) -> Duration {
        self.peer.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Presents it in handshakes of either side.
    pub(super) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(self.key.clone().into())
    }

    /// Shows another chain than its own in handshakes, as an impostor does.
    #[cfg(test)]
    pub(super) fn present(&mut self, chain: Vec<CertificateDer<'static>>) {
        self.key = Arc::new(CertifiedKey::new(chain, self.key.key.clone()));
    }

    /// Trusts this cluster's root and nobody else.
    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        // An unreadable root makes an empty store, under which no chain verifies: new() has refused it already.
        let _ = roots.add(self.root.clone());
        Arc::new(roots)
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The hash by which join tokens name a root.
pub fn root_hash(root: &CertificateDer<'_>) -> Result<RootHash, MaterialError> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(root)
        .map_err(|error| MaterialError::Certificate(error.to_string()))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    Ok(hash)
}

fn not_before(leaf: &CertificateDer<'_>) -> Result<SystemTime, MaterialError> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(leaf)
        .map_err(|error| MaterialError::Certificate(error.to_string()))?;
    let seconds = u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}
