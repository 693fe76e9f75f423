//! The header of the PROXY protocol, which a proxy sends before a client's first byte (haproxy's proxy-protocol.txt), for
//! whoever meets one: the balancer, or a worker that stands alone. In: the first bytes of a connection. Out: the
//! client's address and how long the header is. It does not decide who may send one, nor how long that may take. Pure.

use ppp::{v1, v2};
use std::net::SocketAddr;

/// Longest header of the first version, with its line's end.
pub const LONGEST_V1: usize = 107;

/// Longest that is read of the second version; more than a load balancer's fields take.
pub const LONGEST_V2: usize = 4096;

/// Bytes of the second version before the addresses, which say how long the rest is.
const PREFIX_V2: usize = 16;

/// Where the second version says its version (upper half) and command, and the byte of version 2 with the command LOCAL.
const COMMAND_V2: usize = 12;
const LOCAL_V2: u8 = 0x20;

const SIGNATURE_V1: &[u8] = b"PROXY ";

/// Which versions a connection may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    One,
    Two,
    Both,
}

/// A header that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None`: the proxy speaks for itself, or does not know.
    pub source: Option<SocketAddr>,
    /// Bytes of it. What comes after them is the client's.
    pub length: usize,
}

/// No bytes that could follow make this a header.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    #[error("it does not begin with the header of an accepted version")]
    NoHeader,
    #[error("the header is longer than any")]
    TooLong,
    #[error("a port has a sign")]
    SignedPort,
    #[error("{0}")]
    V1(#[from] v1::BinaryParseError),
    #[error("{0}")]
    V2(#[from] v2::ParseError),
}

/// `None`: it is not whole yet. There is an answer at [`LONGEST_V2`] bytes at the latest, and it never depends on what
/// comes after the header.
pub fn parse(bytes: &[u8], versions: Versions) -> Result<Option<Header>, Malformed> {
    let may_be = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, wanted)| byte == wanted);
    if versions != Versions::Two && may_be(SIGNATURE_V1) {
        parse_v1(bytes)
    } else if versions != Versions::One && may_be(v2::PROTOCOL_PREFIX) {
        parse_v2(bytes)
    } else {
        Err(Malformed::NoHeader)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let ahead = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = ahead.windows(2).position(|pair| pair == b"\r\n") else {
        return if ahead.len() == LONGEST_V1 { Err(Malformed::TooLong) } else { Ok(None) };
    };
    let length = end + 2;
    let source = match v1::Header::try_from(&bytes[..length])?.addresses {
        v1::Addresses::Unknown => None,
        // the standard library's numbers may have one
        _ if bytes[..length].contains(&b'+') => return Err(Malformed::SignedPort),
        v1::Addresses::Tcp4(tcp) => Some((tcp.source_address, tcp.source_port).into()),
        v1::Addresses::Tcp6(tcp) => Some((tcp.source_address, tcp.source_port).into()),
    };
    Ok(Some(Header { source, length }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(&[high, low]) = bytes.get(PREFIX_V2 - 2..PREFIX_V2) else { return Ok(None) };
    let length = PREFIX_V2 + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_V2 {
        return Err(Malformed::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if header[COMMAND_V2] == LOCAL_V2 {
        // a health check of the proxy's own: its family and addresses mean nothing (section 2.2)
        return Ok(Some(Header { source: None, length }));
    }
    let header = v2::Header::try_from(header)?;
    let source = match (header.protocol, header.addresses) {
        (v2::Protocol::Stream, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (v2::Protocol::Stream, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
        // addresses that we cannot name, or that are not this connection's
        _ => None,
    };
    Ok(Some(Header { source, length }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    /// The second version by hand, so that no library reads what it has written.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE_V2, &[0x20 | command, family], &length, rest].concat()
    }

    fn ipv4() -> Vec<u8> {
        [&[192, 0, 2, 1, 192, 0, 2, 2][..], &1000_u16.to_be_bytes(), &80_u16.to_be_bytes()].concat()
    }

    fn source(bytes: &[u8]) -> Option<SocketAddr> {
        let header = parse(bytes, Versions::Both).unwrap().unwrap();
        assert_eq!(header.length, bytes.len());
        header.source
    }

    #[test]
    fn a_header_names_the_client() {
        let client = Some("192.0.2.1:1000".parse().unwrap());
        assert_eq!(source(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n"), client);
        assert_eq!(source(&v2(1, 0x11, &ipv4())), client);
        assert_eq!(source(&v2(1, 0x11, &[ipv4(), vec![4, 0, 3, 1, 2, 3]].concat())), client, "with a field behind");
        let six = Some("[2001:db8::1]:1000".parse().unwrap());
        assert_eq!(source(b"PROXY TCP6 2001:db8::1 ::1 1000 80\r\n"), six);
        let addresses = [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets(), [0; 16]].concat();
        assert_eq!(source(&v2(1, 0x21, &[&addresses[..], &[0x03, 0xe8, 0, 80]].concat())), six);
    }

    #[test]
    fn a_proxy_that_speaks_for_itself_or_does_not_know_names_nobody() {
        for header in [
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ff::1 ff::2 65535 65535\r\n".to_vec(),
            v2(0, 0x00, &[]),
            v2(0, 0x11, &ipv4()),
            // of what LOCAL says nothing is looked at
            v2(0, 0xff, &[1, 2, 3]),
            v2(1, 0x00, &[]),
            v2(1, 0x31, &[b'x'; 216]),
            // a datagram's addresses are not this connection's
            v2(1, 0x12, &ipv4()),
        ] {
            assert_eq!(source(&header), None, "{header:?}");
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_a_header_is_none() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 192.0.2.1 192.0.2.2 1000 80\r\n",
            "PROXY  TCP4 192.0.2.1 192.0.2.2 1000 80\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1000  80\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1000 80 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1000 80\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1000 -0\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01000 80\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1000 65536\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1000\r\n",
            "PROXY TCP4 192.0.2.1\t192.0.2.2 1000 80\r\n",
            "PROXY TCP4 192.0.2.256 192.0.2.2 1000 80\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1000 80\r\n",
            "PROXY TCP4 ::1 ::2 1000 80\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1000 80\r\n",
            "PROXY TCP6 fe80::1%1 ::1 1000 80\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1000 80\r\n",
            "PROXY UNKNOWNX\r\n",
            "PROXY \r\n",
        ] {
            assert!(parse(line.as_bytes(), Versions::Both).is_err(), "{line}");
        }
        assert!(parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\nGET", Versions::Both).unwrap().is_none());
    }

    #[test]
    fn the_second_version_is_refused_where_it_does_not_add_up() {
        for (bytes, why) in [
            (v2(2, 0x11, &ipv4()), "another command"),
            ([SIGNATURE_V2, &[0x11, 0x11, 0, 12], &ipv4()].concat(), "another version"),
            (v2(1, 0x11, &ipv4()[..11]), "too short for its family"),
            (v2(1, 0x21, &ipv4()), "too short for its family"),
            (v2(1, 0x41, &ipv4()), "no family"),
            (v2(1, 0x13, &ipv4()), "no protocol"),
        ] {
            assert!(parse(&bytes, Versions::Both).is_err(), "{why}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_there() {
        let endless = format!("PROXY TCP4 {}", "1".repeat(LONGEST_V1));
        assert_eq!(parse(endless.as_bytes(), Versions::Both), Err(Malformed::TooLong));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_V1 - 16));
        assert_eq!(source(longest.as_bytes()), None);
        let longest = v2(1, 0x11, &[ipv4(), vec![0; LONGEST_V2 - 28]].concat());
        assert!(source(&longest).is_some());
        let long = [SIGNATURE_V2, &[0x21, 0x11], &u16::try_from(LONGEST_V2 - 15).unwrap().to_be_bytes()].concat();
        assert_eq!(parse(&long, Versions::Both), Err(Malformed::TooLong));
    }

    #[test]
    fn only_the_versions_that_are_asked_for_are_read() {
        let (one, two) = (b"PROXY UNKNOWN\r\n".to_vec(), v2(0, 0, &[]));
        for (bytes, versions, wanted) in [
            (&one, Versions::One, true),
            (&one, Versions::Two, false),
            (&two, Versions::Two, true),
            (&two, Versions::One, false),
        ] {
            assert_eq!(parse(bytes, versions).is_ok(), wanted);
        }
    }

    fn headers() -> impl Strategy<Value = Vec<u8>> {
        let one = (any::<u32>(), any::<u16>()).prop_map(|(address, port)| {
            format!("PROXY TCP4 {} 192.0.2.2 {port} 80\r\n", Ipv4Addr::from(address)).into_bytes()
        });
        let two = (0..2_u8, prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(command, fields)| v2(command, 0x11, &[ipv4(), fields].concat()));
        prop_oneof![one, two, Just(b"PROXY UNKNOWN\r\n".to_vec())]
    }

    proptest! {
        /// The header is found when its last byte is there, not before, and whatever follows.
        #[test]
        fn a_header_is_whole_at_its_last_byte(header in headers(), rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let whole = parse(&header, Versions::Both).unwrap();
            prop_assert_eq!(whole.map(|whole| whole.length), Some(header.len()));
            for end in 0..header.len() {
                prop_assert_eq!(parse(&header[..end], Versions::Both), Ok(None), "{} of {}", end, header.len());
            }
            prop_assert_eq!(parse(&[header, rest].concat(), Versions::Both).unwrap(), whole);
        }

        #[test]
        fn no_bytes_make_it_panic_or_wait_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..5000), kind in 0..3) {
            let mut whole = [&b""[..], SIGNATURE_V1, SIGNATURE_V2][usize::try_from(kind).unwrap()].to_vec();
            whole.extend(bytes);
            if let Ok(None) = parse(&whole, Versions::Both) {
                prop_assert!(whole.len() < LONGEST_V2);
            }
        }
    }
}
