//! The node's pass, which every request of a balancer carries: comes in a request's fields, goes out whether it is there
//! and right. Keeps the log readable when somebody knocks without.

use http::HeaderMap;
use std::sync::{Mutex, PoisonError};
use std::{fmt, net::SocketAddr, time::Duration};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// How often the same trouble is told.
const TELL: Duration = Duration::from_secs(1);

/// As the header carries it; empty: none is asked for.
pub(crate) struct Pass {
    text: Vec<u8>,
    denials: Seldom,
}

/// Something that is told once a second at most, with how often it has happened.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Untold>);

#[derive(Debug, Default)]
struct Untold {
    told: Option<Instant>,
    times: u64,
}

impl Pass {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let digit = |value: u8| b"0123456789abcdef"[usize::from(value)];
        let text = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        Self { text, denials: Seldom::default() }
    }

    /// Whether the one pass is there and right, in a time that does not tell how much of it is right.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        if self.text.is_empty() {
            return true;
        }
        let mut given = headers.get_all(proto::PASS_HEADER).iter();
        match (given.next(), given.next()) {
            (Some(given), None) => given.as_bytes().ct_eq(&self.text).into(),
            _ => false,
        }
    }

    pub(crate) fn log_denial(&self, peer: Option<SocketAddr>) {
        if let Some(requests) = self.denials.tell(1, Instant::now()) {
            tracing::warn!(?peer, requests, "refused requests without the node's pass");
        }
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").finish_non_exhaustive()
    }
}

impl Seldom {
    /// It has happened so many times more. How often it has since the last telling, if it is time to tell.
    pub(crate) fn tell(&self, times: u64, now: Instant) -> Option<u64> {
        let mut untold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untold.times += times;
        if untold.told.is_some_and(|told| now.duration_since(told) < TELL) {
            return None;
        }
        untold.told = Some(now);
        Some(std::mem::take(&mut untold.times))
    }
}

#[cfg(test)]
mod tests {
    use super::Seldom;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn what_happens_often_is_told_once_a_second_with_its_count() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(seldom.tell(1, at(0)), Some(1));
        assert_eq!(seldom.tell(2, at(500)), None);
        assert_eq!(seldom.tell(1, at(999)), None);
        assert_eq!(seldom.tell(1, at(1000)), Some(4));
    }
}
