//! How long a request occupies its slot: comes in each one's time, goes out a moving average, from which a balancer knows
//! whether a request sent ahead of a free slot would wait for long. Nothing in here is locked.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// One request's weight is one part in so many: the average follows about as many requests.
const WEIGHT: i64 = 16;

/// In nanoseconds, because a sixteenth of a fast request is less than a microsecond; 0: nothing has come in.
#[derive(Debug, Default)]
pub(crate) struct Service(AtomicU64);

impl Service {
    /// A request has occupied its slot for so long. Of two at the same instant one may be lost: the next ones make up
    /// for it.
    pub(crate) fn took(&self, duration: Duration) {
        let sample = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let average = match self.0.load(Ordering::Relaxed) {
            0 => sample,
            average => {
                let average = i64::try_from(average).unwrap_or(i64::MAX);
                average + (sample - average) / WEIGHT
            }
        };
        self.0.store(average.max(1).unsigned_abs(), Ordering::Relaxed);
    }

    /// The average in microseconds, rounded up; 0 before the first request has ended.
    pub(crate) fn micros(&self) -> u32 {
        u32::try_from(self.0.load(Ordering::Relaxed).div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::Service;
    use std::time::Duration;

    #[test]
    fn the_first_request_is_the_average_and_none_is_no_average() {
        let service = Service::default();
        assert_eq!(service.micros(), 0);
        service.took(Duration::from_micros(300));
        assert_eq!(service.micros(), 300);
        let instant = Service::default();
        instant.took(Duration::ZERO);
        assert_eq!(instant.micros(), 1, "a request that took no time is not the same as none");
    }

    #[test]
    fn each_further_request_counts_for_a_sixteenth() {
        let service = Service::default();
        service.took(Duration::from_micros(1600));
        service.took(Duration::from_micros(3200));
        assert_eq!(service.micros(), 1700);
        service.took(Duration::ZERO);
        assert_eq!(service.micros(), 1594, "1593.75");
    }

    #[test]
    fn differences_of_less_than_a_microsecond_add_up() {
        let service = Service::default();
        service.took(Duration::from_micros(10));
        for _ in 0..200 {
            service.took(Duration::from_micros(12));
        }
        assert_eq!(service.micros(), 12);
    }

    #[test]
    fn a_request_of_a_thousand_years_breaks_nothing() {
        let service = Service::default();
        for _ in 0..3 {
            service.took(Duration::MAX);
        }
        assert_eq!(service.micros(), u32::MAX);
        service.took(Duration::ZERO);
    }
}
