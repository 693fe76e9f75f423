//! The client's side of a tunnel: all of an HTTP/1.1 connection, or one stream of HTTP/2. In: what hyper hands over. Out: its
//! bytes, and whether a stream that has ended was reset. hyper reads a reset as an end (one by CANCEL, as browsers and
//! libraries leave), and after an end the other direction would be kept open for a client that is gone.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::sleep,
};

/// How often a stream that has ended is looked at: nothing wakes who only reads.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Side {
    upgraded: TokioIo<Upgraded>,
    /// It can be reset.
    stream: bool,
    ended: bool,
}

impl Side {
    pub(super) fn new(upgraded: Upgraded, stream: bool) -> Self {
        Self { upgraded: TokioIo::new(upgraded), stream, ended: false }
    }
}

/// Waits until a side that has ended is reset as well. (Of a connection the next read says it.)
pub(super) async fn reset(mut side: impl AsyncRead + Unpin) {
    loop {
        sleep(GLANCE).await;
        if side.read(&mut [0]).await.is_err() {
            return;
        }
    }
}

impl AsyncRead for Side {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.upgraded).poll_read(cx, buffer))?;
            self.ended = self.stream && buffer.filled().len() == before && buffer.remaining() > 0;
            return Poll::Ready(Ok(()));
        }
        // an end leaves the other direction as it is, a reset does not
        match Pin::new(&mut self.upgraded).poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Side {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.upgraded).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.upgraded).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.upgraded).poll_shutdown(cx)
    }
}
