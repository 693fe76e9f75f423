//! Whether an endpoint is fit for requests. In: how its attempts ended, and the time. Out: how many permits of it may be
//! out. Pure; whether enough others are left to eject this one is the caller's to know.
//!
//! Well -> ejected after failures in a row, or for being much slower than the app's other endpoints -> when the time is
//! up: a failing one gets one request as a probe, a slow one is readmitted and measured anew -> slow start -> well. Each
//! ejection that follows soon takes twice as long.

use super::Ended;
use std::{cmp::Ordering, time::Duration};
use tokio::time::Instant;

/// Failures in a row that eject.
const FAILURES: u32 = 5;
/// The first ejection, ...
const FIRST: Duration = Duration::from_secs(5);
/// ... doubled with each that follows, up to ...
const LONGEST: Duration = Duration::from_secs(300);
/// ... and forgotten when it has been well for so long.
const FORGIVEN: Duration = Duration::from_secs(300);
/// From one permit to all of them.
const SLOW_START: Duration = Duration::from_secs(10);

/// Answers before an endpoint is compared with the others.
const SAMPLES: u32 = 20;
/// So many times slower than the median of the app's endpoints, ...
const TIMES: f64 = 3.0;
/// ... and by so much: where everything is fast, a little is soon three times as much.
const SLOWER: Duration = Duration::from_millis(10);
/// One answer moves the estimate of an endpoint's median up or down by this factor, ...
const STEP: f64 = 1.1;
/// ... and that of what is usual by this one, squared with each answer that follows on the same side: when requests of
/// another sort come, it has followed after five or six, before the estimate of any endpoint has moved far.
const STEP_OF_ALL: f64 = 1.3;
const LONGEST_RUN: u32 = 5;

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Failures,
    Latency,
}

impl Reason {
    pub const ALL: [Self; 2] = [Self::Failures, Self::Latency];

    /// As the metrics' `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Latency => "latency",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Well { since: Option<Instant> },
    Ejected { until: Instant, reason: Reason },
    Probing,
    Returning { since: Instant },
}

/// Of one endpoint.
#[derive(Debug)]
pub(super) struct Health {
    state: State,
    /// In a row.
    failures: u32,
    /// Lately.
    ejections: u32,
    /// How many times the usual time its answers take.
    typical: Typical,
    /// It has answered since it was compared with the others.
    fresh: bool,
}

/// The median of a stream, within a step of it: up when a value is larger, down when it is smaller (Ma, Muthukrishnan,
/// Sandler: Frugal streaming for estimating quantiles, 2014, with factors for steps). A few very slow answers do not move
/// it, as they would a mean.
#[derive(Debug)]
struct Typical {
    value: f64,
    samples: u32,
}

impl Default for Typical {
    /// As usual, until it is known better.
    fn default() -> Self {
        Self { value: 1.0, samples: 0 }
    }
}

impl Typical {
    fn see(&mut self, value: f64, step: f64) {
        if value > self.value {
            self.value = (self.value * step).min(value);
        } else if value < self.value {
            self.value = (self.value / step).max(value);
        }
        self.samples = self.samples.saturating_add(1);
    }
}

/// How long an answer takes just now, whoever gives it. What is asked for changes: so an answer is compared with those that
/// all endpoints gave at that time. An endpoint that was asked nothing since is not judged by what was asked before.
#[derive(Debug)]
pub(super) struct Usual {
    typical: Typical,
    /// So many answers before the last one were on its side: all longer, or all shorter.
    run: u32,
    side: Ordering,
}

impl Default for Usual {
    fn default() -> Self {
        Self { typical: Typical::default(), run: 0, side: Ordering::Equal }
    }
}

impl Usual {
    /// How many times the usual time this answer took.
    pub(super) fn see(&mut self, took: Duration) -> f64 {
        let took = took.as_secs_f64().max(1e-6);
        if self.typical.samples == 0 {
            self.typical.value = took;
        }
        let side = took.total_cmp(&self.typical.value);
        self.run = if side == self.side && side.is_ne() { (self.run + 1).min(LONGEST_RUN) } else { 0 };
        self.side = side;
        self.typical.see(took, STEP_OF_ALL.powi(1 << self.run));
        took / self.typical.value
    }

    /// Once there was an answer.
    pub(super) fn seconds(&self) -> f64 {
        self.typical.value
    }
}

