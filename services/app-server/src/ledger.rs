//! Who may send how much to a worker: come in the balancers that are there, the reports that each was sent and those
//! that it has acknowledged; goes out each balancer's grant in its next report. Pure: no task, no clock, no network.
//!
//! A worker's capacity is split equally over the balancers; what is left over after the division goes to one of them
//! each, another one for each position, so that no balancer gets all of it. What a balancer *may* be using is the most
//! that any report said which it can still be acting on: the last one it acknowledged and every later one. A grant is
//! raised only as far as the others' use leaves room. So lowering is reported first, and what it frees is given away
//! only once the balancer has acknowledged it, or its stream is gone. The sum of what balancers may use never exceeds
//! the capacity, whatever is lost or late on the way.

use std::collections::{BTreeMap, VecDeque};

/// A worker process: position and generation.
pub(crate) type WorkerKey = (u32, u64);

/// What one report grants, by worker.
type Grants = BTreeMap<WorkerKey, u32>;

/// Most reports that a balancer may leave unacknowledged before the next ones have to grant what the last one did not
/// exceed; older ones are then folded together.
const REMEMBERED: usize = 64;

/// The accounts of all balancers that have a stream.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: BTreeMap<String, Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// The most that the reports up to the last acknowledged one leave to the balancer.
    settled: Grants,
    /// Not acknowledged, oldest first.
    sent: VecDeque<(u64, Grants)>,
    /// The newest report that was.
    acknowledged: u64,
}

impl Account {
    /// The most that the balancer may be using of this worker.
    fn held(&self, worker: WorkerKey) -> u32 {
        let sent = self.sent.iter().map(|(_, grants)| grants.get(&worker).copied().unwrap_or(0));
        sent.chain(self.settled.get(&worker).copied()).max().unwrap_or(0)
    }

    fn last(&self) -> Option<&Grants> {
        self.sent.back().map(|(_, grants)| grants)
    }
}

impl Ledger {
    /// A balancer is there. Where it has an account already, that one goes on: a second stream to the same balancer
    /// takes over what it holds.
    pub(crate) fn open(&mut self, balancer: &str) {
        self.accounts.entry(balancer.to_owned()).or_default();
    }

    /// The balancer's stream is gone, and with it what it held.
    pub(crate) fn close(&mut self, balancer: &str) {
        self.accounts.remove(balancer);
    }

    /// The grants for the report `sequence`, in the order of `workers` (with their capacities), noted as sent.
    /// Sequence numbers grow. A balancer without an account is granted nothing.
    pub(crate) fn report(&mut self, balancer: &str, sequence: u64, workers: &[(WorkerKey, u32)]) -> Vec<u32> {
        let grants: Vec<u32> =
            workers.iter().map(|(worker, capacity)| self.grant(balancer, *worker, *capacity)).collect();
        if let Some(account) = self.accounts.get_mut(balancer) {
            let noted = workers.iter().map(|(worker, _)| *worker).zip(grants.iter().copied()).collect();
            account.sent.push_back((sequence, noted));
            if account.sent.len() > REMEMBERED {
                fold(account);
            }
        }
        grants
    }

    /// The balancer holds no more than the report `sequence` grants.
    pub(crate) fn acknowledge(&mut self, balancer: &str, sequence: u64) {
        let Some(account) = self.accounts.get_mut(balancer) else { return };
        account.acknowledged = account.acknowledged.max(sequence);
        while let Some((_, grants)) = account.sent.pop_front_if(|(sent, _)| *sent <= sequence) {
            account.settled = grants;
        }
    }

    /// Whether every balancer has acknowledged a report that came after `sequence`.
    pub(crate) fn all_heard_after(&self, sequence: u64) -> bool {
        self.accounts.values().all(|account| account.acknowledged > sequence)
    }

    /// Whether a report now would grant this balancer something else than the last one did.
    pub(crate) fn is_stale(&self, balancer: &str, workers: &[(WorkerKey, u32)]) -> bool {
        let Some(account) = self.accounts.get(balancer) else { return false };
        let last = account.last().unwrap_or(&account.settled);
        workers.iter().any(|(worker, capacity)| {
            last.get(worker).copied().unwrap_or(0) != self.grant(balancer, *worker, *capacity)
        })
    }

    fn grant(&self, balancer: &str, worker: WorkerKey, capacity: u32) -> u32 {
        let Some(place) = self.accounts.keys().position(|name| name == balancer) else { return 0 };
        let others = self.accounts.iter().filter(|(name, _)| *name != balancer);
        let held: u64 = others.map(|(_, account)| u64::from(account.held(worker))).sum();
        let room = u64::from(capacity).saturating_sub(held);
        let share = u64::from(self.share(place, worker.0, capacity));
        u32::try_from(share.min(room)).unwrap_or(capacity)
    }

