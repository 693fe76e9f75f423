//! gRPC, of which this worker speaks only what HTTP/1.1 can carry. In: the head of an application's answer. Out: the same,
//! with the fields announced that say behind its body how the call has ended: hyper sends no others there.

use http::{HeaderMap, HeaderValue, header};

const STATUS: HeaderValue = HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");

/// Where the application has not announced what it will send there itself.
pub(crate) fn announce_status(headers: &mut HeaderMap) {
    let is_call =
        headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // a call that has failed at once says so in its head
    if is_call && !headers.contains_key("grpc-status") {
        headers.entry(header::TRAILER).or_insert(STATUS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_announces_how_it_will_end_and_nothing_else_does() {
        let announced = |fields: &[(&'static str, &'static str)]| {
            let mut headers: HeaderMap = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            announce_status(&mut headers);
            headers.get("trailer").map(|trailer| trailer.to_str().unwrap().to_owned())
        };
        let status = Some("grpc-status, grpc-message, grpc-status-details-bin".to_owned());
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert_eq!(announced(&[("content-type", kind)]), status);
        }
        assert_eq!(announced(&[]), None);
        assert_eq!(announced(&[("content-type", "application/json")]), None);
        assert_eq!(announced(&[("content-type", "application/grpc"), ("grpc-status", "5")]), None);
        let own = [("content-type", "application/grpc"), ("trailer", "grpc-status, x")];
        assert_eq!(announced(&own), Some("grpc-status, x".to_owned()));
    }
}
