//! The section `[balancer]`. In: the layers' values. Out: a configuration whose values cannot be wrong; what is, is
//! reported at its line. It binds nothing and asks no other machine.

use crate::{
    accesslog::{Format, Place, Style},
    app::Limits,
};
use chassis::{
    config::{ByteSize, Fraction, Network, Percent, Reader},
    listen::ListenAddr,
};
use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    thread,
    time::Duration,
};

mod newer;
mod route;
mod upstream;

pub use route::{RouteConfig, RouteTarget};
pub use upstream::{HealthConfig, HostHeader, Server, UpstreamConfig, UpstreamProtocol};

pub(crate) use route::{APP_NAME, is_app_name};

/// More cores than any machine has that this was tried on; a typing error must not start a million threads.
const THREADS_MAX: usize = 1024;

/// Everything the balancer can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Redirects to HTTPS, or serves the routes where HTTPS is off.
    pub http: ListenAddr,
    pub https: ListenAddr,
    /// What a redirect names. `None`: the port of `https`.
    pub public_https_port: Option<u16>,
    /// The registry.
    pub control: ListenAddr,
    pub admin: ListenAddr,
    /// Whose forwarding fields are believed.
    pub trusted_proxies: Vec<Network>,
    /// Whose connections begin with a header of the PROXY protocol, all of them, and nobody else's.
    pub proxy_protocol: Vec<Network>,
    /// Clients that are told, where they ask with `Servery-Debug`, how a request was dispatched.
    pub debug_networks: Vec<Network>,
    /// Where a node's workers may be, besides at the node's own address.
    pub advertised_networks: Vec<Network>,
    /// Requests that may wait for a permit, per app.
    pub queue_length: usize,
    /// How much of it one client may fill while another one waits.
    pub queue_client_share: Percent,
    /// How many of an app's permits one client may hold while it stands still and another one waits.
    pub stalled_client_share: Percent,
    pub queue_deadline: Duration,
    /// From the sent request to the response head, and between two parts of its body.
    pub response_timeout: Duration,
    /// To a worker.
    pub connect_timeout: Duration,
    /// For a request's head, and for a connection's first word.
    pub header_timeout: Duration,
    /// Between two requests.
    pub keepalive_timeout: Duration,
    pub handshake_timeout: Duration,
    /// Between two parts of a request's body.
    pub body_timeout: Duration,
    pub max_body: ByteSize,
    /// How much of the bodies of slow clients is kept in memory, in all, so that they hold no slot.
    pub buffers: ByteSize,
    /// What clients' connections hold while nothing happens on them, in all.
    pub idle_memory: ByteSize,
    /// On all public listeners together.
    pub max_connections: usize,
    /// Of one client, but for trusted proxies; `None`: as many as there may be.
    pub max_connections_per_client: Option<NonZeroUsize>,
    /// After so many a connection ends, and the client makes a new one; `None`: never.
    pub requests_per_connection: Option<NonZeroUsize>,
    /// WebSockets and the like, at once.
    pub max_tunnels: usize,
    /// How long what is in flight may go on after the drain began.
    pub drain: Duration,
    /// How long after its start a balancer waits at most for nodes to come back before it says that it is ready.
    pub start_hold: Duration,
    /// Keep public certificates and their keys in the data directory, to start without the cert-sidecar.
    pub cache_certificates: bool,
    /// Cores that serve the public listeners.
    pub threads: usize,
    /// Cannot change while the process runs; the file behind it can.
    pub access_log: Place,
    pub access_log_style: Style,
    /// Of the traces that begin here, how many are marked to be recorded.
    pub trace_sample: Fraction,
    pub routes: Vec<RouteConfig>,
    /// The operator's own, read and watched.
    pub certificates: Vec<CertificateFiles>,
}

