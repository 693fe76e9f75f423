//! Whatever stands in a Host field: a host that is read is one that routes know, and read again it is the same.
#![no_main]

use balancer::host::Host;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Some(host) = Host::parse(text) else { return };
    let name = &*host.name;
    assert!(!name.is_empty() && name.len() <= 253 && !name.ends_with('.'), "{name:?}");
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_:[]".contains(&byte);
    assert!(name.bytes().all(known), "{name:?}");
    assert_eq!(name.contains(':'), name.starts_with('[') && name.ends_with(']'), "{name:?}");
    let again = host.port.map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    assert_eq!(Host::parse(&again), Some(host));
});
