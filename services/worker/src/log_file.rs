//! The log of a worker whose supervisor writes into a file: comes in the order to open it anew, goes out a stderr that is
//! the new file. Where there is no such file nothing happens.

use crate::access::open_to_append;
use std::{env, ffi::OsStr, io, path::Path};

/// Names the file that the supervisor has made this process's stderr.
const LOG_FILE: &str = "SERVERY_LOG_FILE";

/// The file has been moved: what is logged from now on goes into a new one of its name.
pub(crate) fn reopen() {
    let Some(path) = env::var_os(LOG_FILE).filter(|path| !path.is_empty()) else { return };
    if let Err(error) = reopen_as(&path) {
        tracing::error!(%error, path = %Path::new(&path).display(), "the log file cannot be opened anew");
    }
}

fn reopen_as(path: &OsStr) -> io::Result<()> {
    let file = open_to_append(Path::new(path))?;
    Ok(rustix::stdio::dup2_stderr(file)?)
}
