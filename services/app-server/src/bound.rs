//! The one socket on which a node listens that serves clients by itself. In: what `--bind` says, or a socket that
//! systemd has opened. Out: a listening descriptor to share with the workers, and its address for people. It accepts
//! nothing, and never removes a file that is no socket or that somebody serves.
//!
//! A socket file may be used by everybody (0666), as with Gunicorn: who may connect is decided by who may enter its
//! directory.

use crate::config::Bind;
use listenfd::ListenFd;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
        sockopt::socket_acceptconn,
    },
};
use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

/// Connections that the kernel holds for the workers. It cuts this down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Who may connect is decided by the directory.
const MODE: u32 = 0o666;

/// A socket that listens, until this is dropped and no worker shares it any more.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: OwnedFd,
    address: String,
    /// Removed at the end. `None`: there is none, or it is systemd's.
    _file: Option<SocketFile>,
}

/// Why a node cannot listen, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoundError {
    #[error("{0}; stop what listens there or choose another address with --bind")]
    InUse(io::Error),
    #[error("{0}; ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose another with --bind")]
    NotAllowed(io::Error),
    #[error("{0}; choose an address of this machine with --bind")]
    Tcp(io::Error),
    #[error("{0} is served by another process; stop that one or choose another path with --bind")]
    Served(PathBuf),
    #[error("{0} is there and is no socket; it is left alone: choose another path with --bind")]
    NotASocket(PathBuf),
    #[error("the directory {0} for the socket is not there; make it, or let systemd (RuntimeDirectory=)")]
    NoDirectory(PathBuf),
    #[error("cannot tell whether somebody serves {path}: {source}; remove it if nobody does")]
    Unclear { path: PathBuf, source: io::Error },
    #[error("cannot listen on {path}: {source}")]
    Unix { path: PathBuf, source: io::Error },
    #[error("systemd passed {0} sockets and one is served; leave one ListenStream= in the socket unit")]
    TooMany(usize),
    #[error(
        "the socket that systemd passed cannot be served ({0}): a listening TCP or Unix stream socket is needed \
             (ListenStream= and Accept=no)"
    )]
    Passed(io::Error),
}

impl Bound {
    /// Listens: on the socket that systemd passed if it did, else where `wanted` says. Takes systemd's variables out of
    /// this process's environment, so call it once.
    pub(crate) fn open(wanted: &Bind) -> Result<Self, BoundError> {
        if let Some(passed) = Self::passed(&mut ListenFd::from_env())? {
            tracing::info!(address = passed.address, instead_of = %wanted, "listening on the socket that systemd passed");
            return Ok(passed);
        }
        match wanted {
            Bind::Tcp(address) => {
                let listener = address.bind().map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => BoundError::InUse(error),
                    io::ErrorKind::PermissionDenied => BoundError::NotAllowed(error),
                    _ => BoundError::Tcp(error),
                })?;
                let address = listener.local_addr().map_err(BoundError::Tcp)?.to_string();
                Ok(Self { socket: listener.into(), address, _file: None })
            }
            Bind::Unix(path) => Self::unix(path),
        }
    }

    /// What workers get a share of.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// `127.0.0.1:8000`, `unix:/run/app.sock`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn passed(given: &mut ListenFd) -> Result<Option<Self>, BoundError> {
        match given.len() {
            0 => return Ok(None),
            1 => {}
            several => return Err(BoundError::TooMany(several)),
        }
        let taken = || io::Error::other("it is gone");
        let (socket, address): (OwnedFd, String) = match given.take_unix_listener(0) {
            Ok(listener) => {
                let listener: UnixListener = listener.ok_or_else(taken).map_err(BoundError::Passed)?;
                let address = listener.local_addr().map_err(BoundError::Passed)?;
                let address = address.as_pathname().map_or_else(
                    || "unix:(abstract)".to_owned(), // a name of the kernel's that no file has
                    |path| format!("unix:{}", path.display()),
                );
                (listener.into(), address)
            }
            Err(_) => {
                let listener = given.take_tcp_listener(0).and_then(|taken_one| taken_one.ok_or_else(taken));
                let listener = listener.map_err(BoundError::Passed)?;
                let address = listener.local_addr().map_err(BoundError::Passed)?.to_string();
                (listener.into(), address)
            }
        };
        if !socket_acceptconn(&socket).map_err(|error| BoundError::Passed(error.into()))? {
            return Err(BoundError::Passed(io::Error::other("it does not listen")));
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| BoundError::Passed(error.into()))?;
        Ok(Some(Self { socket, address, _file: None }))
    }

    fn unix(path: &Path) -> Result<Self, BoundError> {
        let failed = |source: io::Error| BoundError::Unix { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        make_way(path, &address)?;
        let socket = stream_socket().map_err(failed)?;
        bind(&socket, &address).map_err(|error| match error {
            Errno::NOENT => BoundError::NoDirectory(path.parent().unwrap_or(path).to_owned()),
            // a process that started at the same time was faster
            Errno::ADDRINUSE => BoundError::Served(path.to_owned()),
            error => failed(error.into()),
        })?;
        let file = SocketFile::at(path).map_err(failed)?;
        // before it listens: nobody is refused for the mode that the umask left
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)?;
        listen(&socket, BACKLOG).map_err(|error| failed(error.into()))?;
        Ok(Self { socket, address: format!("unix:{}", path.display()), _file: Some(file) })
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Never waits, not even for a place in a full queue of connections.
fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes what a process left that was killed; everything else at `path` is an error.
fn make_way(path: &Path, address: &SocketAddrUnix) -> Result<(), BoundError> {
    let unclear = |source: io::Error| BoundError::Unclear { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unclear(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BoundError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match connect(&stream_socket().map_err(unclear)?, address) {
        // the queue of its connections is full
        Ok(()) | Err(Errno::AGAIN) => Err(BoundError::Served(path.to_owned())),
        // no process has the socket any more; a datagram socket that is served says PROTOTYPE
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "removing the socket file of a process that is gone");
            fs::remove_file(path).map_err(|source| BoundError::Unix { path: path.to_owned(), source })
        }
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(unclear(error.into())),
    }
}

/// A file that this process has made. Removed when this is dropped, unless another one is in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = fs::remove_file(&self.path); // the next start finds it stale
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests;