impl Default for Health {
    fn default() -> Self {
        let (state, typical) = (State::Well { since: None }, Typical::default());
        Self { state, failures: 0, ejections: 0, typical, fresh: false }
    }
}

impl Health {
    /// Permits that may be out of those that are granted.
    pub(super) fn allowed(&self, grant: u32, now: Instant) -> u32 {
        match self.state {
            State::Well { .. } => grant,
            State::Ejected { .. } => 0,
            State::Probing => grant.min(1),
            State::Returning { since } => {
                let part = now.saturating_duration_since(since).as_secs_f64() / SLOW_START.as_secs_f64();
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and the grant")]
                let allowed = (f64::from(grant) * part.min(1.0)) as u32;
                allowed.max(grant.min(1))
            }
        }
    }

    pub(super) fn is_well(&self) -> bool {
        matches!(self.state, State::Well { .. })
    }

    /// Ejected, or still to prove itself.
    pub(super) fn is_out(&self) -> bool {
        matches!(self.state, State::Ejected { .. } | State::Probing)
    }

    pub(super) fn is_probing(&self) -> bool {
        self.state == State::Probing
    }

    /// An attempt has ended; `pace` is how many times the usual time an answer took. True when the endpoint has failed so
    /// often that it should be ejected.
    pub(super) fn observe(&mut self, ended: Ended, pace: f64, now: Instant) -> bool {
        match ended {
            Ended::Unjudged | Ended::Busy => false,
            Ended::Answered(_) => {
                self.failures = 0;
                self.typical.see(pace, STEP);
                self.fresh = true;
                if self.state == State::Probing {
                    self.state = State::Returning { since: now };
                }
                false
            }
            Ended::Failed => {
                self.failures = self.failures.saturating_add(1);
                if self.state == State::Probing {
                    self.eject(Reason::Failures, now);
                }
                self.failures >= FAILURES && !self.is_out()
            }
        }
    }

    pub(super) fn eject(&mut self, reason: Reason, now: Instant) {
        if let State::Well { since: Some(since) } = self.state
            && now.saturating_duration_since(since) >= FORGIVEN
        {
            self.ejections = 0;
        }
        let long = FIRST.saturating_mul(1 << self.ejections.min(16)).min(LONGEST);
        self.state = State::Ejected { until: now + long, reason };
        self.ejections += 1;
        self.failures = 0;
        self.typical = Typical::default();
    }

    /// Time has passed. To be called again and again until it is well.
    pub(super) fn turn(&mut self, now: Instant) {
        match self.state {
            State::Ejected { until, reason: Reason::Failures } if until <= now => self.state = State::Probing,
            State::Ejected { until, reason: Reason::Latency } if until <= now => {
                self.state = State::Returning { since: now };
            }
            State::Returning { since } if now.saturating_duration_since(since) >= SLOW_START => {
                self.state = State::Well { since: Some(now) };
            }
            State::Well { .. } | State::Ejected { .. } | State::Probing | State::Returning { .. } => {}
        }
    }

    /// How many times the usual time its answers take, if that is known well enough to be compared, and there are new ones
    /// since it was asked for the last time.
    pub(super) fn take_pace(&mut self) -> Option<f64> {
        let fresh = std::mem::take(&mut self.fresh);
        (fresh && self.typical.samples >= SAMPLES && !self.is_out()).then_some(self.typical.value)
    }
}

