//! An identity on disk: `key.pem`, `certificate.pem`, `root.pem` in `<data>/identity`, 0600 in 0700. In: material to
//! keep. Out: the material that was kept. What is damaged is explained and left alone, for a person to look at; nothing
//! here replaces a file that it could not read.
//!
//! The certificate is the commit: a new key waits in `key.next.pem` until the certificate that belongs to it is in
//! place, and is moved over the old one after that. After a power cut between the two the next start finishes the move.

use super::{Material, MaterialError, PeerId, Role};
use crate::durable;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// A chain of four with long names is a tenth of it.
const LENGTH_MAX: u64 = 256 * 1024;

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
const NEXT_KEY: &str = "key.next.pem";
const ROOT: &str = "root.pem";

/// The directory, locked: two processes with one identity would take each other's registrations away for ever.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    lock: File,
}

/// Why what is on disk, or the disk, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("another process runs with the identity in {0}: give every process a data directory of its own")]
    InUse(PathBuf),
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {source}. {}", move_away(.directory))]
    Damaged { path: PathBuf, directory: PathBuf, source: DamageError },
    #[error("{directory} holds the identity of {found}, not of a {role} of the cluster {cluster:?}. {}", move_away(.directory))]
    Foreign { directory: PathBuf, found: Box<PeerId>, role: Role, cluster: String },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    #[error("it is missing, while the other files are there")]
    Missing,
    #[error("{0}")]
    Pem(rustls_pki_types::pem::Error),
    #[error("{0}")]
    Material(MaterialError),
}

fn move_away(directory: &Path) -> String {
    format!("To enrol anew with the join token, move {} away and start again", directory.display())
}

impl Files {
    /// Makes and locks the directory.
    pub(super) fn open(data: &Path) -> Result<Self, FilesError> {
        let directory = data.join("identity");
        let failed = |path: &Path, source| FilesError::Io { path: path.to_owned(), source };
        durable::make_directory(&directory).map_err(|error| failed(&directory, error))?;
        let path = directory.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|error| failed(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory, lock }),
            Err(TryLockError::WouldBlock) => Err(FilesError::InUse(directory)),
            Err(TryLockError::Error(error)) => Err(failed(&path, error)),
        }
    }

    /// The directory of a process that has passed its lock on to this one.
    pub(super) fn inherited(data: &Path, lock: File) -> Self {
        Self { directory: data.join("identity"), lock }
    }

    /// The lock under another descriptor: it is held until the last one is closed.
    pub(super) fn lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// The identity, `None` if there is none yet.
    pub(super) fn load(&self, role: Role, cluster: &str) -> Result<Option<Material>, FilesError> {
        let certificate = self.read(CERTIFICATE)?;
        let key = self.read(KEY)?;
        let (chain, key) = match (certificate, key) {
            // The root alone is from an enrolment that a power cut ended.
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(self.damaged(CERTIFICATE, DamageError::Missing)),
            (Some(chain), key) => (chain, key),
        };
        let root = self.read(ROOT)?.ok_or_else(|| self.damaged(ROOT, DamageError::Missing))?;
        let root = CertificateDer::from_pem_slice(&root).map_err(|e| self.damaged(ROOT, DamageError::Pem(e)))?;
        let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| self.damaged(CERTIFICATE, DamageError::Pem(error)))?;

        let material = match self.with_key(&chain, key.as_deref(), KEY, &root) {
            Ok(material) => material,
            // Perhaps the power went between the commit and the move.
            Err(error) => match self.read(NEXT_KEY)? {
                Some(next) => {
                    let Ok(material) = self.with_key(&chain, Some(&next), NEXT_KEY, &root) else { return Err(error) };
                    self.move_key()?;
                    material
                }
                None => return Err(error),
            },
        };
        let peer = material.peer();
        if peer.role != role || peer.cluster != cluster {
            return Err(FilesError::Foreign {
                directory: self.directory.clone(),
                found: Box::new(peer.clone()),
                role,
                cluster: cluster.to_owned(),
            });
        }
        Ok(Some(material))
    }

    fn with_key(
        &self,
        chain: &[CertificateDer<'static>],
        key: Option<&[u8]>,
        name: &str,
        root: &CertificateDer<'static>,
    ) -> Result<Material, FilesError> {
        let key = key.ok_or_else(|| self.damaged(name, DamageError::Missing))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| self.damaged(name, DamageError::Pem(error)))?;
        Material::new(chain.to_vec(), key, root.clone()).map_err(|error| {
            let name = match error {
                MaterialError::Key(_) | MaterialError::Mismatch => name,
                MaterialError::Empty
                | MaterialError::Certificate(_)
                | MaterialError::Name(_)
                | MaterialError::Chain(_) => CERTIFICATE,
            };
            self.damaged(name, DamageError::Material(error))
        })
    }

    /// Keeps a key that is about to get a certificate.
    pub(super) fn begin(&self, key_pem: &str) -> Result<(), FilesError> {
        self.write(NEXT_KEY, key_pem.as_bytes())
    }

    /// Keeps the certificate that the key of [`Self::begin`] got.
    pub(super) fn commit(&self, material: &Material) -> Result<(), FilesError> {
        self.write(ROOT, pem(&[material.root()]).as_bytes())?;
        let chain: Vec<_> = material.chain().iter().collect();
        self.write(CERTIFICATE, pem(&chain).as_bytes())?;
        self.move_key()
    }

    fn move_key(&self) -> Result<(), FilesError> {
        let (from, to) = (self.directory.join(NEXT_KEY), self.directory.join(KEY));
        durable::rename(&from, &to).map_err(|source| FilesError::Io { path: to, source })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FilesError> {
        let path = self.directory.join(name);
        durable::read(&path, LENGTH_MAX).map_err(|source| FilesError::Io { path, source })
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), FilesError> {
        let path = self.directory.join(name);
        durable::write(&path, contents).map_err(|source| FilesError::Io { path, source })
    }

    fn damaged(&self, name: &str, source: DamageError) -> FilesError {
        FilesError::Damaged { path: self.directory.join(name), directory: self.directory.clone(), source }
    }
}

fn pem(certificates: &[&CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect()
}
