//! Frames of a client's HTTP/2 connection that make work and carry nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
//! RST_STREAM, empty DATA, and those nobody knows (CVE-2019-9511 and those after it). In: a connection's bytes, both ways.
//! Out: the same bytes; and once the client has sent more of these frames than what we do for it explains, GOAWAY with
//! ENHANCE_YOUR_CALM and an error. It sees each frame's nine bytes of header, copies and keeps nothing else, and reads the
//! clock only when a connection has used up what it may.
//!
//! A head that never becomes a request of ours, because it is too large or asks for too much at once, and one that becomes
//! one that is malformed, is such a frame too, and a dear one: it was decoded.
//!
//! Heads are the dearest bytes: each may become a request, or hundreds of fields to decode. Where some came, the next ones are
//! read little by little, and the other connections of the core have their turn in between.
//!
//! What h2 limits itself is left to it: streams, requests that are reset at once, CONTINUATION, the smallest DATA.

use crate::strict::Turn;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Frames that need no reason, ...
const FREE: u32 = 1_000;
/// ... in this time.
const PER: Duration = Duration::from_secs(10);
/// More of them for each DATA frame that we send: a window update for the stream, one for the connection, and a PING by
/// which gRPC measures the way.
const PER_DATA: u32 = 3;
/// And for each head that the client sends: priorities, a reset.
const PER_HEAD: u32 = 4;
/// What a head costs of them that came to nothing.
const PER_LOST: u32 = 50;
/// Heads that may be on their way to us: as many as streams at once.
const UNDER_WAY: u64 = 128;
/// Bytes to read in a turn behind heads: some forty small requests, or one large one.
const HEADS_TURN: usize = 1024;
/// More than this is not kept for later.
const SAVED: u32 = 10_000;
/// Bytes that open a connection, before the client's first frame.
const PREFACE: u32 = 24;
/// Bytes of a frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    fn parse(header: [u8; HEADER]) -> Self {
        let [a, b, c, kind, flags, d, e, f, g] = header;
        let stream = u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        Self { length: u32::from_be_bytes([0, a, b, c]), kind, flags, stream }
    }

    fn carries_something(self) -> bool {
        match self.kind {
            DATA => self.length > 0 || self.flags & END_STREAM != 0,
            HEADERS | CONTINUATION => true,
            _ => false,
        }
    }
}

/// Goes from frame to frame.
#[derive(Debug)]
struct Walk {
    /// Bytes up to the next header.
    skip: u32,
    header: [u8; HEADER],
    have: usize,
}

impl Walk {
    /// After so many bytes that are none.
    fn new(skip: u32) -> Self {
        Self { skip, header: [0; HEADER], have: 0 }
    }

    fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.skip as usize);
            // at most what `skip` was, which has 32 bits
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(HEADER - self.have);
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                let frame = Frame::parse(self.header);
                (self.skip, self.have) = (frame.length, 0);
                each(frame);
            }
        }
    }

    fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }
}

/// How many of those frames a client may send still.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { left: FREE, since: now }
    }

    fn earn(&mut self, more: u32) {
        self.left = (self.left + more).min(SAVED);
    }

    /// `false`: there are fewer left.
    fn spend(&mut self, some: u32, now: impl FnOnce() -> Instant) -> bool {
        if self.left < some {
            let now = now();
            if now - self.since < PER {
                return false;
            }
            *self = Self::new(now);
        }
        self.left -= some;
        true
    }
}

/// The stream.
#[derive(Debug)]
pub(crate) struct Counting<S> {
    stream: S,
    theirs: Walk,
    ours: Walk,
    allowance: Allowance,
    /// The last stream that the client has opened.
    newest: u32,
    /// Streams so far, ...
    opened: u64,
    /// ... those that came to nothing, ...
    lost: u64,
    /// ... and those that became requests.
    turn: Arc<Turn>,
    /// The last read brought heads.
    heads: bool,
    /// It is the others' turn.
    over: bool,
    flooded: Arc<AtomicBool>,
}

impl<S> Counting<S> {
    /// `flooded` says afterwards whether that was the end.
    pub(crate) fn new(stream: S, turn: &Arc<Turn>, flooded: &Arc<AtomicBool>) -> Self {
        Self {
            stream,
            theirs: Walk::new(PREFACE),
            ours: Walk::new(0),
            allowance: Allowance::new(Instant::now()),
            newest: 0,
            opened: 0,
            lost: 0,
            turn: Arc::clone(turn),
            heads: false,
            over: false,
            flooded: Arc::clone(flooded),
        }
    }

    /// Whether these frames of the client's are fine.
    fn hear(&mut self, bytes: &[u8]) -> bool {
        let Self { theirs, allowance, newest, opened, lost, turn, heads, .. } = self;
        let mut fine = true;
        *heads = false;
        theirs.read(bytes, |frame| {
            if frame.kind == HEADERS {
                *heads = true;
                *opened += u64::from(frame.stream > *newest);
                *newest = frame.stream.max(*newest);
                allowance.earn(PER_HEAD);
            } else if !frame.carries_something() {
                fine = fine && allowance.spend(1, Instant::now);
            }
        });
        let gone = opened.saturating_sub(turn.well_formed() + UNDER_WAY);
        while *lost < gone {
            *lost += 1;
            fine = fine && allowance.spend(PER_LOST, Instant::now);
        }
        fine
    }

    fn say(&mut self, bytes: &[u8]) {
        let Self { ours, allowance, .. } = self;
        ours.read(bytes, |frame| {
            if frame.kind == DATA && frame.length > 0 {
                allowance.earn(PER_DATA);
            }
        });
    }
}

impl<S: AsyncWrite + Unpin> Counting<S> {
    /// Tells the client why, if it can be told at once and not in the middle of a frame.
    fn part(&mut self, cx: &mut Context<'_>) {
        if !self.ours.is_between() {
            return;
        }
        let mut goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb];
        goaway[9..13].copy_from_slice(&self.newest.to_be_bytes());
        // whoever does not read has not asked
        if Pin::new(&mut self.stream).poll_write(cx, &goaway).is_ready() {
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Counting<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.over) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if this.heads {
            let some = buffer.remaining().min(HEADS_TURN);
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(some));
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
            let read = part.filled().len();
            buffer.advance(read);
            this.over = true;
        } else {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        }
        if this.hear(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        // with an error nothing is read
        buffer.set_filled(before);
        this.flooded.store(true, Ordering::Relaxed);
        this.part(cx);
        Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.say(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let of_it = left.min(slice.len());
            this.say(&slice[..of_it]);
            left -= of_it;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
