//! One line of the access log. In: what is known of a request, and the time. Out: its bytes, always one line, whatever a
//! client sends. Pure.

use super::settings::{Format, Style};
use http::{HeaderValue, Method, Version};
use proto::access_line::{Outcome, address, number, optional, outcome, text, thousandths};
use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// Longest part of a client's text that goes into a line of the combined format; JSON has the same.
pub(crate) const TEXT: usize = 2048;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// What is said about one request.
#[derive(Debug)]
pub struct Line<'a> {
    pub request_id: &'a HeaderValue,
    pub client_ip: IpAddr,
    pub method: &'a Method,
    pub host: Option<&'a [u8]>,
    pub path: &'a [u8],
    /// Only where the line has it.
    pub query: Option<&'a [u8]>,
    pub version: Version,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub queue: Duration,
    pub attempts: u32,
    pub app: Option<&'a str>,
    pub node: Option<&'a str>,
    pub worker: Option<u32>,
    pub why: Option<&'static str>,
    pub reject: Option<&'static str>,
    pub trace_id: Option<&'a [u8]>,
    /// These two only in the combined format.
    pub referer: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
}

/// The second that it is, as text: made once a second.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: u64,
    /// "2026-11-21T11:35:26"
    iso: String,
    /// "21/Nov/2026:11:35:26 +0000"
    common: String,
}

impl Clock {
    fn set(&mut self, now: SystemTime) {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if second == self.second && !self.iso.is_empty() {
            return;
        }
        self.second = second;
        let at = OffsetDateTime::from(now);
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let (hour, minute, second) = at.to_hms();
        self.iso = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        let month = MONTHS[usize::from(month - 1)];
        self.common = format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000");
    }
}

impl Line<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>, style: Style, clock: &mut Clock, now: SystemTime) {
        clock.set(now);
        match style.format {
            Format::Json => {
                let millisecond = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
                self.write_json(out, style.query, &clock.iso, millisecond);
            }
            Format::Combined => self.write_combined(out, style.query, &clock.common),
        }
    }

    fn write_json(&self, out: &mut Vec<u8>, query: bool, second: &str, millisecond: u32) {
        out.extend_from_slice(b"{\"ts\":\"");
        out.extend_from_slice(second.as_bytes());
        out.push(b'.');
        thousandths(out, millisecond);
        out.extend_from_slice(b"Z\",\"request_id\":");
        text(out, self.request_id.as_bytes());
        out.extend_from_slice(b",\"client_ip\":\"");
        address(out, self.client_ip);
        out.extend_from_slice(b"\",\"method\":");
        text(out, self.method.as_str().as_bytes());
        out.extend_from_slice(b",\"host\":");
        optional(out, self.host);
        out.extend_from_slice(b",\"path\":");
        text(out, self.path);
        if query {
            out.extend_from_slice(b",\"query\":");
            optional(out, self.query);
        }
        let proto = match self.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let Self { status, bytes_in, bytes_out, duration, queue, .. } = *self;
        outcome(out, &Outcome { proto, status, bytes_in, bytes_out, duration, queue });
        out.extend_from_slice(b",\"attempts\":");
        number(out, self.attempts);
        out.extend_from_slice(b",\"app\":");
        optional(out, self.app.map(str::as_bytes));
        out.extend_from_slice(b",\"node\":");
        optional(out, self.node.map(str::as_bytes));
        out.extend_from_slice(b",\"worker\":");
        match self.worker {
            Some(worker) => number(out, worker),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"why\":");
        optional(out, self.why.map(str::as_bytes));
        out.extend_from_slice(b",\"reject\":");
        optional(out, self.reject.map(str::as_bytes));
        out.extend_from_slice(b",\"trace_id\":");
        optional(out, self.trace_id);
        out.extend_from_slice(b"}\n");
    }

    /// As nginx writes it; nobody has logged in here, so there is no user's name.
    fn write_combined(&self, out: &mut Vec<u8>, query: bool, second: &str) {
        // writing to a vector does not fail
        let _ = write!(out, "{} - - [{second}] \"", self.client_ip);
        escaped(out, self.method.as_str().as_bytes());
        out.push(b' ');
        escaped(out, self.path);
        if let Some(query) = self.query.filter(|_| query) {
            out.push(b'?');
            escaped(out, query);
        }
        let proto = match self.version {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let _ = write!(out, " {proto}\" {} {} \"", self.status, self.bytes_out);
        escaped(out, self.referer.unwrap_or(b"-"));
        out.extend_from_slice(b"\" \"");
        escaped(out, self.user_agent.unwrap_or(b"-"));
        out.extend_from_slice(b"\"\n");
    }
}

