//! The PROXY protocol, from the load balancers that speak it to us. In: a connection that must begin with a header. Out:
//! whose it is, with the client's first byte as the next one to be read. What a header is, `proto` says.

use metrics::counter;
use proto::proxy_protocol::{Header, LONGEST_V2, Malformed, Versions, parse};
use std::{io, net::SocketAddr};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Why such a connection is closed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("it ended before its header did: {0}")]
    Read(#[from] io::Error),
    #[error("its header has not arrived in time")]
    Late,
}

impl Refusal {
    /// The metrics' `result`.
    fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Read(_) => "cut",
            Self::Late => "timeout",
        }
    }
}

/// Whom a connection of this proxy's speaks for: the proxy itself where its header names nobody. `None`: it is to be
/// closed, which has been counted and logged.
pub(crate) async fn introduce(stream: &mut TcpStream, proxy: SocketAddr, deadline: Instant) -> Option<SocketAddr> {
    let read = timeout_at(deadline, read(stream)).await.unwrap_or(Err(Refusal::Late));
    // the macro's price is nothing beside a connection's
    let count =
        |result: &'static str| counter!("servery_balancer_proxy_headers_total", "result" => result).increment(1);
    match read {
        Ok(source) => {
            count("ok");
            Some(source.unwrap_or(proxy))
        }
        Err(refusal) => {
            count(refusal.label());
            tracing::debug!(%proxy, %refusal, "closed: a connection must begin with the PROXY protocol");
            None
        }
    }
}

