//! The internal CA: a root that lives ten years and an intermediate that signs everything. Time comes in as an
//! argument; keys and certificates go out. Decides nothing about who may have one.

use crate::{
    config::Right,
    store::{Store, StoreError},
};
use aws_lc_rs::digest::{SHA256, digest};
use chassis::identity::{Role, names};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The intermediate is replaced while it still outlives anything it signs: identities live 91 days at most.
const INTERMEDIATE_REST: Duration = Duration::from_secs(120 * 24 * 3600);
/// Public certificates of the internal CA; renewed at two thirds.
pub(crate) const HOST_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clocks of other machines may be this much behind.
const SKEW: Duration = Duration::from_secs(300);

/// Root and intermediate.
pub(crate) struct InternalCa {
    root: CertificateDer<'static>,
    root_pem: String,
    root_issuer: Issuer<'static, KeyPair>,
    intermediate: CertificateDer<'static>,
    intermediate_not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with the intermediate behind it.
#[derive(Clone, Debug)]
pub(crate) struct IssuedChain {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) not_after: SystemTime,
}

/// Why no certificate can be issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    #[error("the request is not a PKCS #10 request signed with its own key: {0}")]
    Request(rcgen::Error),
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

impl InternalCa {
    /// Loads the CA from the store, or makes it where the store is new. Renews an intermediate that is near its end.
    pub(crate) fn open(store: &Store, cluster: &str, now: SystemTime) -> Result<Self, StoreError> {
        if !store.contains("ca") {
            if store.contains("records.json") {
                return Err(store.damaged("ca", "it is missing, though this store was in use"));
            }
            Self::make(store, cluster, now)?;
            tracing::info!(store = %store.path().display(), "made a new internal root");
        }
        let mut ca = Self::load(store, now)?;
        ca.renew_intermediate(store, cluster, now)?;
        Ok(ca)
    }

    fn make(store: &Store, cluster: &str, now: SystemTime) -> Result<(), StoreError> {
        let failed = |error: rcgen::Error| store.damaged("ca", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = ca_params(&format!("{cluster} internal root"), now, ROOT_LIFETIME, None);
        // each root has a name of its own, so that a browser with two of them does not mix them up
        params.distinguished_name.push(DnType::OrganizationalUnitName, hex::encode(&spki_hash(&key)[..4]));
        let root = params.self_signed(&key).map_err(failed)?;
        let root_pem = root.pem();
        let issuer = Issuer::new(params, key);
        let (intermediate_key, intermediate) = make_intermediate(&issuer, cluster, now).map_err(failed)?;
        store.write_directory(
            "ca",
            &[
                ("root.pem", &root_pem),
                ("root.key", &issuer.key().serialize_pem()),
                ("intermediate.pem", &(intermediate + &intermediate_key.serialize_pem())),
            ],
        )
    }

    fn load(store: &Store, now: SystemTime) -> Result<Self, StoreError> {
        let text = |name: &str| store.read(name)?.ok_or_else(|| store.damaged(name, "it is missing"));
        let (root_pem, root_key) = (text("ca/root.pem")?, text("ca/root.key")?);
        let both = text("ca/intermediate.pem")?;
        let (root, root_not_after, root_issuer) =
            load_issuer(&root_pem, &root_key).map_err(|what| store.damaged("ca/root.pem", what))?;
        let (intermediate, intermediate_not_after, issuer) =
            load_issuer(&both, &both).map_err(|what| store.damaged("ca/intermediate.pem", what))?;
        if root_not_after <= now {
            return Err(store.damaged("ca/root.pem", "the internal root has expired"));
        }
        Ok(Self { root, root_pem, root_issuer, intermediate, intermediate_not_after, issuer })
    }

    /// Replaces the intermediate when it is near its end.
    pub(crate) fn renew_intermediate(
        &mut self,
        store: &Store,
        cluster: &str,
        now: SystemTime,
    ) -> Result<bool, StoreError> {
        if now + INTERMEDIATE_REST < self.intermediate_not_after {
            return Ok(false);
        }
        let failed = |error: rcgen::Error| store.damaged("ca/intermediate.pem", error);
        let (key, pem) = make_intermediate(&self.root_issuer, cluster, now).map_err(failed)?;
        let both = pem + &key.serialize_pem();
        store.write("ca/intermediate.pem", &both)?;
        let loaded = load_issuer(&both, &both).map_err(|what| store.damaged("ca/intermediate.pem", what))?;
        (self.intermediate, self.intermediate_not_after, self.issuer) = loaded;
        tracing::info!("renewed the intermediate of the internal CA");
        Ok(true)
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// What a person imports to trust the cluster's own certificates.
    pub(crate) fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// SHA-256 of the root's public key (its SubjectPublicKeyInfo, DER): what join tokens carry.
    pub(crate) fn root_hash(&self) -> [u8; 32] {
        spki_hash(self.root_issuer.key())
    }

    /// An identity for the key of `csr`, under names that we choose.
    pub(crate) fn identity(
        &self,
        csr: &[u8],
        name: &IdentityName<'_>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<IssuedChain, IssueError> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec()))
            .map_err(IssueError::Request)?;
        self.leaf(&csr.public_key, name.instance, name.sans()?, now, lifetime)
    }

    /// A public certificate with a key of its own, PKCS #8.
    pub(crate) fn host(
        &self,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<(IssuedChain, PrivatePkcs8KeyDer<'static>), IssueError> {
        let key = KeyPair::generate()?;
        let sans = hosts.iter().map(|host| match host.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(host.as_str().try_into()?)),
        });
        let sans = sans.collect::<Result<_, rcgen::Error>>()?;
        let issued = self.leaf(&key, hosts.first().map_or("", String::as_str), sans, now, HOST_LIFETIME)?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        sans: Vec<SanType>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<IssuedChain, IssueError> {
        let not_after = (now + lifetime).min(self.intermediate_not_after);
        let mut params = CertificateParams::default();
        params.not_before = (now - SKEW).into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial());
        params.distinguished_name = distinguished(common_name);
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(IssuedChain { chain: vec![leaf.der().clone(), self.intermediate.clone()], not_after })
    }
}

/// The names that an identity carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdentityName<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) role: Role,
    pub(crate) instance: &'a str,
    /// The app it may serve and under which prefixes; app-servers only.
    pub(crate) right: Option<&'a Right>,
}

