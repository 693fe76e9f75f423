//! What the certificates' side keeps in the data directory: which instances are denied, always, so that a balancer
//! that starts without the cert-sidecar does not let them in; and the certificates with their keys, where the
//! configuration says so. Every file is 0600 and replaced whole or not at all. What cannot be read is left aside with a
//! warning: the sidecar has all of it.

use super::shelf::{Bodies, Shelf, sha256_of};
use chassis::durable;
use proto::certificates::{Certificate, Entry, Manifest};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
};
use time::OffsetDateTime;

/// Some thousand certificates with their keys.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The files below a balancer's data directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    denied: PathBuf,
    /// `None`: certificates are not kept.
    certificates: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    name: String,
    hosts: Vec<String>,
    source: String,
    /// Chain, leaf first, then the key.
    pem: String,
}

impl Disk {
    pub(crate) fn new(data: &Path, keep_certificates: bool) -> Self {
        Self {
            denied: data.join("denied"),
            certificates: keep_certificates.then(|| data.join("certificates").join("kept.json")),
        }
    }

    /// Whether a manifest's certificates are written down at all.
    pub(crate) fn keeps_certificates(&self) -> bool {
        self.certificates.is_some()
    }

    pub(crate) fn denied(&self) -> HashSet<String> {
        read(&self.denied).map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default()
    }

    pub(crate) fn keep_denied(&self, denied: &HashSet<String>) -> io::Result<()> {
        let mut names: Vec<&str> = denied.iter().map(String::as_str).collect();
        names.sort_unstable();
        let text: String = names.iter().flat_map(|name| [name, "\n"]).collect();
        write_private(&self.denied, &text)
    }

    /// The kept certificates that are still good at `now`.
    pub(crate) fn certificates(&self, now: OffsetDateTime) -> Shelf {
        let mut shelf = Shelf::default();
        let Some((path, text)) = self.certificates.as_ref().and_then(|path| Some((path, read(path)?))) else {
            return shelf;
        };
        let kept: Vec<Kept> = match serde_json::from_str(&text) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "kept certificates cannot be read: waiting for the cert-sidecar");
                return shelf;
            }
        };
        let mut manifest = Manifest::default();
        let mut bodies = Bodies::new();
        for Kept { name, hosts, source, pem } in kept {
            let Some(body) = parse(&pem) else {
                tracing::warn!(name, "a kept certificate cannot be read: waiting for the cert-sidecar");
                continue;
            };
            let sha256 = sha256_of(&body);
            bodies.insert(sha256.clone(), Ok(body));
            manifest.entries.push(Entry { name, hosts, sha256, source });
        }
        for result in shelf.settle(&manifest, &bodies, now).iter().filter(|result| !result.accepted) {
            tracing::warn!(name = result.name, reason = result.reason, "a kept certificate is not used");
        }
        shelf
    }

    /// Nothing where certificates are not kept.
    pub(crate) fn keep_certificates(&self, shelf: &Shelf) -> io::Result<()> {
        let Some(path) = &self.certificates else { return Ok(()) };
        let kept = shelf.held().iter().map(|held| {
            let chain = held.body.chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone()));
            let blocks: Vec<_> = chain.chain([pem::Pem::new("PRIVATE KEY", held.body.key.clone())]).collect();
            Kept {
                name: held.wanted.name.clone(),
                hosts: held.wanted.hosts.clone(),
                source: held.wanted.source.clone(),
                pem: pem::encode_many(&blocks),
            }
        });
        let kept: Vec<Kept> = kept.collect();
        write_private(path, &serde_json::to_string(&kept).map_err(io::Error::other)?)
    }
}

fn parse(pem: &str) -> Option<Certificate> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
    let chain = chain.map(|der| der.map(|der| der.to_vec())).collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).ok()?;
    Some(Certificate { chain, key: key.secret_pkcs8_der().to_vec() })
}

/// `None` where there is no such file, or none that can be read.
fn read(path: &Path) -> Option<String> {
    let text = durable::read(path, FILE_BYTES_MAX)
        .and_then(|bytes| bytes.map(String::from_utf8).transpose().map_err(io::Error::other));
    text.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot be read");
        None
    })
}

/// In a directory that is made where it is not there.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        durable::make_directory(directory)?;
    }
    durable::write(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{
        super::shelf::tests::{DAY, bodies, offer},
        *,
    };
    use std::{fs, os::unix::fs::PermissionsExt as _};

    #[test]
    fn kept_certificates_come_back_and_expired_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path(), true);
        let now = OffsetDateTime::now_utc();
        let (long, short) =
            (offer("long", &["a.example.com"], now + DAY * 3), offer("short", &["b.example.com"], now + DAY));
        let mut shelf = disk.certificates(now);
        assert!(shelf.set().is_none());
        let entries = vec![long.0.clone(), short.0.clone()];
        shelf.settle(&Manifest { version: 1, entries, denied: Vec::new() }, &bodies(&[&long, &short]), now);
        disk.keep_certificates(&shelf).unwrap();

        let file = directory.path().join("certificates/kept.json");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let names = |shelf: &Shelf| shelf.held().iter().map(|held| held.wanted.clone()).collect::<Vec<_>>();
        assert_eq!(names(&disk.certificates(now)), [long.0.clone(), short.0.clone()]);
        assert_eq!(names(&disk.certificates(now + DAY * 2)), [long.0]);

        fs::write(&file, "damaged").unwrap();
        assert!(disk.certificates(now).set().is_none());
    }

    #[test]
    fn without_the_option_no_key_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path(), false);
        let now = OffsetDateTime::now_utc();
        let a = offer("a", &["a.example.com"], now + DAY);
        let mut shelf = Shelf::default();
        shelf.settle(&Manifest { entries: vec![a.0.clone()], ..Manifest::default() }, &bodies(&[&a]), now);
        disk.keep_certificates(&shelf).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_denied_are_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Disk::new(directory.path(), false);
        assert!(disk.denied().is_empty());
        let denied: HashSet<String> = ["node-1", "node-2"].map(str::to_owned).into();
        disk.keep_denied(&denied).unwrap();
        assert_eq!(disk.denied(), denied);
        disk.keep_denied(&HashSet::new()).unwrap();
        assert!(disk.denied().is_empty());
    }
}
