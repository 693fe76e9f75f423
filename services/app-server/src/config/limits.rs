//! What a client may make large or slow at most, as the workers' fronts hold it.

use chassis::config::{ByteSize, Reader};
use std::time::Duration;

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
}
