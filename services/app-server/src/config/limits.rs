//! What a client may make large or slow at most, as the workers' fronts hold it.

use super::{LIMIT_MAX, MILLISECOND};
use chassis::config::{ByteSize, Reader};
use std::{ops::RangeInclusive, time::Duration};

/// Shorter lines break ordinary links; longer ones would be most of what a worker reads of a head at once.
const REQUEST_LINE: RangeInclusive<u32> = 512..=65_536;
const FIELDS: RangeInclusive<u32> = 1..=1000;
const FIELD_SIZE: RangeInclusive<u32> = 256..=65_536;

/// The limits of a request; each has a status of its own when it is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of method, target and version: 414.
    pub limit_request_line: u32,
    /// Number of header fields: 431.
    pub limit_request_fields: u32,
    /// Bytes of one field: 431.
    pub limit_request_field_size: u32,
    /// 413.
    pub max_body: ByteSize,
    /// From the first byte of a head to its end: 408.
    pub header_timeout: Duration,
    /// Between two parts of a body: 408.
    pub body_timeout: Duration,
}

impl RequestLimits {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            limit_request_line: reader.read("app_server.limit_request_line", 16_384),
            limit_request_fields: reader.read("app_server.limit_request_fields", 256),
            limit_request_field_size: reader.read("app_server.limit_request_field_size", 32_768),
            max_body: reader.read("app_server.max_body", ByteSize::gib(1)),
            header_timeout: reader.read("app_server.header_timeout", Duration::from_secs(10)),
            body_timeout: reader.read("app_server.body_timeout", Duration::from_secs(60)),
        }
    }

    pub(super) fn check(&self, reader: &mut Reader<'_>) {
        for (key, value, bounds, what) in [
            ("limit_request_line", self.limit_request_line, REQUEST_LINE, "bytes of a request line"),
            ("limit_request_fields", self.limit_request_fields, FIELDS, "header fields"),
            ("limit_request_field_size", self.limit_request_field_size, FIELD_SIZE, "bytes of a header field"),
        ] {
            if !bounds.contains(&value) {
                let message = format!("between {} and {} {what} can be allowed", bounds.start(), bounds.end());
                reader.refuse(&format!("app_server.{key}"), message);
            }
        }
        if self.max_body.as_u64() == 0 {
            reader.refuse("app_server.max_body", "a limit of nothing would refuse every body: at least \"1B\"");
        }
        for (key, limit) in
            [("app_server.header_timeout", self.header_timeout), ("app_server.body_timeout", self.body_timeout)]
        {
            if limit < MILLISECOND || limit > LIMIT_MAX {
                reader.refuse(key, "a time limit is more than nothing and at most a day");
            }
        }
    }
}
