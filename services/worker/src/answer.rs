//! The answers that a worker makes itself: comes in why, goes out problem JSON (RFC 9457) with the request's id and
//! nothing of the inside. The application's own answers never pass here.

use axum::body::Body;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

/// The name of the field with each request's id.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The whole answer to a head that does not arrive: there is no request to which a response could be made.
pub(crate) const LATE_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A longer id, or one with other signs than these, is not repeated.
const LONGEST_ID: usize = 128;

/// Why the application was not asked, or has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Without the node's pass, or with a wrong one.
    Denied,
    /// Not what HTTP/1.1 asks for.
    NoHost,
    /// Method, target and version are too long.
    LineTooLong,
    /// Too many header fields, or one that is too large.
    FieldsTooLarge,
    /// Said to be, or is.
    BodyTooLarge,
    /// The body stopped arriving.
    BodyStalled,
    /// No slot became free in time.
    Crowded,
    /// All slots are busy: may be tried elsewhere.
    Busy,
    /// About to stop: may be tried elsewhere.
    Draining,
    /// The worker behind this socket is dead: may be tried elsewhere.
    Gone,
    /// No response head within the time limit.
    TimedOut,
    /// The handler panicked.
    Panicked,
}

impl Answer {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Denied => StatusCode::FORBIDDEN,
            Self::NoHost => StatusCode::BAD_REQUEST,
            Self::LineTooLong => StatusCode::URI_TOO_LONG,
            Self::FieldsTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyStalled => StatusCode::REQUEST_TIMEOUT,
            Self::Crowded | Self::Busy | Self::Draining | Self::Gone => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What `Servery-Refused` says: the request reached no application.
    fn refused(self) -> Option<&'static str> {
        match self {
            Self::Busy => Some("busy"),
            Self::Draining => Some("draining"),
            Self::Gone => Some("gone"),
            Self::Denied
            | Self::NoHost
            | Self::LineTooLong
            | Self::FieldsTooLarge
            | Self::BodyTooLarge
            | Self::BodyStalled
            | Self::Crowded
            | Self::TimedOut
            | Self::Panicked => None,
        }
    }

    fn closes(self) -> bool {
        match self {
            Self::Draining | Self::Gone | Self::Denied => true,
            // what else such a client has sent is not worth reading
            Self::NoHost | Self::LineTooLong | Self::FieldsTooLarge | Self::BodyTooLarge | Self::BodyStalled => true,
            Self::Crowded | Self::Busy | Self::TimedOut | Self::Panicked => false,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Denied => "This address answers balancers only",
            Self::NoHost => "The request has no Host field, more than one, or one that names no host",
            Self::LineTooLong => "The request line is too long",
            Self::FieldsTooLarge => "The header fields are too many or too large",
            Self::BodyTooLarge => "The request's body is too large",
            Self::BodyStalled => "The request's body stopped arriving",
            Self::Crowded => "The server is busy",
            Self::Busy => "All slots of this worker are busy",
            Self::Draining => "This worker is about to stop",
            Self::Gone => "This worker is gone",
            Self::TimedOut => "The application did not answer in time",
            Self::Panicked => "The application failed",
        }
    }

    /// The whole response to a request with this id.
    pub(crate) fn response(self, id: Option<&HeaderValue>) -> Response<Body> {
        let status = self.status();
        let mut problem = format!(r#"{{"title":"{}","status":{}"#, self.title(), status.as_u16());
        if let Some(id) = plain_id(id) {
            problem.push_str(r#","request_id":""#);
            problem.push_str(id);
            problem.push('"');
        }
        problem.push_str("}\n");
        let mut response = Response::new(Body::from(problem));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(reason) = self.refused() {
            headers.insert(proto::REFUSED_HEADER, HeaderValue::from_static(reason));
        }
        if self == Self::Crowded {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The request's id, where it can stand in JSON and in a log line as it is.
pub(crate) fn plain_id(id: Option<&HeaderValue>) -> Option<&str> {
    let id = id?.to_str().ok()?;
    let plain = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.' | ':' | '/' | '+' | '=');
    ((1..=LONGEST_ID).contains(&id.len()) && id.chars().all(plain)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::{Answer, plain_id};
    use http::HeaderValue;

    #[test]
    fn only_what_reached_no_application_may_be_tried_elsewhere() {
        for (answer, refused) in [
            (Answer::Denied, None),
            (Answer::Busy, Some("busy")),
            (Answer::Draining, Some("draining")),
            (Answer::Gone, Some("gone")),
            (Answer::NoHost, None),
            (Answer::LineTooLong, None),
            (Answer::FieldsTooLarge, None),
            (Answer::BodyTooLarge, None),
            (Answer::BodyStalled, None),
            (Answer::Crowded, None),
            (Answer::TimedOut, None),
            (Answer::Panicked, None),
        ] {
            let response = answer.response(None);
            let said = response.headers().get(proto::REFUSED_HEADER).map(|value| value.to_str().unwrap());
            assert_eq!(said, refused, "{answer:?}");
        }
    }

    #[test]
    fn an_id_that_could_break_the_json_is_left_out() {
        for (id, repeated) in [("01J9-x_y", true), ("", false), ("a\"b", false), ("a\\b", false), ("a b", false)] {
            assert_eq!(plain_id(Some(&HeaderValue::from_static(id))).is_some(), repeated, "{id}");
        }
    }
}
