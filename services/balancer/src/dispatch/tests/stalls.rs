//! Clients that stand still and hold permits.

use super::*;
use crate::stalls::Cut;
use chassis::config::Percent;
use proptest::prelude::*;
use tokio::sync::Notify;

const MS: Duration = Duration::from_millis(1);

fn cut() -> Arc<Cut> {
    Cut::new(&Arc::new(Notify::new()))
}

/// A worker with so many slots, all of them held by the first client, which has stood still with the first of them, each
/// for a little less long than the one before.
fn held(slots: u32, standing: u32) -> (Desk<u32>, Vec<Arc<Endpoint>>, Vec<Arc<Cut>>) {
    let mut desk = Desk::new(Room { all: 100, client: 50 });
    desk.apply(&node("a"), &workers(1, slots));
    let endpoints = (0..slots).map(|_| desk.pick(&[]).unwrap()).collect();
    let cuts: Vec<_> = (0..standing).map(|_| cut()).collect();
    for (at, cut) in cuts.iter().enumerate().rev() {
        desk.dispatch.stall(client(1), desk.now + MS * u32::try_from(at).unwrap(), Arc::clone(cut));
    }
    (desk, endpoints, cuts)
}

fn are(cuts: &[Arc<Cut>], expected: &[Arc<Cut>]) {
    assert_eq!(cuts.len(), expected.len());
    assert!(cuts.iter().zip(expected).all(|(cut, expected)| Arc::ptr_eq(cut, expected)));
}

#[test]
fn whoever_waits_gets_the_place_of_the_one_that_has_stood_still_longest() {
    let (mut desk, endpoints, cuts) = held(10, 10);
    assert!(desk.dispatch.preempt().is_empty(), "nobody needs one");
    desk.enqueue(1, 2, &[], false).unwrap();
    are(&desk.dispatch.preempt(), &cuts[..1]);
    assert!(desk.dispatch.preempt().is_empty(), "one place for one request");
    desk.enqueue(2, 3, &[], false).unwrap();
    desk.enqueue(3, 3, &[], false).unwrap();
    are(&desk.dispatch.preempt(), &cuts[1..3]);
    desk.release(&endpoints[0]);
    assert_eq!(desk.handover().unwrap().0, 1);
}

#[test]
fn a_client_keeps_its_share_and_may_have_all_while_only_its_own_requests_wait() {
    let (mut desk, _endpoints, cuts) = held(10, 10);
    desk.enqueue(0, 1, &[], false).unwrap();
    assert!(desk.dispatch.preempt().is_empty(), "a place of its own for a place of its own");
    for waiter in 1..9 {
        desk.enqueue(waiter, 2, &[], false).unwrap();
    }
    are(&desk.dispatch.preempt(), &cuts[..5]);
    desk.dispatch.set_stalled_share(Percent(30));
    are(&desk.dispatch.preempt(), &cuts[5..7]);
}

#[test]
fn who_has_no_more_than_its_share_loses_nothing_and_nor_does_who_moves_again() {
    let (mut desk, _endpoints, _cuts) = held(10, 5);
    desk.enqueue(1, 2, &[], false).unwrap();
    assert!(desk.dispatch.preempt().is_empty());
    let ticket = desk.dispatch.stall(client(1), desk.now + 10 * MS, cut());
    desk.dispatch.unstall(ticket);
    assert!(desk.dispatch.preempt().is_empty());
    // in an app of one slot, one is not too much
    let (mut desk, _endpoints, _cuts) = held(1, 1);
    desk.enqueue(1, 2, &[], false).unwrap();
    assert!(desk.dispatch.preempt().is_empty());
}

#[test]
fn others_go_before_the_requests_of_a_client_that_has_more_than_its_share() {
    let (mut desk, endpoints, _cuts) = held(4, 4);
    for (waiter, from) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
        desk.enqueue(waiter, from, &[], false).unwrap();
    }
    let mut order = Vec::new();
    for endpoint in &endpoints {
        desk.release(endpoint);
        order.push(desk.handover().unwrap().0);
    }
    assert_eq!(order, [3, 4, 1, 2], "and then theirs");
}

#[test]
fn what_is_about_to_come_back_is_not_asked_for_twice() {
    let (mut desk, endpoints, cuts) = held(4, 4);
    desk.enqueue(1, 2, &[], false).unwrap();
    are(&desk.dispatch.preempt(), &cuts[..1]);
    let held = desk.held(&endpoints[0]);
    desk.dispatch.unsettle(held, 7, Ended::Unjudged, desk.now);
    desk.enqueue(2, 2, &[], false).unwrap();
    assert!(desk.dispatch.preempt().is_empty(), "one leaves, one has left, two wait");
}

#[derive(Clone, Debug)]
enum Step {
    Stall(u8),
    Move(usize),
    Wait(u8),
    Preempt,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3_u8).prop_map(Step::Stall),
        1 => any::<usize>().prop_map(Step::Move),
        1 => (0..3_u8).prop_map(Step::Wait),
        1 => Just(Step::Preempt),
    ];
    prop::collection::vec(step, 0..100)
}

proptest! {
    #[test]
    fn only_the_oldest_of_who_has_more_than_its_share_is_cut_and_never_more_than_wait(steps in steps()) {
        const SLOTS: u32 = 8;
        let mut desk: Desk<u32> = Desk::new(room(1000));
        desk.apply(&node("a"), &workers(1, SLOTS));
        while desk.pick(&[]).is_some() {}
        let mut standing: Vec<(u8, StallTicket, Arc<Cut>)> = Vec::new();
        let mut leaving: Vec<StallTicket> = Vec::new();
        let mut waiting = [0_usize; 3];
        let most = (SLOTS / 2) as usize;
        for step in steps {
            desk.now += MS;
            match step {
                Step::Stall(from) => {
                    let cut = cut();
                    let ticket = desk.dispatch.stall(client(from), desk.now, Arc::clone(&cut));
                    standing.push((from, ticket, cut));
                }
                Step::Move(at) if !standing.is_empty() || !leaving.is_empty() => {
                    let at = at % (standing.len() + leaving.len());
                    let ticket = if at < standing.len() { standing.remove(at).1 } else { leaving.remove(at - standing.len()) };
                    desk.dispatch.unstall(ticket);
                }
                Step::Move(_) => {}
                Step::Wait(from) => {
                    desk.enqueue(0, from, &[], false).unwrap();
                    waiting[from as usize] += 1;
                }
                Step::Preempt => {
                    let count = |standing: &[(u8, StallTicket, Arc<Cut>)], from| standing.iter().filter(|(of, ..)| *of == from).count();
                    let others: usize = (0..3).filter(|from| count(&standing, *from) <= most).map(|from| waiting[from as usize]).sum();
                    let needed = others.saturating_sub(leaving.len());
                    let cuts = desk.dispatch.preempt();
                    prop_assert!(cuts.len() <= needed);
                    for cut in &cuts {
                        let at = standing.iter().position(|(from, ..)| count(&standing, *from) > most).expect("somebody has too much");
                        prop_assert!(Arc::ptr_eq(&standing[at].2, cut), "not the oldest");
                        leaving.push(standing.remove(at).1);
                    }
                    let greedy = (0..3).any(|from| count(&standing, from) > most);
                    prop_assert!(cuts.len() == needed || !greedy, "somebody waits in vain");
                }
            }
        }
    }
}