/// One `[[balancer.certificate]]`: files in PEM, the leaf first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Config {
    /// Asks `reader` for the section; every mistake is told to the reader, which keeps a default in its place.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let config = Self {
            http: reader.read("balancer.http", ListenAddr::All(8080)),
            https: reader.read("balancer.https", ListenAddr::All(8443)),
            public_https_port: reader.optional("balancer.public_https_port"),
            control: reader.read("balancer.control", ListenAddr::All(7400)),
            admin: reader.read("balancer.admin", ListenAddr::All(9180)),
            trusted_proxies: reader.read("balancer.trusted_proxies", Vec::new()),
            proxy_protocol: reader.read("balancer.proxy_protocol", Vec::new()),
            debug_networks: reader.read("balancer.debug_networks", Vec::new()),
            advertised_networks: reader.read("balancer.advertised_networks", Vec::new()),
            queue_length: reader.read("balancer.queue_length", 1024),
            queue_client_share: reader.read("balancer.queue_client_share", Percent(50)),
            stalled_client_share: reader.read("balancer.stalled_client_share", Percent(50)),
            queue_deadline: reader.read("balancer.queue_deadline", Duration::from_secs(10)),
            response_timeout: reader.read("balancer.response_timeout", Duration::from_secs(60)),
            connect_timeout: reader.read("balancer.connect_timeout", Duration::from_secs(2)),
            header_timeout: reader.read("balancer.header_timeout", Duration::from_secs(10)),
            keepalive_timeout: reader.read("balancer.keepalive_timeout", Duration::from_secs(75)),
            handshake_timeout: reader.read("balancer.handshake_timeout", Duration::from_secs(10)),
            body_timeout: reader.read("balancer.body_timeout", Duration::from_secs(60)),
            max_body: reader.read("balancer.max_body", ByteSize::gib(1)),
            buffers: reader.read("balancer.buffers", ByteSize::mib(256)),
            idle_memory: reader.read("balancer.idle_memory", ByteSize::mib(48)),
            max_connections: reader.read("balancer.max_connections", 16_384),
            max_connections_per_client: NonZeroUsize::new(reader.read("balancer.max_connections_per_client", 0)),
            requests_per_connection: NonZeroUsize::new(reader.read("balancer.requests_per_connection", 0)),
            max_tunnels: reader.read("balancer.max_tunnels", 10_000),
            drain: reader.read("balancer.drain", Duration::from_secs(30)),
            start_hold: reader.read("balancer.start_hold", Duration::from_secs(10)),
            cache_certificates: reader.read("balancer.cache_certificates", false),
            threads: reader.read("balancer.threads", thread::available_parallelism().map_or(1, Into::into)),
            access_log: reader.read("balancer.access_log", Place::Stdout),
            access_log_style: Style {
                format: reader.read("balancer.access_log_format", Format::Json),
                query: reader.read("balancer.access_log_query", false),
                sample: reader.read("balancer.access_log_sample", Fraction::ALL),
            },
            trace_sample: reader.read("balancer.trace_sample", Fraction::ALL),
            routes: route::read(reader),
            certificates: read_certificates(reader),
        };
        config.refuse_listeners(reader);
        config.refuse_limits(reader);
        config
    }

    /// Bounds of every app's queue.
    pub fn limits(&self) -> Limits {
        Limits {
            queue_length: self.queue_length,
            client_share: self.queue_client_share,
            stalled_share: self.stalled_client_share,
            queue_deadline: self.queue_deadline,
        }
    }

    /// The reserves of each app that has some, as the routes' classes count them.
    pub fn reserves(&self) -> BTreeMap<String, Vec<u32>> {
        let mut reserves: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for route in &self.routes {
            if let (Some(app), Some(number)) = (route.target.app(), route.class.reserve) {
                let sizes = reserves.entry(app.to_owned()).or_default();
                sizes.resize(sizes.len().max(number + 1), 0);
                sizes[number] = route.reserve;
            }
        }
        reserves
    }

    /// An equal part of what slow clients' bodies may take, in bytes.
    pub fn buffers_per_core(&self) -> u64 {
        self.buffers.as_u64() / self.threads.max(1) as u64
    }

    /// An equal part of what idle connections may hold, in bytes.
    pub fn idle_memory_per_core(&self) -> u64 {
        self.idle_memory.as_u64() / self.threads.max(1) as u64
    }

    /// Whether a connection from there must begin with a header of the PROXY protocol.
    pub fn speaks_proxy_protocol(&self, peer: SocketAddr) -> bool {
        self.proxy_protocol.iter().any(|network| network.contains(peer.ip()))
    }

    /// How many connections may come from there at once. A trusted proxy's are of many clients.
    pub fn connections_of(&self, peer: SocketAddr) -> Option<NonZeroUsize> {
        let trusted = self.trusted_proxies.iter().any(|network| network.contains(peer.ip()));
        self.max_connections_per_client.filter(|_| !trusted)
    }

    fn refuse_listeners(&self, reader: &mut Reader<'_>) {
        if self.http.is_off() && self.https.is_off() {
            reader.refuse("balancer.https", "http and https are both off: nothing would be served");
        }
        if self.https.is_off() && self.public_https_port.is_some() {
            reader.refuse("balancer.public_https_port", "https is off, so no redirect can name its port");
        }
        if self.public_https_port == Some(0) {
            reader.refuse("balancer.public_https_port", "a redirect cannot name port 0");
        }
        if self.control.is_off() {
            reader.refuse("balancer.control", "without it no app-server can register");
        }
        let listeners = [
            ("balancer.http", &self.http),
            ("balancer.https", &self.https),
            ("balancer.control", &self.control),
            ("balancer.admin", &self.admin),
        ];
        for (index, (key, listener)) in listeners.iter().enumerate() {
            if let Some((other, _)) = listeners[..index].iter().find(|(_, other)| overlap(other, listener)) {
                reader.refuse(key, format!("{listener} is taken by {other}: give each a port of its own"));
            }
        }
    }

    fn refuse_limits(&self, reader: &mut Reader<'_>) {
        for (key, limit) in [
            ("balancer.queue_deadline", self.queue_deadline),
            ("balancer.response_timeout", self.response_timeout),
            ("balancer.connect_timeout", self.connect_timeout),
            ("balancer.header_timeout", self.header_timeout),
            ("balancer.keepalive_timeout", self.keepalive_timeout),
            ("balancer.handshake_timeout", self.handshake_timeout),
            ("balancer.body_timeout", self.body_timeout),
        ] {
            if limit.is_zero() {
                reader.refuse(key, "with no time at all every request would fail");
            }
        }
        if self.connect_timeout > self.response_timeout {
            reader.refuse("balancer.connect_timeout", "is longer than response_timeout, which it is a part of");
        }
        // The node's own limit comes first, so that the worker knows that its request is over. Where the two roles
        // are configured by two files nobody can see both.
        if let Some(timeout) = reader.optional::<Duration>("app_server.timeout")
            && self.response_timeout <= timeout
        {
            reader.refuse(
                "balancer.response_timeout",
                "must be longer than app_server.timeout, so that the worker gives up before the balancer does",
            );
        }
        if self.max_connections == 0 {
            reader.refuse("balancer.max_connections", "with no connection nothing would be served");
        }
        if !(1..=THREADS_MAX).contains(&self.threads) {
            reader.refuse("balancer.threads", format!("expected a number from 1 to {THREADS_MAX}"));
        }
    }
}

