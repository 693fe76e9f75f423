//! The file that tells scripts which process to signal (`--pid`). In: a path. Out: the file with this process's number
//! until the end. It replaces what a process left that is gone, and neither the file of one that runs nor a file that
//! holds anything else than a number.

use procfs::process::Process;
use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process,
};

/// Everybody may know the number; only the owner may change it.
const MODE: u32 = 0o644;

/// More than any number and its line's end.
const LONGEST: u64 = 32;

/// How often a file may come back while it is being replaced.
const TRIES: u32 = 3;

/// Removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PidFileError {
    #[error("already running, pid {pid} ({path}); stop it first, or choose another --pid")]
    Running { pid: u32, path: PathBuf },
    #[error("{0} holds no process id and is left alone; choose another --pid")]
    NotOurs(PathBuf),
    #[error("cannot write the pid file {path}: {source}; its directory has to be there and writable")]
    Io { path: PathBuf, source: io::Error },
}

impl PidFile {
    /// Claims `path` for this process.
    pub(crate) fn claim(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io { path: path.to_owned(), source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", process::id()));
        let draft = path.with_file_name(name);
        let written = write(&draft).map_err(failed);
        let claimed = written.and_then(|()| link(&draft, path));
        let _ = fs::remove_file(&draft); // its only other name is the one that was claimed
        claimed.map(|()| Self { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if matches!(read(&self.path), Ok(Some(Holder::Process(pid))) if pid == process::id()) {
            let _ = fs::remove_file(&self.path); // the next start finds it stale
        }
    }
}

fn write(draft: &Path) -> io::Result<()> {
    // of a process that had this number before
    let _ = fs::remove_file(draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(draft)?;
    // whatever the umask left of it
    file.set_permissions(Permissions::from_mode(MODE))?;
    writeln!(file, "{}", process::id())
}

/// Whoever reads `path` finds a whole number; of two processes at the same time one is refused.
fn link(draft: &Path, path: &Path) -> Result<(), PidFileError> {
    let failed = |source| PidFileError::Io { path: path.to_owned(), source };
    let mut tries = 0;
    loop {
        match fs::hard_link(draft, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < TRIES => tries += 1,
            linked => return linked.map_err(failed),
        }
        match read(path).map_err(failed)? {
            None => {} // gone this moment
            Some(Holder::Process(pid)) if pid != process::id() && runs(pid) => {
                return Err(PidFileError::Running { pid, path: path.to_owned() });
            }
            // in a container every first process is number 1: our own number is a predecessor's
            Some(Holder::Process(_) | Holder::Nobody) => fs::remove_file(path).or_else(gone).map_err(failed)?,
            Some(Holder::Stranger) => return Err(PidFileError::NotOurs(path.to_owned())),
        }
    }
}

fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// What a pid file says.
enum Holder {
    Process(u32),
    /// Empty: a disk was full.
    Nobody,
    /// It is no pid file.
    Stranger,
}

fn read(path: &Path) -> io::Result<Option<Holder>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    let text = bytes.trim_ascii();
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    Ok(Some(match number {
        Some(pid) => Holder::Process(pid),
        None if text.is_empty() => Holder::Nobody,
        None => Holder::Stranger,
    }))
}

/// Whether a process of this program has that number: the numbers of the dead are given out again.
fn runs(pid: u32) -> bool {
    let program = |process: Process| process.stat().ok().filter(|stat| !matches!(stat.state, 'Z' | 'X'));
    let theirs = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()).and_then(program);
    let ours = Process::myself().ok().and_then(program);
    theirs.zip(ours).is_some_and(|(theirs, ours)| theirs.comm == ours.comm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn it_holds_the_number_and_is_gone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        let file = PidFile::claim(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", process::id()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the draft is left");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_what_another_took_over_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        // a zombie until it is waited for
        for _ in 0..2 {
            fs::write(&path, format!("{pid}\n")).unwrap();
            drop(PidFile::claim(&path).unwrap());
            child.wait().unwrap();
        }
        fs::write(&path, "").unwrap();
        let file = PidFile::claim(&path).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
        // another program has the number now: it cannot be ours
        drop(PidFile::claim(&path).unwrap());
    }

    #[test]
    fn a_running_process_of_this_program_keeps_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pid");
        // waits for the end of its stdin
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pid_file::tests::another", "--nocapture"])
            .env(ANOTHER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        fs::write(&path, child.id().to_string()).unwrap();
        let error = PidFile::claim(&path).unwrap_err();
        assert!(error.to_string().contains(&format!("already running, pid {}", child.id())), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), child.id().to_string());
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    const ANOTHER: &str = "SERVERY_TEST_ANOTHER";

    /// Does nothing unless the test above starts it.
    #[test]
    fn another() {
        if std::env::var_os(ANOTHER).is_some() {
            let _ = io::stdin().read_to_end(&mut Vec::new());
        }
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.py");
        fs::write(&path, "print('hello')\n").unwrap();
        assert!(matches!(PidFile::claim(&path), Err(PidFileError::NotOurs(_))));
        assert!(path.exists());
        let error = PidFile::claim(&directory.path().join("no/app.pid")).unwrap_err();
        assert!(error.to_string().contains("no/app.pid"), "{error}");
    }
}