impl IdentityName<'_> {
    fn sans(&self) -> Result<Vec<SanType>, rcgen::Error> {
        let mut uris = vec![names::spiffe_id(self.cluster, self.role, self.instance)];
        if let Some(Right::AppServer { app, prefixes }) = self.right {
            uris.push(names::app_right(self.cluster, app, prefixes));
        }
        uris.into_iter().map(|uri| Ok(SanType::URI(uri.as_str().try_into()?))).collect()
    }
}

fn make_intermediate(
    root: &Issuer<'static, KeyPair>,
    cluster: &str,
    now: SystemTime,
) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let params = ca_params(&format!("{cluster} internal intermediate"), now, INTERMEDIATE_LIFETIME, Some(0));
    let pem = params.signed_by(&key, root)?.pem();
    Ok((key, pem))
}

fn ca_params(name: &str, now: SystemTime, lifetime: Duration, path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = (now - DAY).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(serial());
    params.distinguished_name = distinguished(name);
    params.is_ca = IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = path_length.is_some();
    params
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Servery");
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// 127 random bits: RFC 5280 section 4.1.2.2 wants a positive number of at most 20 octets.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn spki_hash(key: &impl PublicKeyData) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, &key.subject_public_key_info()).as_ref());
    hash
}

/// A CA certificate and its key from PEM, checked to belong together.
fn load_issuer(
    certificate: &str,
    key: &str,
) -> Result<(CertificateDer<'static>, SystemTime, Issuer<'static, KeyPair>), String> {
    let der =
        CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| format!("no certificate: {error}"))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(|error| format!("no private key: {error}"))?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| format!("no P-256 key: {error}"))?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| format!("no certificate: {error}"))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err("certificate and key do not belong together".to_owned());
    }
    if !parsed.is_ca() {
        return Err("it is not the certificate of a CA".to_owned());
    }
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
    let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| error.to_string())?;
    Ok((der, not_after, issuer))
}
