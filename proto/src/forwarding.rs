//! What a request may say of where it comes from, for whoever meets a client: the balancer, or a worker that stands alone.
//! Both must refuse and believe the same, so the rules are here once. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// True for what a client may not say to a worker: it would be taken for ours, or (`Proxy`) for an environment variable.
pub fn is_ours(name: &str) -> bool {
    begins(name, "servery-") || name == "proxy"
}

/// The same for fields that say where a request came from: only a trusted proxy is believed.
pub fn is_forwarding(name: &str) -> bool {
    let whole = ["forwarded", "x-real-ip", "x-request-id"];
    begins(name, "x-forwarded-") || whole.iter().any(|wanted| name.len() == wanted.len() && begins(name, wanted))
}

/// A name that only looks like one of these: believed from nobody.
pub fn is_disguised(name: &str) -> bool {
    name.contains('_') && (is_forwarding(name) || is_ours(name))
}

/// An underscore counts as a hyphen, because WSGI and CGI make both the same variable.
fn begins(name: &str, wanted: &str) -> bool {
    let same = |(byte, wanted): (u8, u8)| byte == wanted || (byte == b'_' && wanted == b'-');
    name.len() >= wanted.len() && name.bytes().zip(wanted.bytes()).all(same)
}

/// An entry of `X-Forwarded-For`: "1.2.3.4", "1.2.3.4:5", "::1", "[::1]", "[::1]:5".
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let address = text.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn an_address_stands_alone_or_with_a_port() {
        for (text, wanted) in [
            ("1.2.3.4", Some("1.2.3.4")),
            ("1.2.3.4:5", Some("1.2.3.4")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::1]:5", Some("::1")),
            ("::ffff:1.2.3.4", Some("1.2.3.4")),
            ("[[::1]]", None),
            ("[1.2.3.4]", None),
            ("1.2.3.4]", None),
            ("[::1", None),
            ("1.2.3.4:99999", None),
            ("1.2.3.4:", None),
            ("01.2.3.4", None),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(parse_address(text).map(|address| address.to_string()).as_deref(), wanted, "{text}");
        }
    }
}
