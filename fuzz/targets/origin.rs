//! Whatever a client writes into forwarding fields: an untrusted peer is the client itself, and what a trusted one adds at the
//! end cannot be talked away by what stands before it.
#![no_main]

use balancer::origin::Hop;
use chassis::config::Network;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const FIELDS: [&str; 5] = ["x-forwarded-for", "forwarded", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"];

fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Some((first, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(HeaderName::from_static(FIELDS[usize::from(*first) % FIELDS.len()]), value);
    }
    let trusted = [Network::new([10, 0, 0, 0].into(), 8).expect("a network")];
    let peer = |address: [u8; 4]| (address, 1).into();
    let host = HeaderValue::from_static("example.com");

    let stranger = Hop::new(peer([192, 0, 2, 1]), "http", &trusted);
    let origin = stranger.origin(&headers, &trusted);
    assert_eq!((origin.client, origin.scheme), ([192, 0, 2, 1].into(), "http"));

    let proxy = Hop::new(peer([10, 0, 0, 1]), "http", &trusted);
    let origin = proxy.origin(&headers, &trusted);
    assert!(matches!(origin.scheme, "http" | "https"));
    let mut passed = headers.clone();
    proxy.forward(&mut passed, &origin, &host, None, None);

    headers.append("x-forwarded-for", HeaderValue::from_static("198.51.100.7"));
    assert_eq!(proxy.origin(&headers, &trusted).client, std::net::IpAddr::from([198, 51, 100, 7]));
});
