//! Whoever should not come in: comes in certificates and tokens of every kind, right, foreign, expired or stolen, goes out
//! connections to the control plane that present them and say whatever the test wants.
//!
//! An intruder trusts everybody: it is the cluster that has to refuse.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hyper_util::rt::TokioIo;
use proto::identity::identity_client::IdentityClient;
use proto::identity::{EnrolRequest, Issued};
use proto::registry::from_node::Message;
use proto::registry::registry_client::RegistryClient;
use proto::registry::{FromBalancer, FromNode, Hello, Report, Route, Worker, WorkerState};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

use crate::tls;

const LIMIT: Duration = Duration::from_secs(10);

/// A certificate chain and its key.
#[derive(Debug)]
pub struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Credential {
    /// The identity of a process of the cluster, taken from its data directory.
    pub fn stolen_from(data: &Path) -> anyhow::Result<Self> {
        let identity = data.join("identity");
        let chain = CertificateDer::pem_file_iter(identity.join("certificate.pem"))
            .with_context(|| format!("read {}", identity.display()))?
            .collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(identity.join("key.pem"))?;
        Ok(Self { chain, key })
    }
}

/// A certificate authority of the intruder's own, or one whose key was stolen.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What follows the leaf in a chain.
    above: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// An authority that nobody trusts.
    pub fn foreign() -> Self {
        let key = KeyPair::generate().expect("generate a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("sign by oneself");
        Self { above: vec![certificate.der().clone()], issuer: Issuer::new(params, key) }
    }

    /// The cluster's own, with its key: for certificates that only lack validity. The file has both as PEM.
    pub fn stolen(file: &Path) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from_pem_file(file).context("read the authority's certificate")?;
        let key = PrivateKeyDer::from_pem_file(file).context("read the authority's key")?;
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(&key)?)?;
        Ok(Self { issuer, above: vec![certificate] })
    }

    /// A certificate with these URIs as its names, good from `from` to `until` relative to now, in seconds.
    pub fn issue(&self, uris: &[&str], from_s: i64, until_s: i64) -> Credential {
        let key = KeyPair::generate().expect("generate a key");
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("an ASCII URI"))).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::seconds(from_s);
        params.not_after = now + time::Duration::seconds(until_s);
        let certificate = params.signed_by(&key, &self.issuer).expect("sign");
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.above.iter().cloned());
        Credential { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }
}

/// Dials a control-plane listener with this certificate, or with none.
///
/// # Errors
/// The handshake failed. With TLS 1.3 a client learns only from its first read that its certificate was refused: then the
/// first call fails instead.
pub async fn dial(address: SocketAddr, credential: Option<&Credential>) -> anyhow::Result<Channel> {
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustEverybody));
    let mut config = match credential {
        Some(credential) => config.with_client_auth_cert(credential.chain.clone(), credential.key.clone_key())?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let dialer = tower::service_fn(move |_: Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::IpAddress(address.ip().into());
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://control.invalid").timeout(LIMIT);
    tokio::time::timeout(LIMIT, endpoint.connect_with_connector(dialer))
        .await
        .context("no handshake in time")?
        .map_err(|error| anyhow!("{error:?}"))
}

/// Enrols with a token as a process called `name` does.
///
/// # Errors
/// What the cert-sidecar said, or that there was no connection.
pub async fn enrol(sidecar: SocketAddr, token: &str, name: &str) -> Result<(Issued, Credential), Status> {
    let key = KeyPair::generate().expect("generate a key");
    let request = CertificateParams::default().serialize_request(&key).expect("sign a request");
    let channel = dial(sidecar, None).await.map_err(|error| Status::unavailable(format!("{error:#}")))?;
    let request = EnrolRequest { token: token.to_owned(), csr: request.der().to_vec(), name: name.to_owned() };
    let issued = IdentityClient::new(channel).enrol(request).await?.into_inner();
    let chain = issued.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let credential = Credential { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() };
    Ok((issued, credential))
}

/// A PKCS #10 request with a new key, as renewing takes one.
pub fn signing_request() -> Vec<u8> {
    let key = KeyPair::generate().expect("generate a key");
    let request = CertificateParams::default().serialize_request(&key).expect("sign a request");
    request.der().to_vec()
}

/// A node that says what it is told to say.
#[derive(Debug)]
pub struct FakeNode {
    /// What the balancer says.
    pub inbox: Streaming<FromBalancer>,
    outbox: mpsc::Sender<FromNode>,
}

impl FakeNode {
    /// Opens a registration with this Hello and waits for the balancer's Welcome.
    ///
    /// # Errors
    /// The balancer's refusal.
    pub async fn register(channel: Channel, hello: Hello) -> Result<Self, Status> {
        let mut node = Self::open(channel, Some(Message::Hello(hello))).await?;
        match node.hear().await? {
            Some(_) => Ok(node),
            None => Err(Status::aborted("the balancer ended the stream without a word")),
        }
    }

    /// Opens a stream with this first message, or none yet. The balancer may answer only after it has heard one.
    ///
    /// # Errors
    /// The balancer's refusal.
    pub async fn open(channel: Channel, first: Option<Message>) -> Result<Self, Status> {
        let (outbox, messages) = mpsc::channel(8);
        let mut client = RegistryClient::new(channel);
        if let Some(first) = first {
            let first = FromNode { message: Some(first) };
            outbox.try_send(first).expect("the channel is new and empty");
        }
        let call = client.register(ReceiverStream::new(messages));
        let inbox = tokio::time::timeout(LIMIT, call)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer to Register"))??
            .into_inner();
        Ok(Self { inbox, outbox })
    }

    /// Sends one message; a stream that has ended swallows it.
    pub async fn say(&self, message: Message) {
        let _ = self.outbox.send(FromNode { message: Some(message) }).await;
    }

    /// The balancer's next message; `None` at the end of the stream.
    ///
    /// # Errors
    /// What the balancer ended the stream with, or that it said nothing in time.
    pub async fn hear(&mut self) -> Result<Option<FromBalancer>, Status> {
        let next = tokio::time::timeout(LIMIT, self.inbox.message()).await;
        next.map_err(|_| Status::deadline_exceeded("the balancer says nothing"))?
    }

    /// Waits for the end of the stream; tells what it ended with.
    pub async fn ended(mut self, within: Duration) -> anyhow::Result<Option<Status>> {
        let end = async {
            loop {
                match self.inbox.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        tokio::time::timeout(within, end).await.with_context(|| format!("the stream is still open after {within:?}"))
    }
}

/// A Hello as a node serving `app` under `prefix` with one worker at `port` says it.
pub fn hello(app: &str, prefix: &str, port: u16) -> Hello {
    let worker = Worker {
        position: 0,
        generation: 1,
        port: port.into(),
        state: WorkerState::Ready.into(),
        pid: 1,
        capacity: 4,
        grant: 4,
        busy: 0,
        served: 0,
        restarts: 0,
        ..Worker::default()
    };
    Hello {
        protocol_version: proto::PROTOCOL_VERSION,
        app: app.to_owned(),
        routes: vec![Route { host: String::new(), prefix: prefix.to_owned(), strip_prefix: false }],
        pass: vec![7; 32],
        advertise: String::new(),
        report: Some(Report { sequence: 1, workers: vec![worker], settled: Vec::new(), lack: None }),
        heartbeat_ms: 5_000,
        timeout_ms: 0,
    }
}

#[derive(Debug)]
struct TrustEverybody;

impl ServerCertVerifier for TrustEverybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &tls::provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
