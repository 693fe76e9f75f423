//! More than can be served.

use super::*;

const MS: Duration = Duration::from_millis(1);

/// One worker with four slots that are held for 200 ms each, as the dispatcher has seen it.
fn seasoned(room: Room) -> (Desk<u32>, Vec<Arc<Endpoint>>) {
    let mut desk = Desk::new(room);
    desk.apply(&node("a"), &workers(1, 4));
    for _ in 0..20 {
        let picked = desk.pick(&[]).unwrap();
        let held = desk.held(&picked);
        desk.now += 200 * MS;
        desk.dispatch.release(held, Ended::Answered(200 * MS), desk.now);
    }
    let held = (0..4).map(|_| desk.pick(&[]).unwrap()).collect();
    (desk, held)
}

fn wait(desk: &Desk<u32>, waiter: u32, patience: Duration, priority: Priority) -> Request<'static, u32> {
    let class = Class { priority, reserve: None };
    Request { waiter, client: client(1), class, tried: &[], comes_back: false, deadline: desk.now + patience }
}

#[test]
fn who_cannot_be_served_in_time_is_told_so_at_once_and_when_to_come_again() {
    let (mut desk, _held) = seasoned(room(1000));
    // 20 a second, so 40 are served within two seconds
    for waiter in 0..40 {
        let request = wait(&desk, waiter, 2000 * MS, Priority::Normal);
        assert!(desk.dispatch.enqueue(request, desk.now).is_ok(), "{waiter}");
    }
    let request = wait(&desk, 40, 2000 * MS, Priority::Normal);
    assert_eq!(desk.dispatch.enqueue(request, desk.now), Err(NoRoom::Late(40)));
    assert_eq!(desk.dispatch.retry_after().as_millis(), 2000);
    let patient = wait(&desk, 41, 3000 * MS, Priority::Normal);
    assert!(desk.dispatch.enqueue(patient, desk.now).is_ok());
    let important = wait(&desk, 42, 2000 * MS, Priority::High);
    assert!(desk.dispatch.enqueue(important, desk.now).is_ok(), "fewer are ahead of it");
}

#[test]
fn a_higher_priority_goes_first() {
    let (mut desk, held) = seasoned(room(1000));
    for (waiter, priority) in [(1, Priority::Low), (2, Priority::Normal), (3, Priority::High), (4, Priority::Normal)] {
        let request = wait(&desk, waiter, 10_000 * MS, priority);
        desk.dispatch.enqueue(request, desk.now).unwrap();
    }
    let mut order = Vec::new();
    for endpoint in &held {
        desk.release(endpoint);
        order.push(desk.handover().unwrap().0);
    }
    assert_eq!(order, [3, 2, 4, 1]);
}

#[test]
fn when_clients_leave_the_newest_go_first_until_nothing_old_waits() {
    let (mut desk, held) = seasoned(room(1000));
    let mut tickets = Vec::new();
    for waiter in 0..20 {
        let request = wait(&desk, waiter, 10_000 * MS, Priority::Normal);
        tickets.push(desk.dispatch.enqueue(request, desk.now).unwrap().ticket);
        desk.now += 50 * MS;
    }
    for (ticket, waiter) in tickets.into_iter().zip(0..10) {
        assert_eq!(desk.dispatch.leave(ticket), Some(waiter));
    }
    desk.release(&held[0]);
    assert_eq!(desk.handover().unwrap().0, 19);
    desk.enqueue(99, 1, &[held[1].id], true).unwrap();
    desk.release(&held[0]);
    assert_eq!(desk.handover().unwrap().0, 99, "who comes back was admitted before");
    for _ in 0..9 {
        desk.release(&held[0]);
        assert!(desk.handover().is_some());
    }
    assert_eq!(desk.dispatch.queue_depth(), 0);
    for waiter in [1, 2] {
        desk.enqueue(waiter, 1, &[], false).unwrap();
        desk.now += 200 * MS;
    }
    desk.release(&held[0]);
    assert_eq!(desk.handover().unwrap().0, 1, "an empty queue begins anew");
}

#[test]
fn a_long_queue_of_patient_clients_keeps_its_order() {
    let (mut desk, held) = seasoned(room(1000));
    for waiter in 0..100 {
        let request = wait(&desk, waiter, 10_000 * MS, Priority::Normal);
        desk.dispatch.enqueue(request, desk.now).unwrap();
    }
    for waiter in 0..100 {
        desk.now += 50 * MS;
        desk.release(&held[0]);
        assert_eq!(desk.handover().unwrap().0, waiter);
        assert!(desk.dispatch.shed(desk.now).is_none());
    }
}

#[test]
fn while_the_newest_go_first_the_oldest_make_room_and_the_hopeless_are_told() {
    let (mut desk, _held) = seasoned(room(50));
    for waiter in 0..50 {
        let request = wait(&desk, waiter, 3000 * MS, Priority::Normal);
        desk.dispatch.enqueue(request, desk.now).unwrap();
    }
    desk.now += 200 * MS;
    for waiter in 50..60 {
        let request = wait(&desk, waiter, 3000 * MS, Priority::Normal);
        match desk.dispatch.enqueue(request, desk.now) {
            Err(NoRoom::Queue(_)) => assert!(waiter < 54),
            Ok(queued) => assert_eq!(queued.displaced, Some(NoRoom::Late(waiter - 54)), "the oldest"),
            other => panic!("{other:?}"),
        }
    }
    // 50 wait, which takes 2.5 s: by now that is too late for the oldest
    desk.now += 600 * MS;
    let mut told = Vec::new();
    while let Some(waiter) = desk.dispatch.shed(desk.now) {
        told.push(waiter);
    }
    assert_eq!(told.first(), Some(&6));
    assert!((1..10).contains(&told.len()), "with fewer before them the others are in time: {told:?}");
}

#[test]
fn a_client_that_leaves_when_its_turn_has_come_at_last_was_lost_too() {
    let (mut desk, held) = seasoned(room(1000));
    for waiter in 0..20 {
        let request = wait(&desk, waiter, 10_000 * MS, Priority::Normal);
        desk.dispatch.enqueue(request, desk.now).unwrap();
        desk.now += 50 * MS;
    }
    desk.release(&held[0]);
    let mut order = Vec::new();
    for number in 0..8 {
        let (waiter, _, held) = desk.dispatch.handover(desk.now, &mut desk.rng).unwrap();
        order.push(waiter);
        // it has been at the worker for a moment when its client has had enough
        desk.dispatch.unsettle(held, number, Ended::Unjudged, desk.now);
        desk.dispatch.settle("a", &[number], desk.now);
    }
    assert_eq!(order, [0, 1, 2, 3, 19, 18, 17, 16], "the newest go first");
}
