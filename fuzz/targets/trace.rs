//! Whatever a client writes into its trace's fields: the application gets one parent that is well-formed, of the same trace.
#![no_main]

use balancer::{trace::Trace, values::Values};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const FIELDS: [&str; 2] = ["traceparent", "tracestate"];

fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Some((first, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        headers.append(HeaderName::from_static(FIELDS[usize::from(*first) % FIELDS.len()]), value);
    }
    let said = Trace::of(&headers);
    let trace = said.unwrap_or_else(|| Trace::begin(7, false));
    trace.pass_on(&mut headers, &Values::default(), 5, said.is_some());
    assert_eq!(Trace::of(&headers), Some(trace));
    assert_eq!(headers.get_all("traceparent").iter().count(), 1);
    let state: usize = headers.get_all("tracestate").iter().map(HeaderValue::len).sum();
    assert!(state <= 512 && (said.is_some() || state == 0), "{state} bytes");
});
