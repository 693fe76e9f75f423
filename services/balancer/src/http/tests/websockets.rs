//! WebSockets over HTTP/2: an extended CONNECT of the client's, an HTTP/1.1 handshake with the worker (RFC 8441, section 5).

use super::{protocols::RawHttp2, *};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chassis::lifecycle::Phase;
use hyper::{Response, body::Incoming, client::conn::http2::SendRequest, ext::Protocol, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;

type Client = SendRequest<BoxBody<Bytes, io::Error>>;
type Socket = TokioIo<Upgraded>;

fn connect(uri: &str, protocol: Option<&'static str>) -> Request<BoxBody<Bytes, io::Error>> {
    let request = Request::connect(uri).header("sec-websocket-version", "13");
    let request = request.header("sec-websocket-protocol", "chat, talk").header("origin", "https://a.example");
    let mut request = request.body(empty()).unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from_static(protocol));
    }
    request
}

fn ask(client: &mut Client) -> JoinHandle<hyper::Result<Response<Incoming>>> {
    tokio::spawn(client.send_request(connect("https://localhost/ws?x=1", Some("websocket"))))
}

async fn answered(asked: JoinHandle<hyper::Result<Response<Incoming>>>) -> Response<Incoming> {
    soon(asked).await.unwrap().unwrap()
}

/// The worker's handshake.
fn agreed(head: &str) -> String {
    let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).expect("a key");
    assert_eq!(STANDARD.decode(key).unwrap().len(), 16);
    let salted = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let proof = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, salted.as_bytes()));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {proof}\r\n\
         sec-websocket-protocol: talk\r\nsec-websocket-extensions: permessage-deflate\r\n"
    )
}

/// The two ends of a tunnel, and what the worker was asked.
async fn tunnel(client: &mut Client, worker: &Worker) -> (Socket, Peer, String) {
    let asked = ask(client);
    let mut upstream = worker.accept().await;
    let head = upstream.read_until("\r\n\r\n").await;
    upstream.send(&format!("{}\r\n", agreed(&head))).await;
    let response = answered(asked).await;
    assert_eq!(response.status(), 200);
    (TokioIo::new(hyper::upgrade::on(response).await.unwrap()), upstream, head)
}

/// Numbers that show when something is lost or out of order.
fn many(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(u32::to_be_bytes).take(length).collect()
}

#[tokio::test]
async fn a_websocket_over_http2_is_one_over_http1_for_the_worker_and_holds_no_slot() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.narrow_workers(&[(worker.address, 1)]);
    let mut client = plane.http2().await;
    let asked = ask(&mut client);
    let mut upstream = worker.accept().await;
    let head = upstream.read_until("\r\n\r\n").await;
    assert!(head.starts_with("GET /ws?x=1 HTTP/1.1\r\n"), "{head}");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "host: localhost",
        "sec-websocket-version: 13",
        "sec-websocket-protocol: chat, talk",
        "origin: https://a.example",
        "x-forwarded-proto: https",
        "via: 2.0 servery",
        "servery-pass: abcd",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    for absent in ["content-length", "transfer-encoding", ":protocol"] {
        assert!(!head.contains(absent), "{absent} in {head}");
    }
    // the worker does not wait with its first words, and what it says of a length is nonsense
    upstream.send(&format!("{}content-length: 5\r\n\r\nhello", agreed(&head))).await;
    let response = answered(asked).await;
    assert_eq!(response.status(), 200);
    let fields = response.headers();
    for absent in ["connection", "upgrade", "sec-websocket-accept", "content-length", "transfer-encoding"] {
        assert!(!fields.contains_key(absent), "{absent} in {fields:?}");
    }
    assert_eq!(
        (&fields["sec-websocket-protocol"], fields.contains_key("x-request-id")),
        (&"talk".parse().unwrap(), true)
    );
    assert_eq!(fields["sec-websocket-extensions"], "permessage-deflate");
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut first = [0; 5];
    soon(socket.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, b"hello");
    // over the one slot, and the same connection of the client's
    assert_eq!((plane.held(), plane.unsettled()), (0, 0));
    let other = tokio::spawn(client.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    worker.accept().await.answer("ok").await;
    assert_eq!(answered(other).await.status(), 200);
    // more than any buffer and window on the way, in both directions at once
    let bytes = many(1_000_000);
    let (mut reads, mut writes) = tokio::io::split(socket);
    let (mut theirs, mut sends) = upstream.0.split();
    let send = async {
        writes.write_all(&bytes).await.unwrap();
        writes.shutdown().await.unwrap();
    };
    let echo = async {
        assert_eq!(tokio::io::copy(&mut theirs, &mut sends).await.unwrap(), 1_000_000);
        sends.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let (read, (), ()) = soon(async { tokio::join!(reads.read_to_end(&mut back), send, echo) }).await;
    assert_eq!((read.unwrap(), back == bytes), (1_000_000, true));
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
    drop((reads, writes, upstream));
    let log = plane.finish().await;
    let line = log.iter().find(|line| line["path"] == "/ws").unwrap();
    assert_eq!(
        (&line["method"], &line["proto"], &line["status"], &line["reject"], &line["attempts"]),
        (&"CONNECT".into(), &"HTTP/2".into(), &200.into(), &serde_json::Value::Null, &1.into())
    );
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1_000_000.into(), &1_000_005.into()));
    assert_eq!((&line["app"], &line["node"]), (&"demo".into(), &"node-1".into()));
}

