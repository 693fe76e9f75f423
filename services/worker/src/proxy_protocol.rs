//! The header of the PROXY protocol, which a proxy sends before a client's first byte (haproxy's proxy-protocol.txt): come
//! in the first bytes of a connection, go out the client's address and what has been read beyond the header. It does
//! not decide who may send one, nor how long that may take.

use bytes::{Bytes, BytesMut};
use ppp::{v1, v2};
use std::{io, net::SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of the first version, with its line's end.
const LONGEST_V1: usize = 107;

/// Longest that is read of the second version; more than a load balancer's fields take.
const LONGEST_V2: usize = 4096;

/// Bytes of the second version before the addresses, which say how long the rest is.
const PREFIX_V2: usize = 16;

const SIGNATURE_V1: &[u8] = b"PROXY ";

/// Which versions a connection may begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Versions {
    One,
    Two,
    Both,
}

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    /// `None`: the proxy speaks for itself, or does not know.
    pub(crate) source: Option<SocketAddr>,
    /// What came after it.
    pub(crate) rest: Bytes,
}

/// Why a connection that must begin with a header is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it does not begin with the header of an accepted version")]
    NoHeader,
    #[error("the header is longer than any")]
    TooLong,
    #[error("{0}")]
    V1(#[from] v1::BinaryParseError),
    #[error("{0}")]
    V2(#[from] v2::ParseError),
    #[error("{0}")]
    Read(#[from] io::Error),
}

/// Reads until the header is whole. Bounded in size, not in time.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), versions: Versions) -> Result<Preamble, Malformed> {
    let mut bytes = BytesMut::with_capacity(512);
    loop {
        if let Some((source, length)) = parse(&bytes, versions)? {
            let rest = bytes.split_off(length).freeze();
            return Ok(Preamble { source, rest });
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// The source and the header's length, once it is whole.
fn parse(bytes: &[u8], versions: Versions) -> Result<Option<(Option<SocketAddr>, usize)>, Malformed> {
    let may_be = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, wanted)| byte == wanted);
    if versions != Versions::Two && may_be(SIGNATURE_V1) {
        parse_v1(bytes)
    } else if versions != Versions::One && may_be(v2::PROTOCOL_PREFIX) {
        parse_v2(bytes)
    } else {
        Err(Malformed::NoHeader)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, Malformed> {
    let ahead = &bytes[..bytes.len().min(LONGEST_V1)];
    let Some(end) = ahead.windows(2).position(|pair| pair == b"\r\n") else {
        return if ahead.len() == LONGEST_V1 { Err(Malformed::TooLong) } else { Ok(None) };
    };
    let length = end + 2;
    let source = match v1::Header::try_from(&bytes[..length])?.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(tcp) => Some((tcp.source_address, tcp.source_port).into()),
        v1::Addresses::Tcp6(tcp) => Some((tcp.source_address, tcp.source_port).into()),
    };
    Ok(Some((source, length)))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Option<SocketAddr>, usize)>, Malformed> {
    let Some(&[high, low]) = bytes.get(PREFIX_V2 - 2..PREFIX_V2) else { return Ok(None) };
    let length = PREFIX_V2 + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_V2 {
        return Err(Malformed::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let header = v2::Header::try_from(header)?;
    let source = match (header.command, header.addresses) {
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
        // a health check of the proxy's own, or a family without addresses that we could name
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Some((source, length)))
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_V1, LONGEST_V2, Malformed, Preamble, Versions, read};
    use ppp::v2;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn v2_header(command: v2::Command, more: usize) -> Vec<u8> {
        let source: SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let target: SocketAddr = "192.0.2.2:80".parse().unwrap();
        v2::Builder::with_addresses(v2::Version::Two | command, v2::Protocol::Stream, (source, target))
            .write_tlv(v2::Type::NoOp, &vec![0; more])
            .unwrap()
            .build()
            .unwrap()
    }

    /// In pieces of so many bytes.
    async fn sent(bytes: &[u8], piece: usize, versions: Versions) -> Result<Preamble, Malformed> {
        let (mut ours, mut theirs) = tokio::io::duplex(piece);
        let write = async {
            let _ = theirs.write_all(bytes).await;
            drop(theirs);
        };
        let read = async move {
            let mut preamble = read(&mut ours, versions).await?;
            let mut rest = preamble.rest.to_vec();
            ours.read_to_end(&mut rest).await?;
            preamble.rest = rest.into();
            Ok(preamble)
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn a_header_gives_the_clients_address_however_its_bytes_are_cut() {
        let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\nGET /".to_vec();
        let mut v2 = v2_header(v2::Command::Proxy, 8);
        v2.extend_from_slice(b"GET /");
        for (bytes, other) in [(&v1, Versions::Two), (&v2, Versions::One)] {
            for piece in [1, 3, 7, 1000] {
                let preamble = sent(bytes, piece, Versions::Both).await.unwrap();
                assert_eq!(preamble.source, Some("192.0.2.1:1000".parse().unwrap()));
                assert_eq!(preamble.rest, "GET /");
                assert!(matches!(sent(bytes, piece, other).await, Err(Malformed::NoHeader)));
            }
        }
        let six = sent(b"PROXY TCP6 2001:db8::1 ::1 1000 80\r\n", 9, Versions::One).await.unwrap();
        assert_eq!(six.source, Some("[2001:db8::1]:1000".parse().unwrap()));
    }

    #[tokio::test]
    async fn a_proxy_may_speak_for_itself() {
        let local = sent(&v2_header(v2::Command::Local, 0), 9, Versions::Two).await.unwrap();
        assert_eq!(local.source, None);
        let unknown = sent(b"PROXY UNKNOWN\r\nx", 9, Versions::One).await.unwrap();
        assert_eq!((unknown.source, &unknown.rest[..]), (None, &b"x"[..]));
    }

    #[tokio::test]
    async fn what_is_no_header_or_too_long_is_refused_before_it_is_read_whole() {
        for bytes in ["GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 x y 1 2\r\n", "PROXY \r\n", "PROXY TCP4 192.0.2.1 192."] {
            assert!(sent(bytes.as_bytes(), 100, Versions::Both).await.is_err(), "{bytes}");
        }
        let endless = format!("PROXY TCP4 {}", "1".repeat(LONGEST_V1));
        assert!(matches!(sent(endless.as_bytes(), 1000, Versions::Both).await, Err(Malformed::TooLong)));
        let long = v2_header(v2::Command::Proxy, LONGEST_V2);
        assert!(matches!(sent(&long[..16], 1000, Versions::Both).await, Err(Malformed::TooLong)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
            let mut whole = [&b""[..], b"PROXY ", v2::PROTOCOL_PREFIX][usize::try_from(kind).unwrap()].to_vec();
            whole.extend(bytes);
            let _ = super::parse(&whole, Versions::Both);
        }
    }
}
