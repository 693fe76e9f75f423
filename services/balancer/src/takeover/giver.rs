//! The running balancer's side. In: connections at the takeover socket. Out: copies of the sockets; and when the one that
//! has them says that it is ready, the beginning of the drain here. One at a time.

use super::{Estate, PROMPT, READY, SOCKET, Short, YOURS, parcel};
use crate::{Shared, registry::Directory};
use chassis::{
    durable,
    identity::Identity,
    lifecycle::{Lifecycle, Phase},
};
use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdStream},
    path::Path,
    sync::{Arc, OnceLock, atomic::Ordering},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Gives the sockets away.
pub(crate) struct Giver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Arc<Directory>,
    /// Once enrolled.
    pub(crate) identity: Arc<OnceLock<Identity>>,
    pub(crate) lifecycle: Lifecycle,
    /// Ends the registry.
    pub(crate) stopping: CancellationToken,
    /// Ends the admin listener: from now on the new one is asked.
    pub(crate) given: CancellationToken,
}

/// Binds the socket in place of whoever had it before. The directory is this instance's alone, and its listening
/// addresses are bound by now: what is there belongs to a process that is gone or is being taken over.
pub(crate) fn bind(data: &Path) -> io::Result<UnixListener> {
    durable::make_directory(data)?;
    let (short, new) = (Short::of(data)?, format!(".{SOCKET}.{}", std::process::id()));
    match fs::remove_file(short.join(&new)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(short.join(&new))?; // before the mode is set, is_ours() keeps others out
    fs::set_permissions(short.join(&new), fs::Permissions::from_mode(0o600))?;
    fs::rename(short.join(&new), short.join(SOCKET))?;
    Ok(listener)
}

impl Giver {
    /// Until the drain begins, by a signal or by a takeover. Without the socket there can be no takeover: that is said,
    /// and is no reason not to serve.
    pub(crate) async fn run(self, data: &Path) {
        let listener = match bind(data) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "there is no takeover socket in the data directory: no takeover is possible");
                return;
            }
        };
        tokio::select! {
            biased;
            () = self.lifecycle.reached(Phase::Draining) => {}
            () = self.serve(listener) => {}
        }
    }

    async fn serve(&self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if !is_ours(&stream) => {
                    tracing::warn!("refused another user at the takeover socket");
                }
                Ok((stream, _)) => match self.give(stream).await {
                    Ok(true) => return,
                    Ok(false) => tracing::warn!("the process that wanted to take over is gone: nothing has changed"),
                    Err(error) => tracing::warn!(%error, "a takeover failed: nothing has changed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "the takeover socket cannot accept");
                    sleep(PROMPT).await; // out of descriptors, most likely
                }
            }
        }
    }

    /// True when the sockets are somebody else's now.
    async fn give(&self, stream: UnixStream) -> io::Result<bool> {
        let peer = stream.peer_cred()?.pid();
        tracing::info!(?peer, "another process wants to take over");
        let stream = stream.into_std()?;
        let lock = self.identity.get().map(Identity::lock).transpose()?.flatten();
        let lock = lock.ok_or_else(|| io::Error::other("this process has no identity yet that it could pass on"))?;
        let (shared, routes) = (Arc::clone(&self.shared), self.directory.legacy());
        let sent = tokio::task::spawn_blocking(move || -> io::Result<StdStream> {
            stream.set_nonblocking(false)?;
            stream.set_write_timeout(Some(PROMPT))?;
            parcel::send(&stream, &Estate { opened: shared.doors.copies()?, lock }, &routes)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        let mut stream = UnixStream::from_std(sent.await.map_err(io::Error::other)??)?;
        // as long as it takes to become ready; an end of the stream is the end of that process
        if stream.read_u8().await.ok() != Some(READY) {
            return Ok(false);
        }
        tracing::info!(?peer, "taken over: draining");
        self.hand_over();
        // it goes on without this word as well
        let _ = timeout(PROMPT, stream.write_u8(YOURS)).await;
        Ok(true)
    }

    /// First what is known of workers is fixed, then the drain begins, and only then nodes are sent away: in the other
    /// order a request would find no worker, or `run` a registry that ended by itself.
    fn hand_over(&self) {
        self.directory.freeze();
        self.shared.taken_over.store(true, Ordering::Relaxed);
        self.shared.doors.close();
        self.lifecycle.advance(Phase::Draining);
        self.stopping.cancel();
        self.given.cancel();
    }
}

/// Of our own user: who takes over serves with our keys, and what it leaves in the data directory must be ours.
pub(super) fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}
