//! The answers that a worker makes itself: comes in why, goes out problem JSON (RFC 9457) with the request's id and
//! nothing of the inside. The application's own answers never pass here.

use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

/// The name under which the balancer sends each request's id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A longer id, or one with other signs than these, is not repeated.
const LONGEST_ID: usize = 128;

/// Why the application was not asked, or has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Without the node's pass, or with a wrong one.
    Denied,
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
            Self::Busy | Self::Draining | Self::Gone => StatusCode::SERVICE_UNAVAILABLE,
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
            Self::Denied | Self::TimedOut | Self::Panicked => None,
        }
    }

    fn closes(self) -> bool {
        match self {
            Self::Draining | Self::Gone | Self::Denied => true,
            Self::Busy | Self::TimedOut | Self::Panicked => false,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Denied => "This address answers balancers only",
            Self::Busy => "All slots of this worker are busy",
            Self::Draining => "This worker is about to stop",
            Self::Gone => "This worker is gone",
            Self::TimedOut => "The application did not answer in time",
            Self::Panicked => "The application failed",
        }
    }

    /// The whole response to a request with these headers.
    pub(crate) fn response(self, request: &HeaderMap) -> Response<Body> {
        let status = self.status();
        let mut problem = format!(r#"{{"title":"{}","status":{}"#, self.title(), status.as_u16());
        if let Some(id) = request_id(request) {
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
        if self.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// The request's id, where it can stand in JSON and in a log line as it is.
pub(crate) fn request_id(request: &HeaderMap) -> Option<&str> {
    let id = request.get(REQUEST_ID)?.to_str().ok()?;
    let plain = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.' | ':' | '/' | '+' | '=');
    (id.len() <= LONGEST_ID && id.chars().all(plain)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::{Answer, request_id};
    use http::{HeaderMap, HeaderValue};

    #[test]
    fn only_what_reached_no_application_may_be_tried_elsewhere() {
        for (answer, refused) in [
            (Answer::Denied, None),
            (Answer::Busy, Some("busy")),
            (Answer::Draining, Some("draining")),
            (Answer::Gone, Some("gone")),
            (Answer::TimedOut, None),
            (Answer::Panicked, None),
        ] {
            let response = answer.response(&HeaderMap::new());
            let said = response.headers().get(proto::REFUSED_HEADER).map(|value| value.to_str().unwrap());
            assert_eq!(said, refused, "{answer:?}");
        }
    }

    #[test]
    fn an_id_that_could_break_the_json_is_left_out() {
        let mut headers = HeaderMap::new();
        for (id, repeated) in [("01J9-x_y", true), ("a\"b", false), ("a\\b", false), ("a b", false)] {
            headers.insert("x-request-id", HeaderValue::from_static(id));
            assert_eq!(request_id(&headers).is_some(), repeated, "{id}");
        }
    }
}
