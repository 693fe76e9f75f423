//! Whom an `https` upstream's certificate has to be signed by. In: a file of certificates, or what the system trusts. Out: a
//! TLS client's configuration. Read once, when the configuration is.

use crate::config::UpstreamProtocol;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// What we speak within TLS, as ALPN calls it.
fn alpn(protocol: UpstreamProtocol) -> &'static [u8] {
    match protocol {
        UpstreamProtocol::Http1 => b"http/1.1",
        UpstreamProtocol::Http2 => b"h2",
    }
}

/// Certificates to verify servers by.
#[derive(Clone, Debug)]
pub(super) struct Trust(Arc<ClientConfig>);

/// Why servers could not be verified.
#[derive(Debug, Error)]
pub(crate) enum TrustError {
    #[error("the certificates of {path} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{0} has no certificate that an upstream could be verified by")]
    Empty(PathBuf),
    #[error("this system trusts no certificates: install ca-certificates, or give the route a ca = \"/path.pem\"")]
    NoRoots,
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// `None`: what the system trusts, which `SSL_CERT_FILE` and `SSL_CERT_DIR` may point elsewhere.
    pub(super) fn read(ca: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        match ca {
            Some(path) => {
                let unreadable = |source| TrustError::Unreadable { path: path.to_owned(), source };
                let certificates = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
                for certificate in certificates {
                    roots.add(certificate.map_err(unreadable)?)?;
                }
                if roots.is_empty() {
                    return Err(TrustError::Empty(path.to_owned()));
                }
            }
            None => {
                // some of a system's certificates may be of a kind that nobody uses any more
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(TrustError::NoRoots);
                }
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self, protocol: UpstreamProtocol) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.0);
        config.alpn_protocols = vec![alpn(protocol).to_vec()];
        Arc::new(config)
    }
}
