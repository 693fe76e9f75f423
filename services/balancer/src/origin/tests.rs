use super::*;
use proptest::prelude::*;

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

fn ten() -> Vec<Network> {
    vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
}

/// A connection of 10.0.0.9.
fn hop(trusted: &[Network]) -> Hop {
    Hop::new("[::ffff:10.0.0.9]:1234".parse().unwrap(), "https", trusted)
}

/// What becomes of these fields, from 10.0.0.9 whom we trust.
fn told(fields: &[(&str, &str)]) -> (String, &'static str, HeaderMap) {
    let (trusted, mut headers) = (ten(), headers(fields));
    let hop = hop(&trusted);
    let origin = hop.origin(&headers, &trusted);
    hop.forward(&mut headers, &origin, &HeaderValue::from_static("a.org"), None, None);
    (origin.client.to_string(), origin.scheme, headers)
}

#[test]
fn forwarding_fields_name_the_peer() {
    let (hop, mut request) = (hop(&[]), HeaderMap::new());
    let origin = hop.origin(&request, &[]);
    hop.forward(&mut request, &origin, &HeaderValue::from_static("a.org:8443"), Some(8443), Some("/flask"));
    assert_eq!(request["x-forwarded-for"], "10.0.0.9");
    assert_eq!(request["x-forwarded-proto"], "https");
    assert_eq!(request["x-forwarded-host"], "a.org:8443");
    assert_eq!(request["x-forwarded-port"], "8443");
    assert_eq!(request["x-forwarded-prefix"], "/flask");
    assert_eq!(request["forwarded"], "for=10.0.0.9;host=\"a.org:8443\";proto=https");
    let six = Hop::new("[2001:db8::1]:1".parse().unwrap(), "http", &[]);
    let origin = six.origin(&request, &[]);
    six.forward(&mut request, &origin, &HeaderValue::from_static("a.org"), None, None);
    assert_eq!(request["x-forwarded-for"], "2001:db8::1");
    assert_eq!(request["forwarded"], "for=\"[2001:db8::1]\";host=\"a.org\";proto=http");
}

#[test]
fn another_host_on_the_same_connection_is_said_anew() {
    let hop = hop(&[]);
    for (host, port) in [("a.org", None), ("a.org", None), ("b.org:81", Some(81)), ("a.org", None)] {
        let mut request = HeaderMap::new();
        let origin = hop.origin(&request, &[]);
        hop.forward(&mut request, &origin, &HeaderValue::from_static(host), port, None);
        assert_eq!(request["forwarded"], format!("for=10.0.0.9;host=\"{host}\";proto=https"));
        assert_eq!(request["x-forwarded-port"], port.unwrap_or(443).to_string());
        assert_eq!(request["x-forwarded-host"], host);
    }
}

#[test]
fn who_is_not_trusted_is_the_client_whatever_it_says() {
    let request = headers(&[
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6;proto=http"),
        ("x-forwarded-proto", "http"),
    ]);
    let origin = hop(&[]).origin(&request, &[]);
    assert_eq!((origin.client.to_string().as_str(), origin.scheme), ("10.0.0.9", "https"));
}

#[test]
fn the_client_is_the_nearest_who_is_not_a_trusted_proxy() {
    for (fields, client) in [
        (&["1.2.3.4"][..], "1.2.3.4"),
        (&["6.6.6.6, 1.2.3.4, 10.0.0.1"], "1.2.3.4"),
        (&["6.6.6.6", "1.2.3.4,10.1.1.1", "10.0.0.1"], "1.2.3.4"),
        (&["1.2.3.4:567, 10.0.0.1:80"], "1.2.3.4"),
        (&["[2001:db8::1]:80, fd00::1, [fd00::2]:1"], "2001:db8::1"),
        (&["::ffff:1.2.3.4, ::ffff:10.0.0.1"], "1.2.3.4"),
        // nobody but proxies
        (&["10.0.0.2, 10.0.0.1"], "10.0.0.2"),
        // empty members of a list are none
        (&["1.2.3.4, ,", ""], "1.2.3.4"),
        // the last good one
        (&["1.2.3.4, nonsense, 10.0.0.1"], "10.0.0.1"),
        (&["1.2.3.4, unknown"], "10.0.0.9"),
        (&["1.2.3.4, 10.0.0.1 10.0.0.2"], "10.0.0.9"),
        (&["1.2.3.4, [10.0.0.1"], "10.0.0.9"),
        (&["1.2.3.4, 10.0.0.1:99999"], "10.0.0.9"),
        (&["1.2.3.4, \u{7f}é"], "10.0.0.9"),
        (&[""], "10.0.0.9"),
    ] {
        let fields: Vec<_> = fields.iter().filter_map(|field| HeaderValue::from_bytes(field.as_bytes()).ok()).collect();
        let mut request = HeaderMap::new();
        for field in &fields {
            request.append("x-forwarded-for", field.clone());
        }
        assert_eq!(hop(&ten()).origin(&request, &ten()).client.to_string(), client, "{fields:?}");
    }
}

