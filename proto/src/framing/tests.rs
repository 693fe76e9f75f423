use super::*;
use proptest::prelude::*;
use std::time::Instant;

const LIMITS: Limits = Limits { line: 100, head: 1000, fields: 10 };

/// All at once.
fn read(text: &str) -> (usize, Seen) {
    Framing::new(LIMITS).read(text.as_bytes())
}

/// The fault, after so many bytes that may be passed on.
fn fault(text: &str) -> Option<Fault> {
    match read(text) {
        (taken, Seen::Fault(fault)) => {
            assert!(taken < text.len());
            Some(fault)
        }
        (_, Seen::All | Seen::Switch | Seen::Last) => None,
    }
}

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked\r\n", body)
}

#[test]
fn well_formed_requests_pass_whole_and_in_a_row() {
    let requests = [
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET /a?b=\\^`{|} HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /\"{|}\\^ HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "\r\nGET / HTTP/1.1\r\nhost:a\r\nempty:\r\nx:  \t y\u{e4}\tz  \r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET http://a-b.C:80/x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET HTTPS://[::1]?x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n".to_owned(),
        post("content-length: 0\r\n", ""),
        post("Content-Length:\t003 \r\n", "abc"),
        chunked("3\r\nabc\r\n0\r\n\r\n"),
        chunked("00a;x=\"y\";z \r\n0123456789\r\nA\r\n0123456789\r\n0\r\nx: y\r\nUpgrade: z\r\n\r\n"),
        post("TRANSFER-ENCODING:  Chunked \r\n", "0\r\n\r\n"),
        post("upgrade: x\r\ncontent-length: 1\r\n", "x"),
    ];
    for request in &requests {
        assert_eq!(read(request), (request.len(), Seen::All), "{request}");
    }
    let all = requests.concat();
    let mut framing = Framing::new(LIMITS);
    assert_eq!(framing.read(all.as_bytes()), (all.len(), Seen::All));
    assert_eq!(framing.place(), Place::Between);
}

#[test]
fn what_two_readers_could_see_differently_is_refused() {
    for (text, expected) in [
        // lines
        ("GET / HTTP/1.1\nhost: a\r\n\r\n", Fault::Line),
        ("GET / HTTP/1.1\r\nhost: a\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\r\n\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\0b\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\u{7f}\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\rhost: a\r\n\r\n", Fault::Line),
        ("\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        // request lines
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET /  HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        (" GET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GE(T / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET a HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET ?a HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET *a HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET /#a HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET /\u{e4} HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET http:// HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET http:///x HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET http://a:b/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("CONNECT a:443/x HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Line),
        ("GET /\r\n\r\n", Fault::Line),
        ("GET / HTTP/1.2\r\n\r\n", Fault::Version),
        ("GET / HTTP/2.0\r\n\r\n", Fault::Version),
        ("GET / HTTP/1.11\r\n\r\n", Fault::Version),
        ("GET / http/1.1\r\n\r\n", Fault::Line),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::Version),
        // fields
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\n: a\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nh\u{e4}: a\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\n host: a\r\n\r\n", Fault::Field),
        ("GET / HTTP/1.1\r\nhost: a\r\n\tb: c\r\n\r\n", Fault::Field),
    ] {
        assert_eq!(fault(text), Some(expected), "{text:?}");
    }
}

#[test]
fn a_messages_end_is_said_once_and_plainly() {
    for fields in [
        "content-length: 3\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3, 3\r\n",
        "content-length: +3\r\n",
        "content-length: -3\r\n",
        "content-length: 0x3\r\n",
        "content-length: 3 4\r\n",
        "content-length: 3;\r\n",
        "content-length:\r\n",
        "content-length: \"3\"\r\n",
        "content-length: 9999999999999999999\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: chunkedchunked\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: \"chunked\"\r\n",
    ] {
        let expected = if fields.contains('\x0b') { Fault::Field } else { Fault::Frame };
        assert_eq!(fault(&post(fields, "abc")), Some(expected), "{fields}");
    }
    let old = "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(fault(old), Some(Fault::Frame));
}

#[test]
fn chunks_are_what_they_say() {
    for body in [
        "\r\n",
        ";x\r\n",
        "+3\r\nabc\r\n",
        "0x3\r\nabc\r\n",
        " 3\r\nabc\r\n",
        "3 \r\nabc\r\n",
        "3\nabc\r\n",
        "3;a\nabc\r\n",
        "3;a\rb\nabc\r\n",
        "3;a\0\r\nabc\r\n",
        "3\r\nabcd\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\rx",
        "g\r\n",
        "00000000000000003\r\nabc\r\n",
        "0\r\n\n",
        "0\r\n\rx",
    ] {
        let expected = if body.starts_with("0\r") { Fault::Trailer } else { Fault::Chunk };
        assert_eq!(fault(&chunked(body)), Some(expected), "{body:?}");
    }
    for trailer in ["x\r\n", "x : y\r\n", " x: y\r\n", "host: a\r\n", "Content-Length: 3\r\n", "connection: x\r\n"] {
        assert_eq!(fault(&chunked(&format!("0\r\n{trailer}\r\n"))), Some(Fault::Trailer), "{trailer}");
    }
}

#[test]
fn extensions_and_trailers_have_an_end() {
    let one = |bytes: usize| chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(bytes)));
    assert_eq!(fault(&one(256)), None);
    assert_eq!(fault(&one(257)), Some(Fault::Chunk));
    let many = |chunks: usize| chunked(&format!("1;{}\r\nx\r\n", "e".repeat(256)).repeat(chunks));
    assert_eq!(fault(&many(32)), None);
    assert_eq!(fault(&many(33)), Some(Fault::Chunk));
    let trailers = |bytes: usize| chunked(&format!("0\r\nx: {}\r\n\r\n", "y".repeat(bytes)));
    assert_eq!(fault(&trailers(8 * 1024 - 7)), None);
    assert_eq!(fault(&trailers(8 * 1024 - 6)), Some(Fault::Trailer));
    assert_eq!(fault(&chunked(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(10)))), None);
    assert_eq!(fault(&chunked(&format!("0\r\n{}\r\n", "x: y\r\n".repeat(11)))), Some(Fault::Trailer));
}

#[test]
fn each_limit_lets_through_what_reaches_it_and_nothing_above() {
    // 15 bytes without the path
    let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(bytes - 16));
    assert_eq!(fault(&line(100)), None);
    assert_eq!(fault(&line(101)), Some(Fault::LineTooLong));
    assert_eq!(fault(&"G".repeat(33)), Some(Fault::Line));
    let head = |bytes: usize| format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(bytes - 23));
    assert_eq!(fault(&head(1000)), None);
    assert_eq!(fault(&head(1001)), Some(Fault::HeadTooLarge));
    assert_eq!(fault(&head(100_000)), Some(Fault::HeadTooLarge));
    let fields = |number: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(number));
    assert_eq!(fault(&fields(10)), None);
    assert_eq!(fault(&fields(11)), Some(Fault::TooManyFields));
    // and each request has them anew
    assert_eq!(fault(&fields(10).repeat(20)), None);
}

#[test]
fn nothing_behind_the_last_request_is_one() {
    for last in [
        "GET / HTTP/1.1\r\nConnection: keep-alive ,  Close\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nconnection: x\r\nconnection: close\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\nconnection: xkeep-alive, keep alive\r\n\r\n".to_owned(),
        post("connection: close\r\ncontent-length: 3\r\n", "abc"),
        post("connection: close\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        assert_eq!(read(&format!("{last}GET / HTTP/1.1\r\n\r\n")), (last.len(), Seen::Last), "{last}");
    }
    let on = "GET / HTTP/1.1\r\nconnection: closed, close x\r\n\r\n";
    assert_eq!(read(on), (on.len(), Seen::All));
}

#[test]
fn what_follows_a_wish_for_another_protocol_waits_for_the_answer() {
    let wish = "GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    let mut framing = Framing::new(LIMITS);
    assert_eq!(framing.read(format!("{wish}\0\0").as_bytes()), (wish.len(), Seen::Switch));
    assert_eq!(framing.read(b"\0\0"), (0, Seen::Switch));
    assert_eq!(framing.resume(), Seen::All);
    assert_eq!(framing.read(b"GET / HTTP/1.1\r\n\r\n"), (18, Seen::All));
    let connect = "CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(framing.read(connect.as_bytes()), (connect.len(), Seen::Switch));
    assert_eq!((framing.resume(), framing.requests()), (Seen::All, 3));
    let last = "GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n";
    assert_eq!(framing.read(last.as_bytes()), (last.len(), Seen::Switch));
    assert_eq!(framing.resume(), Seen::Last);
}

#[test]
fn it_knows_where_it_is() {
    let mut framing = Framing::new(LIMITS);
    let mut after = |text: &str| {
        framing.read(text.as_bytes());
        framing.place()
    };
    assert_eq!(after("GET "), Place::Head);
    assert_eq!(after("/ HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r"), Place::Head);
    assert_eq!(after("\n"), Place::Body);
    assert_eq!(after("1\r\nx\r\n0\r\nx: y"), Place::Body);
    assert_eq!(after("\r\n\r\n"), Place::Between);
    assert_eq!(after("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\na"), Place::Body);
    assert_eq!(after("b"), Place::Between);
}

/// Bytes that are nearly requests.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /x?y HTTP/1.1\r\n", "GET http://a/ HTTP/1.0\r\n", "host: a\r\n", "x: y\r\n", "\r\n",
            "content-length: 3\r\n", "transfer-encoding: chunked\r\n", "connection: close\r\n", "upgrade: x\r\n", "abc",
            "3\r\nabc\r\n", "3;x=y\r\nabc\r\n", "0\r\n", "\r\n\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn how_the_bytes_come_makes_no_difference(bytes in nearly(), cut in 1..40_usize) {
        let mut whole = Framing::new(LIMITS);
        let seen = whole.read(&bytes);
        let mut pieces = Framing::new(LIMITS);
        let mut taken = 0;
        let mut last = Seen::All;
        for piece in bytes.chunks(cut) {
            let (here, now) = pieces.read(piece);
            taken += here;
            last = now;
            if here < piece.len() {
                break;
            }
        }
        // a fault at once spares what of its line would have been passed on in pieces
        if let (_, Seen::Fault(fault)) = seen {
            prop_assert_eq!(last, Seen::Fault(fault));
            prop_assert!(taken >= seen.0 && !bytes[seen.0..taken].ends_with(b"\r\n\r\n"));
        } else {
            prop_assert_eq!((taken, last), seen);
        }
        prop_assert_eq!(pieces.place(), whole.place());
    }
}

/// `cargo test --release -p servery-proto --lib -- --ignored --nocapture nanoseconds`
#[test]
#[ignore = "measures"]
fn nanoseconds_per_request() {
    let limits = Limits { line: 16 * 1024, head: 32 * 1024, fields: 100 };
    let small = "GET /hello HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n".to_owned();
    let browser = format!(
        "GET /a/b/c?d=e HTTP/1.1\r\nHost: example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 \
         Firefox/140.0\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: \
         en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\nCookie: {}\r\n\r\n",
        "session=0123456789abcdef; ".repeat(10)
    );
    let body = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n{}", "x".repeat(65536));
    for (name, request) in [("small", small), ("browser", browser), ("64 KiB body", body)] {
        let mut framing = Framing::new(limits);
        let rounds = 200_000_u32;
        let begun = Instant::now();
        for _ in 0..rounds {
            assert_eq!(framing.read(std::hint::black_box(request.as_bytes())), (request.len(), Seen::All));
        }
        println!("{name}: {} bytes, {:?} per request", request.len(), begun.elapsed() / rounds);
    }
}
