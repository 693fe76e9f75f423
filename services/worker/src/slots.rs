//! The slots of a worker: comes in the start and end of each request, goes out whether there is room for one more. Behind
//! a balancer nobody waits here, because the only queue is the balancer's; a worker that clients reach by themselves has
//! its own, in the order in which the requests came.

use crate::counts::Counts;
use futures_util::task::AtomicWaker;
use http::StatusCode;
use proto::worker::Heartbeat;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
};
use tokio::{sync::Semaphore, time::Instant};

/// Shared by the connections of a worker.
#[derive(Debug)]
pub(crate) struct Slots {
    capacity: usize,
    free: Semaphore,
    waiting: AtomicU32,
    /// Who accepts connections only while there is a free slot.
    acceptor: AtomicWaker,
    pub(crate) counts: Counts,
}

/// The right to run one request. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
}

/// A request that has a slot. Dropping it counts the request, then frees the slot.
#[derive(Debug)]
pub(crate) struct Run {
    slot: Slot,
    began: Instant,
    /// What the request was answered with, once it was.
    status: Option<StatusCode>,
}

impl Slots {
    pub(crate) fn new(capacity: u32) -> Arc<Self> {
        let capacity = usize::try_from(capacity).map_or(Semaphore::MAX_PERMITS, |all| all.min(Semaphore::MAX_PERMITS));
        Arc::new(Self {
            capacity,
            free: Semaphore::new(capacity),
            waiting: AtomicU32::new(0),
            acceptor: AtomicWaker::new(),
            counts: Counts::default(),
        })
    }

    /// A slot, unless all are busy or somebody waits for one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        self.free.try_acquire().ok()?.forget();
        self.counts.touch();
        Some(Slot { slots: Arc::clone(self) })
    }

    /// A slot, behind everybody who waits already.
    pub(crate) async fn wait(self: &Arc<Self>) -> Slot {
        if let Some(slot) = self.take() {
            return slot;
        }
        let _waiting = Waiting::new(self);
        self.free.acquire().await.expect("the semaphore is never closed").forget();
        Slot { slots: Arc::clone(self) }
    }

    pub(crate) fn has_free(&self) -> bool {
        self.free() > 0
    }

    /// Those for which nobody waits.
    pub(crate) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Until there is a slot for which nobody waits. One waiter at a time.
    pub(crate) async fn one_free(&self) {
        poll_fn(|cx| {
            if self.has_free() {
                return Poll::Ready(());
            }
            self.acceptor.register(cx.waker());
            // one may have become free before the waker was there
            if self.has_free() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    pub(crate) fn busy(&self) -> u32 {
        u32::try_from(self.capacity - self.free.available_permits()).unwrap_or(u32::MAX)
    }

    /// What there is to tell.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        Heartbeat { busy: self.busy(), waiting: self.waiting.load(Ordering::Relaxed), ..self.counts.heartbeat() }
    }
}

impl Slot {
    /// The slot is a request's now, whose head was here at `began`.
    pub(crate) fn run(self, began: Instant) -> Run {
        Run { slot: self, began, status: None }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.free.add_permits(1);
        self.slots.acceptor.wake();
        self.slots.counts.touch();
    }
}

impl Run {
    /// Notes what the request is answered with. One that is dropped without was left by its client.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let counts = &self.slot.slots.counts;
        if let Some(status) = self.status {
            counts.answered(status);
        }
        counts.served();
        counts.took(self.began.elapsed());
    }
}

/// Counts a request that waits.
struct Waiting<'a>(&'a Slots);

impl<'a> Waiting<'a> {
    fn new(slots: &'a Slots) -> Self {
        slots.waiting.fetch_add(1, Ordering::Relaxed);
        slots.counts.touch();
        Self(slots)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.counts.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;
    use futures_util::{FutureExt, poll};
    use http::StatusCode;
    use std::{pin::pin, sync::Arc};
    use tokio::time::Instant;

    #[test]
    fn there_are_never_more_slots_out_than_there_are() {
        let slots = Slots::new(2);
        let (one, two) = (slots.take(), slots.take());
        assert!(one.is_some() && two.is_some() && slots.take().is_none());
        drop(one);
        assert_eq!(slots.busy(), 1);
        assert!(slots.take().is_some());
    }

    #[test]
    fn threads_that_race_for_slots_never_hold_too_many() {
        let slots = Slots::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let slot = slots.take();
                        assert!(slots.busy() <= 3);
                        drop(slot);
                    }
                });
            }
        });
        assert_eq!(slots.busy(), 0);
    }

    #[test]
    fn a_request_is_counted_when_it_ends_and_a_slot_alone_is_not() {
        let slots = Slots::new(2);
        drop(slots.take());
        assert_eq!(slots.heartbeat().served, 0);
        let mut run = slots.take().unwrap().run(Instant::now());
        run.answered(StatusCode::OK);
        assert_eq!((slots.heartbeat().served, slots.busy()), (0, 1));
        drop(run);
        let heartbeat = slots.heartbeat();
        assert_eq!((heartbeat.served, heartbeat.busy, heartbeat.codes.len()), (1, 0, 1));
    }

    #[tokio::test]
    async fn who_waits_gets_a_slot_in_order_and_before_who_accepts() {
        let slots = Slots::new(1);
        let first = slots.take().unwrap();
        let (mut second, mut third) = (pin!(slots.wait()), pin!(slots.wait()));
        let mut acceptor = pin!(slots.one_free());
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending() && poll!(&mut acceptor).is_pending());
        assert_eq!(slots.heartbeat().waiting, 2);
        drop(first);
        assert!(poll!(&mut acceptor).is_pending() && slots.take().is_none(), "the slot is somebody's already");
        assert!(poll!(&mut third).is_pending());
        let second = second.now_or_never().unwrap();
        assert_eq!(slots.heartbeat().waiting, 1);
        drop(second);
        drop(third.now_or_never().unwrap());
        assert!(poll!(&mut acceptor).is_ready());
        assert_eq!((slots.heartbeat().waiting, slots.busy()), (0, 0));
    }

    #[tokio::test]
    async fn a_slot_for_somebody_who_left_goes_to_the_next() {
        let slots = Slots::new(1);
        let first = slots.take().unwrap();
        {
            let mut left = pin!(slots.wait());
            assert!(poll!(&mut left).is_pending());
            drop(first);
        }
        assert_eq!((slots.busy(), slots.heartbeat().waiting), (0, 0));
        let acceptor = Arc::clone(&slots);
        acceptor.one_free().await;
    }
}
