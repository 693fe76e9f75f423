//! TLS between processes of one cluster. In: an identity, or the root's hash from a join token. Out: rustls
//! configurations that let in nobody but peers of the same cluster whose certificate is in time, and on the dialling
//! side nobody but the role that is expected. TLS 1.3 only, HTTP/2 only, and no resumption: a resumed session would
//! skip the very checks that make a denied or expired peer stop.

use super::{ClientAuth, Material, NameError, PeerId, Role, RootHash, material};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::{Arc, LazyLock};

/// ALPN: gRPC is HTTP/2.
const H2: &[u8] = b"h2";
/// Leaf, intermediate, root and room for one more; a longer chain is work for nothing.
const CHAIN_MAX: usize = 4;

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// The cryptography of every control connection.
pub(super) fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// For the accepting side.
pub(super) fn server_config(material: &Material, clients: ClientAuth) -> Arc<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder_with_provider(material.roots(), provider());
    let verifier = match clients {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    let webpki = verifier.build().expect("a material's root is a readable certificate");
    let verifier = Clients { webpki, cluster: material.peer().cluster.clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(material.resolver());
    config.alpn_protocols = vec![H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

/// For dialling a peer of role `expect` with our own certificate.
pub(super) fn client_config(material: &Material, expect: Role) -> Arc<ClientConfig> {
    let trust = Trust::Root(material.roots());
    let config = client(trust, &material.peer().cluster, expect).with_client_cert_resolver(material.resolver());
    finish(config)
}

/// For enrolment: no certificate of our own, and of the other side nothing known but its root's hash.
pub(super) fn pinned_config(root: RootHash, cluster: &str) -> Arc<ClientConfig> {
    finish(client(Trust::Hash(root), cluster, Role::CertSidecar).with_no_client_auth())
}

fn client(
    trust: Trust,
    cluster: &str,
    role: Role,
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers { trust, cluster: cluster.to_owned(), role }))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![H2.to_vec()];
    config.resumption = Resumption::disabled();
    // Addresses and processes come and go: a name would prove nothing.
    config.enable_sni = false;
    Arc::new(config)
}

/// Why a certificate that is genuine is still not the one we talk to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unwanted {
    #[error("its certificate has no name of ours: {0}")]
    Name(#[from] NameError),
    #[error("it belongs to the cluster {theirs:?}, not to {ours:?}")]
    Cluster { ours: String, theirs: String },
    #[error("its role is {theirs}, not {wanted}")]
    Role { wanted: Role, theirs: Role },
    #[error("the root of its certificate is not the one that the join token names")]
    Root,
    #[error("its certificate chain is longer than {CHAIN_MAX}")]
    ChainLength,
}

impl From<Unwanted> for Error {
    fn from(unwanted: Unwanted) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(unwanted))))
    }
}

/// rustls prints what it does not know with `Debug`.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.to_string(),
        error => error.to_string(),
    }
}

fn named(der: &CertificateDer<'_>, cluster: &str) -> Result<PeerId, Unwanted> {
    let peer = PeerId::from_certificate(der)?;
    if peer.cluster == cluster {
        Ok(peer)
    } else {
        Err(Unwanted::Cluster { ours: cluster.to_owned(), theirs: peer.cluster })
    }
}

/// What the dialling side trusts.
#[derive(Debug)]
enum Trust {
    Root(Arc<RootCertStore>),
    Hash(RootHash),
}

/// Verifies who we dial: chain, time, cluster, role. Names of hosts play no part.
#[derive(Debug)]
struct Servers {
    trust: Trust,
    cluster: String,
    role: Role,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if above.len() >= CHAIN_MAX {
            return Err(Unwanted::ChainLength.into());
        }
        let roots = match &self.trust {
            Trust::Root(roots) => roots.clone(),
            Trust::Hash(hash) => {
                // Nobody who lacks the root's key has a chain that ends in it, so presenting the root proves nothing
                // and harms nothing: only the verification below does.
                let root = above.iter().find(|der| material::root_hash(der).is_ok_and(|found| found == *hash));
                let mut roots = RootCertStore::empty();
                roots.add(root.ok_or(Unwanted::Root)?.clone().into_owned())?;
                Arc::new(roots)
            }
        };
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, above, now, algorithms.all)?;
        let peer = named(leaf, &self.cluster)?;
        if peer.role != self.role {
            return Err(Unwanted::Role { wanted: self.role, theirs: peer.role }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies who dials us: chain and time by webpki, then the name.
#[derive(Debug)]
struct Clients {
    webpki: Arc<dyn ClientCertVerifier>,
    cluster: String,
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.webpki.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if above.len() >= CHAIN_MAX {
            return Err(Unwanted::ChainLength.into());
        }
        let verified = self.webpki.verify_client_cert(leaf, above, now)?;
        named(leaf, &self.cluster)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}
