//! The ledger's accounting, its equal shares and its ghosts; what demand moves is in `moves`, the laws in `laws`.

use super::{Demand, Ledger, Presence, Worker, WorkerKey};
use std::time::{Duration, Instant};

mod laws;
mod moves;

const CAPACITY: u32 = 10;
const KEYS: [WorkerKey; 3] = [(0, 1), (1, 1), (2, 5)];

/// Longer than anything here is on its way.
const UNAWARE: Duration = Duration::from_secs(2);

fn worker(key: WorkerKey, capacity: u32) -> Worker<'static> {
    Worker { key, capacity, ready: true, presences: &[] }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A node of which every call is followed by a plan, and its clock.
struct Desk {
    ledger: Ledger,
    now: Instant,
    sequence: u64,
}

impl Desk {
    /// Three workers of ten slots.
    fn new() -> Self {
        Self::with(&KEYS.map(|key| worker(key, CAPACITY)))
    }

    fn with(workers: &[Worker<'_>]) -> Self {
        let mut ledger = Ledger::new(0);
        ledger.observe(workers);
        Self { ledger, now: Instant::now(), sequence: 0 }
    }

    fn open(&mut self, balancer: &str) {
        self.ledger.open(balancer);
        self.plan();
    }

    fn plan(&mut self) -> Option<Instant> {
        self.ledger.plan(self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.plan();
    }

    fn observe(&mut self, workers: &[Worker<'_>]) {
        self.ledger.observe(workers);
        self.plan();
    }

    fn report(&mut self, balancer: &str) -> Vec<u32> {
        self.sequence += 1;
        self.ledger.report(balancer, self.sequence, self.now)
    }

    /// The last report is acknowledged.
    fn acknowledge(&mut self, balancer: &str) {
        self.ledger.acknowledge(balancer, self.sequence, &[], self.now);
        self.plan();
    }

    /// A report that is acknowledged at once.
    fn tell(&mut self, balancer: &str) -> Vec<u32> {
        let grants = self.report(balancer);
        self.acknowledge(balancer);
        grants
    }

    /// Everybody is told until nobody has to be; how many rounds it took.
    fn settle(&mut self) -> usize {
        for round in 0..20 {
            let stale: Vec<String> = self.ledger.stale().map(str::to_owned).collect();
            if stale.is_empty() {
                return round;
            }
            for balancer in stale {
                self.tell(&balancer);
            }
        }
        panic!("there is always somebody to be told: {:?}", self.ledger);
    }

    fn want(&mut self, balancer: &str, wanted: u32, wait: Duration) {
        let sequence = self.known(balancer);
        self.ledger.demand(balancer, Demand { waiting: wanted, wanted, wait, sequence }, self.now);
        self.plan();
    }

    /// The last report that the balancer has acknowledged.
    fn known(&self, balancer: &str) -> u64 {
        self.ledger.place(balancer).map_or(0, |place| self.ledger.accounts[place].acknowledged)
    }

    fn is_stale(&self, balancer: &str) -> bool {
        self.ledger.is_stale(balancer)
    }
}

#[test]
fn one_balancer_gets_everything() {
    let mut desk = Desk::new();
    desk.open("a");
    assert_eq!(desk.report("a"), [10, 10, 10]);
    assert!(!desk.is_stale("a"));
    assert_eq!(desk.report("stranger"), [0, 0, 0]);
}

#[test]
fn a_second_balancer_gets_its_half_once_the_first_has_let_go() {
    let mut desk = Desk::new();
    desk.open("a");
    desk.tell("a");
    desk.open("b");
    assert_eq!(desk.report("b"), [0, 0, 0], "all of it is still a's");
    assert!(desk.is_stale("a"));
    assert_eq!(desk.report("a"), [5, 5, 5], "lowering is reported at once");
    assert!(!desk.is_stale("b"), "not before a has acknowledged");
    desk.acknowledge("a");
    assert_eq!(desk.ledger.stale().collect::<Vec<_>>(), ["b"]);
    assert_eq!(desk.report("b"), [5, 5, 5]);
}

#[test]
fn everybody_has_heard_when_the_last_one_has_acknowledged() {
    let mut ledger = Ledger::new(0);
    let now = Instant::now();
    assert!(ledger.all_heard_after(7), "there is nobody to hear");
    ledger.open("a");
    ledger.open("b");
    ledger.report("a", 8, now);
    ledger.report("b", 9, now);
    ledger.acknowledge("a", 8, &[], now);
    assert!(!ledger.all_heard_after(7));
    ledger.acknowledge("b", 9, &[], now);
    assert!(ledger.all_heard_after(7) && !ledger.all_heard_after(8));
    ledger.close("a");
    assert!(ledger.all_heard_after(8));
}

#[test]
fn a_balancer_that_leaves_gives_back_what_it_held() {
    let mut desk = Desk::new();
    desk.open("a");
    desk.open("b");
    desk.report("a");
    assert_eq!(desk.report("b"), [5, 5, 5]);
    desk.ledger.close("a");
    desk.plan();
    assert!(desk.is_stale("b"));
    assert_eq!(desk.report("b"), [10, 10, 10]);
}

#[test]
fn what_cannot_be_divided_goes_to_another_balancer_for_each_position_and_node() {
    let mut desk = Desk::new();
    for balancer in ["a", "b", "c"] {
        desk.open(balancer);
    }
    assert_eq!((desk.report("a"), desk.report("b"), desk.report("c")), (vec![4, 3, 3], vec![3, 4, 3], vec![3, 3, 4]));

    let first = |offset| {
        let mut ledger = Ledger::new(offset);
        ledger.observe(&[worker((0, 1), 1)]);
        for balancer in ["a", "b", "c"] {
            ledger.open(balancer);
        }
        ledger.plan(Instant::now());
        ["a", "b", "c"].map(|balancer| ledger.report(balancer, 1, Instant::now())[0])
    };
    assert_eq!((first(0), first(1), first(2)), ([1, 0, 0], [0, 1, 0], [0, 0, 1]));
    assert_eq!(first(u32::MAX).iter().sum::<u32>(), 1);
}

#[test]
fn more_balancers_than_slots_share_them_by_position() {
    let mut desk = Desk::with(&[(0, 1), (1, 1), (2, 1)].map(|key| worker(key, 1)));
    for balancer in ["a", "b", "c"] {
        desk.open(balancer);
    }
    assert_eq!(desk.report("b"), [0, 1, 0]);
}

#[test]
fn a_raise_that_was_not_acknowledged_still_counts_after_it_is_taken_back() {
    let mut desk = Desk::new();
    desk.open("a");
    desk.report("a");
    desk.open("b");
    desk.report("a");
    // neither acknowledged: a may still act on the first
    assert_eq!(desk.report("b"), [0, 0, 0]);
    desk.ledger.acknowledge("a", 1, &[], desk.now);
    assert_eq!(desk.report("b"), [0, 0, 0]);
    desk.ledger.acknowledge("a", 2, &[], desk.now);
    assert_eq!(desk.report("b"), [5, 5, 5]);
}

#[test]
fn reports_that_nobody_acknowledges_are_folded_and_forget_nothing() {
    let mut desk = Desk::new();
    desk.open("a");
    desk.report("a");
    desk.open("b");
    for _ in 0..1000 {
        desk.report("a");
    }
    assert_eq!(desk.report("b"), [0, 0, 0]);
}

/// What the balancer with this number has at one worker.
fn present(balancer: u32, connections: u32, busy: u32) -> [Presence; 1] {
    [Presence { balancer, connections, busy, orphaned: 0 }]
}

/// Two balancers that share a worker of ten slots, of which the first one's connections begin with 7.
fn two() -> Desk {
    let mut desk = Desk::with(&[worker((0, 1), CAPACITY)]);
    desk.open("a");
    desk.ledger.welcome("a", 7);
    desk.open("b");
    desk.ledger.welcome("b", 8);
    desk.settle();
    assert_eq!((desk.tell("a"), desk.tell("b")), (vec![5], vec![5]));
    desk
}

fn seen<'a>(presences: &'a [Presence]) -> [Worker<'a>; 1] {
    [Worker { presences, ..worker((0, 1), CAPACITY) }]
}

#[test]
fn a_lost_balancer_keeps_its_grants_while_it_has_connections_and_may_not_know() {
    let mut desk = two();
    desk.observe(&seen(&present(7, 2, 0)));
    desk.ledger.lose("a", UNAWARE, desk.now);
    desk.pass(UNAWARE - ms(1));
    assert_eq!(desk.report("b"), [5]);
    assert!(desk.ledger.is_haunted());
    // then what runs
    desk.observe(&seen(&present(7, 2, 3)));
    desk.pass(ms(1));
    assert_eq!(desk.report("b"), [7]);
    desk.observe(&seen(&present(7, 2, 4)));
    assert_eq!(desk.report("b"), [7], "what is given back stays given back");
    desk.observe(&seen(&present(7, 1, 1)));
    assert_eq!(desk.report("b"), [9]);
    desk.observe(&seen(&[]));
    assert_eq!(desk.report("b"), [10]);
    assert!(!desk.ledger.is_haunted());
}

#[test]
fn a_balancer_whose_connections_are_closed_is_gone_at_once() {
    let mut desk = two();
    desk.observe(&seen(&present(7, 2, 2)));
    desk.ledger.lose("a", UNAWARE, desk.now);
    assert_eq!(desk.plan(), Some(desk.now + ms(50)));
    desk.pass(ms(10));
    // requests run on that cannot be cancelled
    desk.observe(&seen(&present(7, 0, 2)));
    assert_eq!(desk.report("b"), [5], "a worker may not have told of what came before the end");
    desk.pass(ms(40));
    assert_eq!(desk.report("b"), [8]);
    desk.observe(&seen(&[]));
    assert_eq!(desk.report("b"), [10]);
}

#[test]
fn a_balancer_that_comes_back_takes_over_what_it_held_and_another_process_does_not() {
    for connections in [7, 9] {
        let mut desk = two();
        desk.observe(&seen(&present(7, 2, 2)));
        desk.ledger.lose("a", UNAWARE, desk.now);
        desk.open("a");
        assert_eq!(desk.report("a"), [0], "it has not said who it is");
        desk.ledger.welcome("a", connections);
        desk.plan();
        let same = connections == 7;
        assert_eq!(desk.ledger.is_haunted(), !same);
        assert_eq!((desk.report("a"), desk.report("b")), (vec![if same { 5 } else { 0 }], vec![5]));
        desk.observe(&seen(&[]));
        desk.pass(UNAWARE);
        desk.settle();
        assert_eq!((desk.report("a"), desk.report("b")), (vec![5], vec![5]));
    }
}

#[test]
fn what_a_lost_balancer_held_of_a_worker_that_is_gone_is_gone() {
    let mut desk = two();
    desk.ledger.lose("a", UNAWARE, desk.now);
    desk.observe(&[worker((0, 2), CAPACITY)]);
    assert!(!desk.ledger.is_haunted());
    assert_eq!(desk.report("b"), [10]);
}

#[test]
fn a_balancer_that_numbers_no_connections_is_gone_with_its_stream() {
    let mut desk = Desk::new();
    desk.open("a");
    desk.open("b");
    desk.settle();
    desk.ledger.lose("a", UNAWARE, desk.now);
    desk.plan();
    assert!(!desk.ledger.is_haunted());
    assert_eq!(desk.report("b"), [10, 10, 10]);
}

#[test]
fn the_number_of_lost_balancers_that_are_remembered_is_bounded() {
    let mut desk = Desk::with(&[worker((0, 1), 1000)]);
    for number in 1..200 {
        let name = number.to_string();
        desk.open(&name);
        desk.ledger.welcome(&name, number);
        desk.tell(&name);
        desk.ledger.lose(&name, UNAWARE, desk.now);
        desk.plan();
    }
    assert!(desk.ledger.ghosts.len() <= 64);
    desk.pass(UNAWARE);
    assert_eq!((desk.ledger.ghosts.len(), desk.ledger.books[0].held), (0, 0));
}
