//! Timers for what nearly always comes in time. In: moments that are too late. Out: when one has passed. A timer stays set
//! for an earlier moment and is set anew when it fires, so that nothing is armed or disarmed per request. Balancer and worker
//! wait for each other and for clients by it; this crate is what both depend on.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// One timer, for one wait at a time.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// `Ready` from that moment on.
    pub fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            // it may have been set for an earlier wait
            if sleep.deadline() >= due {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, time::Duration};
    use tokio::time::timeout;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_alarm_goes_off_when_it_is_due_whatever_it_was_set_for_before() {
        let (start, mut alarm) = (Instant::now(), Alarm::default());
        let mut passed = async |due: u32| timeout(SECOND, poll_fn(|cx| alarm.poll(start + due * SECOND, cx))).await;
        assert!(passed(5).await.is_err());
        assert!(passed(60).await.is_err(), "later than it is set for");
        assert!(passed(2).await.is_ok(), "earlier, and over");
        assert!(passed(9).await.is_err(), "it has gone off before");
        assert!(passed(4).await.is_ok());
        assert_eq!(start.elapsed(), 4 * SECOND, "earlier, and not over");
        for _ in 0..4 {
            assert!(passed(9).await.is_err());
        }
        assert!(passed(9).await.is_ok());
        assert_eq!(start.elapsed(), 9 * SECOND);
    }
}
