//! The slots of a worker: comes in the start and end of each request, goes out whether there is room for one more. Behind
//! a balancer nobody waits here but a few on deck, for moments, because the only queue is the balancer's; a worker that
//! clients reach by themselves has its own. Either way slots are given in the order in which the requests came.

use crate::{
    counts::Counts,
    presences::{Numbered, Occupied},
    service::Service,
};
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
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// Most requests that wait on deck. Measured with fast Flask requests: with three or four of them a slot does about nine
/// tenths of what it can, with none a half.
const MOST_ON_DECK: u32 = 4;

/// How long a request waits on deck: then its balancer looks for a place elsewhere.
const DECK_TIME: Duration = Duration::from_millis(20);

/// Shared by the connections of a worker.
#[derive(Debug)]
pub(crate) struct Slots {
    capacity: usize,
    free: Semaphore,
    waiting: AtomicU32,
    on_deck: AtomicU32,
    service: Service,
    /// Who accepts connections only while there is a free slot.
    acceptor: AtomicWaker,
    pub(crate) counts: Arc<Counts>,
}

/// The right to run one request. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    /// Whose it is, behind a balancer. Dropped when the slot is free, so that nobody hears of it before.
    occupied: Option<Occupied>,
}

/// A request that has a slot. Dropping it counts the request, then frees the slot.
#[derive(Debug)]
pub(crate) struct Run {
    slot: Slot,
    /// When its head was here.
    began: Instant,
    /// Since when it has had its slot.
    since: Instant,
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
            on_deck: AtomicU32::new(0),
            service: Service::default(),
            acceptor: AtomicWaker::new(),
            counts: Arc::default(),
        })
    }

    /// A slot, unless all are busy or somebody waits for one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<Slot> {
        self.free.try_acquire().ok()?.forget();
        self.counts.touch();
        Some(Slot { slots: Arc::clone(self), occupied: None })
    }

    /// A slot, behind everybody who waits already.
    pub(crate) async fn wait(self: &Arc<Self>) -> Slot {
        if let Some(slot) = self.take() {
            return slot;
        }
        let _waiting = Waiting::unbounded(&self.waiting, &self.counts);
        self.handed_over().await
    }

    /// A slot, behind those who are on deck already. `None`: too many are, or none became free in time.
    pub(crate) async fn wait_on_deck(self: &Arc<Self>) -> Option<Slot> {
        let _waiting = Waiting::up_to(MOST_ON_DECK, &self.on_deck, &self.counts)?;
        timeout(DECK_TIME, self.handed_over()).await.ok()
    }

    /// The next slot that is free for the caller, who stands behind all others that wait.
    async fn handed_over(self: &Arc<Self>) -> Slot {
        self.free.acquire().await.expect("the semaphore is never closed").forget();
        Slot { slots: Arc::clone(self), occupied: None }
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
        Heartbeat {
            busy: self.busy(),
            waiting: self.waiting.load(Ordering::Relaxed),
            on_deck: self.on_deck.load(Ordering::Relaxed),
            service_us: self.service.micros(),
            ..self.counts.heartbeat()
        }
    }
}

impl Slot {
    /// The slot is taken by a request on this connection.
    pub(crate) fn occupied_by(mut self, connection: &Arc<Numbered>) -> Self {
        self.occupied = Some(connection.occupy());
        self
    }

    /// The slot is a request's now, whose head was here at `began`.
    pub(crate) fn run(self, began: Instant) -> Run {
        Run { slot: self, began, since: Instant::now(), status: None }
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
        let (slots, now) = (&self.slot.slots, Instant::now());
        if let Some(status) = self.status {
            slots.counts.answered(status);
            // what was given up says nothing of how long an answer takes
            slots.service.took(now.duration_since(self.since));
        }
        slots.counts.served();
        slots.counts.took(now.duration_since(self.began));
    }
}

/// Counts a request that waits.
struct Waiting<'a> {
    all: &'a AtomicU32,
    counts: &'a Counts,
}

