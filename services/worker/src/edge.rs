//! What a worker needs to know that clients reach by themselves: comes in the configuration and each request's fields,
//! goes out who is believed, and the forwarding fields as a balancer would have made them. Pure but for the requests'
//! ids.

use crate::{
    Error,
    access::AccessLog,
    answer::{Answer, REQUEST_ID, plain_id},
    proxy_protocol::Versions,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version, header, uri::Authority};
use ipnet::IpNet;
use proto::{
    forwarding::{is_disguised, is_forwarding, is_ours, parse_address},
    worker::{self, ProxyProtocol},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// The configuration of a worker that stands alone.
#[derive(Debug)]
pub(crate) struct Edge {
    /// Between two requests; zero: a connection is closed after the first.
    pub(crate) keepalive: Duration,
    trusted: Vec<IpNet>,
    /// `None`: connections begin with HTTP.
    pub(crate) proxy_protocol: Option<Versions>,
    proxies: Vec<IpNet>,
    pub(crate) access: Option<Arc<AccessLog>>,
}

/// Where a connection comes from.
#[derive(Debug)]
pub(crate) struct Hop {
    /// `None`: a Unix socket.
    peer: Option<IpAddr>,
    peer_value: Option<HeaderValue>,
    trusted: bool,
}

impl Edge {
    pub(crate) fn new(configured: &worker::Edge, access: Option<Arc<AccessLog>>) -> Result<Self, Error> {
        let mut proxies = networks(&configured.proxy_allow_ips)?;
        if proxies.is_empty() {
            proxies = vec![IpAddr::from(Ipv4Addr::LOCALHOST).into(), IpAddr::from(Ipv6Addr::LOCALHOST).into()];
        }
        let proxy_protocol = match configured.proxy_protocol() {
            ProxyProtocol::Unspecified => None,
            ProxyProtocol::V1 => Some(Versions::One),
            ProxyProtocol::V2 => Some(Versions::Two),
            ProxyProtocol::Auto => Some(Versions::Both),
        };
        Ok(Self {
            keepalive: Duration::from_millis(configured.keepalive_ms.into()),
            trusted: networks(&configured.forwarded_allow_ips)?,
            proxy_protocol,
            proxies,
            access,
        })
    }

    /// Whether this peer may say whom it speaks for, in the header of the PROXY protocol.
    pub(crate) fn is_proxy(&self, peer: Option<SocketAddr>) -> bool {
        contains(&self.proxies, peer.map(canonical))
    }

    /// A connection of this peer: the one that the PROXY protocol names, where there is one.
    pub(crate) fn hop(&self, peer: Option<SocketAddr>) -> Hop {
        let peer = peer.map(canonical);
        Hop {
            peer,
            peer_value: peer.map(|peer| HeaderValue::try_from(peer.to_string()).expect("an address is a field value")),
            trusted: contains(&self.trusted, peer),
        }
    }

    /// What HTTP/1.1 asks of a request and hyper does not: one host, and one that is none but a host and a port (RFC 9112,
    /// section 3.2).
    pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Answer> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let well = match (hosts.next(), hosts.next()) {
            (Some(host), None) => is_authority(host),
            (None, _) => request.version() < Version::HTTP_11,
            (Some(_), Some(_)) => false,
        };
        if well { Ok(()) } else { Err(Answer::NoHost) }
    }

    /// Takes out what only a trusted proxy, or a balancer, may say, and says where the request comes from.
    pub(crate) fn receive(headers: &mut HeaderMap, hop: &Hop) {
        let unwanted = |name: &str| is_ours(name) || is_disguised(name) || !hop.trusted && is_forwarding(name);
        let doomed: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
        for name in doomed {
            headers.remove(name);
        }
        if let Some(peer) = &hop.peer_value {
            append(headers, X_FORWARDED_FOR, peer);
        }
        // with an untrusted peer there is none of these left
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
        let port = port(headers);
        if let Some(host) = headers.get(header::HOST).cloned() {
            headers.entry(X_FORWARDED_HOST).or_insert(host);
        }
        headers.entry(X_FORWARDED_PORT).or_insert(port);
        if plain_id(headers.get(REQUEST_ID)).is_none() {
            headers.insert(REQUEST_ID, new_id());
        }
    }

    /// The client: the nearest address that is not a trusted proxy's. `None`: nobody has said one.
    pub(crate) fn client(&self, headers: &HeaderMap, hop: &Hop) -> Option<IpAddr> {
        if !hop.trusted {
            return hop.peer;
        }
        let fields: Vec<&str> =
            headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).collect();
        let mut client = hop.peer;
        for address in fields.iter().rev().flat_map(|field| field.rsplit(',')) {
            let Some(address) = parse_address(address.trim()) else { break };
            client = Some(address);
            if !contains(&self.trusted, client) {
                break;
            }
        }
        client
    }
}

fn networks(texts: &[String]) -> Result<Vec<IpNet>, Error> {
    let network = |text: &String| {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map_err(|_| Error::Configuration(format!("{text:?} is no network")))
    };
    texts.iter().map(network).collect()
}

/// A dual-stack socket shows IPv4 peers as mapped addresses.
fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// A peer on a Unix socket always is: the file's permissions say who it may be.
fn contains(networks: &[IpNet], peer: Option<IpAddr>) -> bool {
    peer.is_none_or(|peer| networks.iter().any(|network| network.contains(&peer)))
}

/// The port that the client asked for, as far as anybody has said it.
fn port(headers: &HeaderMap) -> HeaderValue {
    let said = headers.get(X_FORWARDED_HOST).or_else(|| headers.get(header::HOST));
    let said = said.and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<Authority>().ok());
    match said.and_then(|host| host.port_u16()) {
        Some(port) => HeaderValue::from(port),
        None if headers.get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https") => {
            HeaderValue::from_static("443")
        }
        None => HeaderValue::from_static("80"),
    }
}

/// One field with a list, as RFC 9110 section 5.3 allows: some applications look at the first field only.
/// Without the name of a user, which is for nobody's `Host` (RFC 9110, section 7.2).
fn is_authority(host: &HeaderValue) -> bool {
    !host.as_bytes().contains(&b'@') && Authority::try_from(host.as_bytes()).is_ok()
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let mut list = Vec::new();
    for earlier in headers.get_all(&name) {
        list.extend_from_slice(earlier.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(value.as_bytes());
    let list = HeaderValue::from_bytes(&list).expect("field values joined by a comma are a field value");
    headers.insert(name, list);
}

/// 128 random bits in hexadecimal. Not secret: it only has to be met once.
fn new_id() -> HeaderValue {
    let number: u128 = rand::random();
    let mut text = [0; 32];
    for (at, digit) in text.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * at)) as usize & 15];
    }
    HeaderValue::from_bytes(&text).expect("hexadecimal digits are a field value")
}

#[cfg(test)]
mod tests;
