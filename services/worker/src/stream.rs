//! A listening socket and its connections, whichever family they are of: TCP from balancers or clients, Unix sockets
//! from a proxy on the same machine. Nothing above this file asks which one it is.

use rustix::net::{SocketFlags, acceptfrom_with};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{
        AsyncRead, AsyncWrite, Interest, ReadBuf,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    net::{TcpStream, UnixStream},
};

/// A listening socket that other processes may accept from too.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    tcp: bool,
}

/// One connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Takes a socket that listens already.
    #[expect(deprecated, reason = "sound for a descriptor that is owned and kept; the successor is an unsafe function")]
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        // only a TCP socket has such an address
        let socket = TcpListener::from(socket);
        let tcp = socket.local_addr().is_ok();
        socket.set_nonblocking(true)?;
        Ok(Self { socket: AsyncFd::with_interest(OwnedFd::from(socket), Interest::READABLE)?, tcp })
    }

    /// Until there is, or was a moment ago, a connection to accept.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.socket.readable().await
    }

    /// The next connection and its peer's address. `None`: another process was faster.
    pub(crate) fn accept(
        &self,
        ready: &mut AsyncFdReadyGuard<'_, OwnedFd>,
    ) -> Option<io::Result<(Stream, Option<SocketAddr>)>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = ready.try_io(|socket| Ok(acceptfrom_with(socket.get_ref().as_fd(), flags)?)).ok()?;
        Some(accepted.and_then(|(socket, peer)| {
            let stream = if self.tcp {
                Stream::Tcp(TcpStream::from_std(socket.into())?)
            } else {
                Stream::Unix(UnixStream::from_std(socket.into())?)
            };
            Ok((stream, peer.and_then(|peer| peer.try_into().ok())))
        }))
    }
}

impl Stream {
    /// Answers are written whole; waiting for more would only delay them.
    pub(crate) fn set_nodelay(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
        }
    }

    /// Makes closing look like a crash, where the kernel can.
    pub(crate) fn reset_on_close(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_zero_linger();
        }
    }
}

/// One method on whichever it is.
macro_rules! either {
    ($stream:expr, $inner:ident => $result:expr) => {
        match $stream.get_mut() {
            Stream::Tcp(stream) => {
                let $inner = Pin::new(stream);
                $result
            }
            Stream::Unix(stream) => {
                let $inner = Pin::new(stream);
                $result
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }
}
