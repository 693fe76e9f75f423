//! Fields behind a body (RFC 9110, section 6.5). In: what a client or a worker announces and sends there. Out: what the
//! other side may see of it. gRPC says with them how a call has ended. Towards a client only if it says that it takes them
//! (`TE: trailers`); in HTTP/1.1, in both directions, only those that the head has announced in `Trailer`. Never one that
//! would change how the message before it was read. Pure.

use crate::fields::words;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Frame;
use proto::forwarding::{is_disguised, is_forwarding, is_ours};

/// Whether a client takes them.
pub fn are_wanted(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().flat_map(words).any(|word| {
        let coding = word.split(|byte| *byte == b';').next().unwrap_or_default();
        coding.trim_ascii().eq_ignore_ascii_case(b"trailers")
    })
}

/// Tells a worker so, after `clean_request` (RFC 9110, section 10.1.4).
pub fn ask(headers: &mut HeaderMap) {
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
}

/// Leaves in `Trailer` only what may come.
pub fn announce(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TRAILER) {
        return;
    }
    let announced = headers.get_all(header::TRAILER).iter().flat_map(words);
    let names = announced.filter_map(|name| HeaderName::from_bytes(name).ok()).filter(may_come);
    let list = names.map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    headers.remove(header::TRAILER);
    if !list.is_empty() {
        let list = HeaderValue::try_from(list).expect("names and commas are a field value");
        headers.insert(header::TRAILER, list);
    }
}

/// A part of a body as it goes on: data as it is, trailers where they are `wanted` and only what may come. `None`: nothing
/// of it.
pub fn clean_frame(frame: Frame<Bytes>, wanted: bool) -> Option<Frame<Bytes>> {
    let mut fields = match frame.into_trailers() {
        Ok(fields) if wanted => fields,
        Ok(_) => return None,
        Err(data) => return Some(data),
    };
    let doomed: Vec<HeaderName> = fields.keys().filter(|name| !may_come(name)).cloned().collect();
    for name in doomed {
        fields.remove(name);
    }
    (!fields.is_empty()).then(|| Frame::trailers(fields))
}

/// Not what says where a message ends, where it goes, who sends it, or how to read what came before.
fn may_come(name: &HeaderName) -> bool {
    const NEVER: [&str; 28] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-length",
        "content-encoding",
        "content-type",
        "content-range",
        "host",
        "via",
        "max-forwards",
        "expect",
        "range",
        "cache-control",
        "authorization",
        "proxy-authorization",
        "www-authenticate",
        "proxy-authenticate",
        "cookie",
        "set-cookie",
        "location",
        "retry-after",
        "vary",
        "age",
    ];
    let name = name.as_str();
    !NEVER.contains(&name) && !is_ours(name) && !is_disguised(name) && !is_forwarding(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_client_says_that_it_takes_trailers() {
        for te in ["trailers", "gzip, Trailers", "gzip;q=0.5 , trailers ;q=1"] {
            assert!(are_wanted(&headers(&[("te", te)])), "{te}");
        }
        for te in ["", "gzip", "xtrailers", "trailers x"] {
            assert!(!are_wanted(&headers(&[("te", te)])), "{te}");
        }
    }

    #[test]
    fn what_would_change_the_message_or_speak_for_us_never_comes_behind_it() {
        let mut head =
            headers(&[("trailer", "Grpc-Status, content-length, host"), ("trailer", "authorization, x y, X-Sum")]);
        announce(&mut head);
        assert_eq!(head["trailer"], "grpc-status, x-sum");
        let mut head = headers(&[("trailer", "host")]);
        announce(&mut head);
        assert!(head.is_empty());
        let sent = [
            ("grpc-status", "0"),
            ("transfer-encoding", "chunked"),
            ("host", "evil"),
            ("authorization", "x"),
            ("set-cookie", "x"),
            ("servery-pass", "x"),
            ("servery_pass", "x"),
            ("x-forwarded-for", "x"),
        ];
        let clean = clean_frame(Frame::trailers(headers(&sent)), true).unwrap().into_trailers().unwrap();
        assert_eq!(clean, headers(&[("grpc-status", "0")]));
        assert!(clean_frame(Frame::trailers(headers(&sent)), false).is_none());
        assert!(clean_frame(Frame::trailers(headers(&sent[1..])), true).is_none());
    }
}
