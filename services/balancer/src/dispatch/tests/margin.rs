//! The last permits of many.

use super::*;

/// A worker with so many slots, and a client that has all that it gets.
fn taken(slots: u32) -> (Desk<u32>, Vec<Held>) {
    let mut desk = Desk::new(Room { all: 8, client: 4 });
    desk.apply(&node("a"), &workers(1, slots));
    let held = std::iter::from_fn(|| Some(desk.pick_for(1, &[])?.1)).collect();
    (desk, held)
}

#[test]
fn a_client_leaves_one_permit_in_sixteen_to_others() {
    for (slots, most) in [(63, 63), (64, 60), (1024, 960)] {
        let (mut desk, held) = taken(slots);
        assert_eq!(held.len(), most, "of {slots}");
        let others = std::iter::from_fn(|| desk.pick_for(2, &[])).count();
        assert_eq!(others, slots as usize - most, "of {slots}");
    }
}

#[test]
fn each_client_has_its_share_of_the_last_and_gives_it_back() {
    let (mut desk, held) = taken(64);
    let (first, last) = held.split_at(48);
    for held in &first[..10] {
        desk.dispatch.release(*held, Ended::Unjudged, desk.now);
    }
    assert!(desk.pick_for(1, &[]).is_none(), "it still has its share");
    assert_eq!(std::iter::from_fn(|| desk.pick_for(2, &[])).count(), 12);
    assert_eq!(std::iter::from_fn(|| desk.pick_for(3, &[])).count(), 2);
    for held in &last[..5] {
        desk.dispatch.release(*held, Ended::Unjudged, desk.now);
    }
    assert!(desk.pick_for(2, &[]).is_none());
    assert_eq!(std::iter::from_fn(|| desk.pick_for(1, &[])).count(), 5);
}

#[test]
fn who_gets_no_more_waits_behind_others() {
    let (mut desk, held) = taken(64);
    desk.enqueue(1, 1, &[], false).unwrap();
    desk.enqueue(2, 1, &[], false).unwrap();
    assert!(desk.handover().is_none(), "what is left is not theirs");
    let others: Vec<Held> = (0..4).map(|_| desk.pick_for(2, &[]).unwrap().1).collect();
    desk.enqueue(3, 2, &[], false).unwrap();
    desk.dispatch.release(held[0], Ended::Unjudged, desk.now);
    assert_eq!(desk.handover().unwrap().0, 3);
    assert!(desk.handover().is_none());
    desk.dispatch.release(others[0], Ended::Unjudged, desk.now);
    assert!(desk.handover().is_none(), "of the last it still has its share");
    desk.dispatch.release(held[59], Ended::Unjudged, desk.now);
    assert_eq!(desk.handover().unwrap().0, 1);
    assert!(desk.handover().is_none());
}

#[test]
fn a_counted_permit_comes_back_from_wherever_it_was() {
    let (mut desk, mut held) = taken(64);
    // unsettled, and named by its worker
    desk.dispatch.unsettle(held.pop().unwrap(), 7, Ended::Unjudged, desk.now);
    assert!(desk.pick_for(1, &[]).is_none());
    desk.dispatch.settle("a", &[7], desk.now);
    held.push(desk.pick_for(1, &[]).unwrap().1);
    // unsettled at a node that goes, and held there
    desk.dispatch.unsettle(held.pop().unwrap(), 8, Ended::Unjudged, desk.now);
    desk.dispatch.remove_node("a");
    assert!(desk.dispatch.may_free_more());
    for held in held {
        desk.dispatch.release(held, Ended::Unjudged, desk.now);
    }
    desk.now += Duration::from_secs(10);
    desk.dispatch.turn(desk.now);
    assert!(!desk.dispatch.may_free_more() && desk.dispatch.seats.is_vacant());
}

#[test]
fn others_are_not_refused_because_of_the_requests_that_they_go_before() {
    let (mut desk, held) = taken(64);
    // each permit is out for a second
    desk.now += Duration::from_secs(1);
    for held in held {
        desk.dispatch.release(held, Ended::Answered(Duration::from_secs(1)), desk.now);
    }
    while desk.pick_for(1, &[]).is_some() {}
    while desk.pick_for(2, &[]).is_some() {}
    for waiter in 0..8 {
        desk.enqueue(waiter, 1, &[], false).unwrap();
    }
    let soon = |waiter, from| Request {
        deadline: desk.now + Duration::from_millis(100),
        ..request(waiter, from, &[], false, desk.now)
    };
    let (own, other) = (soon(8, 1), soon(9, 2));
    assert_eq!(desk.dispatch.enqueue(own, desk.now), Err(NoRoom::Late(8)));
    assert_eq!(desk.dispatch.enqueue(other, desk.now).unwrap().displaced, Some(NoRoom::Client(7)));
}
