//! HTTP/2, redirects and certificates.

use super::*;

#[tokio::test]
async fn http2_requests_become_http1_requests() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (parts, body) = mpsc::channel(4);
    let stream = ReceiverStream::new(body).map(|part: &'static str| Ok(Frame::data(Bytes::from(part))));
    let request = Request::builder()
        .method(Method::POST)
        .uri("https://localhost:8443/up?x=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(BodyExt::boxed(StreamBody::new(stream)))
        .unwrap();
    let response = tokio::spawn(client.send_request(request));
    parts.send("one").await.unwrap();
    let mut upstream = worker.accept().await;
    let head = upstream.head().await;
    assert!(head.starts_with("post /up?x=1 http/1.1\r\n"), "{head}");
    for line in [
        "host: localhost:8443",
        "cookie: a=1; b=2",
        "x-forwarded-proto: https",
        "x-forwarded-port: 8443",
        "transfer-encoding: chunked",
        "te: trailers",
        "via: 2.0 servery",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    assert_eq!(upstream.read_until("one\r\n").await, "3\r\none\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n").await;
    let mut response = soon(response).await.unwrap().unwrap();
    assert!(!response.headers().contains_key("connection"));
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "ab");
    drop(parts);
    assert_eq!(upstream.read_until("0\r\n\r\n").await, "0\r\n\r\n");
    upstream.send("0\r\n\r\n").await;
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "");
    // several at once on one connection
    let mut requests = Vec::new();
    for at in 0..5 {
        let request = Request::get(format!("https://localhost/{at}")).body(empty()).unwrap();
        requests.push(tokio::spawn(client.send_request(request)));
    }
    let mut upstreams = Vec::new();
    for _ in 0..5 {
        let mut upstream = worker.accept().await;
        let head = upstream.head().await;
        upstreams.push((upstream, head.split(' ').nth(1).unwrap().to_owned()));
    }
    for (upstream, path) in upstreams.iter_mut().rev() {
        upstream.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())).await;
    }
    for (at, request) in requests.into_iter().enumerate() {
        let response = soon(request).await.unwrap().unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), format!("/{at}"));
    }
    let log = plane.finish().await;
    assert!(log.iter().all(|line| line["proto"] == "HTTP/2" && line["status"] == 200), "{log:?}");
}

