//! One accepted connection: comes in a stream, goes out the same stream as hyper wants it, counted while it is open
//! (also when it has become a tunnel), ended when its peer is too slow, and closed so that nothing sent is lost. Of HTTP
//! it knows only what its conversation tells: whether the bytes that come are a head's.
//!
//! A socket closed with unread bytes makes the kernel send a reset, which can overtake our last answer: a refusal of
//! a request whose body is still on its way would look like a crash. So closing shuts our side down and then reads what
//! the peer has still sent, for a while and up to a bound.

use crate::{answer::LATE_HEAD, conversation::Conversation, open::Counted, stream::Stream};
use bytes::{Buf, Bytes};
use proto::alarm::Alarm;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// How long, and how many bytes, a closing connection is read on. A balancer closes at once when it sees our end.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// To the first byte of all.
    pub(crate) first: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// From the first byte of a head to its end.
    pub(crate) header: Duration,
    /// Without taking anything of what it is sent.
    pub(crate) taking: Duration,
}

/// A stream that waits no longer than it must, and closes politely.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: Stream,
    /// Read before hyper was there.
    read_ahead: Bytes,
    conversation: Arc<Conversation>,
    times: Times,
    /// When the peer last sent or took something.
    moved: Instant,
    /// Since when a head has been arriving, and how many requests had begun then.
    head: Option<(Instant, u32)>,
    reading: Alarm,
    /// Since when the peer has taken nothing.
    blocked: Option<Instant>,
    writing: Alarm,
    closing: Closing,
    _counted: Counted,
}

#[derive(Debug)]
enum Closing {
    No,
    Lingering { until: Instant, read: usize },
    Done,
}

impl Socket {
    pub(crate) fn new(stream: Stream, conversation: Arc<Conversation>, times: Times, counted: Counted) -> Self {
        Self {
            stream,
            read_ahead: Bytes::new(),
            conversation,
            times,
            moved: Instant::now(),
            head: None,
            reading: Alarm::default(),
            blocked: None,
            writing: Alarm::default(),
            closing: Closing::No,
            _counted: counted,
        }
    }

    /// Begins with bytes that were read already.
    pub(crate) fn with_read_ahead(mut self, bytes: Bytes) -> Self {
        self.read_ahead = bytes;
        self
    }

    fn heard(&mut self) {
        self.moved = Instant::now();
        let requests = self.conversation.requests();
        if self.conversation.is_awaiting() && self.head.is_none_or(|(_, before)| before != requests) {
            self.head = Some((self.moved, requests));
        }
    }

    /// `Ready` when the peer has been silent for too long: then the connection is at its end.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.conversation.wake_reader(cx);
        if !self.conversation.is_awaiting() {
            return Poll::Pending;
        }
        let requests = self.conversation.requests();
        let head = self.head.filter(|(_, before)| *before == requests);
        // the last answer is still on its way; then the peer's silence says nothing
        if self.blocked.is_some() {
            return Poll::Pending;
        }
        if head.is_none() && self.conversation.is_leaving() {
            return Poll::Ready(());
        }
        let until = match head {
            Some((since, _)) => since + self.times.header,
            None if requests == 0 => self.moved + self.times.first,
            None => self.moved + self.times.idle,
        };
        ready!(self.reading.poll(until, cx));
        if head.is_some() {
            tracing::debug!(limit = ?self.times.header, "a request's head did not arrive in time");
            // said to whom it reaches at once; nothing else of ours is on its way
            let _ = Pin::new(&mut self.stream).poll_write(cx, LATE_HEAD);
        }
        Poll::Ready(())
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Pending => {
                let since = *self.blocked.get_or_insert_with(Instant::now);
                ready!(self.writing.poll(since + self.times.taking, cx));
                tracing::debug!(limit = ?self.times.taking, "a peer takes nothing of its answer: cut");
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Ready(result) => {
                self.blocked = None;
                self.moved = Instant::now();
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.read_ahead.is_empty() {
            let fits = this.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.read_ahead[..fits]);
            this.read_ahead.advance(fits);
            this.heard();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buffer) {
            Poll::Pending => this.poll_silence(cx).map(Ok),
            Poll::Ready(read) => {
                if buffer.filled().len() > before {
                    this.heard();
                }
                Poll::Ready(read)
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.wrote(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bytes);
        this.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Nothing is kept here that could be flushed.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                Closing::No => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    this.closing = if this.conversation.is_tunnel() {
                        Closing::Done
                    } else {
                        Closing::Lingering { until: Instant::now() + LINGER, read: 0 }
                    };
                }
                Closing::Lingering { until, read } => {
                    let mut space = [0; 8192];
                    let mut buffer = ReadBuf::new(&mut space);
                    let ended = match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                        Poll::Ready(Ok(())) => {
                            *read += buffer.filled().len();
                            buffer.filled().is_empty() || *read > LINGER_BYTES
                        }
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(this.reading.poll(*until, cx));
                            true
                        }
                    };
                    if ended {
                        this.closing = Closing::Done;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.conversation.is_reset() {
            self.stream.reset_on_close();
        }
        self.conversation.end();
    }
}
