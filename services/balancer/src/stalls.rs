//! The exchanges of one core that wait for their client: to take a part of its answer, or to send one of its request's body.
//! In: which do, since when. Out: the app is told of those that stand still, and may ask for their places; what stands still
//! for too long is ended. Only what waits is in here: an answer that goes out in one piece never is.

use crate::{app::App, client::Client, dispatch::StallTicket, reject::Reject};
use slab::Slab;
use std::{
    cell::RefCell,
    fmt,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// A client that does nothing for so long stands still. A slow one takes the next part before.
const STALLED: Duration = Duration::from_millis(100);
/// How often those that wait are looked at.
const LOOK: Duration = Duration::from_millis(25);
/// For each byte that a client sends it may be silent for so long: who sends less than 1 KB in a second stands still, or a byte
/// now and then would be enough.
const PER_BYTE: Duration = Duration::from_millis(1);

/// What can be ended while hyper does not ask it for anything.
pub(crate) trait Stop {
    /// Whether the client has done something since it was asked last.
    fn has_moved(&self) -> bool;

    /// More than once, if it does not end at once.
    fn stop(&self, reason: Reject);
}

/// An exchange whose client's turn it is.
pub(crate) struct Exchange {
    pub(crate) client: Client,
    /// Where it holds a permit.
    pub(crate) place: Option<Arc<App>>,
    /// For how long the client may do nothing, where nobody else looks.
    pub(crate) patience: Option<Duration>,
    pub(crate) stop: Weak<dyn Stop>,
}

/// An app asks for a place, from whatever core.
#[derive(Debug)]
pub(crate) struct Cut {
    called: AtomicBool,
    core: Arc<Notify>,
}

impl Cut {
    pub(crate) fn new(core: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { called: AtomicBool::new(false), core: Arc::clone(core) })
    }

    pub(crate) fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.core.notify_one();
    }

    fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire)
    }
}

/// How far a client is behind the least that it has to send.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    behind: Duration,
}

impl Pace {
    /// So many bytes came, after they were awaited for so long.
    pub(crate) fn came(&mut self, bytes: u64, awaited: Duration) {
        let paid = PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.behind = (self.behind + awaited).saturating_sub(paid);
    }

    /// Since when it stands still that begins to wait now.
    pub(crate) fn since(&self, now: Instant) -> Instant {
        now.checked_sub(self.behind).unwrap_or(now)
    }
}

struct Entry {
    exchange: Exchange,
    since: Instant,
    /// What the app knows of it.
    told: Option<(StallTicket, Arc<Cut>)>,
}

#[derive(Default)]
pub(crate) struct Stalls {
    entries: RefCell<Slab<Entry>>,
    /// There was nobody, and now there is.
    begun: Notify,
    called: Arc<Notify>,
}

/// A wait for a client; over when dropped.
pub(crate) struct Stall {
    stalls: Rc<Stalls>,
    key: usize,
}

impl Stalls {
    /// It is the client's turn now; `since`: when it would have begun to stand still, had it done all it did before.
    pub(crate) fn begin(self: &Rc<Self>, exchange: Exchange, since: Instant, now: Instant) -> Stall {
        let mut entry = Entry { exchange, since, told: None };
        if now.saturating_duration_since(since) >= STALLED {
            entry.tell(&self.called);
        }
        let mut entries = self.entries.borrow_mut();
        if entries.is_empty() {
            self.begun.notify_one();
        }
        Stall { stalls: Rc::clone(self), key: entries.insert(entry) }
    }

    fn look(&self, now: Instant) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            entry.look(now, &self.called);
        }
    }

    /// Looks for ever, while there is somebody to look at.
    pub(crate) async fn keep_looking(&self) {
        loop {
            if self.entries.borrow().is_empty() {
                self.begun.notified().await;
            }
            tokio::select! {
                () = sleep(LOOK) => {}
                () = self.called.notified() => {}
            }
            self.look(Instant::now());
        }
    }
}

impl Entry {
    fn look(&mut self, now: Instant, called: &Arc<Notify>) {
        // who is being dropped is gone in a moment
        let Some(stop) = self.exchange.stop.upgrade() else { return };
        if self.told.as_ref().is_some_and(|(_, cut)| cut.is_called()) {
            return stop.stop(Reject::StalledShare);
        }
        if stop.has_moved() {
            self.since = now;
            return self.untell();
        }
        let stood = now.saturating_duration_since(self.since);
        if self.exchange.patience.is_some_and(|patience| stood >= patience) {
            return stop.stop(Reject::ResponseStall);
        }
        if stood >= STALLED {
            self.tell(called);
        }
    }

    fn tell(&mut self, called: &Arc<Notify>) {
        if let Some(app) = self.exchange.place.as_ref().filter(|_| self.told.is_none()) {
            let cut = Cut::new(called);
            self.told = Some((app.stall(self.exchange.client, self.since, Arc::clone(&cut)), cut));
        }
    }

    fn untell(&mut self) {
        if let (Some(app), Some((ticket, _))) = (&self.exchange.place, self.told.take()) {
            app.unstall(ticket);
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut entry = self.stalls.entries.borrow_mut().remove(self.key);
        entry.untell();
    }
}

impl fmt::Debug for Stalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stalls").finish_non_exhaustive()
    }
}

impl fmt::Debug for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stall").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_byte_now_and_then_is_standing_still_and_a_slow_upload_is_not() {
        let now = Instant::now();
        let behind = |pace: &Pace| now.duration_since(pace.since(now));
        let (mut dribble, mut slow) = (Pace::default(), Pace::default());
        for _ in 0..10 {
            dribble.came(1, SECOND);
            slow.came(1100, SECOND);
        }
        assert!(behind(&dribble) > 9 * SECOND);
        assert_eq!(behind(&slow), Duration::ZERO);
        // what it sends makes up for what it did not
        dribble.came(64 * 1024, Duration::ZERO);
        assert_eq!(behind(&dribble), Duration::ZERO);
        dribble.came(1, 2 * SECOND);
        assert_eq!(behind(&dribble), 2 * SECOND - PER_BYTE);
    }
}