#[tokio::test]
async fn an_http2_stream_that_is_reset_leaves_the_worker_but_not_the_others() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let left = tokio::spawn(client.send_request(Request::get("https://localhost/left").body(empty()).unwrap()));
    let mut upstream = worker.accept().await;
    upstream.head().await;
    let stays = tokio::spawn(client.send_request(Request::post("https://localhost/stays").body(full("x")).unwrap()));
    let mut other = worker.accept().await;
    other.read_until("x").await;
    left.abort();
    assert_eq!(upstream.rest().await, "");
    eventually(|| plane.held() == 1).await;
    other.send(OK).await;
    let response = soon(stays).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn plain_http_is_redirected_where_https_is_on() {
    let plane = Plane::start_with("", Some(8443));
    let mut client = plane.client().await;
    client.send("GET /a?b HTTP/1.1\r\nhost: example.org:8080\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(status(&head), "308");
    assert!(head.contains("location: https://example.org:8443/a?b\r\n"));
    client.send("GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(status(&client.head().await), "307");
    client.send("GET /a HTTP/1.1\r\nhost: a b\r\n\r\n").await;
    assert_eq!(status(&client.response().await.0), "400");
}

#[tokio::test]
async fn a_new_certificate_is_for_the_next_handshake() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut old = plane.http2().await;
    plane.shared.certificates.store(std::sync::Arc::new(crate::tls::CertificateSet::self_signed().unwrap()));
    let _new = plane.http2().await; // trusts only the new one
    let request = tokio::spawn(old.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    let mut upstream: Peer = worker.accept().await;
    upstream.answer("").await;
    assert_eq!(soon(request).await.unwrap().unwrap().status(), 200);
}

/// Frames of HTTP/2, without dynamic tables: a client that says what no library would.
pub(super) struct RawHttp2(pub(super) tokio_rustls::client::TlsStream<tokio::net::TcpStream>);

impl RawHttp2 {
    pub(super) async fn connect(plane: &Plane) -> Self {
        let mut stream = plane.tls(&[b"h2"]).await;
        let mut opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        opening.extend(Self::frame(4, 0, 0, &[]));
        soon(stream.write_all(&opening)).await.unwrap();
        Self(stream)
    }

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// Literal fields without indexing.
    pub(super) fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        block
    }

    /// Sends a request on stream 1 and returns how it ended: the kind of the frame that says so.
    pub(super) async fn ask(&mut self, fields: &[(&str, &str)], body: Option<&str>) -> u8 {
        let flags = if body.is_some() { 4 } else { 5 };
        let mut bytes = Self::frame(1, flags, 1, &Self::fields(fields));
        bytes.extend(body.map(|body| Self::frame(0, 1, 1, body.as_bytes())).unwrap_or_default());
        soon(self.0.write_all(&bytes)).await.unwrap();
        loop {
            let mut head = [0; 9];
            if soon(self.0.read_exact(&mut head)).await.is_err() {
                return u8::MAX;
            }
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            soon(self.0.read_exact(&mut payload)).await.unwrap();
            // the answer's head, a reset, the end of everything
            if matches!(head[3], 1 | 3 | 7) {
                return head[3];
            }
        }
    }
}

/// Fields, and a body.
type Asked = (Vec<(&'static str, &'static str)>, Option<&'static str>);

#[tokio::test]
async fn nothing_can_be_smuggled_from_http2_into_http1() {
    const ANSWERED: u8 = 1;
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let whole = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "localhost")];
    let with = |field: (&'static str, &'static str)| [&whole[..], &[field]].concat();
    let instead = |at: usize, value: &'static str| {
        let mut fields = whole;
        fields[at].1 = value;
        fields.to_vec()
    };
    let mut cases: Vec<Asked> = [
        ("x", "a\r\nsmuggled: 1"),
        ("x", "a\nsmuggled: 1"),
        ("x", "a\0b"),
        ("x\r\nsmuggled", "1"),
        ("x:smuggled", "1"),
        ("x y", "1"),
        ("X-Upper", "1"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("te", "gzip"),
        ("host", "other"),
        (":path", "/twice"),
        (":unknown", "x"),
        ("content-length", "+1"),
        ("content-length", "x"),
    ]
    .map(|field| (with(field), None))
    .into();
    cases.extend(
        ["/ HTTP/1.1\r\nsmuggled: 1", "/a b", "/a\n", "/\u{e4}", "", "a", "*"].map(|path| (instead(2, path), None)),
    );
    cases.extend(["GET / HTTP/1.1\r\n\r\nGET", "G T", ""].map(|method| (instead(0, method), None)));
    cases.extend(["a\r\nsmuggled: 1", "a b", "a/b", "u@a", ""].map(|authority| (instead(3, authority), None)));
    cases.push((with(("content-length", "3")), Some("abcGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")));
    cases.push((with(("content-length", "100")), Some("abc")));
    let mut seen = Vec::new();
    for (fields, body) in &cases {
        let mut client = RawHttp2::connect(&plane).await;
        let ask = tokio::time::timeout(Duration::from_secs(5), client.ask(fields, *body));
        let late = body.is_some();
        tokio::select! {
            biased;
            // a body that is too long or too short may break off what the worker has begun to see
            mut upstream = worker.accept(), if late => seen.push(upstream.rest().await),
            ended = ask => {
                // what is answered, is answered by us: nobody asks the worker
                assert!(ended.is_ok(), "{fields:?} {:?}", ended.map(|ended| ended == ANSWERED));
            }
        }
    }
    assert!(seen.iter().all(|text| !text.contains("smuggled") && !text.ends_with("\r\n\r\nabc")), "{seen:?}");
    worker.expect_nobody().await;
}
