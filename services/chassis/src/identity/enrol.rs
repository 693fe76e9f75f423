//! Getting an identity from the cert-sidecar, the first with a join token and the next with the one before. In: where
//! the sidecar is and what proves our right. Out: material whose name, root and key are the ones that were asked for.
//! A key never leaves this process, and a token is sent to nobody but the holder of the root that it names.

use super::{
    ConnectError, Identity, JoinToken, Material, MaterialError, PeerId, Role, TokenError, connect,
    files::{Files, FilesError},
    tls,
};
use crate::{
    config::HostPort,
    discovery::{Discovery, DiscoveryError},
    durable,
};
use proto::identity::{EnrolRequest, Issued, RenewRequest, identity_client::IdentityClient};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

/// The sidecar's answer, once connected.
const DEADLINE: Duration = Duration::from_secs(10);
/// Three certificates.
const ANSWER_MAX: usize = 256 * 1024;

/// What a process needs to know to enrol.
#[derive(Clone, Debug)]
pub struct EnrolConfig {
    pub cluster: String,
    pub role: Role,
    /// The identity is kept in `identity` under this.
    pub data: PathBuf,
    pub token_file: PathBuf,
    pub sidecar: HostPort,
    /// What the instance is to be called; the sidecar appends what makes it unique.
    pub name: String,
}

/// Why there is no new identity this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolError {
    #[error("there is no join token at {path}: {source}")]
    TokenUnreadable { path: PathBuf, source: io::Error },
    #[error("the join token at {path} cannot be used: {source}")]
    TokenMalformed { path: PathBuf, source: TokenError },
    #[error("the join token at {path} is for a {token}, this is a {ours}")]
    TokenOfRole { path: PathBuf, token: Role, ours: Role },
    #[error("the cert-sidecar is not found: {0}")]
    Discovery(#[from] DiscoveryError),
    #[error("the cert-sidecar cannot be reached: {0}")]
    Connect(#[from] ConnectError),
    #[error("the cert-sidecar did not answer within {DEADLINE:?}")]
    TimedOut,
    #[error("the cert-sidecar says: {}", .0.message())]
    Refused(Status),
    #[error("the connection to the cert-sidecar was lost: {0}")]
    Lost(Status),
    #[error("no key or request can be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the cert-sidecar's answer is no identity: {0}")]
    Answer(#[from] MaterialError),
    #[error("the cert-sidecar's answer is another identity than was asked for: {0}")]
    Different(Box<PeerId>),
    #[error("the cert-sidecar's answer is under another root")]
    OtherRoot,
    #[error("the cert-sidecar's answer is {0} by this machine's clock")]
    OutOfTime(&'static str),
    #[error(transparent)]
    Files(#[from] FilesError),
}

impl EnrolError {
    /// Whether the sidecar, or who answers in its place, has judged us or been judged: asking again soon is no use.
    pub(super) fn is_verdict(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Answer(_) | Self::Different(_) | Self::OtherRoot | Self::OutOfTime(_) => true,
            Self::Connect(error) => error.is_untrusted(),
            Self::TokenUnreadable { .. }
            | Self::TokenMalformed { .. }
            | Self::TokenOfRole { .. }
            | Self::Discovery(_)
            | Self::TimedOut
            | Self::Lost(_)
            | Self::Key(_)
            | Self::Files(_) => false,
        }
    }

    /// What a person can do about it.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::TokenUnreadable { .. } | Self::TokenMalformed { .. } | Self::TokenOfRole { .. } => {
                "`servery certs token ROLE`, run beside the cert-sidecar, prints one; it is read again as soon as it is there"
            }
            Self::Connect(error) if error.is_untrusted() => {
                "if the cert-sidecar was set up anew, give this process its new join token"
            }
            Self::Discovery(_) | Self::Connect(_) | Self::TimedOut | Self::Lost(_) => {
                "is it running, and is `sidecar` its address?"
            }
            Self::Refused(_) => "`servery certs token ROLE` prints a token that is good now",
            Self::Answer(_) | Self::Different(_) | Self::OtherRoot | Self::OutOfTime(_) => {
                "are the clocks of both machines right?"
            }
            Self::Key(_) | Self::Files(_) => "see the reason",
        }
    }
}

