//! Whether a failed attempt is followed by another one. Pure: time comes in as whole seconds.
//!
//! Why a budget and not just a number of tries: when everything fails, three tries per request are three times the
//! load on what is already down. So retries are a share of the requests of the last 10 s, with a floor for quiet
//! times. A worker's refusal costs nothing: it did no work, and refusals are how drains and races end well. Nor does what
//! was lost with its node: whatever load it was, it is a load no more, and a node that falls away takes more requests at
//! once than a budget would let through.
//!
//! A request that has killed two workers would kill the next one too, so it is not sent there.

use http::Method;

/// Attempts of one request, refusals apart.
const ATTEMPTS: u32 = 3;
/// Refusals that one request follows up.
const REFUSALS: u32 = 8;
/// Workers that died of one request before it counts as the reason.
const DEATHS: u32 = 2;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The worker said that the request reached no application.
    Refused,
    /// No connection, so nothing was sent.
    NotConnected,
    /// A kept connection turned out to be closed before anything was written to it.
    Stale,
    /// A kept connection to a server that is not of this cluster ended after something was written to it: servers close what
    /// was idle for long enough, and nobody tells when.
    Aged,
    /// The connection ended after something may have been sent and before a response.
    Reset,
    /// No response head in time. A request that has used its time has none left for another worker.
    TimedOut,
    /// Its node is lost while it waits there: the stream broke off, and nobody closed the connection. Only where another
    /// attempt is safe; nothing of this one will come.
    Lost,
    /// What came back was no HTTP. Trying elsewhere would only hide it.
    Malformed,
    /// The client's own doing: its body broke, was too large, stopped.
    Client,
}

/// What is known when an attempt has failed.
#[derive(Clone, Copy, Debug)]
pub struct Attempted {
    pub failure: Failure,
    /// Attempts so far that were not refused, this one included.
    pub attempts: u32,
    pub refusals: u32,
    /// RFC 9110, section 9.2.2.
    pub idempotent: bool,
    /// Everything of the request body that was consumed is still here.
    pub replayable: bool,
    /// Different workers that reset this request.
    pub resets: u32,
    /// How many of those have died; `None` while nobody has looked, which takes a moment.
    pub deaths: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again.
    Free,
    /// Try again if the budget allows it.
    Budgeted,
    /// Find out how many have died, then ask again.
    CountDeaths,
    /// Give up, and say that it is the request.
    Poisoned,
    GiveUp,
}

impl Attempted {
    pub fn verdict(self) -> Verdict {
        if !self.replayable {
            return Verdict::GiveUp;
        }
        match self.failure {
            Failure::Refused if self.refusals < REFUSALS => Verdict::Free,
            // Bounded by the number of kept connections: each was taken out of the pool.
            Failure::Stale => Verdict::Free,
            Failure::Lost if self.attempts < ATTEMPTS => Verdict::Free,
            // the next one is on a fresh connection
            Failure::Aged if self.idempotent && self.attempts < ATTEMPTS => Verdict::Free,
            Failure::NotConnected if self.attempts < ATTEMPTS => Verdict::Budgeted,
            Failure::Reset if self.idempotent && self.attempts < ATTEMPTS => match self.deaths {
                _ if self.resets < DEATHS => Verdict::Budgeted,
                None => Verdict::CountDeaths,
                Some(deaths) if deaths < DEATHS => Verdict::Budgeted,
                Some(_) => Verdict::Poisoned,
            },
            Failure::Refused
            | Failure::NotConnected
            | Failure::Aged
            | Failure::Reset
            | Failure::TimedOut
            | Failure::Lost
            | Failure::Malformed
            | Failure::Client => Verdict::GiveUp,
        }
    }
}

/// RFC 9110, section 9.2.2, of the methods that can come here.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// How long the budget remembers.
const WINDOW: u64 = 10;
/// Retries per request.
const SHARE: f64 = 0.2;
/// Retries per window that are always there.
const FLOOR: f64 = 100.0;

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u32,
    retries: u32,
}

/// The retry budget of an app.
#[derive(Debug, Default)]
pub struct Budget {
    seconds: [Second; WINDOW as usize],
}

impl Budget {
    /// A request came in.
    pub fn deposit(&mut self, now: u64) {
        let second = self.second(now);
        second.requests = second.requests.saturating_add(1);
    }

    /// Takes a retry, if there is one.
    pub fn withdraw(&mut self, now: u64) -> bool {
        let granted = self.balance(now) >= 1.0;
        if granted {
            self.second(now).retries += 1;
        }
        granted
    }

    /// Retries that could be made now.
    pub fn balance(&mut self, now: u64) -> f64 {
        let recent = self.seconds.iter().filter(|second| second.number + WINDOW > now);
        let (requests, retries) = recent.fold((0.0, 0.0), |(requests, retries), second| {
            (requests + f64::from(second.requests), retries + f64::from(second.retries))
        });
        (FLOOR + SHARE * requests - retries).max(0.0)
    }

