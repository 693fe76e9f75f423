//! What demand does: timelines with one node.

use super::{CAPACITY, Desk, ms, present, two, worker};
use crate::ledger::{Demand, Lack, Presence, Worker};

/// Two balancers that want and have, over one-slot workers.
fn slots(count: u32) -> Vec<Worker<'static>> {
    (0..count).map(|position| worker((position, 1), 1)).collect()
}

/// All of these at the same time: how many they want, and for how long the first has waited.
fn want_at_once(desk: &mut Desk, demands: &[(&str, u32, u64)]) {
    for (balancer, wanted, age) in demands {
        let sequence = desk.known(balancer);
        let demand = Demand { waiting: *wanted, wanted: *wanted, wait: ms(*age), sequence };
        desk.ledger.demand(balancer, demand, desk.now);
    }
    desk.plan();
}

fn sum(grants: &[u32]) -> u32 {
    grants.iter().sum()
}

#[test]
fn what_one_does_not_use_goes_to_the_one_that_wants_it_in_one_round() {
    let mut desk = two();
    desk.want("a", 3, ms(1));
    assert_eq!(desk.report("b"), [2], "it yields at once");
    assert_eq!(desk.report("a"), [5], "but a waits for its word");
    desk.acknowledge("b");
    assert_eq!(desk.ledger.stale().collect::<Vec<_>>(), ["b", "a"].map(|_| "a")[..1]);
    assert_eq!(desk.tell("a"), [8]);
    assert_eq!(desk.ledger.moves(), 3);
    // it has what it wanted
    desk.want("a", 0, ms(0));
    desk.pass(ms(1000));
    assert_eq!((desk.report("a"), desk.report("b")), (vec![8], vec![2]), "and keeps it until somebody else wants it");
}

#[test]
fn the_same_want_is_not_served_twice() {
    let mut desk = two();
    desk.want("a", 2, ms(1));
    desk.plan();
    desk.want("a", 2, ms(3));
    assert_eq!(desk.tell("b"), [3]);
    // a is told, and says the same once more before it has heard
    assert_eq!(desk.report("a"), [7]);
    desk.want("a", 2, ms(5));
    assert_eq!(desk.report("b"), [3]);
    desk.ledger.acknowledge("a", desk.sequence - 1, &[], desk.now);
    desk.want("a", 2, ms(6));
    assert_eq!(desk.report("b"), [1], "now it means two more");
}

#[test]
fn one_slot_goes_to_and_fro_between_two_balancers_as_they_want_it() {
    let mut desk = Desk::with(&slots(1));
    desk.open("a");
    desk.open("b");
    desk.settle();
    assert_eq!((desk.tell("a"), desk.tell("b")), (vec![1], vec![0]));
    for (wants, yields) in [("b", "a"), ("a", "b"), ("b", "a")] {
        desk.want(wants, 1, ms(0));
        assert_eq!(desk.tell(yields), [0]);
        assert_eq!(desk.tell(wants), [1]);
        desk.want(wants, 0, ms(0));
        desk.pass(ms(100));
    }
    assert_eq!(desk.ledger.moves(), 3);
}

#[test]
fn idle_permits_move_at_once_and_those_in_use_only_when_the_head_has_waited() {
    let mut desk = Desk::with(&slots(4));
    desk.open("a");
    desk.open("b");
    desk.ledger.welcome("a", 7);
    desk.ledger.welcome("b", 8);
    desk.settle();
    let grants = desk.tell("b");
    assert_eq!(sum(&grants), 2);
    // of its two slots b uses one
    let busy = grants.iter().position(|grant| *grant == 1).unwrap();
    let there = present(8, 1, 1);
    let mut workers = slots(4);
    workers[busy] = Worker { presences: &there, ..workers[busy] };
    desk.observe(&workers);
    desk.want("a", 2, ms(0));
    let left = desk.report("b");
    assert_eq!((sum(&left), left[busy]), (1, 1), "the idle one goes, the busy one stays");
    desk.acknowledge("b");
    desk.tell("a");
    assert_eq!(desk.plan(), Some(desk.now + ms(10)));
    desk.pass(ms(19));
    assert_eq!(sum(&desk.tell("b")), 1);
    desk.pass(ms(30));
    desk.want("a", 1, ms(50));
    assert_eq!(sum(&desk.tell("b")), 0, "a's head waits for any slot that ends first");
    assert_eq!(sum(&desk.tell("a")), 4);
}

#[test]
fn who_waits_for_a_revocation_that_does_not_come_gets_another_one() {
    let mut desk = Desk::with(&slots(3));
    for balancer in ["a", "b", "c"] {
        desk.open(balancer);
    }
    desk.settle();
    desk.want("a", 1, ms(0));
    let asked: Vec<_> = ["b", "c"].into_iter().filter(|balancer| desk.is_stale(balancer)).collect();
    assert_eq!(asked.len(), 1);
    // it does not answer
    desk.report(asked[0]);
    let other = if asked[0] == "b" { "c" } else { "b" };
    desk.pass(ms(9));
    assert!(!desk.is_stale(other));
    desk.pass(ms(1));
    assert_eq!(sum(&desk.tell(other)), 0);
    assert_eq!(sum(&desk.tell("a")), 2);
}

