//! What a line of the access log is made of, for whoever writes one: the balancer, or a worker that stands alone. Programs
//! read both alike. Every request writes one, so its parts go without the standard library's formatting. Pure.

use std::{io::Write as _, net::IpAddr, time::Duration};

/// Longest part of a client's text that goes into a line.
const TEXT: usize = 2048;

/// In decimal.
pub fn number(out: &mut Vec<u8>, value: impl Into<u64>) {
    // u64::MAX has 20 digits
    let (mut digits, mut at, mut rest) = ([0; 20], 20, value.into());
    loop {
        at -= 1;
        digits[at] = digit(rest);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The last three digits, zeros with them.
pub fn thousandths(out: &mut Vec<u8>, value: u32) {
    out.extend([value / 100, value / 10, value].map(|value| digit(value.into())));
}

/// Milliseconds with the microseconds behind the point.
pub fn millis(out: &mut Vec<u8>, duration: Duration) {
    number(out, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    out.push(b'.');
    thousandths(out, duration.subsec_micros());
}

/// In its shortest form, without quotes.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [first, rest @ ..] = address.octets();
            number(out, first);
            for octet in rest {
                out.push(b'.');
                number(out, octet);
            }
        }
        // writing to a vector does not fail
        IpAddr::V6(address) => _ = write!(out, "{address}"),
    }
}

/// What became of a request, as every line says it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// As the client spoke it: "HTTP/1.1".
    pub proto: &'static str,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub queue: Duration,
}

/// As members of an object that has some already.
pub fn outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    out.extend_from_slice(b",\"proto\":\"");
    out.extend_from_slice(outcome.proto.as_bytes());
    out.extend_from_slice(b"\",\"status\":");
    number(out, outcome.status);
    out.extend_from_slice(b",\"bytes_in\":");
    number(out, outcome.bytes_in);
    out.extend_from_slice(b",\"bytes_out\":");
    number(out, outcome.bytes_out);
    out.extend_from_slice(b",\"duration_ms\":");
    millis(out, outcome.duration);
    out.extend_from_slice(b",\"queue_ms\":");
    millis(out, outcome.queue);
}

/// The last one.
fn digit(value: u64) -> u8 {
    b"0123456789"[(value % 10) as usize]
}

/// As [`text`], or `null`.
pub fn optional(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => text(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

/// A JSON string of ASCII. What is no UTF-8 becomes replacement characters, so that a line is always one line of valid
/// JSON, whatever a client sends.
pub fn text(out: &mut Vec<u8>, value: &[u8]) {
    let value = &value[..value.len().min(TEXT)];
    out.push(b'"');
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\');
    // all of them are looked at, as that takes many at a time
    if value.iter().fold(true, |all, byte| all & plain(byte)) {
        out.extend_from_slice(value);
    } else {
        for character in String::from_utf8_lossy(value).chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                ' '..='~' => out.push(u8::try_from(character).expect("this range is ASCII")),
                other => {
                    for unit in other.encode_utf16(&mut [0; 2]) {
                        // writing to a vector does not fail
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn numbers_times_and_addresses_are_what_the_standard_library_writes(
            value: u64, ip: IpAddr, seconds in 0..1_000_000_u64, nanoseconds in 0..1_000_000_000_u32,
        ) {
            for value in [value, value >> 32, value >> 56, 0, u64::MAX] {
                prop_assert_eq!(written(|out| number(out, value)), value.to_string());
            }
            prop_assert_eq!(written(|out| address(out, ip)), ip.to_string());
            let micros = nanoseconds / 1000;
            let (whole, rest) = (seconds * 1000 + u64::from(micros / 1000), micros % 1000);
            let duration = Duration::new(seconds, nanoseconds);
            prop_assert_eq!(written(|out| millis(out, duration)), format!("{whole}.{rest:03}"));
            prop_assert_eq!(written(|out| thousandths(out, micros % 1000)), format!("{rest:03}"));
        }
    }
}