/// Without a certificate of our own, over TLS pinned by the token's hash.
pub(super) async fn enrol(config: &EnrolConfig, discovery: &Discovery, files: &Files) -> Result<Material, EnrolError> {
    let token = read_token(config)?;
    let key = Key::make(files)?;
    let tls = tls::pinned_config(token.root, &config.cluster);
    let channel = reach(config, discovery, |address| connect::open(address, tls.clone())).await?;
    let request = EnrolRequest { token: token.expose(), csr: key.request.clone(), name: config.name.clone() };
    let answer = timeout(DEADLINE, client(channel).enrol(request)).await.map_err(|_| EnrolError::TimedOut)?;
    let material = key.material(answer.map_err(refused)?.into_inner())?;

    if *material.root_hash() != token.root {
        return Err(EnrolError::OtherRoot);
    }
    let peer = material.peer();
    if peer.cluster != config.cluster || peer.role != config.role {
        return Err(EnrolError::Different(Box::new(peer.clone())));
    }
    files.commit(&material)?;
    Ok(material)
}

/// With the identity itself. The next one has the same name, rights and root, and a new key.
pub(super) async fn renew(
    identity: &Identity,
    config: &EnrolConfig,
    discovery: &Discovery,
    files: &Files,
) -> Result<Material, EnrolError> {
    let old = identity.material();
    let key = Key::make(files)?;
    let channel =
        reach(config, discovery, |address| connect::connect(&old, address, Role::CertSidecar, connect::CALM)).await?;
    let request = RenewRequest { csr: key.request.clone() };
    let answer = timeout(DEADLINE, client(channel).renew(request)).await.map_err(|_| EnrolError::TimedOut)?;
    let material = key.material(answer.map_err(refused)?.into_inner())?;

    if material.root_hash() != old.root_hash() {
        return Err(EnrolError::OtherRoot);
    }
    let (new, peer) = (material.peer(), old.peer());
    if *new != (PeerId { not_after: new.not_after, ..peer.clone() }) {
        return Err(EnrolError::Different(Box::new(new.clone())));
    }
    files.commit(&material)?;
    Ok(material)
}

pub(super) fn read_token(config: &EnrolConfig) -> Result<JoinToken, EnrolError> {
    let path = || config.token_file.clone();
    let contents = durable::read(&config.token_file, super::token::LENGTH_MAX)
        .and_then(|contents| contents.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .map_err(|source| EnrolError::TokenUnreadable { path: path(), source })?;
    let token = JoinToken::parse(&String::from_utf8_lossy(&contents))
        .map_err(|source| EnrolError::TokenMalformed { path: path(), source })?;
    if token.role == config.role {
        Ok(token)
    } else {
        Err(EnrolError::TokenOfRole { path: path(), token: token.role, ours: config.role })
    }
}

/// A key that is on disk already, and the request for its certificate.
struct Key {
    der: PrivateKeyDer<'static>,
    /// PKCS #10, DER. It names nobody: names come from the token or the old certificate.
    request: Vec<u8>,
}

impl Key {
    fn make(files: &Files) -> Result<Self, EnrolError> {
        let pair = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&pair)?.der().to_vec();
        files.begin(&pair.serialize_pem())?;
        Ok(Self { der: PrivatePkcs8KeyDer::from(pair.serialize_der()).into(), request })
    }

    fn material(self, issued: Issued) -> Result<Material, EnrolError> {
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        let material = Material::new(chain, self.der, CertificateDer::from(issued.root))?;
        // Taken, it would be replaced at once by the next one just like it.
        let now = SystemTime::now();
        if material.peer().not_after <= now {
            return Err(EnrolError::OutOfTime("expired"));
        }
        if material.not_before() > now {
            return Err(EnrolError::OutOfTime("not valid yet"));
        }
        if material.peer().instance == issued.instance {
            Ok(material)
        } else {
            Err(EnrolError::Different(Box::new(material.peer().clone())))
        }
    }
}

/// The first address that answers as it should; otherwise the reason of the last.
async fn reach<F>(
    config: &EnrolConfig,
    discovery: &Discovery,
    dial: impl Fn(std::net::SocketAddr) -> F,
) -> Result<Channel, EnrolError>
where
    F: Future<Output = Result<(Channel, PeerId), ConnectError>>,
{
    let found = discovery.resolve(&config.sidecar).await?;
    let mut last = None;
    for address in found.addresses {
        match dial(address).await {
            Ok((channel, _)) => return Ok(channel),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or(EnrolError::TimedOut, EnrolError::Connect))
}

fn client(channel: Channel) -> IdentityClient<Channel> {
    IdentityClient::new(channel).max_decoding_message_size(ANSWER_MAX)
}

/// What the sidecar says, apart from what happens to a connection.
fn refused(status: Status) -> EnrolError {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unimplemented => EnrolError::Refused(status),
        _ => EnrolError::Lost(status),
    }
}
