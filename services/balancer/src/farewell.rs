//! How an HTTP/1.1 connection ends that cannot go on. In: a stream that hyper has given up, and what to say. Out: that
//! answer, and then the patience for a client that is still talking: who closes a socket with unread bytes in it resets the
//! connection, and the client may lose the answer it has not read yet (RFC 9112, section 9.6). Bounded in time and bytes.

use crate::{
    body::Body, edge::Edge, fields, http::Ended, origin::Hop, record::Record, reject::Reject, strict::Left,
    words::Words,
};
use http::{Method, Response, Version};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proto::framing::Place;
use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

/// How long a client is listened to that has been answered.
const TIME: Duration = Duration::from_secs(2);
/// And for how many bytes.
const BYTES: usize = 1024 * 1024;

/// Asks hyper for the one answer there will be, instead of the client that did not manage to ask.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: -\r\nconnection: close\r\n\r\n";

const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n";

/// The line in the log of who has asked for what nobody has read.
fn unread(edge: &Rc<Edge>, client: IpAddr) -> Box<Record> {
    let method = Method::from_bytes(b"-").expect("a hyphen is a token");
    let asked = (method, Words::default(), Version::HTTP_11);
    let style = edge.shared.config.load().access_log_style;
    Record::begin(edge, style, edge.request_id(), client, asked)
}

/// The last words to a client, if there are any. Returns whether it was told why.
pub(crate) async fn part<S>(edge: &Rc<Edge>, hop: &Hop, mut left: Left<S>, ended: &Ended) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let late = matches!(ended, Ended::Late).then_some(Reject::HeaderTimeout);
    let reject = left.fault.map(Reject::from).or(late);
    let Some(reject) = reject else {
        // the answer came before the client had sent everything
        if left.place == Place::Body && matches!(ended, Ended::Http(Ok(()))) {
            listen(&mut left.stream).await;
        }
        return false;
    };
    let mut record = unread(edge, hop.peer);
    let id = record.id.to_str().expect("ids are made of visible characters");
    let mut response = reject.response(id, record.version, Duration::ZERO);
    response.headers_mut().insert(fields::X_REQUEST_ID, record.id.clone());
    record.status = reject.status().as_u16();
    record.reject = Some(reject);
    response.body_mut().attach(record, false);
    answer(&mut left.stream, response).await;
    true
}

/// One more connection than its client may have. There may be very many of them, so it is told in one write, or not at all,
/// and not listened to.
pub(crate) fn turn_away(edge: &Rc<Edge>, stream: &TcpStream, peer: SocketAddr) {
    let mut record = unread(edge, peer.ip());
    let reject = Reject::TooManyConnections;
    record.status = reject.status().as_u16();
    record.reject = Some(reject);
    // what was read does not make the kernel reset the connection
    let _ = stream.try_read(&mut [0; 1024]);
    let _ = stream.try_write(TURNED_AWAY);
}

/// Sends an answer to a request that nobody could read, closes our side, and listens for a while.
pub(crate) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, response: Response<Body>) {
    let response = RefCell::new(Some(response));
    let service = service_fn(async |_| {
        let response = response.take().unwrap_or_else(|| Response::new(Body::empty()));
        Ok::<_, Infallible>(response)
    });
    let asked = Asked { rest: REQUEST, stream };
    // whoever does not take it has left
    if http1::Builder::new().serve_connection(TokioIo::new(asked), service).await.is_ok() {
        listen(stream).await;
    }
}

/// Reads what a client still has to say, once our side is closed.
pub(crate) async fn listen<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut buffer = [0; 4096];
    let mut heard = 0;
    let listening = async {
        while heard < BYTES {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => heard += read,
            }
        }
    };
    // either way it is enough
    let _ = timeout(TIME, listening).await;
}

/// A stream whose client has asked for this and nothing else.
struct Asked<'a, S> {
    rest: &'static [u8],
    stream: &'a mut S,
}

impl<S> AsyncRead for Asked<'_, S>
where
    S: Unpin,
{
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.rest.split_at(self.rest.len().min(buffer.remaining()));
        if now.is_empty() {
            // nobody waits: hyper is woken by what it writes
            return Poll::Pending;
        }
        buffer.put_slice(now);
        self.rest = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Asked<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