/// As nginx does by default: quotes, backslashes and what is not visible ASCII as `\xHH`.
fn escaped(out: &mut Vec<u8>, value: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in &value[..value.len().min(TEXT)] {
        match byte {
            b'"' | b'\\' | 0..=31 | 127.. => {
                let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'x', high, low]);
            }
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use chassis::config::Fraction;
    use proptest::prelude::*;

    pub(in super::super) const JSON: Style = Style { format: Format::Json, query: false, sample: Fraction::ALL };
    const COMBINED: Style = Style { format: Format::Combined, ..JSON };

    pub(in super::super) fn line<'a>() -> Line<'a> {
        static ID: HeaderValue = HeaderValue::from_static("00ff");
        Line {
            request_id: &ID,
            client_ip: [10, 0, 0, 1].into(),
            method: &Method::GET,
            host: Some(b"a.org"),
            path: b"/x",
            query: Some(b"secret=1"),
            version: Version::HTTP_2,
            status: 200,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_micros(1_234_567),
            queue: Duration::ZERO,
            attempts: 1,
            app: Some("demo"),
            node: Some("node-1"),
            worker: Some(3),
            why: Some("idle"),
            reject: None,
            trace_id: None,
            referer: None,
            user_agent: None,
        }
    }

    fn written(style: Style, line: &Line<'_>) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_260_926_007);
        let mut out = Vec::new();
        line.write(&mut out, style, &mut Clock::default(), at);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_has_every_field_and_no_query_string_unless_it_is_asked_for() {
        let start = "{\"ts\":\"2026-11-21T11:35:26.007Z\",\"request_id\":\"00ff\",\"client_ip\":\"10.0.0.1\",\"method\":\"GET\",\
             \"host\":\"a.org\",\"path\":\"/x\"";
        let end = ",\"proto\":\"HTTP/2\",\"status\":200,\"bytes_in\":1,\"bytes_out\":2,\
             \"duration_ms\":1234.567,\"queue_ms\":0.000,\"attempts\":1,\"app\":\"demo\",\"node\":\"node-1\",\"worker\":3,\
             \"why\":\"idle\",\"reject\":null,\"trace_id\":null}\n";
        assert_eq!(written(JSON, &line()), format!("{start}{end}"));
        let query = Style { query: true, ..JSON };
        assert_eq!(written(query, &line()), format!("{start},\"query\":\"secret=1\"{end}"));
        assert!(written(query, &Line { query: None, ..line() }).contains("\"path\":\"/x\",\"query\":null,"));
    }

    #[test]
    fn the_combined_format_is_nginxs() {
        let start = "10.0.0.1 - - [21/Nov/2026:11:35:26 +0000] \"GET /x";
        assert_eq!(written(COMBINED, &line()), format!("{start} HTTP/2.0\" 200 2 \"-\" \"-\"\n"));
        let query = Style { query: true, ..COMBINED };
        assert_eq!(written(query, &line()), format!("{start}?secret=1 HTTP/2.0\" 200 2 \"-\" \"-\"\n"));
        let client_ip = "2001:db8::1".parse().unwrap();
        let (referer, user_agent) = (Some(&b"https://b.org/?a=\"b\\c"[..]), Some(&b"caf\xc3\xa9\t~"[..]));
        assert_eq!(
            written(COMBINED, &Line { version: Version::HTTP_11, client_ip, referer, user_agent, ..line() }),
            "2001:db8::1 - - [21/Nov/2026:11:35:26 +0000] \"GET /x HTTP/1.1\" 200 2 \"https://b.org/?a=\\x22b\\x5Cc\" \
             \"caf\\xC3\\xA9\\x09~\"\n"
        );
        assert!(written(COMBINED, &Line { user_agent: Some(&[b'a'; 9000]), ..line() }).len() < TEXT + 200);
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_one_line_of_json(host in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = written(JSON, &Line { host: Some(&host), ..line() });
            prop_assert_eq!(text.bytes().filter(|byte| *byte == b'\n').count(), 1);
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            let expected = String::from_utf8_lossy(&host);
            prop_assert_eq!(read["host"].as_str().unwrap(), expected);
        }

        /// A reader that splits at quotes finds six of them, and the fields between.
        #[test]
        fn whatever_a_client_sends_is_one_line_of_the_combined_format(
            referer in prop::collection::vec(any::<u8>(), 0..40),
            agent in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let (referer, user_agent) = (Some(&referer[..]), Some(&agent[..]));
            let text = written(COMBINED, &Line { referer, user_agent, ..line() });
            prop_assert!(text.ends_with('\n') && text[..text.len() - 1].bytes().all(|byte| (32..127).contains(&byte)));
            prop_assert_eq!(text.matches('"').count(), 6);
        }
    }
}
