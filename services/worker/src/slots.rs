//! The slots of a worker, and the counts that its heartbeats carry. Comes in the start and end of each request, goes
//! out whether there is room for one more. It never waits: a request over capacity is refused, because the only queue
//! is the balancer's.

use proto::worker::{CodeCount, Heartbeat};
use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
use tokio::sync::Notify;

/// Shared by the connections of a worker.
#[derive(Debug)]
pub(crate) struct Slots {
    capacity: u32,
    busy: AtomicU32,
    served: AtomicU64,
    /// Ended since the last heartbeat, by class: 1xx first.
    codes: [AtomicU64; 5],
    denied: AtomicU64,
    refused: AtomicU64,
    changed: Notify,
}

/// The right to run one request. Dropping it frees the slot and counts the request.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    /// What the request was answered with, once it was.
    status: Option<http::StatusCode>,
}

impl Slots {
    pub(crate) fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            busy: AtomicU32::new(0),
            served: AtomicU64::new(0),
            codes: Default::default(),
            denied: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            changed: Notify::new(),
        })
    }

    /// A slot, unless all are busy.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        let room = |busy: u32| (busy < self.capacity).then(|| busy + 1);
        self.busy.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        self.changed.notify_one();
        Some(Slot { slots: Arc::clone(self), status: None })
    }

    /// A request came without the right pass.
    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// A request came over capacity or while draining.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(crate) fn busy(&self) -> u32 {
        self.busy.load(Ordering::Acquire)
    }

    /// Until something changed since the last call. One waiter at a time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What there is to tell, and starts the counts since the last heartbeat over.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let codes = (1_u32..).zip(&self.codes).filter_map(|(code_class, count)| {
            let count = count.swap(0, Ordering::Relaxed);
            (count > 0).then_some(CodeCount { code_class, count })
        });
        Heartbeat {
            codes: codes.collect(),
            busy: self.busy(),
            served: self.served.load(Ordering::Relaxed),
            denied: self.denied.swap(0, Ordering::Relaxed),
            refused: self.refused.swap(0, Ordering::Relaxed),
            waiting: 0,
            durations: None,
        }
    }
}

impl Slot {
    /// Notes what the request is answered with. A slot that is dropped without was left by the balancer.
    pub(crate) fn answered(&mut self, status: http::StatusCode) {
        self.status = Some(status);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let class = self.status.map(|status| usize::from(status.as_u16() / 100));
        if let Some(count) = class.and_then(|class| self.slots.codes.get(class.wrapping_sub(1))) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.slots.served.fetch_add(1, Ordering::Relaxed);
        self.slots.busy.fetch_sub(1, Ordering::AcqRel);
        self.slots.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::Slots;
    use http::StatusCode;
    use proto::worker::CodeCount;
    use std::sync::Arc;

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
    fn a_heartbeat_counts_each_request_once() {
        let slots = Slots::new(4);
        for status in [StatusCode::OK, StatusCode::CREATED, StatusCode::BAD_GATEWAY] {
            let mut slot = slots.take().unwrap();
            slot.answered(status);
        }
        drop(slots.take());
        slots.denied();
        let heartbeat = slots.heartbeat();
        assert_eq!((heartbeat.busy, heartbeat.served, heartbeat.denied), (0, 4, 1));
        let count = |code_class, count| CodeCount { code_class, count };
        assert_eq!(heartbeat.codes, vec![count(2, 2), count(5, 1)]);
        let next = Arc::clone(&slots).heartbeat();
        assert_eq!((next.codes.len(), next.served, next.denied), (0, 4, 0));
    }
}
