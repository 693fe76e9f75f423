//! A change of the binary with no refused connection. In: a second balancer with the same data directory, which asks at
//! a Unix socket there. Out: every listening socket goes over to it, with the routes that nodes have declared; once it is
//! ready and says so, this one drains. Until it says so nothing has changed here, whatever becomes of it.
//!
//! In reading order: `doors` (what can be given), `parcel` (what goes over the socket), `giver` (the running one),
//! `heir` (the new one).
//!
//! Both are the same instance with the same identity, one after the other. The one that drains ends its registrations at
//! once, so that nodes come to the new one; their ledgers know the lives apart by the numbers of their connections, and
//! give the new one what the old one's requests do not occupy. What the old one still has to do it does with the workers
//! it knew last; where a slot is taken by then the worker says so, and the request goes elsewhere.

mod doors;
mod giver;
mod heir;
mod parcel;

pub(crate) use doors::{Doors, Estate, Opened};
pub(crate) use giver::Giver;
pub(crate) use heir::Inheritance;

use std::{
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Below the data directory; 0600, and other users are refused.
const SOCKET: &str = "takeover.sock";
/// For what is only written and read, not thought about.
const PROMPT: Duration = Duration::from_secs(5);
/// The new one: ready now, over to me.
const READY: u8 = b'R';
/// The old one: yours.
const YOURS: u8 = b'Y';

/// The data directory under a name that is short: a socket's path has room for 107 bytes only (unix(7)).
struct Short(File);

impl Short {
    fn of(data: &Path) -> io::Result<Self> {
        File::open(data).map(Self)
    }

    fn join(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }
}

#[cfg(test)]
mod tests;
