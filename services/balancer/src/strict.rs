//! A client's HTTP/1.1 connection as hyper gets to see it. In: the client's bytes. Out: the same bytes in the same buffer,
//! as far as they are well-formed requests by the strictest reading (`proto::framing`): hyper takes more than that, and what
//! it refuses it answers with an empty head that nobody logs. In front of it, it never has to.
//!
//! A head that is none ends the connection: hyper sees an end when it has answered all that came before, and whoever
//! serves the connection gets the stream back and answers. A body that breaks is an error to whoever reads it. Once another
//! protocol is agreed on, bytes are just bytes.
//!
//! On the way back the interim responses of a request are put in front of its answer, which hyper cannot do.
//!
//! It costs one pass over each head, no allocation and no copy, and per request a few stores and one reference count. Only
//! what comes between a wish for another protocol and its answer is copied.

mod turn;

pub(crate) use turn::{Answering, Turn, Wait};

use proto::framing::{Fault, Framing, Limits, Place, Seen};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes behind the last request that are read to see the client leave while it is answered.
const BEHIND: usize = 64 * 1024;

/// What hyper has left of a connection.
#[derive(Debug)]
pub(crate) struct Left<S> {
    pub(crate) stream: S,
    /// Where the client is: it may have more to say than anybody has read.
    pub(crate) place: Place,
    /// Why the connection ended, and nobody has told the client.
    pub(crate) fault: Option<Fault>,
}

/// Where the stream is found after hyper has dropped it.
#[derive(Debug)]
pub(crate) struct Remains<S>(Arc<Mutex<Option<Left<S>>>>);