/// Whether binding both is bound to fail. Port 0 is any free one.
fn overlap(one: &ListenAddr, other: &ListenAddr) -> bool {
    match (one, other) {
        (ListenAddr::Off, _) | (_, ListenAddr::Off) => false,
        (ListenAddr::At(one), ListenAddr::At(other)) => {
            one.port() != 0
                && one.port() == other.port()
                && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
        }
        (one, other) => one.port() == other.port() && one.port() != Some(0),
    }
}

fn read_certificates(reader: &mut Reader<'_>) -> Vec<CertificateFiles> {
    let mut seen = HashSet::new();
    let certificates = reader.tables("balancer.certificate", |table| {
        let mut path = |key: &str| {
            let path = table.optional::<PathBuf>(key);
            match &path {
                Some(path) if !path.is_absolute() => {
                    table.refuse(
                        key,
                        "expected the whole path, such as \"/etc/letsencrypt/live/example.org/fullchain.pem\"",
                    );
                }
                // a wrong one has been reported
                None if !table.has(key) => table.refuse(key, "is missing: a certificate is two files, cert and key"),
                Some(_) | None => {}
            }
            path
        };
        let (cert, key) = (path("cert"), path("key"));
        let files = CertificateFiles { cert: cert?, key: key? };
        if !seen.insert(files.cert.clone()) {
            table.refuse("cert", "clashes: an earlier certificate has the same file");
        }
        Some(files)
    });
    certificates.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
