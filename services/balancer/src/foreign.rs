//! A server that is no app-server: what the configuration says of how it is spoken with. In: a connection to one of its
//! addresses, a request's fields. Out: the connection secured, the fields as that server wants them. It resolves nothing
//! and dials nothing.

use crate::config::UpstreamProtocol;
use http::{HeaderMap, HeaderValue, header};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::{io, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A connection to an `https` upstream.
pub type Secured = TlsStream<TcpStream>;

/// One of the servers of a fixed upstream.
#[derive(Debug)]
pub struct Foreign {
    /// `None`: plain HTTP.
    pub security: Option<Security>,
    /// What its requests name as `Host`; `None`: what the client named.
    pub host: Option<HeaderValue>,
    pub protocol: UpstreamProtocol,
    /// How long a connection may be idle and still be used: shorter than the server keeps it.
    pub keepalive: Duration,
}

impl Foreign {
    /// Adds what it wants to see in a request.
    pub fn sign(&self, headers: &mut HeaderMap) {
        if let Some(host) = &self.host {
            headers.insert(header::HOST, host.clone());
        }
    }
}

/// Whom an `https` upstream has to be.
#[derive(Debug)]
pub struct Security {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

impl Security {
    /// The handshake, in which the server proves that it is the one that was named.
    pub async fn secure(&self, stream: TcpStream) -> io::Result<Secured> {
        TlsConnector::from(Arc::clone(&self.config)).connect(self.name.clone(), stream).await
    }
}