    /// Equal shares; the first `remainder` balancers, counted from the worker's position on, get one more.
    fn share(&self, place: usize, position: u32, capacity: u32) -> u32 {
        let balancers = u32::try_from(self.accounts.len()).unwrap_or(u32::MAX).max(1);
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        let (share, remainder) = (capacity / balancers, capacity % balancers);
        let turned = (place + balancers - position % balancers) % balancers;
        share + u32::from(turned < remainder)
    }
}

/// Makes one report of the two oldest that says the most of both: never less than the balancer may be using.
fn fold(account: &mut Account) {
    let Some((_, oldest)) = account.sent.pop_front() else { return };
    if let Some((_, next)) = account.sent.front_mut() {
        for (worker, grant) in oldest {
            let most = next.entry(worker).or_default();
            *most = grant.max(*most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ledger, WorkerKey};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const CAPACITY: u32 = 10;
    const WORKERS: [(WorkerKey, u32); 3] = [((0, 1), CAPACITY), ((1, 1), CAPACITY), ((2, 5), CAPACITY)];

    #[test]
    fn one_balancer_gets_everything() {
        let mut ledger = Ledger::default();
        ledger.open("a");
        assert_eq!(ledger.report("a", 1, &WORKERS), [10, 10, 10]);
        assert!(!ledger.is_stale("a", &WORKERS));
        assert_eq!(ledger.report("stranger", 2, &WORKERS), [0, 0, 0]);
    }

    #[test]
    fn a_second_balancer_gets_its_half_once_the_first_has_let_go() {
        let mut ledger = Ledger::default();
        ledger.open("a");
        ledger.report("a", 1, &WORKERS);
        ledger.acknowledge("a", 1);
        ledger.open("b");
        assert_eq!(ledger.report("b", 2, &WORKERS), [0, 0, 0], "all of it is still a's");
        assert!(ledger.is_stale("a", &WORKERS));
        assert_eq!(ledger.report("a", 3, &WORKERS), [5, 5, 5], "lowering is reported at once");
        assert!(!ledger.is_stale("b", &WORKERS), "not before a has acknowledged");
        ledger.acknowledge("a", 3);
        assert!(ledger.is_stale("b", &WORKERS));
        assert_eq!(ledger.report("b", 4, &WORKERS), [5, 5, 5]);
    }

    #[test]
    fn everybody_has_heard_when_the_last_one_has_acknowledged() {
        let mut ledger = Ledger::default();
        assert!(ledger.all_heard_after(7), "there is nobody to hear");
        ledger.open("a");
        ledger.open("b");
        ledger.report("a", 8, &WORKERS);
        ledger.report("b", 9, &WORKERS);
        ledger.acknowledge("a", 8);
        assert!(!ledger.all_heard_after(7));
        ledger.acknowledge("b", 9);
        assert!(ledger.all_heard_after(7) && !ledger.all_heard_after(8));
        ledger.close("a");
        assert!(ledger.all_heard_after(8));
    }

    #[test]
    fn a_lost_stream_gives_back_what_it_held() {
        let mut ledger = Ledger::default();
        ledger.open("a");
        ledger.open("b");
        ledger.report("a", 1, &WORKERS);
        assert_eq!(ledger.report("b", 2, &WORKERS), [5, 5, 5]);
        ledger.close("a");
        assert!(ledger.is_stale("b", &WORKERS));
        assert_eq!(ledger.report("b", 3, &WORKERS), [10, 10, 10]);
    }

    #[test]
    fn what_cannot_be_divided_goes_to_another_balancer_for_each_position() {
        let mut ledger = Ledger::default();
        for balancer in ["a", "b", "c"] {
            ledger.open(balancer);
        }
        let (a, b, c) =
            (ledger.report("a", 1, &WORKERS), ledger.report("b", 2, &WORKERS), ledger.report("c", 3, &WORKERS));
        assert_eq!((a, b, c), (vec![4, 3, 3], vec![3, 4, 3], vec![3, 3, 4]));
    }

    #[test]
    fn more_balancers_than_slots_share_them_by_position() {
        let mut ledger = Ledger::default();
        for balancer in ["a", "b", "c"] {
            ledger.open(balancer);
        }
        let workers = [((0, 1), 1), ((1, 1), 1), ((2, 1), 1)];
        assert_eq!(ledger.report("b", 1, &workers), [0, 1, 0]);
    }

    #[test]
    fn a_raise_that_was_not_acknowledged_still_counts_after_it_is_taken_back() {
        let mut ledger = Ledger::default();
        ledger.open("a");
        ledger.report("a", 1, &WORKERS);
        ledger.open("b");
        ledger.report("a", 2, &WORKERS);
        // neither acknowledged: a may still act on the first
        assert_eq!(ledger.report("b", 3, &WORKERS), [0, 0, 0]);
        ledger.acknowledge("a", 1);
        assert_eq!(ledger.report("b", 4, &WORKERS), [0, 0, 0]);
        ledger.acknowledge("a", 2);
        assert_eq!(ledger.report("b", 5, &WORKERS), [5, 5, 5]);
    }

    /// What may happen to a node.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Open(u8),
        Close(u8),
        Report(u8),
        /// The balancer gets the oldest report on its way, acts on it, and says so.
        Deliver(u8),
        /// The node hears the oldest acknowledgement on its way.
        Hear(u8),
        /// The worker at the position is replaced.
        Replace(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0_u8..4).prop_map(Step::Open),
            1 => (0_u8..4).prop_map(Step::Close),
            6 => (0_u8..4).prop_map(Step::Report),
            6 => (0_u8..4).prop_map(Step::Deliver),
            6 => (0_u8..4).prop_map(Step::Hear),
            1 => (0_u8..3).prop_map(Step::Replace),
        ]
    }

    /// One balancer of the model: what is on its way to it and back, and what it believes.
    #[derive(Default)]
    struct Balancer {
        reports: Vec<(u64, BTreeMap<WorkerKey, u32>)>,
        acknowledgements: Vec<u64>,
        believes: BTreeMap<WorkerKey, u32>,
    }

    proptest! {
        #[test]
        fn balancers_together_never_believe_in_more_than_there_is(
            steps in prop::collection::vec(step(), 1..300), capacity in 1_u32..20,
        ) {
            let mut ledger = Ledger::default();
            let mut balancers: BTreeMap<u8, Balancer> = BTreeMap::new();
            let mut workers: Vec<(WorkerKey, u32)> = (0..3).map(|position| ((position, 1), capacity)).collect();
            let mut sequence = 0;
            for step in steps {
                match step {
                    Step::Open(n) => {
                        ledger.open(&n.to_string());
                        balancers.entry(n).or_default();
                    }
                    Step::Close(n) => {
                        ledger.close(&n.to_string());
                        balancers.remove(&n);
                    }
                    Step::Report(n) => if let Some(balancer) = balancers.get_mut(&n) {
                        sequence += 1;
                        let grants = ledger.report(&n.to_string(), sequence, &workers);
                        let grants = workers.iter().map(|(worker, _)| *worker).zip(grants).collect();
                        balancer.reports.push((sequence, grants));
                    },
                    Step::Deliver(n) => if let Some(balancer) = balancers.get_mut(&n).filter(|b| !b.reports.is_empty()) {
                        let (sequence, grants) = balancer.reports.remove(0);
                        balancer.believes = grants;
                        balancer.acknowledgements.push(sequence);
                    },
                    Step::Hear(n) => {
                        let waiting = |b: &&mut Balancer| !b.acknowledgements.is_empty();
                        if let Some(balancer) = balancers.get_mut(&n).filter(waiting) {
                            ledger.acknowledge(&n.to_string(), balancer.acknowledgements.remove(0));
                        }
                    }
                    Step::Replace(position) => workers[usize::from(position)].0.1 += 1,
                }
                for (worker, _) in &workers {
                    let believed: u32 = balancers.values().map(|b| b.believes.get(worker).copied().unwrap_or(0)).sum();
                    prop_assert!(believed <= capacity, "{believed} of {capacity} after {step:?}");
                }
            }

            // left alone, everybody ends with an equal share and nothing is left lying
            for _ in 0..4 {
                for (n, balancer) in &mut balancers {
                    sequence += 1;
                    let grants = ledger.report(&n.to_string(), sequence, &workers);
                    balancer.believes = workers.iter().map(|(worker, _)| *worker).zip(grants).collect();
                    ledger.acknowledge(&n.to_string(), sequence);
                }
            }
            for (worker, _) in &workers {
                let grants: Vec<u32> = balancers.values().map(|balancer| balancer.believes[worker]).collect();
                if let (Some(most), Some(least)) = (grants.iter().max(), grants.iter().min()) {
                    prop_assert!(most - least <= 1);
                    prop_assert_eq!(grants.iter().sum::<u32>(), capacity);
                }
            }
            for n in balancers.keys() {
                prop_assert!(!ledger.is_stale(&n.to_string(), &workers));
            }
        }
    }
}
