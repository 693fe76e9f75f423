//! How long something may go on without moving. Comes in the moment at which it is too late, goes out that moment. One
//! timer per waiting side, made when it first waits, and moved only when it fires early or would fire late: nothing is
//! armed or disarmed per part.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is cheap to put off.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Called while nothing moves: `Ready` at `at`, which may be another one each time.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Alarm;
    use std::{future::poll_fn, time::Duration};
    use tokio::time::{Instant, timeout};

    #[tokio::test(start_paused = true)]
    async fn it_rings_when_it_was_last_told_to_and_not_before() {
        let mut alarm = Alarm::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for put_off in [5, 9, 7] {
            let early = timeout(Duration::from_secs(1), poll_fn(|cx| alarm.poll(cx, at(put_off)))).await;
            assert!(early.is_err());
        }
        poll_fn(|cx| alarm.poll(cx, at(12))).await;
        assert_eq!(Instant::now(), at(12));
        poll_fn(|cx| alarm.poll(cx, at(20))).await;
        assert_eq!(Instant::now(), at(20));
    }
}