#[tokio::test]
async fn what_is_no_websocket_is_refused() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    plane.route("localhost", "/ws", false);
    plane.shared.settled.store(true, Ordering::Relaxed);
    let mut client = plane.http2().await;
    for (uri, protocol, code) in [
        ("https://localhost/ws", Some("connect-udp"), 501),
        ("https://localhost/ws", Some("h2c"), 501),
        ("https://localhost/elsewhere", Some("websocket"), 404),
        ("https://other/ws", Some("websocket"), 404),
        ("https://a_b@localhost/ws", Some("websocket"), 400),
        ("localhost:443", None, 405),
    ] {
        let response = soon(client.send_request(connect(uri, protocol))).await.unwrap();
        assert_eq!(response.status(), code, "{uri} {protocol:?}");
    }
    worker.expect_nobody().await;
    // nor is it one over HTTP/1.1
    let mut client = plane.client().await;
    client.send("CONNECT /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(["400", "405"].contains(&status(&client.head().await)));
    worker.expect_nobody().await;
}

#[tokio::test]
async fn a_worker_that_does_not_agree_is_passed_on_but_never_as_a_websocket() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let proof = agreed(&format!("sec-websocket-key: {}\r\n", STANDARD.encode([7; 16])));
    let unproved = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    for (answer, code) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno".to_owned(), 403),
        ("HTTP/1.1 426 Upgrade Required\r\nsec-websocket-version: 8\r\nupgrade: websocket\r\ncontent-length: 2\r\n\r\nno".to_owned(), 426),
        ("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 2\r\n\r\nno".to_owned(), 302),
        // what looks like a tunnel to the client would be none
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(), 502),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), 502),
        (unproved.to_owned(), 502),
        // the proof of another key
        (format!("{proof}\r\n"), 502),
    ] {
        let asked = ask(&mut client);
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&answer).await;
        let response = answered(asked).await;
        assert_eq!(response.status(), code, "{answer}");
        assert!(!response.headers().contains_key("upgrade"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(code == 502 || body == "no", "{answer}");
        drop(upstream);
    }
    assert_eq!(plane.shared.tunnels.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_page_that_is_asked_for_as_a_websocket_does_not_count_against_its_worker() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    for _ in 0..20 {
        let asked = ask(&mut client);
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(answered(asked).await.status(), 502);
    }
    let next = tokio::spawn(client.send_request(Request::get("https://localhost/").body(empty()).unwrap()));
    worker.accept().await.answer("ok").await;
    assert_eq!(answered(next).await.status(), 200);
}

#[tokio::test]
async fn streams_count_among_the_tunnels_there_may_be() {
    let plane = Plane::start("max_tunnels = 1");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (socket, mut upstream, _) = tunnel(&mut client, &worker).await;
    let response = answered(ask(&mut client)).await;
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (503, true));
    worker.expect_nobody().await;
    drop(socket);
    assert_eq!(upstream.rest().await, "");
    drop(upstream);
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
    tunnel(&mut client, &worker).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_frees_the_workers_connection_and_no_other() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (mut other, mut other_upstream, _) = tunnel(&mut client, &worker).await;
    // as a library leaves: first the end, then the reset; the worker hears of it and does nothing
    let (mut socket, mut upstream, first) = tunnel(&mut client, &worker).await;
    socket.shutdown().await.unwrap();
    assert_eq!(upstream.rest().await, "");
    upstream.send("still there").await;
    let mut words = [0; 11];
    soon(socket.read_exact(&mut words)).await.unwrap();
    drop(socket);
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 1).await;
    drop(upstream);
    // before there is an answer
    let asked = ask(&mut client);
    let mut upstream = worker.accept().await;
    let second = upstream.read_until("\r\n\r\n").await;
    asked.abort();
    assert_eq!(upstream.rest().await, "");
    let key = |head: &str| head.lines().find(|line| line.starts_with("sec-websocket-key")).unwrap().to_owned();
    assert_ne!(key(&first), key(&second), "each has a key of its own");
    // and the neighbour has noticed nothing
    other_upstream.send("on").await;
    let mut on = [0; 2];
    soon(other.read_exact(&mut on)).await.unwrap();
    assert_eq!(&on, b"on");
    // with the connection all of it goes
    drop((client, other));
    assert_eq!(other_upstream.rest().await, "");
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn a_bare_reset_ends_the_workers_side_for_every_code() {
    const CONNECT: &[(&str, &str)] = &[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/ws"),
        (":authority", "localhost"),
        ("sec-websocket-version", "13"),
    ];
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = RawHttp2::connect(&plane).await;
    for (stream, code) in [(1, 8), (3, 0), (5, 2), (7, 5)] {
        let head = RawHttp2::frame(1, 4, stream, &RawHttp2::fields(CONNECT));
        soon(client.0.write_all(&head)).await.unwrap();
        let mut upstream = worker.accept().await;
        let head = upstream.read_until("\r\n\r\n").await;
        upstream.send(&format!("{}\r\n", agreed(&head))).await;
        let words = RawHttp2::frame(0, 0, stream, b"words");
        soon(client.0.write_all(&words)).await.unwrap();
        assert_eq!(upstream.exactly(5).await, "words");
        let reset = RawHttp2::frame(3, 0, stream, &[0, 0, 0, code]);
        soon(client.0.write_all(&reset)).await.unwrap();
        assert_eq!(upstream.rest().await, "", "{code}");
        eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
    }
}