/// Reads the header and not a byte beyond, so that TLS and HTTP meet the socket as it came. Bounded in size, not in time.
async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, Refusal> {
    let mut bytes = vec![0; LONGEST_V2];
    let mut taken = 0;
    loop {
        // looked at first: only then is known what of it is the header's
        let there = taken + stream.peek(&mut bytes[taken..]).await?;
        if there == taken {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let header = parse(&bytes[..there], Versions::Both)?;
        // all of a header that is not whole yet is its own, and once it is taken the socket waits for more
        let end = header.map_or(there, |header| header.length);
        stream.read_exact(&mut bytes[taken..end]).await?;
        taken = end;
        if let Some(Header { source, .. }) = header {
            return Ok(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{Peer, Plane, soon};
    use std::net::SocketAddr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    const V1: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n";
    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    /// The second version: the command and family, and what is behind them.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x20 | command, family], &length, rest].concat()
    }

    /// Names 2001:db8::7, with a field behind the addresses.
    fn six() -> Vec<u8> {
        let mut rest = [0; 36];
        rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        rest[15] = 7;
        v2(1, 0x21, &[&rest[..], &[0x20, 0, 3, 1, 2, 3]].concat())
    }

    fn proxied(settings: &str) -> Plane {
        Plane::start(&format!("proxy_protocol = [\"127.0.0.1\"]\n{settings}"))
    }

    async fn sends(address: SocketAddr, bytes: &[u8]) -> Peer {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        Peer(stream)
    }

    #[tokio::test]
    async fn the_client_is_whom_the_header_names() {
        let plane = proxied("");
        let worker = plane.worker().await;
        for (header, client) in [
            (V1.to_vec(), "192.0.2.7"),
            (six(), "2001:db8::7"),
            (v2(1, 0x11, &[192, 0, 2, 8, 192, 0, 2, 1, 1, 0, 0, 80]), "192.0.2.8"),
            (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 1 1\r\n".to_vec(), "192.0.2.9"),
            // it speaks for itself, or does not know
            (v2(0, 0x11, &[192, 0, 2, 8, 192, 0, 2, 1, 1, 0, 0, 80]), "127.0.0.1"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        ] {
            let mut peer = sends(plane.http, &[&header, REQUEST.as_bytes()].concat()).await;
            let head = worker.accept().await.answer("").await;
            assert!(head.contains(&format!("x-forwarded-for: {client}\r\n")), "{head}");
            assert!(peer.head().await.starts_with("http/1.1 200"));
        }
        let log = plane.finish().await;
        // each core has a log of its own
        let mut clients: Vec<_> = log.iter().map(|line| line["client_ip"].as_str().unwrap()).collect();
        clients.sort_unstable();
        assert_eq!(clients, ["127.0.0.1", "127.0.0.1", "192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::7"]);
    }

    /// What is read of the socket depends on how it arrives; what is understood must not.
    #[tokio::test]
    async fn a_header_may_arrive_in_any_two_pieces() {
        let plane = proxied("");
        let worker = plane.worker().await;
        for header in [V1.to_vec(), six()] {
            let bytes = [&header, REQUEST.as_bytes()].concat();
            for cut in 1..=header.len() {
                let mut peer = sends(plane.http, &bytes[..cut]).await;
                // the first piece has arrived by itself once it is no more in the kernel's hands alone
                tokio::task::yield_now().await;
                peer.0.write_all(&bytes[cut..]).await.unwrap();
                let head = worker.accept().await.answer("").await;
                assert!(
                    head.contains("x-forwarded-for: 192.0.2.7\r\n") || head.contains("for: 2001:db8::7\r\n"),
                    "{cut}: {head}"
                );
                assert!(peer.head().await.starts_with("http/1.1 200"), "{cut}");
            }
        }
    }

    #[tokio::test]
    async fn it_stands_before_tls() {
        let plane = proxied("");
        let worker = plane.worker().await;
        let mut stream = plane.tls_after(V1, &[]).await;
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        let head = worker.accept().await.answer("").await;
        assert!(head.contains("x-forwarded-for: 192.0.2.7\r\n") && head.contains("proto: https\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_proxys_connection_without_a_good_header_is_closed_unanswered() {
        let plane = proxied("handshake_timeout = \"300ms\"");
        let worker = plane.worker().await;
        for bytes in [
            REQUEST.as_bytes(),
            b"PROXY TCP4 nobody 192.0.2.1 1 1\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01",
            &[0; 5000],
            &v2(2, 0x11, &[0; 12]),
            &v2(1, 0x11, &[0; 5000]),
            // only a part of it, and then nothing
            &V1[..9],
            &six()[..20],
            b"",
        ] {
            for address in [plane.http, plane.https] {
                assert_eq!(sends(address, bytes).await.rest().await, "");
            }
        }
        worker.expect_nobody().await;
        let mut peer = sends(plane.http, &[V1, REQUEST.as_bytes()].concat()).await;
        worker.accept().await.answer("").await;
        assert!(peer.head().await.starts_with("http/1.1 200"), "and the others are served");
        assert_eq!(plane.finish().await.len(), 1);
    }

    #[tokio::test]
    async fn a_stranger_cannot_introduce_itself_or_others() {
        let plane = Plane::start("proxy_protocol = [\"192.0.2.0/24\", \"::1\"]");
        let worker = plane.worker().await;
        for header in [V1.to_vec(), six()] {
            let mut peer = sends(plane.http, &[&header, REQUEST.as_bytes()].concat()).await;
            // hyper says what it thinks of such a request
            let answer = peer.rest().await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
        worker.expect_nobody().await;
        let mut peer = sends(plane.http, REQUEST.as_bytes()).await;
        let head = worker.accept().await.answer("").await;
        assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
        assert!(peer.head().await.starts_with("http/1.1 200"));
    }

    #[tokio::test]
    async fn a_second_header_is_no_http() {
        let plane = proxied("");
        let worker = plane.worker().await;
        let mut peer = sends(plane.http, &[V1, V1, REQUEST.as_bytes()].concat()).await;
        let answer = peer.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        worker.expect_nobody().await;
    }

    #[tokio::test]
    async fn trust_goes_by_the_address_that_is_named() {
        let plane = proxied("trusted_proxies = [\"192.0.2.0/24\"]");
        let worker = plane.worker().await;
        let request = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 203.0.113.5\r\nconnection: close\r\n\r\n";
        for (header, wanted) in [(V1.to_vec(), "203.0.113.5, 192.0.2.7"), (six(), "2001:db8::7")] {
            let _peer = sends(plane.http, &[&header, request.as_bytes()].concat()).await;
            let head = worker.accept().await.answer("").await;
            assert!(head.contains(&format!("x-forwarded-for: {wanted}\r\n")), "{head}");
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_in_its_header_leaves_nothing_behind() {
        let plane = proxied("max_connections = 1\nhandshake_timeout = \"1h\"");
        let worker = plane.worker().await;
        for _ in 0..3 {
            let mut half = sends(plane.http, &V1[..20]).await;
            half.0.shutdown().await.unwrap();
            assert_eq!(soon(half.0.read(&mut [0; 1])).await.unwrap(), 0);
        }
        let mut peer = sends(plane.http, &[V1, REQUEST.as_bytes()].concat()).await;
        worker.accept().await.answer("").await;
        assert!(peer.head().await.starts_with("http/1.1 200"), "the one place is free");
    }
}
