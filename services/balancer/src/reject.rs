//! Answers of our own: why, which status, what the client, the log and the metrics are told. What an application
//! answers, a 500 too, is never a `Reject`.

use crate::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use proto::framing::Fault;
use std::time::Duration;

/// Why we answered instead of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// What came is no HTTP/1.1 request.
    Malformed,
    /// Where it ends is not said, or said twice.
    BadFraming,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    BadVersion,
    /// CONNECT and TRACE.
    MethodNotAllowed,
    /// A CONNECT over HTTP/2 for something else than a WebSocket (RFC 8441).
    UnknownProtocol,
    TargetTooLong,
    HeadTooLarge,
    /// The client did not send a head to its end.
    HeaderTimeout,
    /// Not exactly one valid host in `Host` or `:authority`, or the two differ.
    BadHost,
    /// A request target that is neither a path nor a URL, such as CONNECT's.
    BadTarget,
    /// The request body could not be read to its end.
    BadBody,
    TooManyFields,
    BodyTooLarge,
    /// The client stopped sending its body.
    BodyTimeout,
    /// The client took nothing of its answer for too long. Only for the log: the head was passed on.
    ResponseStall,
    /// The client held its share of the app's places and stood still, and another one needed the place.
    StalledShare,
    NoRoute,
    /// As many connections as one client may have.
    TooManyConnections,
    /// HTTP/2 frames that carry nothing, too many of them. Only for the metrics: the connection ends.
    FrameFlood,
    QueueFull,
    /// One client fills its share of the queue, and another one waits.
    ClientShare,
    /// By its deadline its turn would not have come, or has not while newer ones went first.
    Overload,
    /// Waited for a permit until the deadline.
    QueueDeadline,
    /// Waited until the deadline, and no worker of the app is there.
    NoEndpoint,
    /// As many tunnels as there may be.
    TooManyTunnels,
    /// Every worker we tried refused in-band.
    Refused,
    ConnectRefused,
    ConnectTimeout,
    /// A fixed upstream could not prove who it is, or speaks no TLS that we do.
    UpstreamTls,
    /// The worker closed the connection before its response head.
    UpstreamReset,
    /// Two workers died of the request.
    Poisoned,
    /// What the worker sent is not HTTP.
    BadResponse,
    ResponseTimeout,
    /// The client left before there was an answer. Only for the log.
    ClientGone,
    /// The response ended before it was complete. Only for the log: its head was passed on.
    CutOff,
    /// Still in flight when the drain was over. Only for the log.
    Drained,
}

/// What a 405, and an answer to OPTIONS of our own, tell of the methods there are (RFC 9110, section 10.2.1).
pub const ALLOWED: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

impl From<Fault> for Reject {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Line | Fault::Field => Self::Malformed,
            Fault::LineTooLong => Self::TargetTooLong,
            Fault::Version => Self::BadVersion,
            Fault::HeadTooLarge => Self::HeadTooLarge,
            Fault::TooManyFields => Self::TooManyFields,
            Fault::Frame => Self::BadFraming,
            Fault::Chunk | Fault::Trailer => Self::BadBody,
        }
    }
}

impl Reject {
    /// In the order of declaration, so that `ALL[reject as usize] == reject`.
    pub const ALL: [Self; 36] = [
        Self::Malformed,
        Self::BadFraming,
        Self::BadVersion,
        Self::MethodNotAllowed,
        Self::UnknownProtocol,
        Self::TargetTooLong,
        Self::HeadTooLarge,
        Self::HeaderTimeout,
        Self::BadHost,
        Self::BadTarget,
        Self::BadBody,
        Self::TooManyFields,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::ResponseStall,
        Self::StalledShare,
        Self::NoRoute,
        Self::TooManyConnections,
        Self::FrameFlood,
        Self::QueueFull,
        Self::ClientShare,
        Self::Overload,
        Self::QueueDeadline,
        Self::NoEndpoint,
        Self::TooManyTunnels,
        Self::Refused,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::UpstreamTls,
        Self::UpstreamReset,
        Self::Poisoned,
        Self::BadResponse,
        Self::ResponseTimeout,
        Self::ClientGone,
        Self::CutOff,
        Self::Drained,
    ];

