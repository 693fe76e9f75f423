//! The host a request is for. In: `Host`, the request target, `:authority`. Out: exactly one valid host, or a `Reject`.
//! Pure.

use crate::reject::Reject;
use http::{HeaderValue, header, request::Parts, uri::Authority};
use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
};

/// RFC 1035, section 2.3.4.
const LENGTH: usize = 253;

/// A host as routes and redirects want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// In lower case, without a final dot; an IPv6 address in brackets, in its shortest form.
    pub name: Cow<'a, str>,
    pub port: Option<u16>,
}

impl<'a> Host<'a> {
    /// RFC 9110, section 7.2: `uri-host [ ":" port ]`, and no more characters in the name than DNS and containers use.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (name, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']')?;
            let address: Ipv6Addr = address.parse().ok()?;
            let port = if rest.is_empty() { "" } else { rest.strip_prefix(':')? };
            (Cow::Owned(format!("[{address}]")), port)
        } else {
            let (name, port) = text.split_once(':').unwrap_or((text, ""));
            let name = name.strip_suffix('.').unwrap_or(name);
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if name.is_empty() || name.ends_with('.') || name.len() > LENGTH || !name.bytes().all(valid) {
                return None;
            }
            let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                Cow::Owned(name.to_ascii_lowercase())
            } else {
                Cow::Borrowed(name)
            };
            (name, port)
        };
        let port = match port {
            "" => None,
            digits if digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            _ => return None,
        };
        Some(Self { name, port })
    }

    /// A name or address of the machine itself: browsers remember a permanent redirect of `localhost` for other projects.
    pub fn is_loopback(&self) -> bool {
        let name = &*self.name;
        name == "localhost"
            || name.ends_with(".localhost")
            || name == "[::1]"
            || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
    }
}

/// The one host a request names, as it goes to the worker.
/// RFC 9112, section 3.2: exactly one `Host`; 3.2.2: the authority of an absolute target replaces it.
/// RFC 9113, section 8.3.1: `:authority` and `Host` agree.
pub fn of_request(head: &Parts) -> Result<HeaderValue, Reject> {
    let mut fields = head.headers.get_all(header::HOST).iter();
    let (field, more) = (fields.next(), fields.next());
    if more.is_some() {
        return Err(Reject::BadHost);
    }
    let authority = head.uri.authority().map(Authority::as_str);
    let value = match (field, authority) {
        (Some(field), None) => field.clone(),
        // HTTP/2 and later may go without `Host`
        (None, Some(authority)) if head.version >= http::Version::HTTP_2 => value_of(authority)?,
        (Some(field), Some(authority)) => {
            let agree = field.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
            if !agree && (head.version >= http::Version::HTTP_2 || !valid(field)) {
                return Err(Reject::BadHost);
            }
            value_of(authority)?
        }
        (None, _) => return Err(Reject::BadHost),
    };
    if valid(&value) { Ok(value) } else { Err(Reject::BadHost) }
}

fn value_of(authority: &str) -> Result<HeaderValue, Reject> {
    HeaderValue::from_str(authority).map_err(|_| Reject::BadHost)
}

fn valid(value: &HeaderValue) -> bool {
    value.to_str().ok().and_then(Host::parse).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Version};

    #[test]
    fn hosts_are_parsed_strictly() {
        let parsed = |text| Host::parse(text).map(|host| (host.name.into_owned(), host.port));
        assert_eq!(parsed("Example.com"), Some(("example.com".to_owned(), None)));
        assert_eq!(parsed("example.com.:8080"), Some(("example.com".to_owned(), Some(8080))));
        assert_eq!(parsed("a_b-c.d:"), Some(("a_b-c.d".to_owned(), None)));
        assert_eq!(parsed("[0::1]:443"), Some(("[::1]".to_owned(), Some(443))));
        for bad in [
            "",
            ":80",
            "a b",
            ".",
            "a..",
            "a:b",
            "a:99999",
            "a:1:2",
            "[::1",
            "[::1]x",
            "[]",
            "user@host",
            "a/b",
            "a?b",
            "::1",
            "a:+1",
        ] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn loopback_is_recognised_in_every_form() {
        for name in ["localhost", "app.localhost:80", "127.0.0.1", "127.1.2.3:1", "[::1]", "LOCALHOST"] {
            assert!(Host::parse(name).unwrap().is_loopback(), "{name}");
        }
        for name in ["example.com", "localhost.example.com", "10.0.0.1", "[::2]"] {
            assert!(!Host::parse(name).unwrap().is_loopback(), "{name}");
        }
    }

    fn host(version: Version, uri: &str, hosts: &[&str]) -> Result<String, Reject> {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        of_request(&head).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn http1_names_exactly_one_host() {
        let h1 = Version::HTTP_11;
        assert_eq!(host(h1, "/", &["a.org:1"]), Ok("a.org:1".to_owned()));
        assert_eq!(host(h1, "http://b.org/x", &["a.org"]), Ok("b.org".to_owned()), "the absolute form wins");
        assert_eq!(host(h1, "http://b.org/", &["a b"]), Err(Reject::BadHost), "but the field has to be valid too");
        assert_eq!(host(h1, "http://b.org/", &[]), Err(Reject::BadHost));
        assert_eq!(host(h1, "http://user@b.org/", &["b.org"]), Err(Reject::BadHost));
        for hosts in [&[][..], &["a", "b"], &["a", "a"], &[""], &["a/b"]] {
            assert_eq!(host(h1, "/", hosts), Err(Reject::BadHost), "{hosts:?}");
        }
    }

    #[test]
    fn http2_authority_and_host_agree() {
        let h2 = Version::HTTP_2;
        assert_eq!(host(h2, "https://a.org/", &[]), Ok("a.org".to_owned()));
        assert_eq!(host(h2, "https://a.org/", &["A.ORG"]), Ok("a.org".to_owned()));
        assert_eq!(host(h2, "/", &["a.org"]), Ok("a.org".to_owned()));
        assert_eq!(host(h2, "https://a.org/", &["b.org"]), Err(Reject::BadHost));
        assert_eq!(host(h2, "/", &[]), Err(Reject::BadHost));
    }
}
