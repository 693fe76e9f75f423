//! Takes over what a supervisor hands to a worker process: comes in `SERVERY_LISTEN_FD`, `SERVERY_CONTROL_FD` and
//! `SERVERY_PARENT`, go out a listening socket, the control socket, and a process that ends with its supervisor. Never
//! leaves a descriptor open to the programs that the application itself starts.

use crate::{Error, stream::Listener};
use rustix::{
    io::{FdFlags, fcntl_setfd},
    net::sockopt::socket_acceptconn,
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
};
use std::{
    env,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::net::UnixStream;

const LISTEN: &str = "SERVERY_LISTEN_FD";
const CONTROL: &str = "SERVERY_CONTROL_FD";
const PARENT: &str = "SERVERY_PARENT";

/// The sockets can be taken once: two owners of a descriptor would close it under each other.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The two sockets. Ties this process's life to the supervisor's first.
pub(crate) fn take() -> Result<(Listener, UnixStream), Error> {
    let (Ok(listen), Ok(control)) = (env::var(LISTEN), env::var(CONTROL)) else {
        return Err(Error::NotStartedByServery);
    };
    die_with_supervisor()?;
    if listen == control {
        return Err(Error::Descriptor { variable: CONTROL, problem: format!("names the same descriptor as {LISTEN}") });
    }
    if TAKEN.swap(true, Ordering::AcqRel) {
        return Err(Error::ServedTwice);
    }
    let listen = own(LISTEN, &listen)?;
    let control = own(CONTROL, &control)?;
    if !socket_acceptconn(&listen).unwrap_or(false) {
        return Err(Error::Descriptor { variable: LISTEN, problem: "is no listening socket".to_owned() });
    }
    let refused = |variable| move |error: std::io::Error| Error::Descriptor { variable, problem: error.to_string() };
    let control = std::os::unix::net::UnixStream::from(control);
    control.set_nonblocking(true).map_err(refused(CONTROL))?;
    Ok((Listener::new(listen).map_err(refused(LISTEN))?, UnixStream::from_std(control).map_err(refused(CONTROL))?))
}

/// Also ends a worker whose executor is too busy to see that the control socket has closed.
fn die_with_supervisor() -> Result<(), Error> {
    let Ok(text) = env::var(PARENT) else { return Ok(()) };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| Error::ParentDeathSignal(error.into()))?;
    // It may have died before the call above; then nobody would send the signal.
    let expected = text.parse().ok().and_then(Pid::from_raw);
    if expected.is_none() || getppid() != expected {
        return Err(Error::Orphan(text));
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a descriptor passed at exec is known by its number only")]
fn own(variable: &'static str, text: &str) -> Result<OwnedFd, Error> {
    let refused = |problem: String| Error::Descriptor { variable, problem };
    let number: RawFd = text.parse().map_err(|_| refused(format!("is {text:?}, not a descriptor's number")))?;
    if number < 3 {
        return Err(refused(format!("is {number}, which is standard input or output")));
    }
    // SAFETY: borrowed for one fcntl only, which on a number that is not open fails and does nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    // Inherited across exec to get here; the application's own children must not have it.
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|error| refused(format!("is {number}: {error}")))?;
    // SAFETY: open, as the call above has shown, and handed to this process by the variable to be taken over; `TAKEN`
    // keeps a second caller from taking it again.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