/// Whether this pace is out of line with the middle one of all endpoints. `usual`: in seconds.
pub(super) fn is_outlier(pace: f64, of_all: f64, usual: f64) -> bool {
    pace > of_all * TIMES && (pace - of_all) * usual > SLOWER.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn failed(health: &mut Health, now: Instant) -> bool {
        health.observe(Ended::Failed, 1.0, now)
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answer_between_them_forgives() {
        let (now, mut health) = (Instant::now(), Health::default());
        for _ in 0..4 {
            assert!(!failed(&mut health, now));
        }
        health.observe(Ended::Answered(MS), 1.0, now);
        for _ in 0..4 {
            assert!(!failed(&mut health, now));
        }
        assert!(failed(&mut health, now));
    }

    #[test]
    fn an_ejected_endpoint_is_probed_by_one_request_and_comes_back_slowly() {
        let (now, mut health) = (Instant::now(), Health::default());
        health.eject(Reason::Failures, now);
        assert_eq!(health.allowed(100, now), 0);
        health.turn(now + FIRST - MS);
        assert_eq!(health.allowed(100, now), 0);
        let now = now + FIRST;
        health.turn(now);
        assert_eq!(health.allowed(100, now), 1);
        health.observe(Ended::Answered(MS), 1.0, now);
        assert_eq!(health.allowed(100, now), 1);
        assert_eq!(health.allowed(100, now + SLOW_START / 2), 50);
        health.turn(now + SLOW_START);
        assert!(health.is_well());
        assert_eq!(health.allowed(100, now + SLOW_START), 100);
    }

    #[test]
    fn a_probe_that_fails_doubles_the_time_and_a_good_while_forgets_it() {
        let (mut now, mut health) = (Instant::now(), Health::default());
        health.eject(Reason::Failures, now);
        for long in [FIRST, 2 * FIRST, 4 * FIRST] {
            now += long;
            health.turn(now - MS);
            assert!(!health.is_probing());
            health.turn(now);
            assert!(health.is_probing(), "after {long:?}");
            assert!(!failed(&mut health, now), "it is out already");
        }
        now += 8 * FIRST;
        health.turn(now);
        health.observe(Ended::Answered(MS), 1.0, now);
        now += SLOW_START;
        health.turn(now);
        now += FORGIVEN;
        health.eject(Reason::Failures, now);
        health.turn(now + FIRST);
        assert!(health.is_probing());
    }

    #[test]
    fn a_slow_endpoint_is_measured_anew_when_it_is_back() {
        let (now, mut health) = (Instant::now(), Health::default());
        for _ in 0..SAMPLES {
            health.observe(Ended::Answered(100 * MS), 5.0, now);
        }
        let pace = health.take_pace().unwrap();
        assert_eq!(health.take_pace(), None, "nothing new");
        assert!(is_outlier(pace, 1.0, 0.02));
        assert!(!is_outlier(pace, 2.0, 0.02), "not three times as slow");
        assert!(!is_outlier(pace, 1.0, 0.002), "not by 10 ms");
        health.eject(Reason::Latency, now);
        health.turn(now + FIRST);
        assert_eq!(health.allowed(4, now + FIRST), 1);
        assert_eq!(health.take_pace(), None);
    }

    #[test]
    fn a_few_very_slow_answers_say_nothing_and_many_do() {
        let mut typical = Typical::default();
        for turn in 0..1000 {
            typical.see(if turn % 20 == 0 { 500.0 } else { 1.0 }, STEP);
        }
        assert!(typical.value < 1.5);
        for _ in 0..60 {
            typical.see(5.0, STEP);
        }
        assert!(typical.value > 4.5);
    }

    proptest! {
        #[test]
        fn the_estimate_is_within_a_step_or_two_of_the_median(
            mut values in prop::collection::vec(1.0..100.0, 200..300), turns in 1_usize..5,
        ) {
            let mut typical = Typical::default();
            for value in values.iter().cycle().take(values.len() * turns) {
                typical.see(*value, STEP);
            }
            values.sort_unstable_by(f64::total_cmp);
            let quantile = |part: usize| values[values.len() * part / 100];
            prop_assert!(typical.value >= quantile(15) / 1.3 && typical.value <= quantile(85) * 1.3);
        }

        #[test]
        fn it_never_allows_more_than_is_granted_and_never_stays_out_for_ever(
            events in prop::collection::vec((0_u64..20_000, 0_u8..4), 0..100), grant in 0_u32..300,
        ) {
            let (mut now, mut health) = (Instant::now(), Health::default());
            for (wait, event) in events {
                now += MS * u32::try_from(wait).unwrap();
                health.turn(now);
                let may = health.allowed(grant, now);
                prop_assert!(may <= grant);
                match event {
                    0 if may > 0 => health.eject(Reason::Latency, now),
                    1 if may > 0 && failed(&mut health, now) => health.eject(Reason::Failures, now),
                    2 if may > 0 => { health.observe(Ended::Answered(MS), 1.0, now); }
                    _ => {}
                }
            }
            now += LONGEST;
            health.turn(now);
            prop_assert!(health.allowed(grant, now) >= grant.min(1));
        }
    }
}