    /// In the log and as the metrics' `reason`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadFraming => "bad_framing",
            Self::BadVersion => "bad_version",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::UnknownProtocol => "unknown_protocol",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "header_too_large",
            Self::HeaderTimeout => "header_timeout",
            Self::BadHost => "bad_host",
            Self::BadTarget => "bad_target",
            Self::BadBody => "bad_body",
            Self::TooManyFields => "too_many_fields",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::ResponseStall => "response_stall",
            Self::StalledShare => "stalled_share",
            Self::NoRoute => "no_route",
            Self::TooManyConnections => "too_many_connections",
            Self::FrameFlood => "frame_flood",
            Self::QueueFull => "queue_full",
            Self::ClientShare => "client_share",
            Self::Overload => "overload",
            Self::QueueDeadline => "queue_deadline",
            Self::NoEndpoint => "no_endpoint",
            Self::TooManyTunnels => "too_many_tunnels",
            Self::Refused => "refused",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::UpstreamTls => "upstream_tls",
            Self::UpstreamReset => "upstream_reset",
            Self::Poisoned => "poison",
            Self::BadResponse => "bad_response",
            Self::ResponseTimeout => "response_timeout",
            Self::ClientGone => "client_gone",
            Self::CutOff => "cut_off",
            Self::Drained => "drained",
        }
    }

    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::BadFraming | Self::BadHost | Self::BadTarget | Self::BadBody => {
                StatusCode::BAD_REQUEST
            }
            Self::BadVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnknownProtocol => StatusCode::NOT_IMPLEMENTED,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooManyFields | Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout | Self::HeaderTimeout | Self::ResponseStall => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::ClientShare | Self::StalledShare | Self::TooManyConnections | Self::FrameFlood => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::QueueFull
            | Self::Overload
            | Self::QueueDeadline
            | Self::NoEndpoint
            | Self::TooManyTunnels
            | Self::Refused
            | Self::Drained => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectRefused
            | Self::UpstreamTls
            | Self::UpstreamReset
            | Self::Poisoned
            | Self::BadResponse
            | Self::CutOff => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout | Self::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
            // nginx's number for it; never sent, and outside of what RFC 9110 names
            Self::ClientGone => StatusCode::from_u16(499).expect("499 is a status number"),
        }
    }

    /// The error type of RFC 9209, section 2.3.
    fn proxy_status(self) -> &'static str {
        match self {
            Self::Malformed
            | Self::BadFraming
            | Self::BadVersion
            | Self::MethodNotAllowed
            | Self::UnknownProtocol
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::HeaderTimeout
            | Self::BadHost
            | Self::BadTarget
            | Self::BadBody
            | Self::TooManyFields
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::ResponseStall
            | Self::FrameFlood
            | Self::ClientGone => "http_request_error",
            Self::NoRoute => "destination_not_found",
            Self::QueueFull
            | Self::ClientShare
            | Self::StalledShare
            | Self::Overload
            | Self::TooManyTunnels
            | Self::TooManyConnections => "connection_limit_reached",
            Self::QueueDeadline | Self::NoEndpoint | Self::Refused | Self::Drained => "destination_unavailable",
            Self::ConnectRefused => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::UpstreamTls => "tls_protocol_error",
            Self::UpstreamReset | Self::Poisoned => "connection_terminated",
            Self::BadResponse => "http_protocol_error",
            Self::ResponseTimeout => "http_response_timeout",
            Self::CutOff => "http_response_incomplete",
        }
    }

    /// One sentence for the person who reads the answer; names nothing inside.
    fn detail(self) -> &'static str {
        match self {
            Self::Malformed => "The request is not well-formed HTTP/1.1.",
            Self::BadFraming => "The request does not say plainly where it ends.",
            Self::BadVersion => "Only HTTP/1.1, HTTP/1.0 and HTTP/2 over TLS are spoken here.",
            Self::MethodNotAllowed => "This method is not allowed here.",
            Self::UnknownProtocol => "This protocol is not spoken here.",
            Self::TargetTooLong => "The request line is longer than this server accepts.",
            Self::HeadTooLarge => "The request head is larger than this server accepts.",
            Self::HeaderTimeout => "The request head did not arrive in time.",
            Self::BadHost => "The request does not name exactly one valid host.",
            Self::BadTarget => "The request target is not a path.",
            Self::BadBody => "The request body could not be read.",
            Self::TooManyFields => "The request has too many header fields.",
            Self::BodyTooLarge => "The request body is larger than this server accepts.",
            Self::BodyTimeout => "The request body stopped arriving.",
            Self::ResponseStall => "The answer was not taken.",
            Self::StalledShare => "Too many requests of yours stood still while others waited.",
            Self::NoRoute => "Nothing is served at this host and path.",
            Self::TooManyConnections => "Too many connections of yours are open.",
            Self::FrameFlood => "Too many frames that carry nothing.",
            Self::QueueFull => "Too many requests are waiting for this application.",
            Self::ClientShare => "Too many requests of yours are waiting for this application.",
            Self::Overload => "The application is too busy to answer in time.",
            Self::QueueDeadline => "The application was busy for too long.",
            Self::NoEndpoint => "The application is not running at the moment.",
            Self::TooManyTunnels => "Too many connections of this kind are open.",
            Self::Refused => "The application could not take the request at the moment.",
            Self::ConnectRefused | Self::UpstreamTls | Self::UpstreamReset | Self::CutOff => {
                "The application did not answer."
            }
            Self::Poisoned => "The application failed on this request.",
            Self::BadResponse => "The application's answer could not be understood.",
            Self::ConnectTimeout | Self::ResponseTimeout => "The application did not answer in time.",
            Self::ClientGone => "The client left.",
            Self::Drained => "The server is restarting.",
        }
    }

    /// No client of good will sends many of these.
    pub fn is_malformed(self) -> bool {
        matches!(self.status(), StatusCode::BAD_REQUEST | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    }

    /// Another try makes sense later.
    pub fn is_for_now(self) -> bool {
        match self {
            Self::QueueFull
            | Self::ClientShare
            | Self::StalledShare
            | Self::Overload
            | Self::QueueDeadline
            | Self::NoEndpoint
            | Self::TooManyTunnels
            | Self::TooManyConnections
            | Self::Refused
            | Self::Drained => true,
            Self::Malformed
            | Self::BadFraming
            | Self::BadVersion
            | Self::MethodNotAllowed
            | Self::UnknownProtocol
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::HeaderTimeout
            | Self::BadHost
            | Self::BadTarget
            | Self::BadBody
            | Self::TooManyFields
            | Self::BodyTooLarge
            | Self::BodyTimeout
            | Self::ResponseStall
            | Self::NoRoute
            | Self::FrameFlood
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::UpstreamTls
            | Self::UpstreamReset
            | Self::Poisoned
            | Self::BadResponse
            | Self::ResponseTimeout
            | Self::ClientGone
            | Self::CutOff => false,
        }
    }

    /// The rest of the request will not be read, or what follows it may be something else than a request, so that an
    /// HTTP/1.1 connection must end.
    fn ends_connection(self) -> bool {
        matches!(
            self,
            Self::BadBody | Self::BodyTooLarge | Self::BodyTimeout | Self::StalledShare | Self::MethodNotAllowed
        )
    }

    /// Problem JSON (RFC 9457) with `Proxy-Status` (RFC 9209). `request_id` is hexadecimal. `retry_after`: when another
    /// try makes sense, where it does at all (RFC 9110, section 10.2.3).
    pub fn response(self, request_id: &str, version: http::Version, retry_after: Duration) -> Response<Body> {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or("Client Closed Request");
        let body = format!(
            "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{},\"detail\":\"{}\",\"request_id\":\"{request_id}\"}}\n",
            status.as_u16(),
            self.detail(),
        );
        let mut response = Response::new(Body::full(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let proxy_status = format!("servery; error={}", self.proxy_status());
        headers.insert(
            http::HeaderName::from_static("proxy-status"),
            HeaderValue::try_from(proxy_status).expect("made of field characters above"),
        );
        if self.is_for_now() {
            // whole seconds, rounded up
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self == Self::MethodNotAllowed {
            headers.insert(header::ALLOW, HeaderValue::from_static(ALLOWED));
        }
        if self.ends_connection() && version < http::Version::HTTP_2 {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_place_and_a_label_of_its_own() {
        for (at, reject) in Reject::ALL.into_iter().enumerate() {
            assert_eq!(reject as usize, at);
            assert_eq!(Reject::ALL.iter().filter(|other| other.label() == reject.label()).count(), 1);
        }
    }

    #[tokio::test]
    async fn the_answer_is_problem_json_with_proxy_status() {
        let response = Reject::QueueFull.response("00ff", http::Version::HTTP_11, Duration::from_millis(2001));
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()["proxy-status"], "servery; error=connection_limit_reached");
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["status"], 503);
        assert_eq!(problem["request_id"], "00ff");
    }

    #[test]
    fn a_body_left_unread_ends_an_http1_connection() {
        assert_eq!(
            Reject::BodyTooLarge.response("", http::Version::HTTP_11, Duration::ZERO).headers()["connection"],
            "close"
        );
        assert!(
            !Reject::BodyTooLarge
                .response("", http::Version::HTTP_2, Duration::ZERO)
                .headers()
                .contains_key("connection")
        );
    }
}