#[test]
fn what_nobody_has_vouched_for_goes_no_further() {
    let (_, _, request) = told(&[
        ("x-forwarded-for", "6.6.6.6, 1.2.3.4"),
        ("x-forwarded-for", "[2001:db8::1]:80, 10.0.0.1"),
        ("forwarded", "for=6.6.6.6;proto=http"),
        ("x-forwarded-proto", "http"),
    ]);
    assert_eq!(request["x-forwarded-for"], "2001:db8::1, 10.0.0.1, 10.0.0.9");
    assert_eq!(request.get_all("x-forwarded-for").iter().count(), 1);
    let forwarded = "for=\"[2001:db8::1]\";proto=http, for=10.0.0.1, for=10.0.0.9;host=\"a.org\";proto=https";
    assert_eq!(request.get_all("forwarded").iter().collect::<Vec<_>>(), [forwarded]);
    assert_eq!(
        (&request["x-forwarded-proto"], &request["x-forwarded-port"]),
        (&"http".parse().unwrap(), &"80".parse().unwrap())
    );
    let (_, _, request) = told(&[("x-forwarded-for", "6.6.6.6, garbage"), ("forwarded", "for=6.6.6.6")]);
    assert_eq!(request["x-forwarded-for"], "10.0.0.9");
    assert_eq!(request["forwarded"], "for=10.0.0.9;host=\"a.org\";proto=https");
}

#[test]
fn a_proxy_may_speak_by_rfc_7239() {
    for (fields, client, scheme) in [
        (&["for=1.2.3.4"][..], "1.2.3.4", "https"),
        (&["For=\"[2001:db8::1]:4711\";Proto=HTTP;by=10.0.0.9"], "2001:db8::1", "http"),
        (&["for=6.6.6.6", "proto=http;for=1.2.3.4:80, for=10.0.0.1;proto=https"], "1.2.3.4", "http"),
        (&["for=\"1.2.3.4:_port\";host=\"a,b\", for=10.0.0.1"], "1.2.3.4", "https"),
        // a quote that is not closed, before what the proxy has added
        (&["for=\"6.6.6.6, for=1.2.3.4"], "1.2.3.4", "https"),
        (&["for=\"6.6.6.6\\", "for=1.2.3.4"], "1.2.3.4", "https"),
        // the last good one
        (&["for=1.2.3.4, for=unknown"], "10.0.0.9", "https"),
        (&["for=1.2.3.4, for=_hidden, for=10.0.0.1"], "10.0.0.1", "https"),
        (&["for=1.2.3.4;for=1.2.3.5"], "10.0.0.9", "https"),
        (&["for=1.2.3.4, proto=http"], "10.0.0.9", "https"),
        (&["for=1.2.3.4, for=\"10.0.0.1"], "10.0.0.9", "https"),
        (&["for=1.2.3.4, for=\"10.0.0.1\\\""], "10.0.0.9", "https"),
        (&["1.2.3.4"], "10.0.0.9", "https"),
    ] {
        let fields: Vec<(&str, &str)> = fields.iter().map(|field| ("forwarded", *field)).collect();
        let origin = hop(&ten()).origin(&headers(&fields), &ten());
        assert_eq!((origin.client.to_string().as_str(), origin.scheme), (client, scheme), "{fields:?}");
    }
    let (_, _, request) =
        told(&[("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]\";host=b.org;proto=http, for=10.0.0.1")]);
    assert_eq!(
        request["forwarded"],
        "for=\"[2001:db8::1]\";host=b.org;proto=http, for=10.0.0.1, for=10.0.0.9;host=\"a.org\";proto=https"
    );
    assert_eq!(request["x-forwarded-for"], "2001:db8::1, 10.0.0.1, 10.0.0.9");
    assert_eq!(request["x-forwarded-proto"], "http");
}

