//! The header of the PROXY protocol at the beginning of a connection: come in its first bytes, go out the client's address
//! and what has been read beyond the header. What a header is, `proto` says; who may send one, and how long that may
//! take, is not decided here.

use bytes::{Bytes, BytesMut};
pub(crate) use proto::proxy_protocol::Versions;
use proto::proxy_protocol::{Header, Malformed, parse};
use std::{io, net::SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

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
pub(crate) enum Refusal {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Read(#[from] io::Error),
}

/// Reads until the header is whole. Bounded in size, not in time.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), versions: Versions) -> Result<Preamble, Refusal> {
    let mut bytes = BytesMut::with_capacity(512);
    loop {
        if let Some(Header { source, length }) = parse(&bytes, versions)? {
            let rest = bytes.split_off(length).freeze();
            return Ok(Preamble { source, rest });
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Malformed, Preamble, Refusal, Versions, read};
    use ppp::v2;
    use proto::proxy_protocol::{LONGEST_V1, LONGEST_V2};
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
    async fn sent(bytes: &[u8], piece: usize, versions: Versions) -> Result<Preamble, Refusal> {
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
                assert!(matches!(sent(bytes, piece, other).await, Err(Refusal::Malformed(Malformed::NoHeader))));
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
        assert!(matches!(
            sent(endless.as_bytes(), 1000, Versions::Both).await,
            Err(Refusal::Malformed(Malformed::TooLong))
        ));
        let long = v2_header(v2::Command::Proxy, LONGEST_V2);
        assert!(matches!(sent(&long[..16], 1000, Versions::Both).await, Err(Refusal::Malformed(Malformed::TooLong))));
    }
}
