//! Redirects: from HTTP to HTTPS, and configured ones. Pure, but for the answer's type.

use crate::{body::Body, host::Host, route::Prefix};
use http::{HeaderValue, Response, StatusCode, Uri, header};

/// The same URL over HTTPS. 308 keeps the method and is remembered; for the machine's own names 307, which is not: a
/// browser would go on redirecting `localhost:8080` for the next project that uses it.
pub fn to_https(host: &Host<'_>, uri: &Uri, port: u16) -> Response<Body> {
    let status = if host.is_loopback() { StatusCode::TEMPORARY_REDIRECT } else { StatusCode::PERMANENT_REDIRECT };
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let location = if port == 443 {
        format!("https://{}{target}", host.name)
    } else {
        format!("https://{}:{port}{target}", host.name)
    };
    answer(status, &location)
}

/// A configured redirect: `to` with what follows the prefix, and the query.
pub fn along(to: &str, prefix: &Prefix, uri: &Uri) -> Response<Body> {
    let rest = prefix.rest(uri.path()).unwrap_or_default();
    // never "//": a browser would take what follows for another host
    let rest = rest.trim_start_matches('/');
    let mut location = String::with_capacity(to.len() + rest.len() + 1);
    location.push_str(to);
    if !rest.is_empty() {
        if !location.ends_with('/') {
            location.push('/');
        }
        location.push_str(rest);
    }
    if let Some(query) = uri.query() {
        location.push(if to.contains('?') { '&' } else { '?' });
        location.push_str(query);
    }
    answer(StatusCode::PERMANENT_REDIRECT, &location)
}

fn answer(status: StatusCode, location: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    // a target may hold bytes beyond ASCII, as it came; nothing in it ends the field
    let location = HeaderValue::from_bytes(location.as_bytes()).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, location);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn https(host: &str, uri: &str, port: u16) -> (u16, String) {
        let response = to_https(&Host::parse(host).unwrap(), &uri.parse().unwrap(), port);
        (response.status().as_u16(), response.headers()["location"].to_str().unwrap().to_owned())
    }

    #[test]
    fn http_goes_to_the_same_place_over_https() {
        assert_eq!(https("Example.com:80", "/a?b=c", 443), (308, "https://example.com/a?b=c".to_owned()));
        assert_eq!(https("example.com", "http://example.com", 8443), (308, "https://example.com:8443/".to_owned()));
        assert_eq!(https("localhost:8080", "/", 8443), (307, "https://localhost:8443/".to_owned()));
        assert_eq!(https("[::1]:8080", "//x", 8443), (307, "https://[::1]:8443//x".to_owned()));
    }

    #[test]
    fn a_configured_redirect_keeps_the_rest_and_the_query() {
        let along = |to, prefix, uri: &str| {
            let response = along(to, &Prefix::parse(prefix).unwrap(), &uri.parse().unwrap());
            response.headers()["location"].to_str().unwrap().to_owned()
        };
        assert_eq!(along("https://b.org", "/old", "/old/x?y=1"), "https://b.org/x?y=1");
        assert_eq!(along("https://b.org/", "/", "/x"), "https://b.org/x");
        assert_eq!(along("/new", "/old", "/old"), "/new");
        assert_eq!(along("/", "/old", "/old//evil.org"), "/evil.org");
        assert_eq!(along("/s?a=1", "/old", "/old?b=2"), "/s?a=1&b=2");
    }
}
