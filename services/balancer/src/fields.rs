//! What happens to header fields on their way through. In: a request's or response's fields. Out: what the next hop
//! may see. Pure. What we say of where a request came from is `origin`'s.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::forwarding::{is_disguised, is_forwarding, is_ours};

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const SERVERY_PASS: HeaderName = HeaderName::from_static(proto::PASS_HEADER);
pub const SERVERY_CONNECTION: HeaderName = HeaderName::from_static(proto::CONNECTION_HEADER);
pub const SERVERY_REFUSED: HeaderName = HeaderName::from_static(proto::REFUSED_HEADER);
pub const SERVERY_DEBUG: HeaderName = HeaderName::from_static("servery-debug");

/// Fields that end at this hop (RFC 9110, section 7.6.1). `Transfer-Encoding` and `Content-Length` are hyper's business,
/// from the body it is given; `Trailer` is that of `trailers`.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "http2-settings"];

/// Protocols that a connection is not handed over to: other HTTP would bring requests that nobody here has looked at.
const NO_TUNNEL: [&str; 4] = ["h2c", "h2", "http", "tls"];

/// Field names that hyper or we answer for: `Connection: host` must not take them away.
const NOT_TO_BE_NAMED: [&str; 3] = ["host", "content-length", "content-type"];

/// Takes out of a client's request what ends here and what only we may say.
pub fn clean_request(headers: &mut HeaderMap, trusted: bool) {
    let unwanted = |name: &str| {
        HOP_BY_HOP.contains(&name)
            || name == "expect"
            || is_ours(name)
            || is_disguised(name)
            || (!trusted && is_forwarding(name))
    };
    remove(headers, unwanted);
}

/// Says how long the body is, in our own words: HTTP/2 may leave it out, a number may begin with zeros, and what came
/// beside chunks would be a lie that the next reader might believe. hyper says the rest.
pub fn say_length(headers: &mut HeaderMap, length: Option<u64>) {
    match (length, headers.get(header::CONTENT_LENGTH)) {
        (Some(length), Some(said)) if said.len() > 1 && said.as_bytes()[0] == b'0' => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        (None, Some(_)) => {
            headers.remove(header::CONTENT_LENGTH);
        }
        (Some(_), Some(_)) | (_, None) => {}
    }
}

/// The protocols that a client would rather speak (RFC 9110, section 7.8), where we let it.
pub fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let (upgrade, None) = (upgrades.next()?, upgrades.next()) else { return None };
    let connection = headers.get_all(header::CONNECTION);
    let named = connection.iter().flat_map(words).any(|word| word.eq_ignore_ascii_case(b"upgrade"));
    let tunnel = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default().trim_ascii();
        !name.is_empty() && !NO_TUNNEL.iter().any(|other| name.eq_ignore_ascii_case(other.as_bytes()))
    };
    (named && words(upgrade).all(tunnel)).then_some(upgrade)
}

/// The members of a list.
pub(crate) fn words(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// HTTP/2 clients may send a cookie in crumbs; HTTP/1.1 has one field (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let cookie = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).expect("field values joined are a field value");
    headers.insert(header::COOKIE, cookie);
}

/// Takes out of a worker's response what ends here.
pub fn clean_response(headers: &mut HeaderMap) {
    remove(headers, |name| HOP_BY_HOP.contains(&name) || is_ours(name));
}

/// One pass over the names; allocates only where there is something to remove.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let mut doomed: Vec<HeaderName> = Vec::new();
    if headers.contains_key(header::CONNECTION) {
        // the usual word is the name of a field that ends here anyhow
        let named = headers.get_all(header::CONNECTION).iter();
        for value in named.filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"keep-alive")) {
            let names = words(value).filter_map(|name| HeaderName::from_bytes(name).ok());
            doomed.extend(names.filter(|name| !NOT_TO_BE_NAMED.contains(&name.as_str())));
        }
    }
    doomed.extend(headers.keys().filter(|name| unwanted(name.as_str())).cloned());
    for name in doomed {
        headers.remove(name);
    }
}

/// An id a trusted proxy gave the request, if it can stand in logs as it is.
pub fn believed_id(headers: &HeaderMap, trusted: bool) -> Option<HeaderValue> {
    let id = headers.get(X_REQUEST_ID).filter(|_| trusted)?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+' | b'/');
    ((1..=128).contains(&id.len()) && id.as_bytes().iter().all(plain)).then(|| copied(id))
}

/// The same, without the head that it is a slice of.
fn copied(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("it is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_names_end_here() {
        let mut request = headers(&[
            ("connection", "keep-alive, X-Secret, host"),
            ("connection", "content-length"),
            ("keep-alive", "1"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("http2-settings", "x"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        clean_request(&mut request, false);
        assert_eq!(names(&request), ["accept", "content-length", "host"]);
    }

    #[test]
    fn a_client_may_ask_for_another_protocol_but_not_for_another_http() {
        let asked =
            |connection, protocols| upgrade(&headers(&[("connection", connection), ("upgrade", protocols)])).is_some();
        for connection in ["upgrade", "Upgrade", "keep-alive, Upgrade"] {
            assert!(asked(connection, "websocket") && asked(connection, "a/1, b"));
        }
        assert!(!asked("keep-alive", "websocket"), "left over from another hop");
        for protocols in ["", "h2c", "websocket, H2C", "HTTP/2.0", "http", "TLS/1.0", "websocket,", "/1"] {
            assert!(!asked("upgrade", protocols), "{protocols}");
        }
        assert!(upgrade(&headers(&[("connection", "upgrade")])).is_none());
        let two = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")]);
        assert!(upgrade(&two).is_none());
    }

    #[test]
    fn a_cookie_in_crumbs_is_one_field() {
        let mut request = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut request);
        assert_eq!(request.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn a_client_cannot_speak_for_us() {
        let fields = [
            ("servery-pass", "x"),
            ("servery_pass", "x"),
            ("servery-anything", "x"),
            ("proxy", "http://evil"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-ssl", "on"),
            ("forwarded", "for=1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("x-request-id", "forged"),
        ];
        let mut request = headers(&fields);
        clean_request(&mut request, false);
        assert_eq!(names(&request), [""; 0]);
        let mut request = headers(&fields);
        clean_request(&mut request, true);
        assert_eq!(names(&request), ["forwarded", "x-forwarded-for", "x-forwarded-ssl", "x-real-ip", "x-request-id"]);
        let mut response = headers(&[("servery-refused", "busy"), ("connection", "x-y"), ("x-y", "1"), ("etag", "1")]);
        clean_response(&mut response);
        assert_eq!(names(&response), ["etag"]);
    }

    #[test]
    fn ids_are_taken_only_when_plain_and_from_who_is_trusted() {
        assert_eq!(believed_id(&headers(&[("x-request-id", "abc-1")]), true).unwrap(), "abc-1");
        assert_eq!(believed_id(&headers(&[("x-request-id", "abc-1")]), false), None);
        for bad in ["", "a b", "a\"b", &"x".repeat(129)] {
            assert_eq!(believed_id(&headers(&[("x-request-id", bad)]), true), None, "{bad:?}");
        }
    }
}
