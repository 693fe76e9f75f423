//! One accepted connection: comes in a TCP stream, goes out the same stream as hyper wants it, counted while it is open
//! (also when it has become a tunnel) and closed so that nothing sent is lost. It knows nothing of HTTP.
//!
//! A socket closed with unread bytes makes the kernel send a reset, which can overtake our last answer: a refusal of
//! a request whose body is still on its way would look like a crash. So closing shuts our side down and then reads what
//! the peer has still sent, for a while and up to a bound.

use std::{
    future::Future,
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
    net::TcpStream,
    sync::watch,
    time::{Sleep, sleep},
};

/// How long, and how many bytes, a closing connection is read on. A balancer closes at once when it sees our end.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;

/// How many connections of a worker are open.
#[derive(Debug)]
pub(crate) struct Open {
    count: watch::Sender<usize>,
}

/// Counts one connection until it is dropped.
#[derive(Debug)]
struct Counted {
    open: Arc<Open>,
}

/// A stream that closes politely.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    /// Set once the application owns the bytes: then closing is its business.
    tunnel: Arc<AtomicBool>,
    closing: Closing,
    _counted: Counted,
}

#[derive(Debug)]
enum Closing {
    No,
    Lingering { until: Pin<Box<Sleep>>, read: usize },
    Done,
}

impl Open {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { count: watch::Sender::new(0) })
    }

    /// Until no connection is open.
    pub(crate) async fn none(&self) {
        // the sender is ours and lives, so this cannot fail
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.count.send_modify(|count| *count -= 1);
    }
}

impl Socket {
    pub(crate) fn new(stream: TcpStream, open: &Arc<Open>, tunnel: Arc<AtomicBool>) -> Self {
        open.count.send_modify(|count| *count += 1);
        Self { stream, tunnel, closing: Closing::No, _counted: Counted { open: Arc::clone(open) } }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::No => {
                    ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                    this.closing = if this.tunnel.load(Ordering::Acquire) {
                        Closing::Done
                    } else {
                        Closing::Lingering { until: Box::pin(sleep(LINGER)), read: 0 }
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
                            ready!(until.as_mut().poll(cx));
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
