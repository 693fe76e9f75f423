//! Requests that two readers could take for different messages: one table for every reader that there is. In: nothing. Out:
//! bytes, and what they have to be refused with. Whoever takes one of them for a good one, or goes on reading behind it, hands
//! its sender other people's requests (RFC 9112, section 11.2).

/// What is sent behind each of them, and must never be a request.
pub const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// A request whose body goes on with one of [`bodies`].
pub const BEGUN: &str = "POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";

/// A request that is to be refused before anybody is asked.
#[derive(Debug)]
pub struct Malformed {
    pub request: String,
    pub status: u16,
    /// In the balancer's log.
    pub reason: &'static str,
}

/// Request lines, fields and framing.
pub fn heads() -> Vec<Malformed> {
    let post = |fields: &str| format!("POST /first HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    let mut classes = Vec::new();
    let mut add = |request, status, reason| classes.push(Malformed { request, status, reason });
    for text in [
        // bare LF, CR, NUL
        "GET /first HTTP/1.1\nhost: a\n\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\nx: y\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\r\n\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\rhost: a\r\r".to_owned(),
        "\n".to_owned(),
        // folded lines, spaces before colons
        "GET /first HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\n host: a\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost : a\r\n\r\n".to_owned(),
        "GET /first HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n".to_owned(),
        // request lines
        "GET /first\u{e4} HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /first second HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /first#x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "G\u{1}T /first HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /first\r\n\r\n".to_owned(),
        "GET http://u@a/first HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
    ] {
        add(text, 400, "malformed");
    }
    for version in ["HTTP/1.2", "HTTP/2.0", "HTTP/9.9", "HTTP/0.9"] {
        add(format!("GET /first {version}\r\nhost: a\r\n\r\n"), 505, "bad_version");
    }
    for fields in [
        "content-length: 3\r\ncontent-length: 4\r\n",
        "content-length: 3\r\ncontent-length: 3\r\n",
        "content-length: 3, 3\r\n",
        "content-length: +3\r\n",
        "content-length: -1\r\n",
        "content-length: 0x3\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length:\r\n",
        "content-length: 37\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 37\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: xchunked\r\n",
    ] {
        add(post(fields) + "0\r\n\r\n", 400, "bad_framing");
    }
    let old =
        "POST /first HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    add(old.to_owned(), 400, "bad_framing");
    add(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(20_000)), 414, "target_too_long");
    add(post(&"x: y\r\n".repeat(100)), 431, "too_many_fields");
    add(post(&format!("x: {}\r\n", "y".repeat(33_000))), 431, "header_too_large");
    // hosts are our own business, and the connection is still in step after it
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n", "host: a/b\r\n", "host:\r\n"] {
        add(format!("GET /first HTTP/1.1\r\nconnection: close\r\n{hosts}\r\n"), 400, "bad_host");
    }
    classes
}

/// Rests of chunked bodies that end nowhere, or not where another reader would say.
pub fn bodies() -> Vec<String> {
    let long = format!("1;{}\r\nx\r\n", "e".repeat(257));
    let endless = format!("1;{}\r\nx\r\n", "e".repeat(256)).repeat(33);
    let trailers = format!("0\r\nx: {}\r\n\r\n", "y".repeat(9000));
    let fixed = [
        "+1\r\nx\r\n0\r\n\r\n",
        "0x1\r\nx\r\n0\r\n\r\n",
        "1 \r\nx\r\n0\r\n\r\n",
        " 1\r\nx\r\n0\r\n\r\n",
        "1\nx\r\n0\r\n\r\n",
        "1;a\nx\r\n0\r\n\r\n",
        "1;a\rb\r\nx\r\n0\r\n\r\n",
        "1\r\nxy\r\n0\r\n\r\n",
        "1\r\nx\n0\r\n\r\n",
        "00000000000000001\r\nx\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nx\r\n0\r\n\r\n",
        "0\r\n\n",
        "0\r\nx : y\r\n\r\n",
        "0\r\n x: y\r\n\r\n",
        "0\r\nhost: evil\r\n\r\n",
        "0\r\ncontent-length: 3\r\n\r\n",
        "0\r\ntransfer-encoding: chunked\r\n\r\n",
    ];
    let mut bodies: Vec<String> = fixed.map(str::to_owned).into();
    bodies.extend([long, endless, trailers]);
    bodies
}
