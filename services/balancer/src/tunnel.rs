//! Connections that stopped to be HTTP: WebSockets and whatever else a client and an application agree on (RFC 9110,
//! section 7.8), and streams of HTTP/2 that are a WebSocket (RFC 8441). In: a client's wish, and a worker's 101. Out: the
//! bytes of both sides, and one log line at the end. A tunnel holds no permit; it is counted, and limited, by itself. It may be idle for as long as it likes, and ends with
//! either side, or with the drain. Never a tunnel: a change to another HTTP or to TLS, because what is asked for in there
//! would pass by every rule of ours.

mod side;
mod tunnels;

pub(crate) use tunnels::Tunnels;

use crate::{
    Shared,
    app::App,
    edge::Edge,
    fields,
    metrics::Counted,
    patience::Patient,
    record::Record,
    reject::Reject,
    upstream::Connection,
    websocket::{self, Handshake},
};
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    ext::Protocol,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use side::Side;
use std::{
    cell::{Cell, RefCell},
    io,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// What is on its way in one direction, besides in the kernel.
const BUFFER: usize = 8 * 1024;
/// How long one side may say nothing after the other has said its last.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// A client asks for another protocol.
#[derive(Debug)]
pub(crate) struct Wish {
    asked: Asked,
    client: OnUpgrade,
    /// Its connection has as many tunnels as it may.
    crowded: bool,
}

/// What a worker is asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// These protocols, by the client itself.
    Protocols(HeaderValue),
    /// By us, for a client of HTTP/2.
    WebSocket(Handshake),
}

/// A wish that may come true.
#[derive(Debug)]
pub(crate) struct Admitted {
    client: OnUpgrade,
    place: Place,
}

/// A worker has agreed.
#[derive(Debug)]
pub(crate) struct Agreed {
    worker: OnUpgrade,
    /// Its end would end the tunnel before it has begun.
    connection: Box<Connection>,
}

/// Both sides have agreed, and wait for the 101 to be passed on.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    worker: OnUpgrade,
    connection: Box<Connection>,
    /// How long one side may take nothing of what it is sent.
    patience: Duration,
    _place: Place,
    _counted: Counted,
}

/// One of the process's tunnels.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let most = shared.config.load().max_tunnels;
        let more = |tunnels: usize| (tunnels < most).then_some(tunnels + 1);
        shared.tunnels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Wish {
    /// A request with a body is not one: the body would have to end before the tunnel can begin, and nobody does that.
    /// Over HTTP/2 it is an extended CONNECT, of which hyper takes none that has a length.
    pub(crate) fn of(request: &mut Request<Incoming>, edge: &Edge, open: &Tunnels) -> Option<Self> {
        let asked = if request.method() == Method::CONNECT {
            request.extensions().get().filter(|protocol: &&Protocol| websocket::is_named(protocol))?;
            let nonce = u128::from(edge.random()) << 64 | u128::from(edge.random());
            Asked::WebSocket(Handshake::new(nonce))
        } else if request.version() == Version::HTTP_11 && request.body().is_end_stream() {
            Asked::Protocols(fields::upgrade(request.headers())?.clone())
        } else {
            return None;
        };
        Some(Self { asked, client: hyper::upgrade::on(request), crowded: open.are_full() })
    }

    pub(crate) fn admit(self, shared: &Arc<Shared>) -> Result<(Asked, Admitted), Reject> {
        if self.crowded {
            return Err(Reject::TooManyTunnels);
        }
        let place = Place::take(shared).ok_or(Reject::TooManyTunnels)?;
        Ok((self.asked, Admitted { client: self.client, place }))
    }
}

impl Asked {
    /// Tells the worker, after `clean_request`.
    pub(crate) fn ask(&self, headers: &mut HeaderMap) {
        match self {
            Self::Protocols(protocols) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, protocols.clone());
            }
            Self::WebSocket(handshake) => handshake.ask(headers),
        }
    }

    /// Whether the fields of a 101 say so. What a client has asked for in its own words it checks by itself.
    pub(crate) fn is_agreed(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Protocols(_) => headers.contains_key(header::UPGRADE),
            Self::WebSocket(handshake) => handshake.is_agreed(headers),
        }
    }

    /// Makes a 101 the client's.
    pub(crate) fn pass_on<B>(&self, response: &mut Response<B>) {
        let headers = response.headers_mut();
        let protocol = headers.remove(header::UPGRADE);
        fields::clean_response(headers);
        match self {
            Self::Protocols(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.extend(protocol.map(|protocol| (header::UPGRADE, protocol)));
            }
            Self::WebSocket(_) => websocket::answer(response),
        }
    }
}

