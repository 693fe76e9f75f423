//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>). In: a request's `traceparent` and `tracestate`, and random
//! numbers. Out: what the worker is told: the client's trace, or one that begins here, with a parent of ours. Pure.

use crate::values::Values;
use http::{HeaderMap, HeaderName};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` of version 00: version, trace, parent and flags with hyphens between.
const LENGTH: usize = 55;

/// What of a `tracestate` is passed on, at most: as much as everybody has to (section 3.3.1.5), and as many members as
/// there may be. A longer one is dropped whole, as half of it would be a lie.
const STATE_BYTES: usize = 512;
const STATE_MEMBERS: usize = 32;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A trace: its id and flags, as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: [u8; 32],
    flags: [u8; 2],
}

impl Trace {
    /// The one that the client is in. `None`: in none, or what it says is not valid.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let value = value.as_bytes();
        let (known, more) = value.split_at_checked(LENGTH)?;
        let (version, rest) = known.split_first_chunk::<2>()?;
        let (id, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<32>()?;
        let (parent, rest) = rest.strip_prefix(b"-")?.split_first_chunk::<16>()?;
        let flags: &[u8; 2] = rest.strip_prefix(b"-")?.try_into().ok()?;
        let digits = |text: &[u8]| text.iter().all(|byte| DIGITS.contains(byte));
        let some = |text: &[u8]| digits(text) && text.iter().any(|byte| *byte != b'0');
        // a later version may have more behind it, this one has not
        let ended = more.is_empty() || version != b"00" && more[0] == b'-';
        let valid = digits(version) && version != b"ff" && some(id) && some(parent) && digits(flags) && ended;
        valid.then_some(Self { id: *id, flags: *flags })
    }

    /// One that begins here. `sampled`: it is to be recorded.
    pub fn begin(id: u128, sampled: bool) -> Self {
        let mut text = [0; 32];
        // no trace is 0
        write_digits(&mut text, id.max(1));
        Self { id: text, flags: if sampled { *b"01" } else { *b"00" } }
    }

    pub fn id(&self) -> &[u8] {
        &self.id
    }

    /// Tells the worker of it, with `parent` as who asks. `client`: it is the client's trace, so its state goes with it.
    pub fn pass_on(&self, headers: &mut HeaderMap, values: &Values, parent: u64, client: bool) {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        text[3..35].copy_from_slice(&self.id);
        write_digits(&mut text[36..52], parent.max(1).into());
        text[53..].copy_from_slice(&self.flags);
        headers.insert(TRACEPARENT, values.make(&text));
        if !client || !is_bounded(headers) {
            headers.remove(TRACESTATE);
        }
    }
}

/// The whole of it fits; what is in it is between the client and the application.
fn is_bounded(headers: &HeaderMap) -> bool {
    let (mut bytes, mut members) = (0, 0);
    for value in headers.get_all(&TRACESTATE) {
        bytes += value.len() + 1;
        members += value.as_bytes().split(|byte| *byte == b',').count();
    }
    bytes <= STATE_BYTES + 1 && members <= STATE_MEMBERS
}

/// Lower-case hexadecimal, filled up with zeros.
pub(crate) fn write_digits(text: &mut [u8], number: u128) {
    for (at, digit) in text.iter_mut().rev().enumerate() {
        *digit = DIGITS[(number >> (4 * at)) as usize & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_clients_trace_goes_on_with_a_parent_of_ours() {
        for (value, flags) in [
            (GOOD, "01"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "00"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", "03"),
            // later versions, of which the beginning is known
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "01"),
            ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-ever", "01"),
        ] {
            let mut request = headers(&[("traceparent", value), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")]);
            let trace = Trace::of(&request).unwrap();
            assert_eq!(trace.id(), b"0af7651916cd43dd8448eb211c80319c");
            trace.pass_on(&mut request, &Values::default(), 0xab, true);
            let wanted = format!("00-0af7651916cd43dd8448eb211c80319c-00000000000000ab-{flags}");
            assert_eq!(request.get_all("traceparent").iter().collect::<Vec<_>>(), [wanted.as_str()]);
            assert_eq!(request.get_all("tracestate").iter().collect::<Vec<_>>(), ["a=1,b=2", "c=3"]);
        }
    }

    #[test]
    fn what_is_not_valid_is_nothing_to_go_on_with() {
        for value in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-B7AD6B7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0G",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(Trace::of(&headers(&[("traceparent", value)])), None, "{value}");
        }
        assert_eq!(Trace::of(&headers(&[("traceparent", GOOD), ("traceparent", GOOD)])), None, "two");
        assert_eq!(Trace::of(&headers(&[])), None);
    }

    #[test]
    fn a_trace_that_begins_here_has_no_state_of_another() {
        for (sampled, flags) in [(true, "01"), (false, "00")] {
            let mut request = headers(&[("traceparent", "nonsense"), ("tracestate", "a=1")]);
            Trace::begin(0x1234, sampled).pass_on(&mut request, &Values::default(), 0, false);
            let wanted = format!("00-00000000000000000000000000001234-0000000000000001-{flags}");
            assert_eq!(request["traceparent"], wanted.as_str());
            assert!(!request.contains_key("tracestate"));
            assert!(Trace::of(&request).is_some(), "the next hop believes it");
        }
        assert!(Trace::begin(0, true).id().ends_with(b"01"), "0 is no trace");
    }

    #[test]
    fn a_state_is_passed_on_whole_or_not_at_all() {
        for (state, stays) in [
            (vec!["x".repeat(STATE_BYTES)], true),
            (vec!["x".repeat(STATE_BYTES + 1)], false),
            (vec!["x".repeat(300), "y".repeat(300)], false),
            (vec![vec!["a=1"; STATE_MEMBERS].join(",")], true),
            (vec![vec!["a=1"; STATE_MEMBERS + 1].join(",")], false),
            (vec![String::new()], true),
        ] {
            let mut request = headers(&[("traceparent", GOOD)]);
            for value in &state {
                request.append("tracestate", HeaderValue::from_str(value).unwrap());
            }
            let trace = Trace::of(&request).unwrap();
            trace.pass_on(&mut request, &Values::default(), 7, true);
            assert_eq!(request.contains_key("tracestate"), stays, "{state:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_valid_and_what_comes_never_panics(
            value in prop::collection::vec(any::<u8>(), 0..80), id: u128, parent: u64, sampled: bool,
        ) {
            let mut request = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                request.insert("traceparent", value);
            }
            let client = Trace::of(&request);
            let trace = client.unwrap_or_else(|| Trace::begin(id, sampled));
            trace.pass_on(&mut request, &Values::default(), parent, client.is_some());
            prop_assert_eq!(Trace::of(&request), Some(trace));
        }
    }
}
