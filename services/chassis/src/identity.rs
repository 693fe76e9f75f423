//! Who this process is, and who may talk to it: an mTLS identity issued by the cert-sidecar.
//!
//! Comes in: a join token on first start, later the identity's own files. Goes out: connections on which both sides
//! have proved their role. Never here: a plaintext control connection, a name that is not read from a certificate,
//! or a decision about what a role may do (the services decide that).

mod accept;
mod connect;
mod enrol;
mod material;
mod name;

pub use accept::{ClientAuth, Incoming, PeerInfo};
pub use connect::ConnectError;
pub use enrol::EnrolConfig;
pub use material::{Material, MaterialError};
pub use name::{AppRight, NameError, PeerId, RightError, Role, is_cluster};

use std::io;
use std::net::SocketAddr;

use futures_util::Stream;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::discovery::Discovery;

/// A process's identity as it is now; clones share it, and renewal replaces it for all of them.
#[derive(Clone)]
pub struct Identity;

/// Why a process cannot have an identity and retrying would not help.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What is on disk cannot be used, and is not silently replaced.
    #[error(transparent)]
    Material(#[from] MaterialError),
}

impl Identity {
    /// The identity in `<data>/identity`, or a new one from the cert-sidecar, however long that takes.
    pub async fn load_or_enrol(_config: &EnrolConfig, _discovery: &Discovery) -> Result<Self, IdentityError> {
        unimplemented!()
    }

    /// An identity that somebody else renews: the cert-sidecar's own.
    pub fn fixed(_material: Material) -> Self {
        unimplemented!()
    }

    /// From now on every handshake, on either side, uses `material`.
    pub fn replace(&self, _material: Material) {
        unimplemented!()
    }

    /// The instance part of the name.
    pub fn instance(&self) -> String {
        unimplemented!()
    }

    /// The own name, role and rights.
    pub fn peer(&self) -> PeerId {
        unimplemented!()
    }

    /// Changes with every replacement.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// Renews in time, for ever.
    pub async fn keep_renewed(&self, _config: &EnrolConfig, _discovery: &Discovery) {
        unimplemented!()
    }

    /// Dials `address`; both sides have proved their names and the other side has the role `expect`.
    pub async fn connect(&self, _address: SocketAddr, _expect: Role) -> Result<(Channel, PeerId), ConnectError> {
        unimplemented!()
    }

    /// Connections whose handshake is done, for `tonic::transport::Server::serve_with_incoming`.
    pub fn incoming(
        &self,
        _listener: TcpListener,
        _clients: ClientAuth,
    ) -> impl Stream<Item = io::Result<Incoming>> + Send + use<> {
        futures_util::stream::empty()
    }
}
