//! A file in place of stderr. In: its path. Out: everything that this process, and whoever inherits its descriptor 2,
//! says from then on goes to the file. What was said before is not copied, and a file that cannot be opened changes
//! nothing.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// The group may read it; log lines are nobody else's business.
const MODE: u32 = 0o640;

/// Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the log file {path}: {source}; its directory has to be there and writable")]
pub struct LogFileError {
    path: PathBuf,
    source: io::Error,
}

/// Sends stderr to `path`, which is made if it is not there and else appended to. Call it before anything is logged and
/// before there are children; again after the file was moved away: then under the old name there is a new one.
pub fn redirect(path: &Path) -> Result<(), LogFileError> {
    let opened = OpenOptions::new().append(true).create(true).mode(MODE).open(path);
    opened
        .and_then(|file| Ok(rustix::stdio::dup2_stderr(file)?))
        .map_err(|source| LogFileError { path: path.to_owned(), source })
}

/// As [`redirect`], for a process that serves: a failure is told in the old file, which is kept.
pub fn reopen(path: &Path) {
    match redirect(path) {
        Ok(()) => tracing::info!(path = %path.display(), "opened the log file anew"),
        Err(error) => tracing::error!("{error}; going on with the old one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, os::unix::fs::PermissionsExt as _, process::Command};

    const DIRECTORY: &str = "SERVERY_TEST_LOG_DIRECTORY";

    /// Does nothing unless the test below starts it: stderr is the whole process's.
    #[test]
    fn child() {
        let Ok(directory) = env::var(DIRECTORY) else { return };
        let path = PathBuf::from(directory).join("app.log");
        redirect(&path).unwrap();
        tracing_subscriber::fmt().with_ansi(false).with_writer(io::stderr).init();
        tracing::info!("before");
        fs::rename(&path, path.with_extension("1")).unwrap();
        tracing::info!("between");
        reopen(&path);
        assert!(Command::new("sh").args(["-c", "echo of a child >&2"]).status().unwrap().success());
        // the old file is kept where a new one cannot be made
        reopen(&path.join("no"));
        tracing::info!("after");
    }

    #[test]
    fn lines_go_to_the_file_and_after_it_was_moved_to_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        fs::write(&path, "of an earlier run\n").unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "log_file::tests::child", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let old = fs::read_to_string(path.with_extension("1")).unwrap();
        let new = fs::read_to_string(&path).unwrap();
        for (text, wanted) in [
            (&old, &["of an earlier run", "before", "between"][..]),
            (&new, &["anew", "of a child", "going on with the old one", "after"]),
        ] {
            let mut rest = text.as_str();
            for words in wanted {
                let (_, after) = rest.split_once(words).unwrap_or_else(|| panic!("no {words:?} in:\n{text}"));
                rest = after;
            }
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = redirect(&directory.path().join("no/app.log")).unwrap_err();
        assert!(error.to_string().contains("no/app.log") && error.to_string().contains("directory"), "{error}");
    }
}
