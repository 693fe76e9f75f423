//! Virtual time and what is to happen in it. Events of the same instant come out in the order in which they went in, so
//! that a run is the same every time.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    ops::{Add, Sub},
    time::Duration,
};

/// An instant: nanoseconds since the start. No floating point, so that nothing depends on how large it has become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    pub const START: Self = Self(0);

    pub fn since_start(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl Add<Duration> for Time {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0 + nanos(span))
    }
}

impl Sub for Time {
    type Output = Duration;

    /// Nothing where `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// What is still to come.
#[derive(Debug)]
pub struct Calendar<E> {
    entries: BinaryHeap<Entry<E>>,
    numbers: u64,
    now: Time,
}

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Default for Calendar<E> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), numbers: 0, now: Time::START }
    }
}

impl<E> Calendar<E> {
    /// When the last event was.
    pub fn now(&self) -> Time {
        self.now
    }

    /// `event` happens then; what should have been earlier happens now.
    pub fn at(&mut self, at: Time, event: E) {
        self.numbers += 1;
        self.entries.push(Entry { at: at.max(self.now), number: self.numbers, event });
    }

    /// The next event; the time is its time then.
    pub fn turn(&mut self) -> Option<E> {
        let entry = self.entries.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

impl<E> Ord for Entry<E> {
    /// The heap gives out its greatest: the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_equals_in_the_order_they_were_entered() {
        let mut calendar = Calendar::default();
        let at = |ms| Time::START + Duration::from_millis(ms);
        for (ms, event) in [(5, 'd'), (1, 'a'), (5, 'e'), (1, 'b'), (2, 'c')] {
            calendar.at(at(ms), event);
        }
        let order: String = std::iter::from_fn(|| calendar.turn()).collect();
        assert_eq!(order, "abcde");
        assert_eq!(calendar.now(), at(5));
        calendar.at(at(1), 'f');
        assert_eq!((calendar.turn(), calendar.now()), (Some('f'), at(5)), "time does not run backwards");
    }
}
