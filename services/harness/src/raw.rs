//! A client that sends whatever bytes it is told to: comes in text, goes out what the peer answered. Checks nothing, mends
//! nothing: it exists for what a well-behaved client would never send.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// Limit on every single step.
const LIMIT: Duration = Duration::from_secs(15);

trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for S {}

/// A connection over TCP or a Unix socket.
#[derive(Debug)]
pub struct Raw {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

impl Raw {
    pub async fn dial(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = limited(async { Ok(TcpStream::connect(address).await?) }).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: Box::new(stream), received: Vec::new() })
    }

    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Debug + Send + Unpin + 'static) -> Self {
        Self { stream: Box::new(stream), received: Vec::new() }
    }

    pub async fn dial_unix(path: &Path) -> anyhow::Result<Self> {
        let stream = limited(async { Ok(UnixStream::connect(path).await?) }).await?;
        Ok(Self { stream: Box::new(stream), received: Vec::new() })
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
        limited(async {
            self.stream.write_all(bytes.as_ref()).await?;
            // TLS may have kept some of it where the socket, or the task's share of time, was full
            Ok(self.stream.flush().await?)
        })
        .await
    }

    /// Reads on until what has come since the connection began contains `text`; returns all of it.
    pub async fn until(&mut self, text: &str) -> anyhow::Result<String> {
        limited(async {
            loop {
                let so_far = String::from_utf8_lossy(&self.received).into_owned();
                if so_far.contains(text) {
                    return Ok(so_far);
                }
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    bail!("the peer closed before {text:?}; it sent {so_far:?}");
                }
            }
        })
        .await
    }

    /// Reads until the peer closes; returns everything it ever sent. A reset counts as an end.
    pub async fn to_the_end(mut self) -> anyhow::Result<String> {
        limited(async {
            while self.stream.read_buf(&mut self.received).await.unwrap_or(0) > 0 {}
            Ok(String::from_utf8_lossy(&self.received).into_owned())
        })
        .await
    }
}

async fn limited<T>(step: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::time::timeout(LIMIT, step).await.with_context(|| format!("nothing within {LIMIT:?}"))?
}
