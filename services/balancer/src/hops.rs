//! What a request says of the way it takes. In: its method, target and fields. Out: whether it ends here, and the fields
//! that count us in. Pure.

use crate::{
    body::Body,
    reject::{ALLOWED, Reject},
    websocket,
};
use http::{HeaderMap, HeaderValue, Method, Response, Version, header, request::Parts};
use hyper::ext::Protocol;

/// What is answered without asking an application: an OPTIONS request about the server as a whole, or one that has no more
/// hops to go (RFC 9110, sections 9.3.7 and 7.6.2). CONNECT would make us a proxy for anything, but where it opens a WebSocket
/// over HTTP/2; TRACE would show a client what others have added to its request.
pub fn ends_here(head: &mut Parts) -> Result<Option<Response<Body>>, Reject> {
    let general = head.uri.path() == "*";
    if head.method != Method::OPTIONS {
        let refused = match head.method {
            Method::TRACE => Some(Reject::MethodNotAllowed),
            Method::CONNECT => refused(head.extensions.get()),
            _ => None,
        };
        return match (refused, general) {
            (Some(reject), _) => Err(reject),
            (None, true) => Err(Reject::BadTarget),
            (None, false) => Ok(None),
        };
    }
    let left = hops_left(&head.headers)?;
    if general || left == Some(0) {
        let mut response = Response::new(Body::empty());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
        return Ok(Some(response));
    }
    if let Some(left) = left {
        head.headers.insert(header::MAX_FORWARDS, HeaderValue::from(left - 1));
    }
    Ok(None)
}

/// Why a CONNECT is not for us. Only one that came over HTTP/2 names a protocol (RFC 8441, section 4).
fn refused(protocol: Option<&Protocol>) -> Option<Reject> {
    match protocol {
        None => Some(Reject::MethodNotAllowed),
        Some(protocol) => (!websocket::is_named(protocol)).then_some(Reject::UnknownProtocol),
    }
}

/// `Max-Forwards`, where there is one.
fn hops_left(headers: &HeaderMap) -> Result<Option<u32>, Reject> {
    let mut fields = headers.get_all(header::MAX_FORWARDS).iter();
    match (fields.next(), fields.next()) {
        (None, _) => Ok(None),
        (Some(field), None) if field.as_bytes().iter().all(u8::is_ascii_digit) => {
            // more than any way has hops is as good as that
            let left = field.to_str().ok().filter(|text| !text.is_empty()).ok_or(Reject::Malformed)?;
            Ok(Some(left.parse().unwrap_or(u32::MAX)))
        }
        (Some(_), _) => Err(Reject::Malformed),
    }
}

/// Adds us to `Via`, with the protocol that the request came by (RFC 9110, section 7.6.3).
pub fn say_via(headers: &mut HeaderMap, version: Version) {
    let via = match version {
        Version::HTTP_10 => "1.0 servery",
        Version::HTTP_2 => "2.0 servery",
        _ => "1.1 servery",
    };
    headers.append(header::VIA, HeaderValue::from_static(via));
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn asked(method: Method, target: &str, hops: &[&str]) -> (Parts, Result<Option<u16>, Reject>) {
        let mut request = Request::builder().method(method).uri(target);
        for hops in hops {
            request = request.header("max-forwards", *hops);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let ended = ends_here(&mut head).map(|response| response.map(|response| response.status().as_u16()));
        (head, ended)
    }

    #[test]
    fn options_with_no_more_hops_ends_here_and_others_are_counted_down() {
        assert_eq!(asked(Method::OPTIONS, "/a", &["0"]).1, Ok(Some(200)));
        assert_eq!(asked(Method::OPTIONS, "*", &[]).1, Ok(Some(200)));
        assert_eq!(asked(Method::OPTIONS, "*", &["5"]).1, Ok(Some(200)));
        for (before, after) in [("1", "0"), ("10", "9"), ("99999999999", "4294967294")] {
            let (head, ended) = asked(Method::OPTIONS, "/a", &[before]);
            assert_eq!((ended, head.headers["max-forwards"].to_str().unwrap()), (Ok(None), after));
        }
        // of other methods it may be ignored
        let (head, ended) = asked(Method::GET, "/a", &["0"]);
        assert_eq!((ended, head.headers["max-forwards"].to_str().unwrap()), (Ok(None), "0"));
    }

    #[test]
    fn a_number_of_hops_is_one_number() {
        for hops in [&["-1"][..], &["1x"], &[""], &["1", "1"]] {
            assert_eq!(asked(Method::OPTIONS, "/a", hops).1, Err(Reject::Malformed), "{hops:?}");
        }
    }

    #[test]
    fn connect_and_trace_are_not_for_us() {
        for (method, target) in [(Method::CONNECT, "a:443"), (Method::TRACE, "/a"), (Method::TRACE, "*")] {
            assert_eq!(asked(method, target, &["0"]).1, Err(Reject::MethodNotAllowed));
        }
        assert_eq!(asked(Method::GET, "*", &[]).1, Err(Reject::BadTarget));
    }

    #[test]
    fn connect_is_for_us_where_it_opens_a_websocket() {
        let connect = |target: &str, protocol: &'static str| {
            let request = Request::connect(target).extension(Protocol::from_static(protocol));
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            ends_here(&mut head).map(|response| response.is_some())
        };
        assert_eq!(connect("https://a/ws", "websocket").ok(), Some(false));
        assert_eq!(connect("https://a/ws", "WebSocket").ok(), Some(false));
        for protocol in ["", "websocket2", "connect-udp", "websocket, h2c"] {
            assert_eq!(connect("https://a/ws", protocol).err(), Some(Reject::UnknownProtocol), "{protocol}");
        }
        assert_eq!(connect("*", "websocket").err(), Some(Reject::BadTarget));
    }
}
