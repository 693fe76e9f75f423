//! Permits that other balancers lack.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn yielded(position: u32) -> Yielded {
    Yielded { position, generation: 1, permits: 1 }
}

#[test]
fn what_others_lack_and_nobody_here_uses_is_given_back_at_once_and_not_more() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(3, 1));
    assert!(desk.dispatch.lack("a", 2, Duration::ZERO, desk.now));
    let given = desk.dispatch.take_yielded("a");
    assert_eq!(given.len(), 2);
    assert_eq!(desk.dispatch.take_yielded("a"), [], "it is said once");
    let left = desk.pick(&[]).unwrap();
    assert!(given.iter().all(|yielded| yielded.position != left.position));
    assert!(desk.pick(&[]).is_none());
    assert!(!desk.dispatch.lack("a", 0, Duration::ZERO, desk.now));
}

#[test]
fn a_permit_that_comes_back_is_given_to_those_that_have_to_wait_longer() {
    let mut desk = Desk::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 1));
    let held = desk.pick(&[]).unwrap();
    desk.enqueue("waits", 1, &[], false).unwrap();
    desk.now += 100 * MS;
    // 100 ms here, 120 ms there: too little to be worth a move
    assert!(!desk.dispatch.lack("a", 1, 120 * MS, desk.now));
    assert!(!desk.release(&held));
    let (_, held) = desk.handover().unwrap();
    desk.enqueue("waits too", 1, &[], false).unwrap();
    assert!(desk.release(&held), "a control task has something to say");
    assert!(desk.handover().is_none());
    assert_eq!(desk.dispatch.take_yielded("a"), [yielded(0)]);
    desk.apply(&a, &workers(1, 1));
    assert_eq!(desk.handover().unwrap().0, "waits too");
}

#[test]
fn a_report_that_grants_it_anew_overrules_what_was_not_said() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 2));
    assert!(desk.dispatch.lack("a", 1, Duration::ZERO, desk.now));
    desk.apply(&a, &workers(1, 2));
    assert_eq!(desk.dispatch.take_yielded("a"), []);
    assert!(desk.pick(&[]).is_some() && desk.pick(&[]).is_some() && desk.pick(&[]).is_none());
}

#[test]
fn what_is_in_use_or_at_another_node_is_not_given_back() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(1, 1));
    desk.apply(&node("b"), &workers(1, 1));
    let (one, two) = (desk.pick(&[]).unwrap(), desk.pick(&[]).unwrap());
    assert!(!desk.dispatch.lack("a", 5, 1000 * MS, desk.now));
    let (of_a, of_b) = if one.node.instance == "a" { (one, two) } else { (two, one) };
    desk.release(&of_b);
    assert_eq!(desk.dispatch.take_yielded("b"), []);
    desk.release(&of_a);
    assert_eq!(desk.dispatch.take_yielded("a"), [yielded(0)]);
    desk.dispatch.remove_node("a");
    assert!(!desk.dispatch.seats.is_lacked());
}

/// A desk whose requests hold their slots for 100 ms, with one slot of each of so many workers, all of them held.
fn busy(slots: u32) -> (Desk<u32>, Vec<Arc<Endpoint>>) {
    let mut desk = Desk::new(room(1000));
    desk.apply(&node("a"), &workers(slots, 1));
    for _ in 0..20 {
        let endpoint = desk.pick(&[]).unwrap();
        let held = desk.held(&endpoint);
        desk.now += 100 * MS;
        desk.dispatch.release(held, Ended::Answered(100 * MS), desk.now);
    }
    let held = (0..slots).map(|_| desk.pick(&[]).unwrap()).collect();
    (desk, held)
}

#[test]
fn the_wait_is_what_waits_by_what_comes_back() {
    let (mut desk, _held) = busy(4);
    assert_eq!(desk.dispatch.expected_wait(desk.now), None, "nobody waits");
    for waiter in 0..8 {
        desk.enqueue(waiter, 1, &[], false).unwrap();
    }
    desk.now += 7 * MS;
    assert_eq!(desk.dispatch.expected_wait(desk.now), Some(200 * MS));
}

#[test]
fn who_waits_less_gives_the_more_often_the_greater_the_difference_is() {
    // 267 ms here without the permit that has come back: of 30 such there are to go ...
    for (theirs, expected) in [(200, 0), (300, 0), (600, 11), (1800, 22)] {
        let (mut desk, mut held) = busy(4);
        let mut given = 0;
        for turn in 0..30 {
            while desk.dispatch.queue_depth() < 8 {
                desk.enqueue(turn, 1, &[], false).unwrap();
            }
            assert!(!desk.dispatch.lack("a", 4, theirs * MS, desk.now), "nothing is free");
            // the rest of this one's time passes in no time: its wait stays what it is
            let endpoint = held.pop().unwrap();
            let since = desk.now - 100 * MS;
            desk.dispatch.release(Held { since, ..desk.held(&endpoint) }, Ended::Answered(100 * MS), desk.now);
            let yielded = desk.dispatch.take_yielded("a").len();
            given += yielded;
            if yielded > 0 {
                desk.apply(&node("a"), &workers(4, 1));
            }
            held.push(desk.handover().unwrap().1);
        }
        assert!(usize::abs_diff(given, expected) <= 2, "{given} where they wait {theirs} ms");
    }
}
