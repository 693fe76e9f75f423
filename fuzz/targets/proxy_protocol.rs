//! A PROXY header is whole at its last byte and not before, and means the same whatever follows it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::proxy_protocol::{Versions, parse};

fuzz_target!(|bytes: &[u8]| {
    for versions in [Versions::One, Versions::Two, Versions::Both] {
        let Ok(Some(header)) = parse(bytes, versions) else { continue };
        assert!(header.length <= bytes.len());
        let whole = &bytes[..header.length];
        assert_eq!(parse(whole, versions), Ok(Some(header)));
        for end in 0..header.length {
            assert_eq!(parse(&bytes[..end], versions), Ok(None), "whole after {end} of {} bytes", header.length);
        }
    }
});
