//! How long we wait for a peer to move. In: "it moved" and "it does not". Out: when to give up. One timer per waiting
//! side, made when it first waits and looked at again when it fires: nothing is armed or disarmed per read.

use crate::idle::Readable;
use proto::alarm::Alarm;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// How many bytes a connection may bring before the others of its core have their turn: whoever reads it may go on for as
/// long as there are some, and small HTTP/2 frames are many.
const TURN: usize = 32 * 1024;

/// Ends when one wait has lasted for its duration.
#[derive(Debug)]
pub struct Patience {
    after: Duration,
    alarm: Alarm,
    /// When the wait that goes on began; `None` before the first one and after a move.
    since: Option<Instant>,
}

impl Patience {
    pub fn new(after: Duration) -> Self {
        Self { after, alarm: Alarm::default(), since: None }
    }

    pub fn moved(&mut self) {
        self.since = None;
    }

    /// Called while nothing moves: `Ready` when that has lasted too long.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = *self.since.get_or_insert_with(Instant::now) + self.after;
        self.alarm.poll(due, cx)
    }
}

/// A client's connection that ends when the client does not take what it is sent, or does not send its first bytes; and
/// that lets others have their turn.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    writing: Patience,
    /// The first bytes that must come in time, and the patience for them; hyper has no such limit for HTTP/2.
    opening: Option<(usize, Patience)>,
    /// Bytes read in this turn.
    turn: usize,
}

impl<S> Patient<S> {
    pub fn new(stream: S, writing: Duration) -> Self {
        Self { stream, writing: Patience::new(writing), opening: None, turn: 0 }
    }

    /// The first `bytes` have to be here after `within`.
    pub fn with_opening(mut self, bytes: usize, within: Duration) -> Self {
        self.opening = Some((bytes, Patience::new(within)));
        self
    }
}

impl<S: Readable> Patient<S> {
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_readable(cx)
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn >= TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        this.turn = if read.is_pending() { 0 } else { this.turn + buffer.filled().len() - before };
        if let Some((missing, patience)) = &mut this.opening {
            *missing = missing.saturating_sub(buffer.filled().len() - before);
            if *missing == 0 {
                this.opening = None;
            } else if patience.poll_over(cx).is_ready() {
                return Poll::Ready(Err(timed_out()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        watched(&mut this.writing, cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        watched(&mut this.writing, cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        watched(&mut this.writing, cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
        watched(&mut this.writing, cx, shut)
    }
}

fn watched<T>(patience: &mut Patience, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    match result {
        Poll::Pending => patience.poll_over(cx).map(|()| Err(timed_out())),
        Poll::Ready(result) => {
            patience.moved();
            Poll::Ready(result)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_left_but_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut patient = Patient::new(ours, 5 * SECOND);
        let writing = tokio::spawn(async move { patient.write_all(&[0; 100]).await });
        let start = Instant::now();
        for _ in 0..5 {
            sleep(4 * SECOND).await;
            theirs.read_exact(&mut [0; 10]).await.unwrap();
        }
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let silent = start.elapsed() - 20 * SECOND;
        assert_eq!(silent, 5 * SECOND);
    }

    #[tokio::test]
    async fn a_connection_that_always_has_something_to_say_lets_others_have_their_turn() {
        let mut patient = Patient::new(tokio::io::join(tokio::io::repeat(1), tokio::io::sink()), SECOND);
        let mut space = [0; 1000];
        for _ in 0..3 {
            let (mut turn, mut yielded) = (0, false);
            while !yielded {
                let read = futures_util::FutureExt::now_or_never(patient.read(&mut space));
                yielded = read.is_none();
                turn += read.map_or(0, |read| read.unwrap());
            }
            assert!((TURN..TURN + space.len()).contains(&turn), "{turn} bytes");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_have_to_come_in_time() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut patient = Patient::new(ours, SECOND).with_opening(4, 5 * SECOND);
        theirs.write_all(b"abc").await.unwrap();
        let start = Instant::now();
        assert_eq!(patient.read_exact(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), 5 * SECOND);

        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut patient = Patient::new(ours, SECOND).with_opening(4, 5 * SECOND);
        theirs.write_all(b"abcd").await.unwrap();
        patient.read_exact(&mut [0; 4]).await.unwrap();
        let read = tokio::time::timeout(100 * SECOND, patient.read_u8()).await;
        assert!(read.is_err(), "no limit afterwards");
    }
}
