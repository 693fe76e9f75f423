//! Whether an endpoint is fit for requests. In: how its attempts ended, and the time. Out: how many permits of it may be
//! out. Pure; whether enough others are left to eject this one is the caller's to know.
//!
//! Well -> ejected after failures in a row, or for being much slower than the app's other endpoints -> when the time is
//! up: a failing one gets one request as a probe, a slow one is readmitted and measured anew -> slow start -> well. Each
//! ejection that follows soon takes twice as long.

use super::Ended;
use std::time::Duration;
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
/// One answer moves the estimate of the median up or down by this factor.
const STEP: f64 = 1.1;

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
    typical: Typical,
}

/// The median of a stream, within a step of it: up when a value is larger, down when it is smaller (Ma, Muthukrishnan,
/// Sandler: Frugal streaming for estimating quantiles, 2014, with factors for steps). A few very slow answers do not move
/// it, as they would a mean.
#[derive(Debug, Default)]
struct Typical {
    seconds: f64,
    samples: u32,
}

impl Typical {
    fn see(&mut self, took: Duration) {
        let took = took.as_secs_f64().max(1e-6);
        if self.samples == 0 {
            self.seconds = took;
        } else if took > self.seconds {
            self.seconds = (self.seconds * STEP).min(took);
        } else if took < self.seconds {
            self.seconds = (self.seconds / STEP).max(took);
        }
        self.samples = self.samples.saturating_add(1);
    }
}

impl Default for Health {
    fn default() -> Self {
        Self { state: State::Well { since: None }, failures: 0, ejections: 0, typical: Typical::default() }
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

    /// An attempt has ended. True when the endpoint has failed so often that it should be ejected.
    pub(super) fn observe(&mut self, ended: Ended, now: Instant) -> bool {
        match ended {
            Ended::Unjudged | Ended::Busy => false,
            Ended::Answered(took) => {
                self.failures = 0;
                self.typical.see(took);
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

    /// The median time to an answer in seconds, once it is known well enough to be compared.
    pub(super) fn typical(&self) -> Option<f64> {
        (self.typical.samples >= SAMPLES && !self.is_out()).then_some(self.typical.seconds)
    }
}

/// Whether this median is out of line with the median of all of them. Seconds.
pub(super) fn is_outlier(typical: f64, of_all: f64) -> bool {
    typical > of_all * TIMES && typical > of_all + SLOWER.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn failed(health: &mut Health, now: Instant) -> bool {
        health.observe(Ended::Failed, now)
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answer_between_them_forgives() {
        let (now, mut health) = (Instant::now(), Health::default());
        for _ in 0..4 {
            assert!(!failed(&mut health, now));
        }
        health.observe(Ended::Answered(MS), now);
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
        health.observe(Ended::Answered(MS), now);
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
        health.observe(Ended::Answered(MS), now);
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
            health.observe(Ended::Answered(100 * MS), now);
        }
        assert!(is_outlier(health.typical().unwrap(), 0.02) && !is_outlier(health.typical().unwrap(), 0.05));
        health.eject(Reason::Latency, now);
        health.turn(now + FIRST);
        assert_eq!(health.allowed(4, now + FIRST), 1);
        assert_eq!(health.typical(), None);
    }

    #[test]
    fn a_few_very_slow_answers_say_nothing_and_many_do() {
        let (now, mut health) = (Instant::now(), Health::default());
        for turn in 0..1000 {
            health.observe(Ended::Answered(if turn % 20 == 0 { 5000 * MS } else { 10 * MS }), now);
        }
        assert!(health.typical().unwrap() < 0.015);
        for _ in 0..60 {
            health.observe(Ended::Answered(50 * MS), now);
        }
        assert!(health.typical().unwrap() > 0.045);
    }

    proptest! {
        #[test]
        fn the_estimate_is_within_a_step_or_two_of_the_median(
            mut values in prop::collection::vec(1_u64..100, 200..300), turns in 1_usize..5,
        ) {
            let mut typical = Typical::default();
            for value in values.iter().cycle().take(values.len() * turns) {
                typical.see(Duration::from_millis(*value));
            }
            values.sort_unstable();
            let quantile = |part: usize| Duration::from_millis(values[values.len() * part / 100]).as_secs_f64();
            prop_assert!(typical.seconds >= quantile(15) / 1.3 && typical.seconds <= quantile(85) * 1.3);
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
                    2 if may > 0 => { health.observe(Ended::Answered(MS), now); }
                    _ => {}
                }
            }
            now += LONGEST;
            health.turn(now);
            prop_assert!(health.allowed(grant, now) >= grant.min(1));
        }
    }
}
