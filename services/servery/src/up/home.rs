//! The data directory of `servery up`: found or made, 0700, held by one process at a time.

use rustix::fs::{FlockOperation, flock};
use std::{
    env,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
};

/// A data directory that this process holds until it ends, however it ends: the lock is the kernel's.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HomeError {
    #[error("neither XDG_STATE_HOME nor HOME says where to keep the cluster's state; name a directory with --data DIR")]
    Nowhere,
    #[error("cannot use {path} for the cluster's state: {source}; name another directory with --data DIR")]
    Unusable { path: PathBuf, source: io::Error },
    #[error(
        "{path} is in use by `servery up` with process id {pid}; stop that one, or name another directory with --data DIR"
    )]
    Held { path: PathBuf, pid: String },
}

impl Home {
    /// Opens `given`, or `$XDG_STATE_HOME/servery`, or `~/.local/state/servery`, making it where it is missing.
    ///
    /// Never the current directory: people would commit the CA's key.
    pub(super) fn open(given: Option<&Path>) -> Result<Self, HomeError> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => default_home().ok_or(HomeError::Nowhere)?,
        };
        let unusable = |source| HomeError::Unusable { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
        let path = fs::canonicalize(&path).map_err(unusable)?;
        let unusable = |source| HomeError::Unusable { path: path.clone(), source };
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // what it says is the holder's until we hold it
            .mode(0o600)
            .open(path.join("up.lock"))
            .map_err(unusable)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = lock.read_to_string(&mut pid);
                return Err(HomeError::Held { path, pid: pid.trim().to_owned() });
            }
            Err(error) => return Err(unusable(error.into())),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", process::id()))
            .map_err(unusable)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Of this user, by the XDG Base Directory Specification: relative paths are ignored.
pub(crate) fn default_home() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    Some(state?.join("servery"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_directory_is_made_private_and_held_once() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let home = Home::open(Some(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let Err(HomeError::Held { pid, .. }) = Home::open(Some(&path)) else { panic!("held twice") };
        assert_eq!(pid, process::id().to_string());
        drop(home);
        Home::open(Some(&path)).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Home::open(Some(file.path())).unwrap_err();
        assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    }
}
