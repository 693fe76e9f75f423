//! The internal CA: a root that lives ten years and an intermediate that signs everything. Time comes in as an
//! argument; keys and certificates go out. Decides nothing about who may have one.

use crate::store::{Store, StoreError};
use aws_lc_rs::digest::{SHA256, digest};
use chassis::identity::PeerId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use std::{
    net::IpAddr,
    ops::Range,
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
/// Clocks of other machines may be this much behind; for short lives, by a tenth of the life.
const SKEW: Duration = Duration::from_secs(300);
/// Follows the cluster's name in the root's.
const ROOT_NAME: &str = " internal root";
/// RFC 5280 appendix A.1, ub-common-name. A longer host name is in the SANs alone, where it counts.
const COMMON_NAME_MAX: usize = 64;

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
        let mut ca = Self::load(store, cluster, now)?;
        ca.renew_intermediate(store, cluster, now)?;
        Ok(ca)
    }

    fn make(store: &Store, cluster: &str, now: SystemTime) -> Result<(), StoreError> {
        let failed = |error: rcgen::Error| store.damaged("ca", error);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = ca_params(&format!("{cluster}{ROOT_NAME}"), now, ROOT_LIFETIME, None);
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

    fn load(store: &Store, cluster: &str, now: SystemTime) -> Result<Self, StoreError> {
        let text = |name: &str| store.read(name)?.ok_or_else(|| store.damaged(name, "it is missing"));
        let (root_pem, root_key) = (text("ca/root.pem")?, text("ca/root.key")?);
        let both = text("ca/intermediate.pem")?;
        let (root, root_not_after, root_issuer) =
            load_issuer(&root_pem, &root_key).map_err(|what| store.damaged("ca/root.pem", what))?;
        let (intermediate, intermediate_not_after, issuer) =
            load_issuer(&both, &both).map_err(|what| store.damaged("ca/intermediate.pem", what))?;
        let of = |what| store.damaged("ca/root.pem", what);
        if !is_issued_by(&intermediate, &root).map_err(of)? {
            return Err(store.damaged("ca/intermediate.pem", "it was not issued by the root beside it"));
        }
        if let Some(other) = cluster_of(&root).map_err(of)?.filter(|other| other != cluster) {
            return Err(StoreError::OtherCluster { root: store.path().to_owned(), other, ours: cluster.to_owned() });
        }
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

    /// An identity for the key of `csr`: `name`, its rights and its end are ours to choose, what the request asks for is not read.
    pub(crate) fn identity(&self, csr: &[u8], name: &PeerId, now: SystemTime) -> Result<IssuedChain, IssueError> {
        let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr.to_vec()))
            .map_err(IssueError::Request)?;
        let both = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uris = name.uris().into_iter().map(|uri| Ok(SanType::URI(uri.as_str().try_into()?)));
        let sans = uris.collect::<Result<_, rcgen::Error>>()?;
        self.leaf(&csr.public_key, &name.instance, sans, both, now..name.not_after)
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
        let name = hosts.first().map_or("", String::as_str);
        let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = self.leaf(&key, name, sans, purposes, now..now + HOST_LIFETIME)?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der())))
    }

    fn leaf(
        &self,
        key: &impl PublicKeyData,
        common_name: &str,
        sans: Vec<SanType>,
        purposes: Vec<ExtendedKeyUsagePurpose>,
        life: Range<SystemTime>,
    ) -> Result<IssuedChain, IssueError> {
        let not_after = life.end.min(self.intermediate_not_after);
        let skew = SKEW.min(not_after.duration_since(life.start).unwrap_or_default() / 10);
        let mut params = CertificateParams::default();
        params.not_before = (life.start - skew).into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial());
        params.distinguished_name = distinguished(common_name);
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = purposes;
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(IssuedChain { chain: vec![leaf.der().clone(), self.intermediate.clone()], not_after })
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
    if name.len() <= COMMON_NAME_MAX {
        distinguished.push(DnType::CommonName, name);
    }
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

/// By name: each root has one of its own. The signature is checked with the first certificate that is used.
fn is_issued_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> Result<bool, String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let (_, issuer) = X509Certificate::from_der(issuer).map_err(|error| error.to_string())?;
    Ok(certificate.issuer().as_raw() == issuer.subject().as_raw())
}

