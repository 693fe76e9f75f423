//! What a worker's heartbeats tell of its requests. Comes in each request's end, goes out how many there were since the
//! last heartbeat, with what they were answered and how long they took. Nothing in here is locked.

use http::StatusCode;
use proto::{
    DURATION_BOUNDS_S,
    worker::{CodeCount, Durations, Heartbeat},
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::sync::Notify;

/// Shared by the connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    served: AtomicU64,
    /// Ended since the last heartbeat, by class: 1xx first.
    codes: [AtomicU64; 5],
    denied: AtomicU64,
    refused: AtomicU64,
    /// By bucket; the last one has no upper bound.
    durations: [AtomicU64; DURATION_BOUNDS_S.len() + 1],
    micros: AtomicU64,
    changed: Notify,
}

impl Counts {
    /// A request that had a slot has ended.
    pub(crate) fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered, by whomever.
    pub(crate) fn answered(&self, status: StatusCode) {
        if let Some(count) = self.codes.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From a request's head to the end of its response.
    pub(crate) fn took(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        // the array is one longer than the bounds
        if let Some(count) = self.durations.get(DURATION_BOUNDS_S.partition_point(|bound| *bound < seconds)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A request came without the right pass.
    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// A request came over capacity or while draining.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// There is something to tell.
    pub(crate) fn touch(&self) {
        self.changed.notify_one();
    }

    /// Until something changed since the last call. One waiter at a time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What there is to tell apart from the slots, and starts the counts since the last heartbeat over.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let codes = (1_u32..).zip(&self.codes).filter_map(|(code_class, count)| {
            let count = count.swap(0, Ordering::Relaxed);
            (count > 0).then_some(CodeCount { code_class, count })
        });
        Heartbeat {
            codes: codes.collect(),
            served: self.served.load(Ordering::Relaxed),
            denied: self.denied.swap(0, Ordering::Relaxed),
            refused: self.refused.swap(0, Ordering::Relaxed),
            durations: self.take_durations(),
            ..Heartbeat::default()
        }
    }

    fn take_durations(&self) -> Option<Durations> {
        let counts: Vec<u64> = self.durations.iter().map(|count| count.swap(0, Ordering::Relaxed)).collect();
        let sum = Duration::from_micros(self.micros.swap(0, Ordering::Relaxed));
        counts.iter().any(|count| *count > 0).then(|| Durations { counts, sum_s: sum.as_secs_f64() })
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;
    use http::StatusCode;
    use proto::{DURATION_BOUNDS_S, worker::CodeCount};
    use std::time::Duration;

    #[test]
    fn a_heartbeat_counts_each_request_once() {
        let counts = Counts::default();
        for status in [StatusCode::OK, StatusCode::CREATED, StatusCode::BAD_GATEWAY] {
            counts.answered(status);
            counts.served();
        }
        counts.denied();
        let heartbeat = counts.heartbeat();
        assert_eq!((heartbeat.served, heartbeat.denied, heartbeat.refused), (3, 1, 0));
        let count = |code_class, count| CodeCount { code_class, count };
        assert_eq!(heartbeat.codes, vec![count(2, 2), count(5, 1)]);
        let next = counts.heartbeat();
        assert_eq!((next.codes.len(), next.served, next.denied), (0, 3, 0));
    }

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let counts = Counts::default();
        assert_eq!(counts.heartbeat().durations, None);
        for micros in [0, 500, 501, 30_000_000, 30_000_001] {
            counts.took(Duration::from_micros(micros));
        }
        let durations = counts.heartbeat().durations.unwrap();
        let mut expected = [0; DURATION_BOUNDS_S.len() + 1];
        (expected[0], expected[1]) = (2, 1);
        (expected[DURATION_BOUNDS_S.len() - 1], expected[DURATION_BOUNDS_S.len()]) = (1, 1);
        assert_eq!(durations.counts, expected);
        assert!((durations.sum_s - 60.001_002).abs() < 1e-9, "{}", durations.sum_s);
        assert_eq!(counts.heartbeat().durations, None, "each is told once");
    }
}
