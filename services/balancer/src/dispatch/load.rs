//! How much the queue can promise. In: how long permits are out, who was served, who was lost to the wait, the time.
//! Out: the expected wait, and whether the newest go first. Pure.
//!
//! The expected wait is Little's law (Operations Research 9, 1961): what is held, divided by how long each is held, is the
//! rate at which permits come back.
//!
//! First in, first out is right as long as everybody is served in time. When some are not (they cannot make their
//! deadline, or their clients leave), it gives every permit to the request that is about to be lost, and soon nobody is
//! served in time. Then the newest go first, until nothing old waits any more (adaptive LIFO; Maurer, Fail at Scale, ACM
//! Queue 2015). The signal is the sojourn time of the oldest, as in `CoDel` (RFC 8289), together with requests being lost.

use std::time::Duration;

/// One permit that comes back moves the mean by this part: services vary a lot.
const HOLD_WEIGHT: f64 = 1.0 / 64.0;
/// Permits that have come back before the mean is worth anything.
const HOLD_SAMPLES: u32 = 8;
/// One request that leaves the queue moves the part of the lost ones by this.
const LOST_WEIGHT: f64 = 1.0 / 32.0;
/// More lost than this, and the newest go first; less than half of it, and they do so no longer.
const LOST: f64 = 0.1;
/// An oldest request that has waited less is no standing queue.
const TARGET: Duration = Duration::from_millis(100);
/// Bounds of what a client is told.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Of one app.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// How long a permit is out, in seconds.
    hold: f64,
    samples: u32,
    /// The part of those who waited that was not served in time.
    lost: f64,
    newest_first: bool,
}

impl Load {
    /// A permit came back that a request had for so long.
    pub(super) fn held_for(&mut self, long: Duration) {
        let seconds = long.as_secs_f64();
        // at first the plain mean
        self.samples = self.samples.saturating_add(1);
        self.hold += (seconds - self.hold) * HOLD_WEIGHT.max(1.0 / f64::from(self.samples));
    }

    /// How long `ahead` requests take to get a permit, with so many held. `None`: nobody can know yet.
    pub(super) fn expected_wait(&self, ahead: usize, held: u64) -> Option<Duration> {
        if self.samples < HOLD_SAMPLES || held == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = ahead as f64 * self.hold / held as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// When it makes sense to come again, with so many ahead: by then they are served. From 1 s to 60 s.
    pub(super) fn retry_after(&self, ahead: usize, held: u64) -> Duration {
        self.expected_wait(ahead, held).unwrap_or_default().clamp(SHORTEST, LONGEST)
    }

    /// Somebody who waited was answered.
    pub(super) fn served(&mut self) {
        self.lost -= self.lost * LOST_WEIGHT;
    }

    /// Somebody waited, or would have, in vain; also when the permit came, and soon after that the client left.
    pub(super) fn lost(&mut self) {
        self.lost += (1.0 - self.lost) * LOST_WEIGHT;
    }

    /// The oldest one that waits has waited for so long; `None`: nobody waits.
    pub(super) fn judge(&mut self, oldest: Option<Duration>) {
        match oldest {
            None => (self.lost, self.newest_first) = (0.0, false),
            Some(oldest) if oldest < TARGET => self.newest_first = false,
            Some(_) if self.lost > LOST => self.newest_first = true,
            Some(_) if self.lost < LOST / 2.0 => self.newest_first = false,
            Some(_) => {}
        }
    }

    pub(super) fn newest_first(&self) -> bool {
        self.newest_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn load(hold: Duration) -> Load {
        let mut load = Load::default();
        (0..100).for_each(|_| load.held_for(hold));
        load
    }

    #[test]
    fn the_expected_wait_is_what_is_ahead_over_the_rate() {
        let load = load(SECOND / 5);
        // 4 slots of 200 ms each: 20 a second
        let wait = load.expected_wait(40, 4).unwrap();
        assert!((wait.as_secs_f64() - 2.0).abs() < 1e-9, "{wait:?}");
        assert_eq!(load.expected_wait(0, 4), Some(Duration::ZERO));
        assert_eq!(load.expected_wait(40, 0), None, "nothing comes back");
        assert_eq!(Load::default().expected_wait(40, 4), None, "nothing is known");
    }

    #[test]
    fn what_a_client_is_told_is_when_those_before_it_are_served_within_bounds() {
        let load = load(SECOND / 5);
        assert_eq!(load.retry_after(1, 4), SECOND);
        assert_eq!(load.retry_after(100, 4).as_secs(), 5);
        assert_eq!(load.retry_after(1_000_000, 1), LONGEST);
        assert_eq!(Load::default().retry_after(5, 0), SECOND);
    }

    #[test]
    fn a_long_wait_alone_keeps_the_order() {
        let mut load = load(SECOND);
        for _ in 0..1000 {
            load.served();
            load.judge(Some(9 * SECOND));
        }
        assert!(!load.newest_first());
    }

    #[test]
    fn lost_requests_turn_the_order_until_nothing_old_waits() {
        let mut load = load(SECOND);
        for _ in 0..3 {
            load.lost();
            load.judge(Some(SECOND));
        }
        assert!(!load.newest_first(), "one or two clients that leave are no overload");
        load.lost();
        load.judge(Some(SECOND));
        assert!(load.newest_first());
        load.judge(Some(TARGET / 2));
        assert!(!load.newest_first());
        load.judge(Some(SECOND));
        assert!(load.newest_first());
        (0..100).for_each(|_| load.served());
        load.judge(Some(SECOND));
        assert!(!load.newest_first(), "everybody is served again");
        (0..100).for_each(|_| load.lost());
        load.judge(Some(SECOND));
        assert!(load.newest_first());
        load.judge(None);
        load.judge(Some(SECOND));
        assert!(!load.newest_first(), "an empty queue begins anew");
    }
}
