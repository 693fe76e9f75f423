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
fn a_permit_that_comes_back_is_given_to_those_that_have_waited_longer() {
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
