//! Timers for what nearly always comes in time. In: moments that are too late. Out: when one has passed. A timer stays set
//! for an earlier moment and is set anew when it fires, so that nothing is armed or disarmed per request.

use hyper::rt::{self, Timer};
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{self, Duration},
};
use tokio::time::{Instant, Sleep, sleep_until};

/// One timer, for one wait at a time.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// `Ready` from that moment on.
    pub(crate) fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
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

/// One connection's, for hyper: it waits for one head at a time, and makes a timer for each. It wants to be sure that two
/// threads could share one.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeadTimer(Arc<Mutex<Alarm>>);

/// Waits for one head.
struct Wait {
    timer: HeadTimer,
    due: Instant,
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Wait { timer: self.clone(), due: deadline.into() })
    }

    fn now(&self) -> time::Instant {
        Instant::now().into()
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.0.lock().unwrap_or_else(PoisonError::into_inner).poll(self.due, cx)
    }
}

impl rt::Sleep for Wait {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
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

    #[tokio::test(start_paused = true)]
    async fn of_a_connections_waits_each_ends_in_its_time() {
        let (start, timer) = (Instant::now(), HeadTimer::default());
        for _ in 0..3 {
            let wait = timer.sleep(5 * SECOND);
            assert!(timeout(2 * SECOND, wait).await.is_err(), "the head has come");
        }
        timer.sleep(5 * SECOND).await;
        assert_eq!(start.elapsed(), 11 * SECOND);
    }
}
