//! One line of the access log: comes in what is known of a request, goes out valid JSON on one line, whatever a client
//! sent. Never the query, which carries what people type.

use crate::Placement;
use http::{HeaderValue, Method, Uri, Version};
use proto::access_line::{Outcome, address, number, optional, outcome, text, thousandths};
use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

/// What is said about one request.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) request_id: Option<&'a str>,
    pub(super) client: Option<IpAddr>,
    pub(super) method: &'a Method,
    pub(super) host: Option<&'a HeaderValue>,
    pub(super) uri: &'a Uri,
    pub(super) version: Version,
    pub(super) status: u16,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) duration: Duration,
    pub(super) queue: Duration,
}

/// The second the text is for, and the text: "2026-11-21T11:35:26".
#[derive(Debug, Default)]
pub(super) struct Date {
    second: u64,
    text: String,
}

impl Line<'_> {
    /// `place` is what [`place`] has made.
    pub(super) fn write(&self, out: &mut Vec<u8>, date: &mut Date, place: &str, now: SystemTime) {
        out.extend_from_slice(b"{\"ts\":\"");
        out.extend_from_slice(date.at(now).as_bytes());
        out.push(b'.');
        thousandths(out, now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis());
        out.extend_from_slice(b"Z\",\"request_id\":");
        optional(out, self.request_id.map(str::as_bytes));
        out.extend_from_slice(b",\"client_ip\":");
        match self.client {
            Some(client) => {
                out.push(b'"');
                address(out, client);
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"method\":");
        text(out, self.method.as_str().as_bytes());
        out.extend_from_slice(b",\"host\":");
        optional(out, self.host.map(HeaderValue::as_bytes));
        out.extend_from_slice(b",\"path\":");
        text(out, self.uri.path().as_bytes());
        let proto = if self.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" };
        let Self { status, bytes_in, bytes_out, duration, queue, .. } = *self;
        outcome(out, &Outcome { proto, status, bytes_in, bytes_out, duration, queue });
        out.extend_from_slice(place.as_bytes());
        out.push(b'\n');
    }
}

/// The end of every line of this worker.
pub(super) fn place(placement: &Placement) -> String {
    let mut out = b",\"app\":".to_vec();
    text(&mut out, placement.app.as_bytes());
    out.extend_from_slice(b",\"node\":");
    text(&mut out, placement.node.as_bytes());
    out.extend_from_slice(b",\"worker\":");
    number(&mut out, placement.position);
    out.push(b'}');
    String::from_utf8(out).expect("everything above is ASCII")
}

impl Date {
    fn at(&mut self, now: SystemTime) -> &str {
        let second = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if second != self.second || self.text.is_empty() {
            let at = OffsetDateTime::from(now);
            let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
            let (hour, minute, seconds) = at.to_hms();
            *self = Self { second, text: format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{seconds:02}") };
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::{Date, Line, place};
    use crate::Placement;
    use http::{HeaderValue, Method, Uri, Version};
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    fn line<'a>(host: &'a HeaderValue, uri: &'a Uri) -> Line<'a> {
        Line {
            request_id: Some("id-1"),
            client: Some([10, 0, 0, 1].into()),
            method: &Method::GET,
            host: Some(host),
            uri,
            version: Version::HTTP_11,
            status: 200,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_micros(1_234_567),
            queue: Duration::ZERO,
        }
    }

    #[test]
    fn a_line_says_what_there_is_to_know_but_not_the_query() {
        let (mut out, host, uri) = (Vec::new(), HeaderValue::from_static("a.org"), "/a?secret=1".parse().unwrap());
        let place = place(&Placement::for_test("demo", "node \"1\"", 3, 1));
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_267_565_007);
        line(&host, &uri).write(&mut out, &mut Date::default(), &place, now);
        let expected = r#"{"ts":"2026-11-21T13:26:05.007Z","request_id":"id-1","client_ip":"10.0.0.1","method":"GET","host":"a.org","path":"/a","proto":"HTTP/1.1","status":200,"bytes_in":1,"bytes_out":2,"duration_ms":1234.567,"queue_ms":0.000,"app":"demo","node":"node \"1\"","worker":3}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_one_line_of_json(host in prop::collection::vec(any::<u8>(), 0..40)) {
            let Ok(value) = HeaderValue::from_bytes(&host) else { return Ok(()) };
            let (mut out, uri) = (Vec::new(), Uri::from_static("/"));
            let place = place(&Placement::for_test("demo", "node", 3, 1));
            line(&value, &uri).write(&mut out, &mut Date::default(), &place, SystemTime::now());
            prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
            let read: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let expected = String::from_utf8_lossy(&host);
            prop_assert_eq!(read["host"].as_str().unwrap(), expected);
        }
    }
}
