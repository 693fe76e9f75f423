//! One health check: asks an address for a path, or only dials it. In: the address, what server it is, the question. Out: that it
//! answered with 2xx or 3xx, or why it counts as ill. A connection of its own each time, so that it also shows whether the
//! server still accepts any. Reads the head of the response and no more.

use crate::{
    config::{HealthConfig, UpstreamProtocol},
    foreign::Foreign,
};
use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{io, net::SocketAddr, pin::pin, time::Duration};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

/// Longest head of a response that is read.
const HEAD: u32 = 16 * 1024;

/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(2);

/// What a server finds in its log.
const USER_AGENT: &str = "servery-health-check";

/// Why an address counts as ill.
#[derive(Debug, Error)]
pub(super) enum Ill {
    #[error("it cannot be reached: {0}")]
    Unreachable(#[source] io::Error),
    #[error("TLS with it failed: {0}")]
    Tls(#[source] io::Error),
    #[error("it did not answer as HTTP does: {0}")]
    Broken(#[from] hyper::Error),
    #[error("its name cannot be asked for: {0}")]
    Nameless(#[source] http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it did not answer within {0:?}")]
    Silent(Duration),
}

/// Nothing but whether somebody is there.
pub(super) async fn dial(address: SocketAddr) -> Result<(), Ill> {
    let dialled = timeout(DIAL, TcpStream::connect(address)).await.map_err(|_| Ill::Silent(DIAL))?;
    dialled.map(drop).map_err(Ill::Unreachable)
}

/// `host`: the server's own name.
pub(super) async fn ask(
    address: SocketAddr,
    foreign: &Foreign,
    host: HeaderValue,
    health: &HealthConfig,
) -> Result<(), Ill> {
    let asking = async {
        let stream = TcpStream::connect(address).await.map_err(Ill::Unreachable)?;
        match &foreign.security {
            None => exchange(stream, foreign, host, health).await,
            Some(security) => exchange(security.secure(stream).await.map_err(Ill::Tls)?, foreign, host, health).await,
        }
    };
    match timeout(health.timeout, asking).await {
        Ok(Ok(status)) if status.is_success() || status.is_redirection() => Ok(()),
        Ok(Ok(status)) => Err(Ill::Status(status)),
        Ok(Err(ill)) => Err(ill),
        Err(_) => Err(Ill::Silent(health.timeout)),
    }
}

async fn exchange<S>(stream: S, foreign: &Foreign, host: HeaderValue, health: &HealthConfig) -> Result<StatusCode, Ill>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut request, stream) = (Request::new(Empty::<Bytes>::new()), TokioIo::new(stream));
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    match foreign.protocol {
        UpstreamProtocol::Http1 => {
            let mut builder = http1::Builder::new();
            builder.max_buf_size(HEAD as usize);
            let (mut sender, connection) = builder.handshake(stream).await?;
            *request.uri_mut() = health.path.clone().into();
            request.headers_mut().insert(header::HOST, host);
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            status(sender.send_request(request), connection).await
        }
        UpstreamProtocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_header_list_size(HEAD);
            let (mut sender, connection) = builder.handshake(stream).await?;
            let scheme = if foreign.security.is_some() { "https" } else { "http" };
            let url = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(health.path.clone());
            *request.uri_mut() = url.build().map_err(Ill::Nameless)?;
            status(sender.send_request(request), connection).await
        }
    }
}

/// The connection moves only while it is polled.
async fn status(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<StatusCode, Ill> {
    let response = match select(pin!(answer), pin!(connection)).await {
        Either::Left((response, _)) => response?,
        Either::Right((_, answer)) => answer.await?,
    };
    Ok(response.status())
}