impl Admitted {
    pub(crate) fn begin(self, edge: &Edge, app: &App, agreed: Agreed) -> Tunnel {
        Tunnel {
            client: self.client,
            worker: agreed.worker,
            connection: agreed.connection,
            patience: edge.shared.config.load().body_timeout,
            _place: self.place,
            _counted: Counted::new(&app.metrics.tunnels),
        }
    }
}

impl Agreed {
    pub(crate) fn new(response: &mut Response<Incoming>, connection: Box<Connection>) -> Self {
        Self { worker: hyper::upgrade::on(response), connection }
    }
}

impl Tunnel {
    /// To its end. Dropped before, it was cut by us.
    pub(crate) async fn run(self, record: Box<Record>) {
        let line = Line { record: RefCell::new(record), ended: Cell::new(false) };
        let Ok(client) = self.client.await else { return };
        let worker = self.worker.await;
        // by now the worker's side is ours
        drop(self.connection);
        let Ok(worker) = worker else {
            line.ends(Some(Reject::UpstreamReset));
            return;
        };
        // a client's connection has its patience since its first byte, but a stream has a window of its own
        let stream = line.record.borrow().version >= Version::HTTP_2;
        let client = tokio::io::split(Patient::new(Side::new(client, stream), self.patience));
        let worker = tokio::io::split(Patient::new(TokioIo::new(worker), self.patience));
        let up = async {
            let mut client = client.0;
            flow(&mut client, worker.1, |bytes| line.record.borrow_mut().tunnelled += bytes).await?;
            io::Result::Ok(client)
        };
        let down = flow(worker.0, client.1, |bytes| line.record.borrow_mut().bytes_out += bytes);
        let (up, down) = (pin!(up), pin!(down));
        match select(up, down).await {
            Either::Left((Ok(client), down)) => {
                tokio::select! {
                    () = while_moving(down, || line.moved()) => {}
                    () = side::reset(client) => {}
                }
            }
            Either::Right((Ok(()), up)) => while_moving(up, || line.moved()).await,
            // the log says of one that we cut, wherever that is seen first
            Either::Left((Err(_), _)) | Either::Right((Err(_), _)) if line.is_cut() => return,
            // whichever side broke: without it there is nobody to talk to
            Either::Left((Err(_), _)) | Either::Right((Err(_), _)) => {}
        }
        line.ends(None);
    }
}

/// What the log will say of a tunnel.
struct Line {
    record: RefCell<Box<Record>>,
    ended: Cell<bool>,
}

impl Line {
    fn moved(&self) -> u64 {
        let record = self.record.borrow();
        record.tunnelled + record.bytes_out
    }

    fn is_cut(&self) -> bool {
        self.record.borrow().edge.cutting.get()
    }

    fn ends(&self, reject: Option<Reject>) {
        self.ended.set(true);
        self.record.borrow_mut().reject = reject;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.ended.get() {
            self.record.get_mut().abandon();
        }
    }
}

/// The other direction has ended: this one may go on for as long as something moves.
async fn while_moving<T>(mut direction: impl Future<Output = io::Result<T>> + Unpin, moved: impl Fn() -> u64) {
    let mut before = moved();
    while timeout(HALF_CLOSED, &mut direction).await.is_err() {
        let now = moved();
        if now == before {
            return;
        }
        before = now;
    }
}

/// One direction, to its end, which is passed on.
async fn flow(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: impl Fn(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        count(length as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn half_a_tunnel_lives_for_as_long_as_it_is_used() {
        let (mut client, ours) = tokio::io::duplex(100);
        let (worker, mut theirs) = tokio::io::duplex(100);
        let moved = Cell::new(0);
        let start = Instant::now();
        let direction = pin!(flow(ours, worker, |bytes| moved.set(moved.get() + bytes)));
        let words = async {
            for _ in 0..5 {
                client.write_all(b"word").await.unwrap();
                theirs.read_exact(&mut [0; 4]).await.unwrap();
                sleep(HALF_CLOSED * 3 / 4).await;
            }
            sleep(HALF_CLOSED * 10).await; // and nothing more
        };
        tokio::select! {
            () = while_moving(direction, || moved.get()) => {}
            () = words => panic!("it should have ended"),
        }
        let silent = start.elapsed() - HALF_CLOSED * 3;
        assert!(silent >= HALF_CLOSED && silent <= HALF_CLOSED * 2, "{silent:?}");
    }
}