    fn second(&mut self, now: u64) -> &mut Second {
        let second = &mut self.seconds[usize::try_from(now % WINDOW).expect("smaller than the window")];
        if second.number != now {
            *second = Second { number: now, requests: 0, retries: 0 };
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempted(failure: Failure) -> Attempted {
        Attempted {
            failure,
            attempts: 1,
            refusals: 0,
            idempotent: false,
            replayable: true,
            resets: u32::from(failure == Failure::Reset),
            deaths: None,
        }
    }

    #[test]
    fn what_was_never_processed_is_tried_again_whatever_the_method() {
        assert_eq!(attempted(Failure::Refused).verdict(), Verdict::Free);
        assert_eq!(attempted(Failure::Stale).verdict(), Verdict::Free);
        assert_eq!(attempted(Failure::NotConnected).verdict(), Verdict::Budgeted);
    }

    #[test]
    fn what_was_lost_with_its_node_is_tried_again_without_a_budget_but_not_for_ever() {
        assert_eq!(attempted(Failure::Lost).verdict(), Verdict::Free);
        let last = Attempted { attempts: ATTEMPTS, idempotent: true, ..attempted(Failure::Lost) };
        assert_eq!(last.verdict(), Verdict::GiveUp);
    }

    #[test]
    fn what_may_have_been_processed_is_tried_again_only_when_idempotent() {
        assert_eq!(attempted(Failure::Reset).verdict(), Verdict::GiveUp);
        assert_eq!(Attempted { idempotent: true, ..attempted(Failure::Reset) }.verdict(), Verdict::Budgeted);
    }

    #[test]
    fn what_was_closed_for_its_age_costs_no_budget_but_may_have_been_processed() {
        let aged = Attempted { idempotent: true, ..attempted(Failure::Aged) };
        assert_eq!(aged.verdict(), Verdict::Free);
        assert_eq!(attempted(Failure::Aged).verdict(), Verdict::GiveUp, "not idempotent");
        assert_eq!(Attempted { replayable: false, ..aged }.verdict(), Verdict::GiveUp);
        assert_eq!(Attempted { attempts: ATTEMPTS, ..aged }.verdict(), Verdict::GiveUp);
    }

    #[test]
    fn a_second_reset_is_tried_again_unless_both_workers_died() {
        let second = Attempted { attempts: 2, resets: 2, idempotent: true, ..attempted(Failure::Reset) };
        assert_eq!(second.verdict(), Verdict::CountDeaths);
        for (deaths, verdict) in [(0, Verdict::Budgeted), (1, Verdict::Budgeted), (2, Verdict::Poisoned)] {
            assert_eq!(Attempted { deaths: Some(deaths), ..second }.verdict(), verdict);
        }
        let same_worker = Attempted { resets: 1, ..second };
        assert_eq!(same_worker.verdict(), Verdict::Budgeted, "one worker dies once");
    }

    #[test]
    fn where_it_changes_nothing_nobody_asks_who_died() {
        let second = Attempted { attempts: 2, resets: 2, ..attempted(Failure::Reset) };
        assert_eq!(second.verdict(), Verdict::GiveUp, "not idempotent");
        let second = Attempted { idempotent: true, ..second };
        assert_eq!(Attempted { attempts: ATTEMPTS, ..second }.verdict(), Verdict::GiveUp);
        assert_eq!(Attempted { replayable: false, ..second }.verdict(), Verdict::GiveUp);
        assert_eq!(Attempted { failure: Failure::NotConnected, ..second }.verdict(), Verdict::Budgeted);
    }

    #[test]
    fn what_has_used_its_time_is_not_tried_again() {
        assert_eq!(Attempted { idempotent: true, ..attempted(Failure::TimedOut) }.verdict(), Verdict::GiveUp);
    }

    #[test]
    fn nothing_is_tried_again_without_its_body_or_for_the_clients_fault() {
        let failures = [Failure::Refused, Failure::NotConnected, Failure::Stale, Failure::Reset, Failure::TimedOut];
        for failure in failures {
            let gone = Attempted { replayable: false, idempotent: true, ..attempted(failure) };
            assert_eq!(gone.verdict(), Verdict::GiveUp);
        }
        for failure in [Failure::Malformed, Failure::Client] {
            assert_eq!(Attempted { idempotent: true, ..attempted(failure) }.verdict(), Verdict::GiveUp);
        }
    }

    #[test]
    fn tries_are_bounded() {
        let last = Attempted { attempts: ATTEMPTS, idempotent: true, ..attempted(Failure::Reset) };
        assert_eq!(last.verdict(), Verdict::GiveUp);
        assert_eq!(Attempted { refusals: REFUSALS, ..attempted(Failure::Refused) }.verdict(), Verdict::GiveUp);
    }

    #[test]
    fn the_budget_is_a_floor_and_a_share_of_the_last_ten_seconds() {
        let mut budget = Budget::default();
        let spend = |budget: &mut Budget, now| (0..10_000).take_while(|_| budget.withdraw(now)).count();
        assert_eq!(spend(&mut budget, 0), 100);
        assert_eq!(spend(&mut budget, 9), 0);
        assert_eq!(spend(&mut budget, 10), 100, "the first second has left the window");
        for _ in 0..1000 {
            budget.deposit(12);
        }
        assert_eq!(spend(&mut budget, 12), 200);
        assert_eq!(spend(&mut budget, 40), 100, "a long pause forgets everything");
    }
}
