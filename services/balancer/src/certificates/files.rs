//! The operator's own certificates: files that somebody else writes (certbot, Kubernetes, a person). In: pairs of paths.
//! Out: entries to serve with, at the start, and again whenever a pair has changed and is good. A pair that is half
//! written, does not fit together or is gone leaves the last good one in use. It never writes there.

use crate::{config::CertificateFiles, tls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use thiserror::Error;
use time::OffsetDateTime;

/// Between two looks at the files.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// A chain has some kilobytes; a wrong path must not eat the memory.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
const OTHERS_MAY_READ: u32 = 0o004;

/// Why a pair cannot be used.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    #[error("{}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}: it holds no certificate in PEM", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: it holds no private key in PEM that can be used (one under a passphrase cannot)", .0.display())]
    NoKey(PathBuf),
    #[error("{} and {}: {error}", files.cert.display(), files.key.display())]
    Pair { files: CertificateFiles, error: tls::CertificateError },
    #[error("{}: it was written while it was read", .0.display())]
    Moving(PathBuf),
}

/// What tells two states of a file apart, links followed: device, inode, length, and when it was written and changed, in
/// seconds and nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    place: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The states of both files; `None` where there is no file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp([Option<State>; 2]);

impl Stamp {
    fn of(files: &CertificateFiles) -> Self {
        let one = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some(State {
                place: (found.dev(), found.ino()),
                length: found.len(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            })
        };
        Self([&files.cert, &files.key].map(one))
    }
}

/// One pair, and the last good certificate of it.
#[derive(Clone, Debug)]
struct Watched {
    files: CertificateFiles,
    entry: tls::Entry,
    /// As it was when it was looked at in earnest, for better or worse.
    judged: Stamp,
    /// As it was at the last look: it is read once it has stood still for one.
    seen: Stamp,
}

impl Watched {
    fn open(files: &CertificateFiles) -> Result<Self, FileError> {
        let judged = Stamp::of(files);
        let entry = read(files, OffsetDateTime::now_utc())?;
        Ok(Self { files: files.clone(), entry, seen: judged.clone(), judged })
    }

    /// One look. True if there is a newer certificate now.
    fn look(&mut self) -> bool {
        let now = Stamp::of(&self.files);
        if now == self.judged {
            self.seen = now;
            return false;
        }
        if now != self.seen {
            self.seen = now;
            return false;
        }
        self.judge(now)
    }

    fn judge(&mut self, now: Stamp) -> bool {
        self.judged = now;
        match read(&self.files, OffsetDateTime::now_utc()) {
            Ok(entry) => {
                self.entry = entry;
                true
            }
            Err(error) => {
                let until = self.entry.not_after;
                tracing::warn!(%error, %until, "a certificate's files have changed and cannot be used: the old ones stay in use");
                false
            }
        }
    }
}

/// All pairs that are configured now.
#[derive(Debug, Default)]
pub(crate) struct OwnFiles(Mutex<Vec<Watched>>);

/// What a newer configuration wants, read and good.
#[derive(Debug)]
pub(crate) struct Opened(Vec<Watched>);

impl OwnFiles {
    /// Reads every pair, or tells everything that is wrong. A pair that is in use already, and cannot be read at this
    /// moment, stays as it is.
    pub(crate) fn open(&self, wanted: &[CertificateFiles]) -> Result<Opened, Vec<FileError>> {
        let known = self.watched().clone();
        let (mut opened, mut errors) = (Vec::new(), Vec::new());
        for files in wanted {
            match (Watched::open(files), known.iter().find(|known| known.files == *files)) {
                (Ok(watched), _) => opened.push(watched),
                (Err(error), Some(known)) => {
                    tracing::warn!(%error, "a certificate's files cannot be used: the old ones stay in use");
                    opened.push(known.clone());
                }
                (Err(error), None) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Opened(opened)) } else { Err(errors) }
    }

    /// From now on these are watched; to be served with.
    pub(crate) fn watch(&self, Opened(opened): Opened) -> Vec<tls::Entry> {
        let mut watched = self.watched();
        *watched = opened;
        watched.iter().map(|watched| watched.entry.clone()).collect()
    }

    /// One look at every file; call it every [`LOOK`]. Something to serve with when a pair was renewed. It blocks on files.
    pub(crate) fn look(&self) -> Option<Vec<tls::Entry>> {
        let mut watched = self.watched();
        let mut renewed = false;
        for pair in &mut *watched {
            renewed |= pair.look();
        }
        renewed.then(|| watched.iter().map(|watched| watched.entry.clone()).collect())
    }

    fn watched(&self) -> MutexGuard<'_, Vec<Watched>> {
        // plain data, each assigned whole
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pair as it is, checked as far as handshakes need it. One out of its time is used, and said to be: whose files
/// these are may have a reason, and an old certificate is better than a stranger's.
fn read(files: &CertificateFiles, now: OffsetDateTime) -> Result<tls::Entry, FileError> {
    let before = Stamp::of(files);
    let (cert, key) = (contents(&files.cert)?, contents(&files.key)?);
    if Stamp::of(files) != before {
        return Err(FileError::Moving(files.cert.clone()));
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(FileError::NoCertificate(files.cert.clone()))?;
    let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| FileError::NoKey(files.key.clone()))?;
    let name = files.cert.display().to_string();
    let entry = tls::own(&name, chain, private).map_err(|error| FileError::Pair { files: files.clone(), error })?;
    if let Err(error) = entry.is_good_at(now) {
        tracing::warn!(certificate = name, "{error}; it is used all the same");
    }
    let mode = fs::metadata(&files.key).map_or(0, |found| found.mode());
    if mode & OTHERS_MAY_READ != 0 {
        tracing::warn!(key = %files.key.display(), "everybody on this machine may read this key: `chmod o-r` it");
    }
    Ok(entry)
}

fn contents(path: &Path) -> Result<Vec<u8>, FileError> {
    let unreadable = |error| FileError::Unreadable { path: path.to_owned(), error };
    let mut contents = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut contents).map_err(unreadable)?;
    if contents.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(io::Error::other(format!("it is longer than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests;
