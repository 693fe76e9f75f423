//! Where a request came from. In: the peer of its connection and, if that is a trusted proxy, what it says of those before
//! it. Out: the client's address and scheme, and the forwarding fields for the worker, which only we set. Pure.
//!
//! Anybody can write anything into `X-Forwarded-For` and `Forwarded`; a proxy adds whom it has seen itself, at the end. So
//! the lists are read from their end: as long as a trusted proxy speaks, the address it names is a fact. The first one
//! that is not a trusted proxy's is the client's, and what stands before that nobody has vouched for: it goes no further.

use crate::host::Host;
use chassis::config::Network;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::forwarding::parse_address;
use std::{
    cell::RefCell,
    fmt::Write,
    iter,
    net::{IpAddr, SocketAddr},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Proxies of a chain that are looked at; what is before them is not asked for.
const CHAIN: usize = 32;

/// What we know of the connection a request came over, once per connection.
#[derive(Debug)]
pub struct Hop {
    pub peer: IpAddr,
    /// Whether the peer is one of `trusted_proxies`.
    pub trusted: bool,
    pub scheme: &'static str,
    peer_value: HeaderValue,
    /// For the host that was asked for last: nearly always the next one too, and each value costs an allocation.
    said: RefCell<Option<Said>>,
}

/// What we say of a request, apart from its prefix and those before our peer.
#[derive(Clone, Debug)]
struct Said {
    scheme: &'static str,
    host: HeaderValue,
    port: HeaderValue,
    forwarded: HeaderValue,
}

/// Who asks, and how, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    pub client: IpAddr,
    /// "http" or "https": the client's, not the one between a proxy and us.
    pub scheme: &'static str,
    passed: Option<Passed>,
}

/// The client and the proxies between it and our peer, as the two fields say it, which never disagree.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    x_forwarded_for: String,
    forwarded: String,
}

/// One proxy's word about who connected to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Element<'a> {
    address: IpAddr,
    scheme: Option<&'static str>,
    /// As it stands in `Forwarded`; `None` of `X-Forwarded-For`.
    text: Option<&'a str>,
}

impl Hop {
    pub fn new(peer: SocketAddr, scheme: &'static str, trusted_proxies: &[Network]) -> Self {
        // a dual-stack socket shows IPv4 peers as mapped addresses
        let peer = peer.ip().to_canonical();
        let trusted = contain(trusted_proxies, peer);
        let peer_value = HeaderValue::try_from(peer.to_string()).expect("an address is a field value");
        Self { peer, trusted, scheme, peer_value, said: RefCell::new(None) }
    }