#[test]
fn the_schemes_word_is_the_nearest_proxys() {
    for (values, scheme) in [
        (&["http"][..], "http"),
        (&["HTTPS"], "https"),
        (&["ws"], "http"),
        (&["wss"], "https"),
        (&["https, http"], "http"),
        (&["https", "http"], "http"),
        (&["ftp"], "https"),
        (&["http, "], "https"),
        (&[""], "https"),
        (&[], "https"),
    ] {
        let fields: Vec<(&str, &str)> = values.iter().map(|value| ("x-forwarded-proto", *value)).collect();
        let (client, said, request) = told(&fields);
        assert_eq!((client.as_str(), said), ("10.0.0.9", scheme), "{values:?}");
        assert_eq!(request.get_all("x-forwarded-proto").iter().collect::<Vec<_>>(), [scheme]);
    }
}

#[test]
fn what_a_trusted_proxy_was_asked_for_stays_where_it_is_a_host_and_a_port() {
    let said = |fields: &[(&str, &str)]| {
        let (_, _, request) = told(fields);
        let of = |name: &str| {
            assert_eq!(request.get_all(name).iter().count(), 1);
            request[name].to_str().unwrap().to_owned()
        };
        (of("x-forwarded-host"), of("x-forwarded-port"))
    };
    let pair = |host: &str, port: &str| (host.to_owned(), port.to_owned());
    let (host, port, proto) = ("x-forwarded-host", "x-forwarded-port", "x-forwarded-proto");
    assert_eq!(said(&[]), pair("a.org", "443"));
    assert_eq!(said(&[(proto, "http")]), pair("a.org", "80"));
    assert_eq!(said(&[(host, "b.org:8080")]), pair("b.org:8080", "8080"));
    assert_eq!(said(&[(host, "b.org"), (proto, "http")]), pair("b.org", "80"));
    assert_eq!(said(&[(host, "b.org"), (port, "81")]), pair("b.org", "81"));
    assert_eq!(said(&[(port, "81, 82")]), pair("a.org", "443"));
    assert_eq!(said(&[(host, "b.org, c.org"), (port, "81")]), pair("a.org", "81"));
    assert_eq!(said(&[(host, "b.org"), (host, "c.org")]), pair("a.org", "443"));
    assert_eq!(said(&[(host, "b/c"), (port, "x")]), pair("a.org", "443"));
}

#[test]
fn an_endless_chain_is_looked_at_for_a_while() {
    let endless = format!("1.2.3.4{}", ", 10.0.0.1".repeat(4000));
    let (client, _, request) = told(&[("x-forwarded-for", &endless)]);
    assert_eq!(client, "10.0.0.1");
    assert_eq!(request["x-forwarded-for"].len(), CHAIN * "10.0.0.1, ".len() + "10.0.0.9".len());
    let (client, ..) = told(&[("forwarded", &format!("for=1.2.3.4{}", ",".repeat(CHAIN)))]);
    assert_eq!(client, "10.0.0.9");
}

proptest! {
    /// Whatever a client writes before what the proxy adds, it stays who it is, and the worker is told nothing of it.
    #[test]
    fn nothing_a_client_writes_changes_who_it_is(
        text in "[ -~]{0,60}",
        other in "[ -~]{0,60}",
        name in prop::sample::select(vec!["x-forwarded-for", "forwarded"]),
    ) {
        let added = if name == "forwarded" { "for=1.2.3.4" } else { "1.2.3.4" };
        let (client, _, request) = told(&[(name, &other), (name, &format!("{text}, {added}"))]);
        prop_assert_eq!(client, "1.2.3.4");
        prop_assert_eq!(&request["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        prop_assert_eq!(&request["forwarded"], "for=1.2.3.4, for=10.0.0.9;host=\"a.org\";proto=https");
    }

    #[test]
    fn no_fields_make_it_panic(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..4)) {
        for name in ["x-forwarded-for", "forwarded", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"] {
            let mut request = HeaderMap::new();
            for value in values.iter().filter_map(|value| HeaderValue::from_bytes(value).ok()) {
                request.append(name, value);
            }
            let hop = hop(&ten());
            let origin = hop.origin(&request, &ten());
            hop.forward(&mut request, &origin, &HeaderValue::from_static("a.org"), None, None);
        }
    }
}
