//! Clients on bad lines: come in an address and what each of them wants, go out connections that read or write a few bytes a
//! second until they are dropped. They do nothing that is not allowed, and they do it for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// What the kernel may take in advance for one of them: as little as it allows.
const RECEIVE_BUFFER: u32 = 4096;

/// Some of them, until dropped.
#[derive(Debug)]
pub struct Slow {
    clients: JoinSet<anyhow::Result<()>>,
    moved: Arc<AtomicU64>,
}

impl Slow {
    /// So many clients that ask for `path` and take so many bytes of it per second.
    pub async fn readers(address: SocketAddr, count: usize, path: &str, bytes_per_second: usize) -> Self {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        Self::start(address, count, async move |mut stream: TcpStream, moved: Arc<AtomicU64>| {
            stream.write_all(head.as_bytes()).await?;
            let mut piece = vec![0; bytes_per_second];
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            loop {
                seconds.tick().await;
                let read = stream.read(&mut piece).await?;
                ensure!(read > 0, "the server closed");
                moved.fetch_add(read as u64, Ordering::Relaxed);
            }
        })
        .await
    }

    /// So many clients that send a body of this length to `path`, a byte every second.
    pub async fn writers(address: SocketAddr, count: usize, path: &str, length: usize) -> Self {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n");
        Self::start(address, count, async move |mut stream: TcpStream, moved: Arc<AtomicU64>| {
            stream.write_all(head.as_bytes()).await?;
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            for _ in 0..length {
                seconds.tick().await;
                stream.write_all(b"x").await?;
                moved.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
        .await
    }

    async fn start<F, C>(address: SocketAddr, count: usize, client: C) -> Self
    where
        C: FnOnce(TcpStream, Arc<AtomicU64>) -> F + Clone + Send + 'static,
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let moved = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..count {
            let stream = dial(address).await.expect("the server listens");
            let (client, moved) = (client.clone(), Arc::clone(&moved));
            clients.spawn(client(stream, moved));
        }
        Self { clients, moved }
    }

    /// Bytes that they have read or written in all.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Panics when one of them is not served any more.
    pub fn all_there(&mut self) {
        if let Some(ended) = self.clients.try_join_next() {
            panic!("a slow client is done: {ended:?}");
        }
    }
}

async fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.connect(address).await.with_context(|| format!("connect {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually::{ensure, eventually};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn they_move_a_little_and_go_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let echo = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                served.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let mut readers = Slow::readers(address, 3, "/", 10).await;
        let mut writers = Slow::writers(address, 2, "/", 100).await;
        eventually("each to have moved something", Duration::from_secs(10), async || {
            ensure(readers.moved() >= 30 && writers.moved() >= 4, || format!("{readers:?} {writers:?}"))
        })
        .await;
        readers.all_there();
        writers.all_there();
        drop(echo);
    }
}
