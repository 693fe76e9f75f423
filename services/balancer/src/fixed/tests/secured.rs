//! Servers behind TLS: who proves who it is gets requests, and nobody else a byte of one.

use super::*;
use std::{io::Write as _, path::PathBuf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// A server with a certificate of its own for this host.
struct Secure {
    worker: Worker,
    acceptor: TlsAcceptor,
    /// With its certificate in it.
    directory: tempfile::TempDir,
}

impl Secure {
    async fn start(host: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(directory.path().join("ca.pem")).unwrap();
        file.write_all(made.cert.pem().as_bytes()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let chain = vec![made.cert.der().clone()];
        let config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
        Self { worker: Worker::start().await, acceptor: TlsAcceptor::from(Arc::new(config)), directory }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn url(&self) -> String {
        format!("https://{}", self.worker.address)
    }
}

#[tokio::test]
async fn a_server_that_proves_who_it_is_gets_requests() {
    let server = Secure::start("127.0.0.1").await;
    let front = Front::start("", &[&server.url()], &format!("ca = {:?}", server.ca()));
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = soon(server.acceptor.accept(server.worker.accept().await.0)).await.unwrap();
    for turn in ["1", "2"] {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(upstream.read_u8()).await.unwrap());
        }
        soon(upstream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{turn}").as_bytes()))
            .await
            .unwrap();
        assert_eq!(client.response().await.1, turn);
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    }
}

#[tokio::test]
async fn a_body_without_a_length_that_is_cut_off_under_tls_is_not_complete() {
    let server = Secure::start("127.0.0.1").await;
    let front = Front::start("", &[&server.url()], &format!("ca = {:?}", server.ca()));
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut upstream = soon(server.acceptor.accept(server.worker.accept().await.0)).await.unwrap();
    soon(upstream.read_u8()).await.unwrap();
    soon(upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\nabc")).await.unwrap();
    soon(upstream.flush()).await.unwrap();
    client.read_until("abc\r\n").await;
    // TCP ends, and TLS has not: anybody on the way can do that
    drop(upstream.into_inner().0);
    let rest = client.rest().await;
    assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
}

#[tokio::test]
async fn who_cannot_prove_who_it_is_gets_no_request() {
    // a certificate for somebody else, and one that nobody trusts
    let (elsewhere, stranger) = (Secure::start("shop.test").await, Secure::start("127.0.0.1").await);
    let other = Secure::start("127.0.0.1").await;
    for (server, ca) in [(&elsewhere, elsewhere.ca()), (&stranger, other.ca())] {
        let front = Front::start("", &[&server.url()], &format!("ca = {ca:?}"));
        let mut client = front.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nsecret").await;
        let answering = async {
            loop {
                let accepted = server.acceptor.accept(server.worker.accept().await.0).await;
                if let Ok(mut stream) = accepted {
                    let mut bytes = Vec::new();
                    let _ = stream.read_to_end(&mut bytes).await;
                    assert!(bytes.is_empty(), "{:?}", String::from_utf8_lossy(&bytes));
                }
            }
        };
        let (head, _) = tokio::select! {
            () = answering => unreachable!(),
            response = client.response() => response,
        };
        assert!(head.starts_with("http/1.1 502") && head.contains("tls_protocol_error"), "{head}");
        let log = front.plane.finish().await;
        assert_eq!(log[0]["reject"], "upstream_tls");
    }
}

#[tokio::test]
async fn plain_http_where_tls_is_expected_is_a_502() {
    let server = Worker::start().await;
    let ca = Secure::start("127.0.0.1").await;
    let front = Front::start("", &[&format!("https://{}", server.address)], &format!("ca = {:?}", ca.ca()));
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answering = async {
        loop {
            server.accept().await.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    };
    let (head, _) = tokio::select! {
        () = answering => unreachable!(),
        response = client.response() => response,
    };
    assert!(head.starts_with("http/1.1 502"), "{head}");
}

#[tokio::test]
async fn a_file_of_certificates_that_has_none_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (missing, empty) = (directory.path().join("missing"), directory.path().join("empty"));
    std::fs::write(&empty, "").unwrap();
    for path in [missing, empty] {
        let started = Front::try_start("", &["https://shop.test"], &format!("ca = {path:?}"));
        let error = started.err().expect("a refusal").to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn http2_within_tls_is_what_both_sides_agree_on() {
    let mut server = Secure::start("127.0.0.1").await;
    let route = format!("protocol = \"h2\"\nca = {:?}", server.ca());
    let front = Front::start("", &[&server.url()], &route);
    let mut client = front.client().await;
    // the server does not offer it
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let refusing = async {
        loop {
            drop(server.acceptor.accept(server.worker.accept().await.0).await);
        }
    };
    let (head, _) = tokio::select! {
        answer = client.response() => answer,
        () = refusing => unreachable!(),
    };
    assert!(head.starts_with("http/1.1 502 "), "{head}");
    // and now it does
    let mut config = rustls::ServerConfig::clone(server.acceptor.config());
    config.alpn_protocols = vec![b"h2".to_vec()];
    server.acceptor = TlsAcceptor::from(Arc::new(config));
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let stream = soon(server.acceptor.accept(server.worker.accept().await.0)).await.unwrap();
    let mut connection = soon(h2::server::handshake(stream)).await.unwrap();
    let (asked, mut to) = soon(connection.accept()).await.unwrap().unwrap();
    assert_eq!(asked.uri().scheme_str(), Some("https"));
    to.send_response(http::Response::builder().header("content-length", "0").body(()).unwrap(), true).unwrap();
    let driving = tokio::spawn(async move { drop(connection.accept().await) });
    assert!(client.response().await.0.starts_with("http/1.1 200 "));
    driving.abort();
}