#[test]
fn balancers_that_want_equally_much_exchange_nothing() {
    let mut desk = two();
    want_at_once(&mut desk, &[("a", 5, 30), ("b", 5, 30)]);
    for age in 0..200 {
        // each is told of at another time, and heads come and go
        let (one, other) = (ms(30 + age % 17), ms(30 + (age * 7) % 17));
        desk.want("a", 5, one);
        desk.pass(ms(25));
        desk.want("b", 5, other);
        desk.pass(ms(25));
    }
    assert_eq!(desk.ledger.moves(), 0);
}

#[test]
fn the_older_head_wins_a_permit_now_and_then_until_the_ages_are_alike() {
    let mut desk = two();
    want_at_once(&mut desk, &[("a", 5, 100), ("b", 5, 10)]);
    assert_eq!(desk.tell("b"), [4], "one at a time");
    desk.tell("a");
    desk.pass(ms(49));
    desk.want("b", 5, ms(10));
    desk.want("a", 5, ms(100));
    assert_eq!(desk.tell("b"), [4], "and not more often than that");
    desk.pass(ms(1));
    desk.want("a", 5, ms(100));
    assert_eq!(desk.tell("b"), [3]);
    desk.tell("a");
    desk.pass(ms(100));
    desk.want("a", 5, ms(100));
    assert_eq!(desk.tell("b"), [3], "b has not said that its head is young");
    desk.want("b", 5, ms(78));
    desk.pass(ms(100));
    assert_eq!(desk.ledger.moves(), 2);
}

#[test]
fn who_asks_others_for_what_it_lacks_has_not_waited_less_for_that() {
    let mut desk = two();
    want_at_once(&mut desk, &[("a", 5, 100), ("b", 5, 100)]);
    for _ in 0..20 {
        let elsewhere = Demand { waiting: 5, ..Demand::default() };
        desk.ledger.demand("b", elsewhere, desk.now);
        desk.pass(ms(50));
        desk.want("a", 5, ms(100));
    }
    assert_eq!(desk.ledger.moves(), 0);
}

#[test]
fn who_has_nothing_and_wants_something_gets_it_though_all_others_want_too() {
    let mut desk = Desk::with(&slots(1));
    desk.open("a");
    desk.open("b");
    desk.settle();
    want_at_once(&mut desk, &[("a", 3, 30), ("b", 3, 0)]);
    // a's head goes on and on, b's waits
    let mut waited = 0;
    while sum(&desk.tell("b")) == 0 {
        desk.pass(ms(10));
        desk.tell("a");
        desk.want("a", 3, ms(30));
        waited += 10;
        assert!(waited < 200);
    }
    assert_eq!(desk.ledger.moves(), 1);
}

#[test]
fn what_becomes_free_goes_to_those_that_want_and_then_to_equal_shares() {
    let mut desk = two();
    desk.open("c");
    desk.settle();
    desk.want("a", 2, ms(0));
    desk.settle();
    desk.want("a", 3, ms(0));
    desk.want("b", 0, ms(0));
    let before = sum(&desk.tell("a"));
    desk.ledger.close("c");
    desk.plan();
    desk.settle();
    let (a, b) = (sum(&desk.tell("a")), sum(&desk.tell("b")));
    assert!(a >= before && a + b == CAPACITY, "{before} {a} {b}");
    // a worker that is there for the first time
    desk.want("a", 2, ms(0));
    desk.settle();
    desk.want("a", 4, ms(0));
    let had = sum(&desk.tell("a"));
    desk.observe(&[worker((0, 1), CAPACITY), worker((1, 1), CAPACITY)]);
    desk.settle();
    assert!(sum(&desk.tell("a")) >= had + 4);
}

#[test]
fn a_permit_that_demand_has_moved_stays_when_somebody_comes() {
    let mut desk = two();
    desk.want("a", 5, ms(0));
    desk.settle();
    desk.want("a", 0, ms(0));
    assert_eq!(desk.tell("b"), [0]);
    desk.open("c");
    desk.settle();
    // five were never asked for
    let grants = ["a", "b", "c"].map(|balancer| desk.tell(balancer)[0]);
    assert!(grants[0] > 5 && grants.iter().sum::<u32>() == CAPACITY, "{grants:?}");
}

#[test]
fn of_many_slots_a_part_moves_at_once() {
    let mut desk = Desk::with(&[worker((0, 1), 256)]);
    desk.open("a");
    desk.open("b");
    desk.settle();
    desk.want("a", 3, ms(0));
    desk.settle();
    assert_eq!((desk.tell("a"), desk.tell("b")), (vec![144], vec![112]));
}

#[test]
fn permits_of_workers_that_take_nothing_help_nobody() {
    let ready = worker((0, 1), 2);
    let starting = Worker { ready: false, ..worker((1, 1), 2) };
    let mut desk = Desk::with(&[ready, starting]);
    desk.open("a");
    desk.open("b");
    desk.settle();
    desk.want("a", 2, ms(0));
    desk.settle();
    assert_eq!((desk.tell("a"), desk.tell("b")), (vec![2, 1], vec![0, 1]));
}

