//! A connection of a client that comes by itself, as hyper gets to see it. In: the client's bytes. Out: the same bytes in
//! the same buffer, as far as they are well-formed requests by the strictest reading (`proto::framing`), which a balancer
//! would have seen to. A head that is none ends in a byte that no head can have, so that hyper answers 400 when it has
//! answered all before; a body that breaks is an error to whoever reads it. It knows nothing of what requests mean.

use crate::{conversation::Conversation, socket::Socket};
use proto::framing::{Framing, Limits, Place, Seen};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Heads that are too large have answers of their own: the front's, or hyper's.
const NONE: Limits = Limits { line: usize::MAX, head: usize::MAX, fields: usize::MAX };
/// Bytes behind the last request that are read to see the client leave while it is answered.
const BEHIND: usize = 64 * 1024;
/// Nothing that hyper could take for a part of a head, and what it looks for before it tries.
const BREAK: &[u8] = b"\0\r\n\r\n";

/// The socket, and what comes from it. Behind a balancer all of it is passed on unseen.
#[derive(Debug)]
pub(crate) struct Guarded {
    socket: Socket,
    conversation: Arc<Conversation>,
    framing: Option<Framing>,
    /// What came after the bytes that were passed on.
    seen: Seen,
    /// Bytes after a wish for another protocol.
    behind: Vec<u8>,
    /// Bytes after the last request.
    ignored: usize,
    /// The head is broken off.
    broken: bool,
}

impl Guarded {
    /// `strict`: the client is no balancer.
    pub(crate) fn new(socket: Socket, conversation: Arc<Conversation>, strict: bool) -> Self {
        let framing = strict.then(|| Framing::new(NONE));
        Self { socket, conversation, framing, seen: Seen::All, behind: Vec::new(), ignored: 0, broken: false }
    }

    /// Everything that was passed on has begun and nothing of it runs any more.
    fn is_answered(&self, framing: &Framing) -> bool {
        self.conversation.requests() == framing.requests() && self.conversation.is_awaiting()
    }

    /// What the client sends next. Ready with nothing at its end.
    fn poll_socket(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buffer.filled().len();
        if self.behind.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        } else {
            let length = self.behind.len().min(buffer.remaining());
            buffer.put_slice(&self.behind[..length]);
            self.behind.drain(..length);
        }
        Poll::Ready(Ok(buffer.filled().len() - before))
    }

    /// While it is open what the bytes are. Ready only when the client leaves.
    fn poll_undecided(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.behind.is_empty() {
            let before = buffer.filled().len();
            if ready!(self.poll_socket(cx, buffer))? == 0 {
                return Poll::Ready(Ok(()));
            }
            self.behind.extend_from_slice(&buffer.filled()[before..]);
            buffer.set_filled(before);
        }
        Poll::Pending
    }

    /// After the last request. Ready only when the client leaves.
    fn poll_ignored(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        while self.ignored < BEHIND {
            let read = ready!(self.poll_socket(cx, buffer))?;
            buffer.set_filled(before);
            if read == 0 {
                return Poll::Ready(Ok(()));
            }
            self.ignored += read;
        }
        Poll::Pending
    }

    fn poll_strictly(
        &mut self,
        framing: &mut Framing,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            match self.seen {
                Seen::All => {
                    ready!(self.poll_socket(cx, buffer))?;
                    let (taken, seen) = framing.read(&buffer.filled()[before..]);
                    if seen == Seen::Switch {
                        // in front of what waits already
                        let rest = buffer.filled()[before + taken..].iter().copied();
                        drop(self.behind.splice(..0, rest));
                    }
                    self.seen = seen;
                    buffer.set_filled(before + taken);
                    if taken > 0 || seen == Seen::All {
                        return Poll::Ready(Ok(()));
                    }
                }
                Seen::Switch if self.conversation.is_tunnel() => return self.poll_socket(cx, buffer).map_ok(|_| ()),
                Seen::Switch => {
                    // before it is looked at, so that nothing is missed in between
                    self.conversation.wake_reader(cx);
                    if !self.is_answered(framing) {
                        return self.poll_undecided(cx, buffer);
                    }
                    self.seen = framing.resume();
                }
                Seen::Last => return self.poll_ignored(cx, buffer),
                Seen::Fault(fault) if !self.broken => {
                    tracing::debug!(?fault, "a client's bytes are no HTTP/1.1");
                    self.broken = true;
                    if framing.place() == Place::Body || buffer.remaining() < BREAK.len() {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                    buffer.put_slice(BREAK);
                    return Poll::Ready(Ok(()));
                }
                // hyper asks no more after the break but to see the client leave
                Seen::Fault(_) => return self.poll_ignored(cx, buffer),
            }
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(mut framing) = this.framing.take() else { return Pin::new(&mut this.socket).poll_read(cx, buffer) };
        let polled = this.poll_strictly(&mut framing, cx, buffer);
        this.framing = Some(framing);
        polled
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