impl<'a> Waiting<'a> {
    fn unbounded(all: &'a AtomicU32, counts: &'a Counts) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        counts.touch();
        Self { all, counts }
    }

    /// `None`: so many wait already.
    fn up_to(most: u32, all: &'a AtomicU32, counts: &'a Counts) -> Option<Self> {
        let one_more = |waiting| (waiting < most).then_some(waiting + 1);
        all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        counts.touch();
        Some(Self { all, counts })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.counts.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::{DECK_TIME, Slots};
    use crate::presences::Presences;
    use futures_util::{FutureExt, poll};
    use http::StatusCode;
    use std::{pin::pin, sync::Arc, time::Duration};
    use tokio::time::{Instant, advance};

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

    #[tokio::test(start_paused = true)]
    async fn on_deck_slots_are_given_in_order_and_no_newcomer_overtakes() {
        let slots = Slots::new(1);
        let first = slots.take().unwrap();
        let (mut second, mut third) = (pin!(slots.wait_on_deck()), pin!(slots.wait_on_deck()));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        let heartbeat = slots.heartbeat();
        assert_eq!((heartbeat.on_deck, heartbeat.busy, heartbeat.waiting), (2, 1, 0));
        drop(first);
        assert!(slots.take().is_none(), "the slot is somebody's already");
        assert!(poll!(&mut third).is_pending());
        let second = second.now_or_never().unwrap().unwrap();
        assert_eq!(slots.heartbeat().on_deck, 1);
        drop(second);
        drop(third.now_or_never().unwrap().unwrap());
        assert_eq!((slots.heartbeat().on_deck, slots.busy()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fifth_finds_no_place_on_deck_and_one_that_leaves_makes_room() {
        let slots = Slots::new(1);
        let _busy = slots.take().unwrap();
        let mut deck: Vec<_> = (0..4).map(|_| Box::pin(slots.wait_on_deck())).collect();
        for waits in &mut deck {
            assert!(poll!(waits).is_pending());
        }
        assert!(slots.wait_on_deck().now_or_never().unwrap().is_none(), "at once");
        deck.pop();
        assert_eq!(slots.heartbeat().on_deck, 3);
        assert!(slots.wait_on_deck().now_or_never().is_none(), "it waits");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stays_on_deck_for_longer_than_moments() {
        let slots = Slots::new(1);
        let busy = slots.take().unwrap();
        let start = Instant::now();
        assert!(slots.wait_on_deck().await.is_none());
        let waited = start.elapsed();
        assert!((DECK_TIME..DECK_TIME + Duration::from_millis(2)).contains(&waited), "{waited:?}");
        assert_eq!(slots.heartbeat().on_deck, 0);
        drop(busy);
        assert!(slots.take().is_some(), "nobody waits for the slot any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_requests_service_begins_with_its_slot() {
        let slots = Slots::new(1);
        let began = Instant::now();
        advance(Duration::from_millis(15)).await;
        let mut run = slots.take().unwrap().run(began);
        advance(Duration::from_millis(2)).await;
        run.answered(StatusCode::OK);
        drop(run);
        let heartbeat = slots.heartbeat();
        assert_eq!(heartbeat.service_us, 2000);
        assert!((heartbeat.durations.unwrap().sum_s - 0.017).abs() < 1e-9, "from its head");
    }

    #[tokio::test(start_paused = true)]
    async fn what_its_client_gave_up_says_nothing_of_the_service() {
        let slots = Slots::new(1);
        let run = slots.take().unwrap().run(Instant::now());
        advance(Duration::from_millis(2)).await;
        drop(run);
        assert_eq!(slots.heartbeat().service_us, 0);
    }

    #[test]
    fn a_connection_is_settled_when_its_requests_slot_is_free_and_not_before() {
        let slots = Slots::new(1);
        let presences = Presences::new(Arc::clone(&slots.counts));
        let connection = presences.enter(7).unwrap();
        let run = slots.take().unwrap().occupied_by(&connection).run(Instant::now());
        connection.end();
        assert_eq!((presences.tell()[0].orphaned, presences.take_settled()), (1, vec![]));
        drop(run);
        assert_eq!((presences.tell(), presences.take_settled(), slots.busy()), (vec![], vec![7], 0));
    }
}
