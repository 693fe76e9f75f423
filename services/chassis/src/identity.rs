//! Who this process is, and who may talk to it: an mTLS identity issued by the cert-sidecar.
//!
//! In: a join token on first start, later the identity's own files. Out: connections on which both sides have proved
//! their names. Never here: a plaintext control connection, a name that is not read from a certificate, or a decision
//! about what a role may do (the services decide that).

mod accept;
mod connect;
mod enrol;
mod files;
mod keep;
mod material;
mod name;
mod tls;
mod token;

pub use accept::{ClientAuth, Incoming, PeerInfo};
pub use connect::ConnectError;
pub use enrol::EnrolConfig;
pub use files::{DamageError, FilesError};
pub use material::{Material, MaterialError, root_hash};
pub use name::{AppRight, NameError, PeerId, RightError, Role, is_cluster, is_instance};
pub use token::{JoinToken, RootHash, TokenError};

use crate::discovery::Discovery;
use arc_swap::ArcSwap;
use files::Files;
use futures_util::Stream;
use std::{fmt, fs::File, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Channel;

/// A process's identity as it is now. Clones share it, and renewal replaces it for all of them.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    material: ArcSwap<Material>,
    rotations: watch::Sender<u64>,
    /// `None`: somebody else keeps it.
    files: Option<Files>,
}

/// Why a process cannot have an identity, and waiting would not help.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl Identity {
    /// The identity in `<data>/identity` if it is there and in time, otherwise a new one from the cert-sidecar, however
    /// long that takes: a sidecar that is away, a token that is not there yet or is refused are logged with what to do
    /// about them, and tried again.
    pub async fn load_or_enrol(config: &EnrolConfig, discovery: &Discovery) -> Result<Self, IdentityError> {
        Self::load_or_enrol_holding(config, discovery, None).await
    }

    /// As [`Self::load_or_enrol`], with the lock of a process that this one takes over from: two have the identity until
    /// that one has ended, and only one of them may renew it.
    pub async fn load_or_enrol_holding(
        config: &EnrolConfig,
        discovery: &Discovery,
        lock: Option<File>,
    ) -> Result<Self, IdentityError> {
        let (material, files) = keep::load_or_enrol(config, discovery, lock).await?;
        Ok(Self::new(material, Some(files)))
    }

    /// For a process that takes over from this one. `None` for a [`Self::fixed`] one.
    pub fn lock(&self) -> io::Result<Option<File>> {
        self.inner.files.as_ref().map(Files::lock).transpose()
    }

    /// An identity that somebody else renews, with [`Self::replace`]: the cert-sidecar's own.
    pub fn fixed(material: Material) -> Self {
        Self::new(material, None)
    }

    fn new(material: Material, files: Option<Files>) -> Self {
        let (material, rotations) = (ArcSwap::from_pointee(material), watch::Sender::new(0));
        Self { inner: Arc::new(Inner { material, rotations, files }) }
    }

    /// From now on every handshake, on either side, uses `material`. Connections that exist stay as they are.
    pub fn replace(&self, material: Material) {
        self.inner.material.store(Arc::new(material));
        self.inner.rotations.send_modify(|rotations| *rotations += 1);
    }

    /// The instance part of the name.
    pub fn instance(&self) -> String {
        self.material().peer().instance.clone()
    }

    /// The own name and rights, and until when.
    pub fn peer(&self) -> PeerId {
        self.material().peer().clone()
    }

    /// As it is now.
    pub fn material(&self) -> Arc<Material> {
        self.inner.material.load_full()
    }

    /// Changes with every replacement.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        self.inner.rotations.subscribe()
    }

    /// Renews the identity in time, for ever: after a seventh of its life, that is daily. One that expires nevertheless,
    /// because the sidecar was away for as long as that, is replaced by a new enrolment under a new name. For a
    /// [`Self::fixed`] one there is nothing to do.
    pub async fn keep_renewed(&self, config: &EnrolConfig, discovery: &Discovery) {
        match &self.inner.files {
            Some(files) => keep::keep_renewed(self, files, config, discovery).await,
            None => std::future::pending().await,
        }
    }

    /// Dials `address` within five seconds; the other side has proved to be of this cluster and of the role `expect`.
    /// It has not necessarily accepted us yet: with TLS 1.3 its refusal is what the first call ends with. The channel
    /// is this one connection and never dials again.
    pub async fn connect(&self, address: SocketAddr, expect: Role) -> Result<(Channel, PeerId), ConnectError> {
        connect::connect(&self.material(), address, expect, connect::CALM).await
    }

    /// As [`Self::connect`]; the channel breaks when the other side has not been heard of for twice `pulse`.
    pub async fn connect_watched(
        &self,
        address: SocketAddr,
        expect: Role,
        pulse: Duration,
    ) -> Result<(Channel, PeerId), ConnectError> {
        let pulse = connect::Pulse { every: pulse, answered: pulse };
        connect::connect(&self.material(), address, expect, pulse).await
    }

    /// Connections whose handshake is done, for `tonic::transport::Server::serve_with_incoming`; never an error, never
    /// an end. Refused handshakes are logged, and counted in `servery_<role>_control_handshakes_total{result}`.
    pub fn incoming(
        &self,
        listener: TcpListener,
        clients: ClientAuth,
    ) -> impl Stream<Item = io::Result<Incoming>> + Send + use<> {
        accept::incoming(self.clone(), listener, clients)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.material().peer()).finish()
    }
}

#[cfg(test)]
mod tests;
