//! What a client may make large or slow at most: come in the configuration and a request's head, goes out whether the
//! application sees it. Where hyper would answer by itself, empty and unlogged, it is set so that our answer comes first.

use crate::answer::Answer;
use http::{HeaderMap, Request, Uri, header};
use hyper::server::conn::http1;
use proto::worker;
use std::time::Duration;

/// Defaults, where the configuration says 0.
const LINE: usize = 16 * 1024;
const FIELDS: usize = 256;
const FIELD: usize = 32 * 1024;
const BODY: u64 = 1 << 30;
const HEADER: Duration = Duration::from_secs(10);
const STALL: Duration = Duration::from_secs(60);

/// More fields than this above the limit are hyper's to refuse.
const COUNTED_FIELDS: usize = 64;

/// What a balancer adds to a client's fields: its pass, seven forwarding fields, and some for the next versions.
const BALANCER_FIELDS: usize = 16;

/// Largest head as a whole, and most of a response that is buffered: hyper's own default. All fields together stay
/// below, so that a connection costs less than half a megabyte whatever the other limits allow.
const HEAD: usize = 408 * 1024;

/// Checked before a request gets a slot, and held while its body arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    line: usize,
    fields: usize,
    field: usize,
    pub(crate) body: u64,
    /// From the first byte of a head to its end.
    pub(crate) header: Duration,
    /// Between two parts of a body, and between two parts of a response that a client takes.
    pub(crate) stall: Duration,
}

impl Limits {
    pub(crate) fn new(configured: Option<worker::Limits>, behind_balancer: bool) -> Self {
        let configured = configured.unwrap_or_default();
        let size = |size: u32, default: usize| match usize::try_from(size) {
            Ok(0) | Err(_) => default,
            Ok(size) => size,
        };
        let time = |millis: u32, default| if millis == 0 { default } else { Duration::from_millis(millis.into()) };
        let fields = size(configured.fields, FIELDS);
        Self {
            line: size(configured.request_line_bytes, LINE),
            fields: if behind_balancer { fields.saturating_add(BALANCER_FIELDS) } else { fields },
            field: size(configured.field_bytes, FIELD),
            body: if configured.body_bytes == 0 { BODY } else { configured.body_bytes },
            header: time(configured.header_ms, HEADER),
            stall: time(configured.body_stall_ms, STALL),
        }
    }

    /// Makes hyper let through what is within the limits, and a little more, so that we see it.
    pub(crate) fn apply(&self, builder: &mut http1::Builder) {
        let head = HEAD.max(self.line.saturating_add(self.field).saturating_add(8192));
        builder.max_buf_size(head).max_headers(self.fields.saturating_add(COUNTED_FIELDS));
    }

    /// Which answer a request gets instead of the application's.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), Answer> {
        // both sides of the line's two spaces, and the version
        let line = request.method().as_str().len() + target_bytes(request.uri()) + " HTTP/1.1 ".len();
        if line > self.line {
            return Err(Answer::LineTooLong);
        }
        let headers = request.headers();
        if headers.len() > self.fields {
            return Err(Answer::FieldsTooLarge);
        }
        if headers.iter().any(|(name, value)| name.as_str().len() + value.len() > self.field) {
            return Err(Answer::FieldsTooLarge);
        }
        if declared_bytes(headers).is_some_and(|declared| declared > self.body) {
            return Err(Answer::BodyTooLarge);
        }
        Ok(())
    }
}

fn target_bytes(uri: &Uri) -> usize {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    scheme + authority + uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// hyper has refused what is no number, and hidden this field where the body is chunked.
fn declared_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Answer, BALANCER_FIELDS, Limits};
    use http::Request;
    use proto::worker;
    use std::time::Duration;

    #[test]
    fn what_is_not_configured_is_the_default() {
        let limits = Limits::new(None, false);
        assert_eq!((limits.line, limits.fields, limits.field, limits.body), (16_384, 256, 32_768, 1 << 30));
        assert_eq!((limits.header, limits.stall), (Duration::from_secs(10), Duration::from_secs(60)));
        let configured = worker::Limits { fields: 3, header_ms: 7, ..worker::Limits::default() };
        let limits = Limits::new(Some(configured), true);
        assert_eq!((limits.line, limits.fields, limits.header.as_millis()), (16_384, 3 + BALANCER_FIELDS, 7));
    }

    #[test]
    fn each_limit_lets_through_what_reaches_it_and_nothing_above() {
        let configured = worker::Limits {
            request_line_bytes: 32,
            fields: 3,
            field_bytes: 20,
            body_bytes: 1000,
            ..worker::Limits::default()
        };
        let limits = Limits::new(Some(configured), false);
        let request = |target: &str, fields: &[(&str, &str)]| {
            let request = Request::builder().uri(target);
            fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
        };
        // "GET " and " HTTP/1.1" are 13 bytes
        assert_eq!(limits.check(&request(&format!("/{}", "x".repeat(18)), &[])), Ok(()));
        assert_eq!(limits.check(&request(&format!("/{}", "x".repeat(19)), &[])), Err(Answer::LineTooLong));
        assert_eq!(limits.check(&request("http://example.org", &[])), Ok(()));
        assert_eq!(limits.check(&request("http://example.org/", &[])), Ok(()));
        assert_eq!(limits.check(&request("http://example.org/x", &[])), Err(Answer::LineTooLong));
        assert_eq!(limits.check(&request("/", &[("a", "1"), ("a", "2"), ("b", "3")])), Ok(()));
        let four = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")];
        assert_eq!(limits.check(&request("/", &four)), Err(Answer::FieldsTooLarge));
        assert_eq!(limits.check(&request("/", &[("name", &"x".repeat(16))])), Ok(()));
        assert_eq!(limits.check(&request("/", &[("name", &"x".repeat(17))])), Err(Answer::FieldsTooLarge));
        assert_eq!(limits.check(&request("/", &[("content-length", "1000")])), Ok(()));
        assert_eq!(limits.check(&request("/", &[("content-length", "1001")])), Err(Answer::BodyTooLarge));
    }
}