impl<S> Remains<S> {
    /// What there is to say or to read still; `None` when the connection is over.
    pub(crate) fn take(&self) -> Option<Left<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The stream.
#[derive(Debug)]
pub(crate) struct Strict<S> {
    /// There until it is dropped.
    stream: Option<S>,
    framing: Framing,
    turn: Arc<Turn>,
    /// What came after the bytes that were passed on.
    seen: Seen,
    /// Bytes after a wish for another protocol.
    behind: Vec<u8>,
    /// Bytes after the last request.
    ignored: usize,
    /// Everything that was written is on its way.
    flushed: bool,
    /// hyper has been told of the end that a fault is.
    told: bool,
    /// The client has closed its side.
    ended: bool,
    /// Waits for the answer before.
    waits: Option<Waker>,
    /// The rest of interim responses that are being written.
    interim: Vec<u8>,
    remains: Arc<Mutex<Option<Left<S>>>>,
}

impl<S> Strict<S> {
    /// `turn` belongs to the requests that will be read from it.
    pub(crate) fn new(stream: S, limits: Limits, turn: &Arc<Turn>) -> (Self, Remains<S>) {
        let remains = Arc::new(Mutex::new(None));
        let strict = Self {
            stream: Some(stream),
            framing: Framing::new(limits),
            turn: Arc::clone(turn),
            seen: Seen::All,
            behind: Vec::new(),
            ignored: 0,
            flushed: true,
            told: false,
            ended: false,
            waits: None,
            interim: Vec::new(),
            remains: Arc::clone(&remains),
        };
        strict.tell();
        (strict, Remains(remains))
    }
}

impl<S> Drop for Strict<S> {
    fn drop(&mut self) {
        let place = self.framing.place();
        let fault = match self.seen {
            Seen::Fault(fault) if self.told => Some(fault),
            Seen::All | Seen::Switch | Seen::Last | Seen::Fault(_) => None,
        };
        // who has left is left alone
        if fault.is_none() && self.ended {
            return;
        }
        let left = self.stream.take().map(|stream| Left { stream, place, fault });
        *self.remains.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

fn stream<S: Unpin>(stream: &mut Option<S>) -> Pin<&mut S> {
    Pin::new(stream.as_mut().expect("taken only when dropped"))
}

impl<S> Strict<S> {
    /// Something was written.
    fn unflushed(&mut self) {
        self.flushed = false;
        self.tell();
    }

    /// Tells whoever serves the connection.
    fn tell(&self) {
        let place = (self.flushed && self.seen == Seen::All).then(|| self.framing.place());
        self.turn.between.store(place == Some(Place::Between), Ordering::Relaxed);
        self.turn.within.store(place == Some(Place::Head), Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> Strict<S> {
    /// What the client sends next, unseen. Ready with nothing at its end.
    fn poll_stream(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buffer.filled().len();
        ready!(stream(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        self.ended |= read == 0 && buffer.remaining() > 0;
        Poll::Ready(Ok(read))
    }

    /// The first of the bytes that waited.
    fn unpack(&mut self, buffer: &mut ReadBuf<'_>) {
        let length = self.behind.len().min(buffer.remaining());
        buffer.put_slice(&self.behind[..length]);
        self.behind.drain(..length);
    }

    /// Requests.
    fn poll_requests(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buffer.filled().len();
        if self.behind.is_empty() {
            ready!(self.poll_stream(cx, buffer))?;
        } else {
            self.unpack(buffer);
        }
        let (taken, seen) = self.framing.read(&buffer.filled()[before..]);
        if seen == Seen::Switch {
            // in front of what waits already
            let rest = buffer.filled()[before + taken..].iter().copied();
            drop(self.behind.splice(..0, rest));
        }
        self.seen = seen;
        self.tell();
        buffer.set_filled(before + taken);
        Poll::Ready(Ok(taken))
    }

    /// While it is open what the bytes are. Ready only when the client leaves.
    fn poll_undecided(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.behind.is_empty() {
            let before = buffer.filled().len();
            if let Poll::Ready(read) = self.poll_stream(cx, buffer)
                && read? == 0
            {
                return Poll::Ready(Ok(()));
            }
            self.behind.extend_from_slice(&buffer.filled()[before..]);
            buffer.set_filled(before);
        }
        self.wait(cx)
    }

    /// After the last request. Ready only when the client leaves.
    fn poll_ignored(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        while self.ignored < BEHIND {
            let read = ready!(self.poll_stream(cx, buffer))?;
            buffer.set_filled(before);
            if read == 0 {
                return Poll::Ready(Ok(()));
            }
            self.ignored += read;
        }
        Poll::Pending
    }

    /// After a fault.
    fn poll_fault(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.framing.place() == Place::Body {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if self.turn.is_busy() || !self.flushed {
            return self.wait(cx);
        }
        self.told = true;
        Poll::Ready(Ok(()))
    }

    /// Until the answer before is on its way.
    fn wait(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.waits = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.seen {
                Seen::All => {
                    let taken = ready!(this.poll_requests(cx, buffer))?;
                    if taken > 0 || this.seen == Seen::All {
                        return Poll::Ready(Ok(()));
                    }
                }
                Seen::Switch if this.turn.switched.load(Ordering::Relaxed) => {
                    if this.behind.is_empty() {
                        return this.poll_stream(cx, buffer).map_ok(|_| ());
                    }
                    this.unpack(buffer);
                    return Poll::Ready(Ok(()));
                }
                Seen::Switch if this.turn.is_busy() => return this.poll_undecided(cx, buffer),
                Seen::Switch => this.seen = this.framing.resume(),
                Seen::Last => return this.poll_ignored(cx, buffer),
                Seen::Fault(_) => return this.poll_fault(cx),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Strict<S> {
    /// What has to be written before anything that hyper writes next. Everything before is on its way, or else the answer
    /// stands right behind that already, with no place left between them.
    fn poll_before(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.turn.interim.waits() && (self.flushed || !self.turn.is_unanswered()) {
            let bytes = self.turn.interim.take(self.turn.begun());
            if self.flushed {
                self.interim.extend(bytes);
            }
        }
        while !self.interim.is_empty() {
            let written = ready!(stream(&mut self.stream).poll_write(cx, &self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before(cx))?;
        this.unflushed();
        stream(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_before(cx))?;
        this.unflushed();
        stream(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    /// hyper flushes after each answer, and by then has dropped it. It does not read again by itself after we had nothing
    /// for it.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(stream(&mut this.stream).poll_flush(cx))?;
        this.flushed = true;
        // of an answer that is there already hyper writes the first byte before it flushes
        if !this.interim.is_empty() || this.turn.interim.waits() && this.turn.is_unanswered() {
            ready!(this.poll_before(cx))?;
            ready!(stream(&mut this.stream).poll_flush(cx))?;
        }
        this.tell();
        if !this.turn.is_busy()
            && let Some(waits) = this.waits.take()
        {
            waits.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Not when there is an answer still to be given.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.told {
            return self.poll_flush(cx);
        }
        stream(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
