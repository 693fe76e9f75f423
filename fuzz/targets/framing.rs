//! The strict reader of HTTP/1.1 sees the same in the same bytes however they come, and what it lets through as a whole head
//! another reader understands as one that ends there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::framing::{Framing, Limits, Seen};

const LIMITS: Limits = Limits { line: 512, head: 1024, fields: 16 };

/// How many bytes are taken, of how many requests, and what comes then, when they come in pieces of this size.
fn read(bytes: &[u8], piece: usize) -> (usize, u32, Seen) {
    let (mut framing, mut taken) = (Framing::new(LIMITS), 0);
    for piece in bytes.chunks(piece) {
        let (some, seen) = framing.read(piece);
        assert!(some <= piece.len());
        taken += some;
        if seen != Seen::All {
            return (taken, framing.requests(), seen);
        }
    }
    (taken, framing.requests(), Seen::All)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, bytes.len().max(1));
    for piece in [1, 2, 7] {
        let (taken, requests, seen) = read(bytes, piece);
        // a head may be wrong in two ways, and which one is seen first is all the same
        let broken = [seen, whole.2].iter().all(|seen| matches!(seen, Seen::Fault(_)));
        assert!(
            requests == whole.1 && (broken || seen == whole.2),
            "in pieces of {piece}: {seen:?}, not {:?}",
            whole.2
        );
        // of a head that breaks, what came before its end may have been passed on
        assert!(taken == whole.0 || matches!(seen, Seen::Fault(_)), "in pieces of {piece}: {taken} of {}", whole.0);
    }
    let Some(end) = bytes[..whole.0].windows(4).position(|four| four == b"\r\n\r\n") else { return };
    let head = &bytes[..end + 4];
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) => assert_eq!(length, head.len()),
        other => panic!("let through, and not understood: {other:?}"),
    }
    let named = |name: &str| request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
    assert!(named("content-length") + named("transfer-encoding") <= 1, "two frames");
});
