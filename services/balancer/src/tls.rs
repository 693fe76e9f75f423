//! TLS: which certificate a client gets, and the handshake's settings.

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use thiserror::Error;

/// The certificates of one snapshot.
#[derive(Debug)]
pub struct CertificateSet {}

impl CertificateSet {
    /// One self-signed certificate made in memory: what the listener shows until the cert-sidecar has spoken.
    pub fn self_signed() -> Result<Self, CertificateError> {
        unimplemented!()
    }

    /// The first entry is also the default. An empty list is a self-signed set.
    pub fn new(_entries: Vec<Entry>) -> Self {
        unimplemented!()
    }

    /// Names and expiry, for /status and the metrics; "self-signed" when nothing has come yet.
    pub fn entries(&self) -> &[Entry] {
        unimplemented!()
    }
}

/// One accepted certificate.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name in the cert-sidecar's configuration.
    pub name: String,
    /// Host names, "*.example.com", and addresses, in lower case.
    pub hosts: Vec<String>,
    pub key: Arc<CertifiedKey>,
    pub not_after: time::OffsetDateTime,
    pub issuer: String,
}

#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("the chain is empty")]
    NoCertificate,
}

/// Checks what came from the cert-sidecar: the key fits the certificate, it is valid at `now`, and every host is covered.
pub fn certified_key(
    _name: &str,
    _chain: Vec<CertificateDer<'static>>,
    _key: PrivateKeyDer<'static>,
    _hosts: &[String],
    _now: time::OffsetDateTime,
) -> Result<Entry, CertificateError> {
    unimplemented!()
}
