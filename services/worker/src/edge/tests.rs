use super::*;

fn edge(trusted: &[&str]) -> Edge {
    let forwarded_allow_ips = trusted.iter().map(|network| (*network).to_owned()).collect();
    Edge::new(&worker::Edge { forwarded_allow_ips, ..worker::Edge::default() }, None).unwrap()
}

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

const FORGED: [(&str, &str); 12] = [
    ("host", "a.org:8000"),
    ("servery-pass", "x"),
    ("servery_pass", "x"),
    ("proxy", "http://evil"),
    ("x_forwarded_for", "1.1.1.1"),
    ("x-forwarded-for", "1.1.1.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "b.org"),
    ("x-forwarded-prefix", "/app"),
    ("forwarded", "for=1.1.1.1"),
    ("x-real-ip", "1.1.1.1"),
    ("x-request-id", "given"),
];

#[test]
fn a_client_cannot_say_where_it_comes_from() {
    let edge = edge(&["10.0.0.0/8"]);
    let hop = edge.hop(Some("[::ffff:192.0.2.7]:1234".parse().unwrap()));
    let mut request = headers(&FORGED);
    Edge::receive(&mut request, &hop);
    let mut names: Vec<&str> = request.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let ours = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-request-id"];
    assert_eq!(names, ours);
    assert_eq!(request["x-forwarded-for"], "192.0.2.7");
    assert_eq!(request["x-forwarded-proto"], "http");
    assert_eq!(request["x-forwarded-host"], "a.org:8000");
    assert_eq!(request["x-forwarded-port"], "8000");
    let id = request["x-request-id"].to_str().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(edge.client(&request, &hop), Some("192.0.2.7".parse().unwrap()));
}

#[test]
fn a_trusted_proxy_is_believed_but_not_what_only_looks_like_its_fields() {
    let edge = edge(&["10.0.0.0/8"]);
    let hop = edge.hop(Some("10.1.2.3:1234".parse().unwrap()));
    let mut request = headers(&FORGED);
    Edge::receive(&mut request, &hop);
    assert_eq!(request["x-forwarded-for"], "1.1.1.1, 10.1.2.3");
    assert_eq!(request["x-forwarded-proto"], "https");
    assert_eq!(request["x-forwarded-host"], "b.org");
    assert_eq!(request["x-forwarded-port"], "443");
    assert_eq!(request["x-forwarded-prefix"], "/app");
    assert_eq!(request["x-request-id"], "given");
    assert!(!request.contains_key("servery-pass") && !request.contains_key("proxy"));
    assert!(!request.contains_key("x_forwarded_for") && !request.contains_key("servery_pass"));
    assert_eq!(edge.client(&request, &hop), Some("1.1.1.1".parse().unwrap()));
    let request = headers(&[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.9")]);
    assert_eq!(edge.client(&request, &hop), Some("1.2.3.4".parse().unwrap()), "the first that is not trusted");
}

#[test]
fn a_unix_socket_is_trusted_and_has_no_address() {
    let edge = edge(&[]);
    let hop = edge.hop(None);
    let mut request = headers(&[("host", "a.org"), ("x-forwarded-for", "1.2.3.4"), ("x-request-id", "no good")]);
    Edge::receive(&mut request, &hop);
    assert_eq!(request["x-forwarded-for"], "1.2.3.4");
    assert_ne!(request["x-request-id"], "no good");
    assert_eq!(edge.client(&request, &hop), Some("1.2.3.4".parse().unwrap()));
    assert_eq!(edge.client(&HeaderMap::new(), &hop), None);
    assert!(edge.is_proxy(None));
}

#[test]
fn only_this_machine_may_speak_the_proxy_protocol_unless_others_are_named() {
    let peer = |text: &str| Some(text.parse().unwrap());
    let nobody = edge(&[]);
    assert!(nobody.is_proxy(peer("127.0.0.1:1")) && nobody.is_proxy(peer("[::1]:1")));
    assert!(!nobody.is_proxy(peer("192.0.2.1:1")));
    let configured = worker::Edge { proxy_allow_ips: vec!["192.0.2.1".to_owned()], ..worker::Edge::default() };
    let named = Edge::new(&configured, None).unwrap();
    assert!(named.is_proxy(peer("192.0.2.1:1")) && !named.is_proxy(peer("127.0.0.1:1")));
    let wrong = worker::Edge { forwarded_allow_ips: vec!["everybody".to_owned()], ..worker::Edge::default() };
    assert!(Edge::new(&wrong, None).unwrap_err().to_string().contains("everybody"));
}

#[test]
fn a_request_of_http_1_1_has_one_host() {
    for (version, hosts, good) in [
        (Version::HTTP_11, &[][..], false),
        (Version::HTTP_11, &["a"], true),
        (Version::HTTP_11, &["a.example:80"], true),
        (Version::HTTP_11, &["[::1]:80"], true),
        (Version::HTTP_11, &["a", "a"], false),
        (Version::HTTP_11, &[""], false),
        (Version::HTTP_11, &["a/b"], false),
        (Version::HTTP_11, &["u@a"], false),
        (Version::HTTP_11, &["a b"], false),
        (Version::HTTP_10, &[], true),
        (Version::HTTP_10, &["a", "a"], false),
    ] {
        let request = Request::builder().version(version);
        let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
        let checked = Edge::check(&request.body(()).unwrap());
        assert_eq!(checked, if good { Ok(()) } else { Err(Answer::NoHost) }, "{version:?} {hosts:?}");
    }
}