/// The cluster for which a root was made; `None` if the name was too long to be in it.
fn cluster_of(root: &CertificateDer<'_>) -> Result<Option<String>, String> {
    let (_, root) = X509Certificate::from_der(root).map_err(|error| error.to_string())?;
    let name = root.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(name.and_then(|name| name.strip_suffix(ROOT_NAME)).map(str::to_owned))
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

#[cfg(test)]
mod tests {
    use super::*;
    use chassis::identity::{AppRight, Role};
    use std::fs;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    fn csr(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
    }

    fn name() -> PeerId {
        let right = AppRight::new("shop", &["/a-b".to_owned()]).unwrap();
        PeerId {
            cluster: "servery".to_owned(),
            role: Role::AppServer,
            instance: "n-1".to_owned(),
            apps: vec![right],
            not_after: now() + DAY,
        }
    }

    #[test]
    fn an_identity_carries_exactly_the_name_it_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let ca = InternalCa::open(&store, "servery", now()).unwrap();
        let issued = ca.identity(&csr(&KeyPair::generate().unwrap()), &name(), now()).unwrap();
        assert_eq!(PeerId::from_certificate(&issued.chain[0]).unwrap(), name());
        assert_eq!(issued.chain.len(), 2);
    }

    #[test]
    fn the_root_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let first = InternalCa::open(&store, "servery", now()).unwrap();
        let again = InternalCa::open(&store, "servery", now()).unwrap();
        assert_eq!(first.root(), again.root());
        assert_eq!(first.root_hash(), again.root_hash());
        assert_eq!(first.intermediate, again.intermediate);
    }

    #[test]
    fn a_first_start_that_was_cut_off_starts_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("ca.half")).unwrap();
        fs::write(directory.path().join("ca.half/root.key"), "half").unwrap();
        let store = Store::open(directory.path()).unwrap();
        InternalCa::open(&store, "servery", now()).unwrap();
    }

    #[test]
    fn a_damaged_store_is_refused_with_what_to_do() {
        type Damage = fn(&std::path::Path);
        let damage: [(&str, Damage); 5] = [
            ("root.key", |file| fs::remove_file(file).unwrap()),
            ("root.pem", |file| fs::write(file, "").unwrap()),
            ("root.key", |file| fs::write(file, KeyPair::generate().unwrap().serialize_pem()).unwrap()),
            ("intermediate.pem", |file| {
                let text = fs::read_to_string(file).unwrap();
                fs::write(file, &text[..text.len() / 2]).unwrap();
            }),
            ("intermediate.pem", |file| fs::write(file, [0xff; 10]).unwrap()),
        ];
        for (name, break_it) in damage {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            InternalCa::open(&store, "servery", now()).unwrap();
            break_it(&directory.path().join("ca").join(name));
            let Err(error) = InternalCa::open(&store, "servery", now()) else { panic!("{name} was accepted") };
            let text = error.to_string();
            assert!(text.contains("damaged") && text.contains("backup"), "{text}");
        }
    }

    #[test]
    fn a_store_in_use_whose_root_is_gone_gets_no_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.write("records.json", "{}").unwrap();
        assert!(matches!(InternalCa::open(&store, "servery", now()), Err(StoreError::Damaged { .. })));
        assert!(!store.contains("ca"));
    }

    #[test]
    fn the_intermediate_is_renewed_under_the_same_root_before_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let before = InternalCa::open(&store, "servery", now()).unwrap();
        let after = InternalCa::open(&store, "servery", now() + 300 * DAY).unwrap();
        assert_eq!(before.root(), after.root());
        assert_ne!(before.intermediate, after.intermediate);
        let expired = InternalCa::open(&store, "servery", now() + 11 * 365 * DAY);
        assert!(expired.is_err(), "an expired root is not used");
    }

    #[test]
    fn a_request_that_is_not_signed_by_its_own_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let ca = InternalCa::open(&store, "servery", now()).unwrap();
        let mut csr = csr(&KeyPair::generate().unwrap());
        ca.identity(&csr, &name(), now()).unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(matches!(ca.identity(&csr, &name(), now()), Err(IssueError::Request(_))));
        assert!(ca.identity(b"garbage", &name(), now()).is_err());
    }
}
