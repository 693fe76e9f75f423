//! Ties this process's life to its supervisor's: a role started by `servery up`, a worker started by an app-server.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::{env, io};

/// The variable in which a supervisor tells its children its own process id.
pub(crate) const VARIABLE: &str = "SERVERY_PARENT";

/// Asks the kernel to kill this process when the supervisor named in [`VARIABLE`] is gone; without the variable does
/// nothing.
///
/// # Errors
/// The variable is not a process id, or the supervisor is gone already: then this process must not start.
pub(crate) fn die_with_it() -> io::Result<()> {
    let Ok(text) = env::var(VARIABLE) else { return Ok(()) };
    let parent = text.parse().ok().and_then(Pid::from_raw);
    let parent = parent.ok_or_else(|| io::Error::other(format!("{VARIABLE}={text} is not a process id")))?;
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have died between its fork and the call above; then nobody would send the signal.
    if getppid() != Some(parent) {
        return Err(io::Error::other(format!("the process that started this one ({VARIABLE}={text}) is gone")));
    }
    Ok(())
}