    /// `headers` as they came. Costs nothing where the peer is not trusted.
    pub fn origin(&self, headers: &HeaderMap, trusted_proxies: &[Network]) -> Origin {
        if !self.trusted {
            return Origin { client: self.peer, scheme: self.scheme, passed: None };
        }
        // Many proxies know only the first, and let a client's `Forwarded` pass. So that is looked at only without it.
        let chain: Vec<Element<'_>> = if headers.contains_key(X_FORWARDED_FOR) {
            believed(x_forwarded_for(headers), trusted_proxies)
        } else {
            believed(forwarded(headers), trusted_proxies)
        };
        let client = chain.last().copied();
        let said = client.and_then(|client| client.scheme).or_else(|| said_scheme(headers));
        Origin {
            client: client.map_or(self.peer, |client| client.address),
            scheme: said.unwrap_or(self.scheme),
            passed: (!chain.is_empty()).then(|| Passed::of(&chain, said)),
        }
    }

    /// Says where the request came from, after `clean_request`. A trusted proxy's words stay as far as they are believed,
    /// with ours behind.
    pub fn forward(
        &self,
        headers: &mut HeaderMap,
        origin: &Origin,
        host: &HeaderValue,
        port: Option<u16>,
        stripped: Option<&str>,
    ) {
        let said = self.say(origin.scheme, host, port);
        let (peers, forwarded) = match &origin.passed {
            None => (self.peer_value.clone(), said.forwarded),
            Some(passed) => {
                (behind(&passed.x_forwarded_for, &self.peer_value), behind(&passed.forwarded, &said.forwarded))
            }
        };
        headers.insert(X_FORWARDED_FOR, peers);
        headers.insert(header::FORWARDED, forwarded);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
        if self.trusted {
            keep_asked(headers, origin.scheme);
        }
        // with an untrusted peer there is none of these left
        headers.entry(X_FORWARDED_HOST).or_insert(said.host);
        headers.entry(X_FORWARDED_PORT).or_insert(said.port);
        if let Some(prefix) = stripped {
            // a proxy before us may have stripped one of its own
            let outer = headers.get(X_FORWARDED_PREFIX).and_then(|outer| outer.to_str().ok()).unwrap_or_default();
            let prefix = format!("{}{prefix}", outer.trim_end_matches('/'));
            let prefix = HeaderValue::try_from(prefix).expect("prefixes are made of visible characters");
            headers.insert(X_FORWARDED_PREFIX, prefix);
        }
    }

    fn say(&self, scheme: &'static str, host: &HeaderValue, port: Option<u16>) -> Said {
        let mut last = self.said.borrow_mut();
        if let Some(said) = last.as_ref().filter(|said| said.host == host && said.scheme == scheme) {
            return said.clone();
        }
        let mut forwarded = String::with_capacity(64);
        push_for(&mut forwarded, self.peer);
        // writing to a string does not fail
        let _ = write!(forwarded, ";host=\"{}\";proto={}", host.to_str().unwrap_or_default(), self.scheme);
        let forwarded =
            HeaderValue::try_from(forwarded).expect("a valid host has nothing that a quoted string refuses");
        last.insert(Said { scheme, host: host.clone(), port: port_value(port, scheme), forwarded }).clone()
    }
}

impl Passed {
    /// `chain`: the nearest first. `scheme`: the client's, if anybody has said it.
    fn of(chain: &[Element<'_>], scheme: Option<&'static str>) -> Self {
        let (mut x_forwarded_for, mut forwarded) = (String::new(), String::new());
        for (at, element) in chain.iter().rev().enumerate() {
            if at > 0 {
                x_forwarded_for.push_str(", ");
                forwarded.push_str(", ");
            }
            // writing to a string does not fail
            let _ = write!(x_forwarded_for, "{}", element.address);
            match (element.text, scheme) {
                (Some(text), _) => forwarded.push_str(text),
                (None, Some(scheme)) if at == 0 => {
                    push_for(&mut forwarded, element.address);
                    let _ = write!(forwarded, ";proto={scheme}");
                }
                (None, _) => push_for(&mut forwarded, element.address),
            }
        }
        Self { x_forwarded_for, forwarded }
    }
}

/// The elements, the nearest first, up to the client's; or to the last good one.
fn believed<'a>(elements: impl Iterator<Item = Option<Element<'a>>>, trusted_proxies: &[Network]) -> Vec<Element<'a>> {
    let mut chain = Vec::new();
    for element in elements.map_while(|element| element) {
        chain.push(element);
        if !contain(trusted_proxies, element.address) {
            break;
        }
    }
    chain
}

/// The elements of the field, the last one first; `None`: it means nothing.
fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<Element<'_>>> {
    let fields = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let words = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b',')).take(CHAIN);
    words.map(<[u8]>::trim_ascii).filter(|word| !word.is_empty()).map(|word| {
        let address = parse_address(str::from_utf8(word).ok()?)?;
        Some(Element { address, scheme: None, text: None })
    })
}

/// The same of RFC 7239's field.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<Element<'_>>> {
    let fields = headers.get_all(header::FORWARDED).iter().rev();
    let words = fields.flat_map(|field| from_the_end(field.as_bytes())).take(CHAIN);
    words.map(<[u8]>::trim_ascii).filter(|word| !word.is_empty()).map(parse_element)
}

