//! What a line of the access log is made of, for whoever writes one: the balancer, or a worker that stands alone. Programs
//! read both alike. Pure.

use std::{fmt, io::Write as _, time::Duration};

/// Longest part of a client's text that goes into a line.
const TEXT: usize = 2048;

/// Milliseconds with the microseconds behind the point.
pub struct Millis(pub Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_millis(), self.0.subsec_micros() % 1000)
    }
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
    if value.iter().all(plain) {
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
