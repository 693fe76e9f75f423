//! The public listeners. In: sockets that are bound already, one of each kind per core. Out: connections, each served
//! to its end on the core that accepted it. One thread per core with a runtime of its own, so that a request is never
//! handed from one core to another and nothing on its way is stolen.
//!
//! The end: no more is accepted; every connection is told (GOAWAY, `Connection: close`) and may finish what it has in
//! flight for as long as the drain lasts; what is left then is cut; the log is written.

use crate::{
    Shared,
    accesslog::{self, AccessLog, Batch, Writer, spawn_writer},
    edge::Edge,
    farewell,
    http::{Protocol, Server},
    idle::{Readable, SILENT},
    metrics::{ConnectionGauges, Counted},
    proxy_protocol, tls,
};
use chassis::lifecycle::{Lifecycle, Phase};
use metrics::counter;
use std::{
    future::{Future, poll_fn},
    io::{self, Write},
    net::{self, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::{Arc, mpsc::SyncSender},
    task::Poll,
    thread,
    time::Duration,
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long accepting pauses when the process is out of descriptors or memory: trying again at once would only spin.
const EXHAUSTED: Duration = Duration::from_millis(500);
/// How often a connection that cannot be accepted asks for room.
const ROOM: Duration = Duration::from_millis(100);
/// Connections that the kernel had accepted when the listener closes, taken at most.
const LAST_ACCEPTS: usize = 1024;

/// The sockets of one core: bound with SO_REUSEPORT, non-blocking.
#[derive(Debug, Default)]
pub struct Sockets {
    pub http: Option<net::TcpListener>,
    pub https: Option<net::TcpListener>,
}

#[derive(Debug, Error)]
pub enum StartError {
    #[error("no TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Log(#[from] accesslog::OpenError),
    #[error("no thread or socket for a core: {0}")]
    Core(#[from] io::Error),
}

/// Why a core ended before it was told to.
#[derive(Debug, Error)]
pub enum CoreFault {
    #[error("a core cannot serve: {0}")]
    Io(#[from] io::Error),
    #[error("a core ended by a fault of its own")]
    Panic,
}

/// The running cores.
#[derive(Debug)]
pub struct Cores {
    threads: Vec<(thread::JoinHandle<io::Result<()>>, oneshot::Receiver<()>)>,
    /// `None`: there is no access log.
    writer: Option<Writer>,
}

impl Cores {
    /// Returns when every connection has ended after `Draining` (at most `drain` later, or at `Stopping`), and the
    /// log is written. A core that ends by a fault begins the drain of the others by itself; the fault is the result.
    pub async fn drained(self) -> Result<(), CoreFault> {
        let mut result = Ok(());
        for (thread, ended) in self.threads {
            drop(ended.await);
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => result = Err(error.into()),
                Err(_) => result = Err(CoreFault::Panic),
            }
        }
        // every core's end of the log is gone, so the writer is about to end
        drop(tokio::task::spawn_blocking(|| self.writer.map(Writer::join)).await);
        result
    }
}

/// Starts one named thread per entry of `sockets`.
pub fn spawn_cores(shared: &Arc<Shared>, sockets: Vec<Sockets>, lifecycle: &Lifecycle) -> Result<Cores, StartError> {
    spawn_cores_logging_to(shared.log.open()?, shared, sockets, lifecycle)
}

pub(crate) fn spawn_cores_logging_to(
    log: Option<Box<dyn Write + Send>>,
    shared: &Arc<Shared>,
    sockets: Vec<Sockets>,
    lifecycle: &Lifecycle,
) -> Result<Cores, StartError> {
    let acceptor = TlsAcceptor::from(tls::server_config(shared)?);
    let slots = Arc::clone(&shared.slots);
    let lost = counter!("servery_balancer_access_log_lost_lines_total");
    let log = log.map(|out| spawn_writer(out, Arc::clone(&shared.log), lost)).transpose()?;
    let (sink, writer) = log.unzip();
    let mut threads = Vec::with_capacity(sockets.len());
    for (number, sockets) in sockets.into_iter().enumerate() {
        let core = Core {
            shared: Arc::clone(shared),
            sockets,
            acceptor: acceptor.clone(),
            slots: Arc::clone(&slots),
            lifecycle: lifecycle.clone(),
            sink: sink.clone(),
        };
        let (alive, ended) = oneshot::channel();
        let last_act = LastAct { lifecycle: lifecycle.clone(), _alive: alive };
        let thread = thread::Builder::new().name(format!("core-{number}")).spawn(move || {
            let _last_act = last_act;
            // it never leaves this thread, so that waking one of its tasks is a push to a list
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
            runtime.block_on(core.run())
        })?;
        threads.push((thread, ended));
    }
    Ok(Cores { threads, writer })
}

/// When a core ends, all do: after a drain there is nothing to do, and by a fault a part of the clients' connections
/// would be accepted by nobody.
struct LastAct {
    lifecycle: Lifecycle,
    _alive: oneshot::Sender<()>,
}

impl Drop for LastAct {
    fn drop(&mut self) {
        self.lifecycle.advance(Phase::Draining);
    }
}

/// What one thread is given.
struct Core {
    shared: Arc<Shared>,
    sockets: Sockets,
    acceptor: TlsAcceptor,
    slots: Arc<Semaphore>,
    lifecycle: Lifecycle,
    sink: Option<SyncSender<Batch>>,
}

impl Core {
    async fn run(self) -> io::Result<()> {
        let edge = Rc::new(Edge::new(Arc::clone(&self.shared), AccessLog::new(self.sink)));
        let mut keepers = JoinSet::new();
        keepers.spawn_local(keep(Rc::clone(&edge)));

        let redirect_to = self.shared.https_port;
        let plain =
            self.sockets.http.map(|socket| Listener::new(socket, Server::new(&edge, "http", redirect_to), None));
        let tls = self.acceptor;
        let secure =
            self.sockets.https.map(|socket| Listener::new(socket, Server::new(&edge, "https", None), Some(tls)));
        let (plain, secure) = (plain.transpose()?, secure.transpose()?);
        let serve = async |listener: Option<Listener>| match listener {
            Some(listener) => listener.run(&self.slots, &self.lifecycle).await,
            None => self.lifecycle.reached(Phase::Draining).await,
        };
        tokio::join!(serve(plain), serve(secure));
        keepers.shutdown().await;
        edge.log.flush();
        edge.metrics.log_lines_lost.increment(edge.log.take_lost());
        Ok(())
    }
}

/// The core's housekeeping.
async fn keep(edge: Rc<Edge>) {
    let count = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            edge.metrics.log_lines_lost.increment(edge.log.take_lost());
            let config = edge.shared.config.load();
            edge.buffers.resize(config.buffers_per_core());
            edge.idle.resize(config.idle_memory_per_core());
        }
    };
    tokio::join!(edge.log.keep_flushed(), edge.pool.keep_swept(), edge.stalls.keep_looking(), count);
}

/// One socket and how its connections are served.
struct Listener {
    socket: TcpListener,
    server: Rc<Server>,
    gauges: Rc<ConnectionGauges>,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    fn new(socket: net::TcpListener, server: Server, tls: Option<TlsAcceptor>) -> io::Result<Self> {
        let name = if tls.is_some() { "https" } else { "http" };
        let gauges = Rc::new(ConnectionGauges::new(name));
        Ok(Self { socket: TcpListener::from_std(socket)?, server: Rc::new(server), gauges, tls })
    }

    async fn run(self, slots: &Arc<Semaphore>, lifecycle: &Lifecycle) {
        let draining = CancellationToken::new();
        let mut connections = JoinSet::new();
        let accepting = async {
            loop {
                let (stream, peer) = accept(&self.socket).await;
                // While there is no slot nothing more is accepted here: it waits in the kernel's queue, not in our
                // memory. (The slot before the connection would be one slot per idle listener.)
                let Some(slot) = self.slot(slots).await else { return };
                // ended ones are cleared here, so that the set is no longer than what is open
                while let Some(ended) = connections.try_join_next() {
                    report(ended);
                }
                connections.spawn_local(self.connection(stream, peer, draining.clone(), Some(slot)));
            }
        };
        tokio::select! {
            biased;
            () = lifecycle.reached(Phase::Draining) => {}
            () = accepting => {}
        }
        draining.cancel();
        // a second descriptor would keep the socket open behind us
        self.server.edge.shared.doors.close();
        let drain = self.server.edge.shared.config.load().drain;
        // what the kernel has accepted already would be reset when the socket closes
        for _ in 0..LAST_ACCEPTS {
            let Some(Ok((stream, peer))) = futures_util::FutureExt::now_or_never(self.socket.accept()) else { break };
            connections.spawn_local(self.connection(stream, peer, draining.clone(), None));
        }
        drop(self.socket);
        let finished = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        tokio::select! {
            biased;
            () = finished => {}
            () = tokio::time::sleep(drain) => tracing::warn!("the drain is over: cutting the connections that are left"),
            () = lifecycle.reached(Phase::Stopping) => {}
        }
        self.server.edge.cutting.set(true);
        connections.shutdown().await;
    }

    /// Where there is none, an idle connection on this core makes room.
    async fn slot(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let mut slot = pin!(Arc::clone(slots).acquire_owned());
        if let Poll::Ready(slot) = futures_util::poll!(slot.as_mut()) {
            return slot.ok();
        }
        loop {
            self.server.edge.idle.make_room();
            // perhaps nobody was idle yet
            if let Ok(slot) = timeout(ROOM, slot.as_mut()).await {
                return slot.ok();
            }
        }
    }

    /// One connection from its first byte to its last. Each stage of its life is boxed, here and below: a future is as large
    /// as the largest of its stages, and most connections are idle in a small one.
    fn connection(
        &self,
        mut stream: TcpStream,
        mut peer: SocketAddr,
        draining: CancellationToken,
        slot: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = ()> + 'static {
        let (server, gauges, tls) = (Rc::clone(&self.server), Rc::clone(&self.gauges), self.tls.clone());
        async move {
            let _slot = slot;
            // small answers must not wait for an acknowledgement of the one before
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "a client left at once");
                return;
            }
            let (proxied, limit) = {
                let config = server.edge.shared.config.load();
                (config.speaks_proxy_protocol(peer), config.handshake_timeout)
            };
            let deadline = Instant::now() + limit;
            if proxied {
                let _shaking = Counted::new(&gauges.handshake);
                match Box::pin(proxy_protocol::introduce(&mut stream, peer, deadline)).await {
                    Some(client) => peer = client,
                    None => return,
                }
            }
            // before TLS, whose handshake is what costs most
            let limit = server.edge.shared.config.load().connections_of(peer);
            let guest = limit.map(|most| server.edge.shared.crowd.enter(peer.ip().into(), most));
            if let Some(None) = guest {
                counter!("servery_balancer_connections_refused_total", "reason" => "client").increment(1);
                tracing::debug!(%peer, "closed: its client has as many connections as it may");
                if tls.is_none() {
                    farewell::turn_away(&server.edge, &stream, peer);
                }
                return;
            }
            let Some(acceptor) = tls else {
                let _open = Counted::new(&gauges.open);
                Box::pin(server.serve(stream, peer, Protocol::Http1, &draining)).await;
                return;
            };
            let shaking = Counted::new(&gauges.handshake);
            // nothing is made for a client that says nothing
            let place = server.edge.idle.enter(peer.ip().into(), SILENT);
            tokio::select! {
                biased;
                readable = poll_fn(|cx| stream.poll_readable(cx)) => if readable.is_err() { return },
                () = place.lost() => return,
                () = sleep_until(deadline) => {
                    count_handshake("timeout", None);
                    return;
                }
            }
            drop(place);
            // on the heap, and a pointer in every stage of the connection's life from here on
            let accepted = Box::pin(async move { acceptor.accept(stream).await.map(Box::new) });
            let result = timeout_at(deadline, accepted).await;
            drop(shaking);
            let stream = match result {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    count_handshake("failed", None);
                    tracing::debug!(%peer, %error, "a TLS handshake failed");
                    return;
                }
                Err(_) => {
                    count_handshake("timeout", None);
                    return;
                }
            };
            let (_, session) = stream.get_ref();
            count_handshake("ok", session.protocol_version());
            let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
            let _open = Counted::new(&gauges.open);
            Box::pin(server.serve(stream, peer, protocol, &draining)).await;
        }
    }
}

/// The macro's price is nothing beside a handshake's.
fn count_handshake(result: &'static str, version: Option<rustls::ProtocolVersion>) {
    let version = match version {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
        Some(_) => "other",
        None => "none",
    };
    counter!("servery_balancer_tls_handshakes_total", "result" => result, "version" => version).increment(1);
}

/// The next connection. A client that is gone again is nothing; running out of something is told, and waited for.
async fn accept(socket: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match socket.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused];
    kinds.contains(&error.kind())
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "serving a connection ended by a fault");
    }
}

#[cfg(test)]
mod tests;
