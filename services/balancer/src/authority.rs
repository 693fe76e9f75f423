//! For tests: a cluster's internal CA that issues whatever identity a test wants.

use chassis::identity::{AppRight, Identity, Material, PeerId, Role};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

pub(crate) const CLUSTER: &str = "test";

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// As a certificate would say it, good for an hour.
pub(crate) fn peer(role: Role, instance: &str, rights: &[(&str, &[&str])]) -> PeerId {
    let right = |(app, prefixes): &(&str, &[&str])| {
        let prefixes: Vec<String> = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        AppRight::new(app, &prefixes).unwrap()
    };
    PeerId {
        cluster: CLUSTER.to_owned(),
        role,
        instance: instance.to_owned(),
        apps: rights.iter().map(right).collect(),
        not_after: SystemTime::now() + Duration::from_secs(3600),
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn identity(&self, peer: &PeerId) -> Identity {
        Identity::fixed(self.material(peer))
    }

    pub(crate) fn material(&self, peer: &PeerId) -> Material {
        let (leaf, key) = self.issue(peer);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Material::new(vec![leaf, self.root.clone()], key.into(), self.root.clone()).unwrap()
    }

    /// Writes it down as an enrolment does.
    pub(crate) fn keep(&self, peer: &PeerId, directory: &Path) {
        let (leaf, key) = self.issue(peer);
        DirBuilder::new().recursive(true).mode(0o700).create(directory).unwrap();
        let chain = [&leaf, &self.root].map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec())));
        for (name, text) in
            [("key.pem", key.serialize_pem()), ("root.pem", chain[1].clone()), ("certificate.pem", chain.concat())]
        {
            let mut file =
                OpenOptions::new().create_new(true).write(true).mode(0o600).open(directory.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
    }

    fn issue(&self, peer: &PeerId) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            peer.uris().into_iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - Duration::from_secs(3600)).into();
        params.not_after = peer.not_after.into();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}