#[test]
fn a_smaller_capacity_cuts_what_demand_has_moved() {
    let mut desk = two();
    desk.want("a", 5, ms(0));
    desk.settle();
    desk.want("a", 0, ms(0));
    let none: [Presence; 0] = [];
    desk.observe(&[Worker { presences: &none, ..worker((0, 1), 3) }]);
    desk.settle();
    assert_eq!(sum(&desk.tell("a")) + sum(&desk.tell("b")), 3);
}

#[test]
fn a_balancer_that_yields_is_told_what_others_lack_and_gives_it_back_by_itself() {
    let mut desk = two();
    desk.ledger.lets_yield("b");
    desk.want("a", 2, ms(30));
    assert!(desk.is_stale("b"), "it is news to b");
    assert_eq!(desk.ledger.lack("b", desk.now), Lack { permits: 2, wait: ms(30) });
    assert_eq!(desk.ledger.lack("a", desk.now), Lack::default(), "of its own it knows");
    let granted = desk.report("b");
    assert_eq!(granted, [5], "nothing is asked back");
    assert!(!desk.is_stale("b"));
    desk.acknowledge("b");
    let (newest, worker) = (desk.sequence, desk.ledger.books[0].key);
    desk.ledger.yielded("b", newest, worker, 1, desk.now);
    desk.plan();
    assert_eq!(desk.report("a"), [6], "at once: b uses it no more");
    assert_eq!(desk.ledger.lack("b", desk.now).permits, 1);
    assert_eq!(desk.tell("b"), [4]);
    desk.want("a", 0, ms(0));
    assert_eq!(desk.ledger.lack("b", desk.now), Lack::default());
    assert!(desk.is_stale("b"), "that, too, is news");
}

#[test]
fn what_was_yielded_before_a_newer_report_is_asked_back_first() {
    let mut desk = two();
    desk.ledger.lets_yield("b");
    desk.want("a", 1, ms(30));
    desk.tell("b");
    let (known, worker) = (desk.sequence, desk.ledger.books[0].key);
    // grants five once more; b has not heard it when it yields
    assert_eq!(desk.report("b"), [5]);
    desk.ledger.yielded("b", known, worker, 1, desk.now);
    desk.plan();
    assert_eq!(desk.report("a"), [5], "b may believe in five again");
    assert_eq!(desk.report("b"), [4]);
    desk.acknowledge("b");
    assert_eq!(desk.report("a"), [6]);
}

#[test]
fn what_is_given_back_while_it_is_to_be_asked_back_is_not_lost() {
    let mut desk = two();
    desk.ledger.lets_yield("b");
    let (newest, worker) = (desk.sequence, desk.ledger.books[0].key);
    // twice the same permit: b had it again in between, and said so of the report that gave it back
    desk.ledger.yielded("b", newest - 1, worker, 5, desk.now);
    desk.ledger.yielded("b", newest, worker, 5, desk.now);
    desk.plan();
    desk.settle();
    let (a, b) = (desk.report("a"), desk.report("b"));
    assert_eq!(sum(&a) + sum(&b), CAPACITY);
    assert_eq!(desk.ledger.books[0].held, u64::from(CAPACITY));
}

#[test]
fn what_is_wanted_is_beyond_the_report_that_was_known() {
    let mut desk = two();
    desk.want("a", 2, ms(1));
    desk.tell("b");
    // a gets two more, and hears of it late
    assert_eq!(desk.report("a"), [7]);
    let (newest, before) = (desk.sequence, desk.known("a"));
    desk.pass(ms(500));
    let says = |sequence| Demand { waiting: 2, wanted: 2, wait: ms(500), sequence };
    desk.ledger.demand("a", says(before), desk.now);
    desk.plan();
    assert_eq!(desk.tell("b"), [3], "these two are on their way");
    desk.ledger.demand("a", says(newest), desk.now);
    desk.plan();
    assert_eq!(desk.tell("b"), [1], "two more than seven, though it has not acknowledged them");
}

#[test]
fn the_slower_the_messages_are_the_more_has_to_be_gained_by_a_move() {
    let lack = |trip| {
        let mut desk = two();
        desk.ledger.lets_yield("b");
        for balancer in ["a", "b"] {
            desk.report(balancer);
            desk.pass(trip);
            desk.acknowledge(balancer);
        }
        desk.want("a", 2, ms(100));
        desk.ledger.lack("b", desk.now)
    };
    let [at_once, soon, late] = [0, 4, 200].map(|trip| lack(ms(trip)));
    assert_eq!(at_once, Lack { permits: 2, wait: ms(100) });
    assert!(soon.permits == 2 && (ms(30)..ms(90)).contains(&soon.wait), "{soon:?}");
    assert_eq!(late, Lack { permits: 2, wait: ms(0) }, "still worth what nobody waits for");
}
