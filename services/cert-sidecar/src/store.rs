//! The directory in which the cert-sidecar keeps what must never be lost or read by others: one process at a time,
//! every file 0600, every change whole or not at all. Knows files, not what they mean.

use chassis::durable;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Records of 100,000 instances fit in.
const FILE_MAX: u64 = 64 << 20;

/// The directory, held by an exclusive lock until dropped.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    _lock: File,
}

/// Why the directory cannot be used. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "cannot use {path}: {source}. The cert-sidecar must be able to write there; see `data` and the directory's owner"
    )]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{0} is in use by another cert-sidecar: two would issue against each other. Stop one, or give it a `data` of its own"
    )]
    Held(PathBuf),
    #[error(
        "{path} is damaged: {what}. Restore the directory {root} from a backup. Without one, move it away: a new \
         internal root is made, every process enrols again with a new token, every person trusts the new root"
    )]
    Damaged { root: PathBuf, path: PathBuf, what: String },
    #[error(
        "{root} belongs to the cluster {other:?}, the configuration says {ours:?}. Correct `cluster`, or give this \
         cluster a `data` of its own"
    )]
    OtherCluster { root: PathBuf, other: String, ours: String },
}

impl Store {
    /// Opens the directory, making it where it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        durable::make_directory(path).map_err(io)?;
        let file = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(file).map_err(io)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Held(path.to_owned())),
            Err(error) => Err(io(error.into())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error for a file whose content makes no sense.
    pub(crate) fn damaged(&self, name: &str, what: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { root: self.path.clone(), path: self.path.join(name), what: what.to_string() }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    /// A file's content, `None` where there is no such file.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, StoreError> {
        let path = self.path.join(name);
        match durable::read(&path, FILE_MAX) {
            Ok(Some(bytes)) => String::from_utf8(bytes).map(Some).map_err(|_| self.damaged(name, "it is not text")),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(self.damaged(name, error)),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Replaces a file, whole or not at all, also when the power fails.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), StoreError> {
        write_private(&self.path.join(name), text)
    }

    /// Makes the directory `name` out of `files` in one step: after a crash it is there with all of them, or not there.
    pub(crate) fn write_directory(&self, name: &str, files: &[(&str, &str)]) -> Result<(), StoreError> {
        let (path, half) = (self.path.join(name), self.path.join(format!("{name}.half")));
        let io = |source| StoreError::Io { path: half.clone(), source };
        match fs::remove_dir_all(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            Ok(()) | Err(_) => {}
        }
        for (file, text) in files {
            write_private(&half.join(file), text)?;
        }
        durable::rename(&half, &path).map_err(io)
    }
}

/// Writes `text` to `path` with mode 0600, whole or not at all; makes the directories above it.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), StoreError> {
    let parent = path.parent().map_or(Ok(()), durable::make_directory);
    let written = parent.and_then(|()| durable::write(path, text.as_bytes()));
    written.map_err(|source| StoreError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn one_process_holds_it_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::Held(_))));
        drop(store);
        Store::open(directory.path()).unwrap();
    }

    #[test]
    fn files_are_private_and_leftovers_of_a_crash_do_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.write("a", "whole").unwrap();
        assert_eq!(store.read("a").unwrap().as_deref(), Some("whole"));
        assert_eq!(fs::metadata(directory.path().join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        fs::create_dir(directory.path().join("d.half")).unwrap();
        fs::write(directory.path().join("d.half/x"), "half").unwrap();
        store.write_directory("d", &[("y", "whole")]).unwrap();
        assert_eq!(store.read("d/y").unwrap().as_deref(), Some("whole"));
        assert_eq!(store.read("d/x").unwrap(), None);
        assert!(!store.contains("d.half"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(&file.path().join("below")).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()) && error.contains("data"), "{error}");
    }
}
