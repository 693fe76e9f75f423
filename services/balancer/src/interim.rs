//! Interim responses (1xx, RFC 9110 section 15.2). In: those that an upstream sends while a client's request waits for its
//! answer: 100, 102, 103 with links to fetch early. Out: their bytes for an HTTP/1.1 client, as `strict` writes them in front
//! of that answer and of nothing else. hyper takes them from an upstream and has no way to send one to a client.
//!
//! Bounded per request, over all its attempts: what is too much is left out, and the answer comes all the same.

use crate::fields;
use http::{HeaderMap, StatusCode, header};
use std::{
    io::Write as _,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Interim responses of one request.
const MOST: u32 = 16;
/// And their bytes.
const BYTES: usize = 8 * 1024;

/// What one connection's current request has had of them and nobody has written yet. One thread fills it and takes from it;
/// hyper only wants to be sure that two could.
#[derive(Debug, Default)]
pub(crate) struct Interim {
    waits: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Whose they are.
    request: u64,
    bytes: Vec<u8>,
    /// Of this request so far.
    number: u32,
    length: usize,
}

impl Interim {
    /// Holds one for this request, and forgets what is left of another.
    pub(crate) fn put(&self, request: u64, status: StatusCode, headers: &HeaderMap) {
        let mut held = self.lock();
        if held.request != request {
            *held = Held { request, ..Held::default() };
        }
        let bytes = encode(status, headers);
        if held.number == MOST || held.length + bytes.len() > BYTES {
            tracing::debug!(%status, "an interim response is left out: there were too many, or it is too long");
            return;
        }
        held.number += 1;
        held.length += bytes.len();
        held.bytes.extend(bytes);
        self.waits.store(true, Ordering::Relaxed);
    }

    pub(crate) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// What waits, if it is this request's; nothing waits after it.
    pub(crate) fn take(&self, request: u64) -> Vec<u8> {
        self.waits.store(false, Ordering::Relaxed);
        let mut held = self.lock();
        let bytes = mem::take(&mut held.bytes);
        if held.request == request { bytes } else { Vec::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a client may see it: it has no content, so nothing that would say how long that is.
fn encode(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut headers = headers.clone();
    fields::clean_response(&mut headers);
    for name in [header::CONTENT_LENGTH, header::TRAILER] {
        headers.remove(name);
    }
    let mut bytes = Vec::new();
    // writing to memory does not fail
    _ = write!(bytes, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    for (name, value) in &headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn hints(length: usize) -> HeaderMap {
        let value = HeaderValue::try_from("x".repeat(length)).unwrap();
        HeaderMap::from_iter([(header::LINK, value)])
    }

    #[test]
    fn an_interim_response_ends_with_its_head_whatever_an_upstream_says() {
        let mut headers = hints(3);
        for name in ["content-length", "transfer-encoding", "trailer", "connection", "servery-refused"] {
            headers.insert(name, HeaderValue::from_static("3"));
        }
        assert_eq!(encode(StatusCode::EARLY_HINTS, &headers), b"HTTP/1.1 103 Early Hints\r\nlink: xxx\r\n\r\n");
        assert_eq!(encode(StatusCode::from_u16(199).unwrap(), &HeaderMap::new()), b"HTTP/1.1 199 \r\n\r\n");
    }

    #[test]
    fn a_request_has_so_many_of_them_and_no_more() {
        let interim = Interim::default();
        for _ in 0..3 * MOST {
            interim.put(1, StatusCode::PROCESSING, &HeaderMap::new());
        }
        assert_eq!(String::from_utf8(interim.take(1)).unwrap().matches("HTTP/1.1 102 ").count(), 16);
        interim.put(1, StatusCode::PROCESSING, &HeaderMap::new());
        assert!(!interim.waits(), "what was taken counts too");
        interim.put(2, StatusCode::EARLY_HINTS, &hints(BYTES));
        assert!(!interim.waits(), "too long");
        interim.put(2, StatusCode::EARLY_HINTS, &hints(BYTES / 2));
        interim.put(2, StatusCode::EARLY_HINTS, &hints(BYTES / 2));
        assert!((BYTES / 2..BYTES).contains(&interim.take(2).len()));
    }

    #[test]
    fn what_is_left_of_one_request_is_nothing_for_the_next() {
        let interim = Interim::default();
        interim.put(1, StatusCode::PROCESSING, &HeaderMap::new());
        assert!(interim.waits() && interim.take(2).is_empty() && interim.take(1).is_empty());
        interim.put(1, StatusCode::PROCESSING, &HeaderMap::new());
        interim.put(2, StatusCode::CONTINUE, &HeaderMap::new());
        assert_eq!(interim.take(2), b"HTTP/1.1 100 Continue\r\n\r\n");
    }
}