#[tokio::test]
async fn the_workers_end_is_the_streams() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (mut socket, mut upstream, _) = tunnel(&mut client, &worker).await;
    upstream.send("bye").await;
    drop(upstream);
    let mut read = Vec::new();
    soon(socket.read_to_end(&mut read)).await.unwrap();
    assert_eq!(read, b"bye");
    drop(socket);
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_left() {
    let plane = Plane::start("body_timeout = \"300ms\"");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (socket, mut upstream, _) = tunnel(&mut client, &worker).await;
    // its window is closed some time, and the connection's is not: only the stream stands still
    let bytes = many(64 * 1024);
    let flood = async { while upstream.0.write_all(&bytes).await.is_ok() {} };
    soon(flood).await;
    eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 0).await;
    drop(socket);
}

#[tokio::test]
async fn one_connection_has_no_more_tunnels_than_streams_however_it_leaves_them() {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.workers(&[(worker.address, 256)]);
    let mut client = plane.http2().await;
    let mut kept = Vec::new();
    for _ in 0..127 {
        kept.push(tunnel(&mut client, &worker).await);
    }
    // an end and a reset: the stream is over, and for a moment nobody has noticed. However slow this machine is, once in many
    // times the next one comes in that moment.
    for _ in 0..20 {
        let (last, mut upstream, _) = tunnel(&mut client, &worker).await;
        drop(last);
        assert_eq!(upstream.rest().await, "");
        let asked = ask(&mut client);
        tokio::select! {
            response = answered(asked) => {
                assert_eq!(response.status(), 503);
                eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 127).await;
                kept.push(tunnel(&mut client, &worker).await);
                return;
            }
            _ = worker.accept() => eventually(|| plane.shared.tunnels.load(Ordering::Relaxed) == 127).await,
        }
    }
    panic!("there were more tunnels than streams");
}