/// Splits at commas that are not quoted. A quote that a client has opened and not closed stands before what the proxies
/// have added, so that counting from the end it hides nothing of theirs.
fn from_the_end(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(field);
    iter::from_fn(move || {
        let field = rest?;
        let mut quoted = false;
        let comma = field.iter().rposition(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        rest = comma.map(|at| &field[..at]);
        Some(&field[comma.map_or(0, |at| at + 1)..])
    })
}

/// `for=192.0.2.1;proto=https` and the like (RFC 7239, section 4). A quoted string that holds a quote, a backslash or a
/// semicolon is nothing that a proxy has a reason to write, and means nothing.
fn parse_element(text: &[u8]) -> Option<Element<'_>> {
    let text = str::from_utf8(text).ok().filter(|text| !text.contains('\\'))?;
    let (mut address, mut scheme) = (None, None);
    for pair in text.split(';') {
        let (name, value) = pair.trim().split_once('=')?;
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.strip_suffix('"')?,
            None => value,
        };
        if value.contains('"') {
            return None;
        }
        let seen = if name.eq_ignore_ascii_case("for") {
            // a port may be obfuscated, and is nothing to us
            address.replace(parse_address(value.rsplit_once(":_").map_or(value, |(node, _)| node))?).is_some()
        } else if name.eq_ignore_ascii_case("proto") {
            scheme.replace(parse_scheme(value)).is_some()
        } else {
            false
        };
        if seen {
            return None;
        }
    }
    Some(Element { address: address?, scheme: scheme.flatten(), text: Some(text) })
}

/// What the nearest proxy says of the client's scheme.
fn said_scheme(headers: &HeaderMap) -> Option<&'static str> {
    let last = headers.get_all(X_FORWARDED_PROTO).iter().next_back()?;
    parse_scheme(last.to_str().ok()?.rsplit(',').next()?.trim())
}

/// Some proxies say of WebSockets that they are (RFC 6455, section 3).
fn parse_scheme(text: &str) -> Option<&'static str> {
    let is = |names: [&str; 2]| names.iter().any(|name| text.eq_ignore_ascii_case(name));
    if is(["https", "wss"]) {
        Some("https")
    } else if is(["http", "ws"]) {
        Some("http")
    } else {
        None
    }
}

/// What a trusted proxy was asked for stays, where it is one host and one port. `scheme`: the client's.
fn keep_asked(headers: &mut HeaderMap, scheme: &'static str) {
    let host = only(headers, &X_FORWARDED_HOST).and_then(Host::parse).map(|host| host.port);
    let port = only(headers, &X_FORWARDED_PORT).and_then(|port| port.parse::<u16>().ok());
    if host.is_none() {
        headers.remove(X_FORWARDED_HOST);
    }
    match (port, host) {
        (Some(port), _) => _ = headers.insert(X_FORWARDED_PORT, HeaderValue::from(port)),
        (None, Some(port)) => _ = headers.insert(X_FORWARDED_PORT, port_value(port, scheme)),
        (None, None) => _ = headers.remove(X_FORWARDED_PORT),
    }
}

/// The value of a field that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok()
}

fn contain(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// The port, or the scheme's own.
fn port_value(port: Option<u16>, scheme: &str) -> HeaderValue {
    match (port, scheme) {
        (Some(port), _) => HeaderValue::from(port),
        (None, "https") => HeaderValue::from_static("443"),
        (None, _) => HeaderValue::from_static("80"),
    }
}

/// RFC 7239, section 6.
fn push_for(out: &mut String, address: IpAddr) {
    // writing to a string does not fail
    match address {
        IpAddr::V4(address) => _ = write!(out, "for={address}"),
        IpAddr::V6(address) => _ = write!(out, "for=\"[{address}]\""),
    }
}

/// One field with a list, as RFC 9110 section 5.3 allows: some applications look at the first field only.
fn behind(list: &str, last: &HeaderValue) -> HeaderValue {
    let list = [list.as_bytes(), last.as_bytes()].join(&b", "[..]);
    HeaderValue::from_bytes(&list).expect("field values joined by a comma are a field value")
}

#[cfg(test)]
mod tests;