#[tokio::test]
async fn a_drain_waits_for_streams_and_cuts_what_is_left() {
    let mut plane = Plane::start("drain = \"500ms\"");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let (mut socket, mut upstream, _) = tunnel(&mut client, &worker).await;
    // a neighbour that is still waiting for its answer
    let _slow = tokio::spawn(client.send_request(Request::get("https://localhost/slow").body(empty()).unwrap()));
    let mut slow = worker.accept().await;
    slow.head().await;
    plane.lifecycle.advance(Phase::Draining);
    let cores = plane.take_cores();
    socket.write_all(b"still").await.unwrap();
    assert_eq!(upstream.exactly(5).await, "still");
    soon(cores.drained()).await.unwrap();
    assert_eq!(upstream.rest().await, "");
    assert!(soon(socket.read(&mut [0])).await.is_ok_and(|read| read == 0) || client.is_closed());
    let log = plane.log();
    let line = log.iter().find(|line| line["path"] == "/ws").unwrap();
    assert_eq!((&line["status"], &line["reject"], &line["bytes_in"]), (&200.into(), &"drained".into(), &5.into()));
}

#[tokio::test]
async fn the_settings_offer_websockets() {
    let plane = Plane::start("");
    let mut client = RawHttp2::connect(&plane).await;
    let mut head = [0; 9];
    soon(client.0.read_exact(&mut head)).await.unwrap();
    assert_eq!((head[3], head[4]), (4, 0), "the first frame is SETTINGS");
    let mut payload = vec![0; usize::from(head[2])];
    soon(client.0.read_exact(&mut payload)).await.unwrap();
    assert!(payload.chunks(6).any(|setting| setting == [0, 8, 0, 0, 0, 1]), "{payload:?}");
}

#[tokio::test]
async fn nothing_can_be_smuggled_by_an_extended_connect() {
    const ANSWERED: u8 = 1;
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let whole = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", "/ws"),
        (":authority", "localhost"),
    ];
    let without = |name: &str| whole.into_iter().filter(|field| field.0 != name).collect::<Vec<_>>();
    let with = |field| [&whole[..], &[field]].concat();
    let instead = |at: usize, value: &'static str| {
        let mut fields = whole;
        fields[at].1 = value;
        fields.to_vec()
    };
    let cases = [
        without(":scheme"),
        without(":path"),
        without(":authority"),
        instead(0, "GET"),
        instead(0, "POST"),
        instead(1, ""),
        instead(1, "websocket\r\nsmuggled: 1"),
        instead(3, "/ HTTP/1.1\r\nsmuggled: 1"),
        instead(3, "*"),
        instead(3, "/\u{e4}"),
        instead(4, "a\r\nsmuggled: 1"),
        with((":protocol", "websocket")),
        with(("connection", "upgrade")),
        with(("upgrade", "h2c")),
        with(("sec-websocket-protocol", "a\r\nsmuggled: 1")),
        with(("content-length", "5")),
        with(("transfer-encoding", "chunked")),
    ];
    for fields in &cases {
        let mut client = RawHttp2::connect(&plane).await;
        let ended = tokio::time::timeout(Duration::from_secs(5), client.ask(fields, None)).await;
        assert!(ended.is_ok(), "{fields:?} {:?}", ended.map(|ended| ended == ANSWERED));
        worker.expect_nobody().await;
    }
    // a key of the client's own is not the worker's
    let mut client = plane.http2().await;
    let mut request = connect("https://localhost/ws", Some("websocket"));
    request.headers_mut().insert("sec-websocket-key", "bWluZSBtaW5lIG1pbmUh".parse().unwrap());
    let _asked = tokio::spawn(client.send_request(request));
    let head = worker.accept().await.read_until("\r\n\r\n").await;
    assert!(!head.contains("bWluZSBtaW5lIG1pbmUh") && head.matches("sec-websocket-key").count() == 1, "{head}");
}
