//! Slots that may be busy, slots that are busy for a moment, slots that are kept, endpoints that fail.

use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn fast(position: u32, grant: u32) -> WorkerView {
    WorkerView { service: Some(MS), ..worker(position, grant) }
}

#[test]
fn a_dropped_permit_is_not_a_free_slot_until_its_worker_says_so() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(1, 1));
    let picked = desk.pick(&[]).unwrap();
    desk.dispatch.unsettle(desk.held(&picked), 77, Ended::Unjudged, desk.now);
    assert!(desk.pick(&[]).is_none());
    assert_eq!((desk.dispatch.held(), desk.dispatch.unsettled(), desk.dispatch.in_flight("a")), (1, 1, 0));
    desk.dispatch.settle("a", &[78], desk.now);
    desk.dispatch.settle("b", &[77], desk.now);
    assert!(desk.pick(&[]).is_none(), "another connection, or another node's word");
    desk.dispatch.settle("a", &[77], desk.now);
    assert!(desk.pick(&[]).is_some());
}

#[test]
fn a_name_that_comes_before_the_permit_is_dropped_counts() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(1, 1));
    let picked = desk.pick(&[]).unwrap();
    desk.dispatch.settle("a", &[77], desk.now);
    desk.dispatch.unsettle(desk.held(&picked), 77, Ended::Unjudged, desk.now);
    assert!(desk.pick(&[]).is_some());
}

#[test]
fn the_end_of_a_worker_settles_everything_of_it() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 2));
    for number in [1, 2] {
        let picked = desk.pick(&[]).unwrap();
        desk.dispatch.unsettle(desk.held(&picked), number, Ended::Failed, desk.now);
    }
    desk.apply(&a, &[WorkerView { generation: 2, ..worker(0, 2) }]);
    assert_eq!((desk.dispatch.held(), desk.dispatch.unsettled()), (0, 0));
    assert!(desk.pick(&[]).is_some());
}

#[test]
fn what_no_worker_names_is_freed_after_a_while_as_far_as_no_slot_is_orphaned() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 2));
    for number in [1, 2] {
        let picked = desk.pick(&[]).unwrap();
        desk.dispatch.unsettle(desk.held(&picked), number, Ended::Unjudged, desk.now);
    }
    desk.now += owing::GRACE - MS;
    desk.apply(&a, &workers(1, 2));
    assert_eq!(desk.dispatch.unsettled(), 2);
    desk.now += MS;
    desk.apply(&a, &[WorkerView { orphaned: 1, ..worker(0, 2) }]);
    assert_eq!(desk.dispatch.unsettled(), 1, "one slot is busy with it");
    desk.apply(&a, &workers(1, 2));
    assert_eq!(desk.dispatch.unsettled(), 0);
}

#[test]
fn what_is_unsettled_at_a_lost_node_waits_for_it_a_while() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 1));
    let picked = desk.pick(&[]).unwrap();
    desk.dispatch.unsettle(desk.held(&picked), 1, Ended::Unjudged, desk.now);
    desk.dispatch.remove_node("a");
    desk.apply(&a, &workers(1, 1));
    assert!(desk.pick(&[]).is_none(), "the same worker is back, and its slot as busy as before");
    desk.dispatch.remove_node("a");
    desk.now += owing::GRACE;
    desk.dispatch.turn(desk.now);
    assert!(desk.dispatch.seats.is_vacant());
}

#[test]
fn requests_go_on_deck_of_fast_workers_only_and_only_where_nothing_is_free() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &[fast(0, 1), worker(1, 1)]);
    let mut why = || desk.pick_for(1, &[]).map(|(endpoint, _, why)| (endpoint.position, why));
    let mut first = [why().unwrap(), why().unwrap()];
    first.sort_unstable_by_key(|(position, _)| *position);
    assert_eq!(first, [(0, Why::Idle), (1, Why::Idle)]);
    for _ in 0..4 {
        assert_eq!(why(), Some((0, Why::OnDeck)));
    }
    assert_eq!(why(), None, "the deck is full");
    desk.apply(&a, &[WorkerView { service: Some(5 * MS), ..worker(0, 1) }, worker(1, 1)]);
    desk.apply(&a, &[fast(0, 1), worker(1, 1), worker(2, 1)]);
    let third = desk.pick(&[]).unwrap();
    assert_eq!(third.position, 2, "what is free goes first");
}

#[test]
fn decks_are_filled_evenly_and_a_waiter_gets_a_place_there_too() {
    let mut desk = Desk::new(room(8));
    desk.apply(&node("a"), &[fast(0, 1), fast(1, 1)]);
    let all: Vec<_> = (0..10).map(|_| desk.pick(&[]).unwrap()).collect();
    assert_eq!(all.iter().filter(|endpoint| endpoint.position == 0).count(), 5);
    desk.enqueue("waits", 1, &[], false).unwrap();
    assert!(desk.handover().is_none());
    desk.release(&all[0]);
    assert_eq!(desk.handover().unwrap().1.id, all[0].id);
}

#[test]
fn a_worker_that_was_too_busy_has_no_deck_until_it_answers() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &[fast(0, 1)]);
    let (running, ahead) = (desk.pick(&[]).unwrap(), desk.pick(&[]).unwrap());
    desk.ended(&ahead, Ended::Busy);
    assert!(desk.pick(&[]).is_none());
    desk.ended(&running, Ended::Answered(MS));
    assert!(desk.pick(&[]).is_some() && desk.pick(&[]).is_some());
}

#[test]
fn a_grant_that_is_lowered_empties_the_deck_before_it_is_acknowledged() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    let granted = |grant| WorkerView { capacity: 4, grant, ..fast(0, grant) };
    desk.apply(&a, &[granted(4)]);
    let all: Vec<_> = (0..6).map(|_| desk.pick(&[]).unwrap()).collect();
    assert_eq!(desk.dispatch.over("a"), [], "the deck is no grant");
    desk.apply(&a, &[granted(3)]);
    assert_eq!(desk.dispatch.over("a"), [Over { position: 0, generation: 1, held: 6 }]);
    for endpoint in &all[..2] {
        assert!(desk.release(endpoint));
        assert!(desk.pick(&[]).is_none());
    }
    assert!(desk.release(&all[2]) && desk.dispatch.over("a").is_empty());
    assert!(desk.pick(&[]).is_some(), "and then it is used again");
}

#[test]
fn a_reserve_is_kept_for_its_requests() {
    let (mut dispatch, mut rng, now) = (Dispatch::new(room(8), &[1]), rng(), Instant::now());
    dispatch.apply(&node("a"), &workers(3, 1), now);
    let health = Class { priority: Priority::Normal, reserve: Some(0) };
    let mut pick = |class| dispatch.pick(client(1), class, &[], now, &mut rng).map(|(_, held, _)| held);
    let held = [pick(PLAIN).unwrap(), pick(PLAIN).unwrap()];
    assert!(pick(PLAIN).is_none());
    assert!(pick(health).is_some() && pick(health).is_none());
    let wait = |waiter, class| Request { class, ..request(waiter, 1, &[], false, now) };
    dispatch.enqueue(wait("plain", PLAIN), now).unwrap();
    dispatch.enqueue(wait("health", health), now).unwrap();
    // the reserve is in use, so the order of arrival decides
    dispatch.release(held[0], Ended::Unjudged, now);
    assert_eq!(dispatch.handover(now, &mut rng).unwrap().0, "plain");
}

#[test]
fn an_endpoint_that_fails_again_and_again_is_left_out_and_probed() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(2, 4));
    let bad = desk.pick(&[]).unwrap();
    desk.ended(&bad, Ended::Failed);
    for _ in 0..4 {
        let picked = desk.pick(&[]).unwrap();
        let other = if picked.id == bad.id { None } else { Some(desk.pick(&[]).unwrap()) };
        desk.ended(&bad, Ended::Failed);
        if other.is_some() {
            desk.ended(&picked, Ended::Answered(MS));
        }
    }
    assert_eq!(desk.dispatch.ejections(), [1, 0]);
    for _ in 0..4 {
        assert_ne!(desk.pick(&[]).unwrap().id, bad.id);
    }
    assert!(desk.pick(&[]).is_none());
    desk.now += Duration::from_secs(5);
    desk.dispatch.turn(desk.now);
    let (probe, _, why) = desk.pick_for(1, &[]).unwrap();
    assert_eq!((probe.id, why), (bad.id, Why::Probe));
    assert!(desk.pick(&[]).is_none(), "one is enough to see");
    desk.ended(&probe, Ended::Answered(MS));
    assert!(desk.pick(&[]).is_some());
}

#[test]
fn never_the_last_one_and_never_more_than_half() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 1));
    for _ in 0..20 {
        let picked = desk.pick(&[]).unwrap();
        desk.ended(&picked, Ended::Failed);
    }
    desk.apply(&a, &workers(5, 1));
    for _ in 0..200 {
        let picked = desk.pick(&[]).unwrap();
        desk.ended(&picked, Ended::Failed);
    }
    assert_eq!(desk.dispatch.ejections(), [2, 0]);
}

#[test]
fn an_endpoint_much_slower_than_the_others_is_left_out() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(3, 1));
    for turn in 0..300 {
        let picked = desk.pick(&[]).unwrap();
        let took = if picked.position == 1 { 100 * MS } else { 20 * MS };
        desk.ended(&picked, Ended::Answered(took));
        desk.now += 10 * MS;
        desk.dispatch.turn(desk.now);
        if desk.dispatch.ejections() == [0, 1] {
            assert!(turn > 30, "a few answers prove nothing");
            let left: HashSet<_> = (0..2).map(|_| desk.pick(&[]).unwrap().position).collect();
            assert_eq!(left, [0, 2].into());
            assert!(desk.pick(&[]).is_none());
            return;
        }
    }
    panic!("the slow one is still in");
}

#[test]
fn servers_that_nobody_says_are_alike_are_not_compared() {
    let mut desk = Desk::<u32>::new(room(8));
    let foreign = crate::foreign::Foreign {
        security: None,
        host: None,
        protocol: crate::config::UpstreamProtocol::Http1,
        keepalive: Duration::ZERO,
    };
    let server = crate::endpoint::Server::Foreign(Arc::new(foreign));
    let address = ([127, 0, 0, 1], 1).into();
    desk.apply(&Arc::new(Node { instance: "a".to_owned(), address, server, timeout: None }), &workers(3, 1));
    for _ in 0..300 {
        let picked = desk.pick(&[]).unwrap();
        let took = if picked.position == 1 { 1000 * MS } else { MS };
        desk.ended(&picked, Ended::Answered(took));
        desk.now += 10 * MS;
        desk.dispatch.turn(desk.now);
    }
    assert_eq!(desk.dispatch.ejections(), [0, 0]);
}

#[test]
fn who_had_nothing_to_do_while_others_had_fast_requests_is_not_slow() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(4, 8));
    let answer = |desk: &mut Desk<u32>, took, count| {
        for _ in 0..count {
            let picked = desk.pick(&[]).unwrap();
            desk.ended(&picked, Ended::Answered(took));
            desk.now += 10 * MS;
            desk.dispatch.turn(desk.now);
        }
    };
    answer(&mut desk, 20 * MS, 400);
    // two of them look busier than the others, as after a cut
    let all: Vec<_> = (0..4).map(|_| desk.pick(&[]).unwrap()).collect();
    for endpoint in &all[..2] {
        desk.release(endpoint);
    }
    answer(&mut desk, MS, 200);
    for endpoint in &all[2..] {
        desk.release(endpoint);
    }
    for took in [1, 50, 2, 3000, 20] {
        answer(&mut desk, took * MS, 100);
    }
    assert_eq!(desk.dispatch.ejections(), [0, 0]);
}

proptest! {
    /// Whatever is asked for, and whoever is busy meanwhile.
    #[test]
    fn of_equal_endpoints_none_is_ever_slow(
        phases in prop::collection::vec((1_u64..4000, prop::sample::subsequence((0..6).collect::<Vec<u32>>(), 1..=6), 1_u32..150), 1..20),
    ) {
        let mut desk = Desk::<u32>::new(room(8));
        desk.apply(&node("a"), &workers(6, 8));
        for (took, free, count) in phases {
            let all: Vec<_> = (0..6).map(|_| desk.pick(&[]).unwrap()).collect();
            let (idle, busy): (Vec<_>, Vec<_>) = all.iter().partition(|endpoint| free.contains(&endpoint.position));
            idle.iter().for_each(|endpoint| { desk.release(endpoint); });
            for _ in 0..count {
                let picked = desk.pick(&[]).unwrap();
                desk.ended(&picked, Ended::Answered(MS * u32::try_from(took).unwrap()));
                desk.now += 20 * MS;
                desk.dispatch.turn(desk.now);
            }
            busy.iter().for_each(|endpoint| { desk.release(endpoint); });
        }
        prop_assert_eq!(desk.dispatch.ejections(), [0, 0]);
    }
}

#[test]
fn what_is_asked_of_nodes_adds_up_to_what_waits() {
    let (mut dispatch, mut rng, now) = (Dispatch::new(room(100), &[]), rng(), Instant::now());
    let names: Vec<String> = (0..50).map(|number| format!("n{number}")).collect();
    for name in &names {
        let half = WorkerView { capacity: 4, grant: 2, ..worker(0, 2) };
        dispatch.apply(&node(name), &[half], now);
    }
    assert_eq!(dispatch.wanted("n0", &mut rng), Some(0), "nothing waits");
    for waiter in 0..10 {
        dispatch.enqueue(request(waiter, 1, &[], false, now), now).unwrap();
    }
    let mut rounds: Vec<u32> = Vec::new();
    for _ in 0..100 {
        rounds.push(names.iter().map(|name| dispatch.wanted(name, &mut rng).unwrap()).sum());
    }
    let mean = f64::from(rounds.iter().sum::<u32>()) / 100.0;
    assert!((9.0..11.0).contains(&mean), "{mean}");
    // five slots are known to be idle, at five nodes: those are asked for one each, the others for the rest
    for name in &names[5..] {
        let full = WorkerView { capacity: 4, grant: 2, busy: 4, ..worker(0, 2) };
        dispatch.apply(&node(name), &[full], now);
    }
    for name in &names[..5] {
        let idle = WorkerView { capacity: 4, grant: 2, busy: 3, ..worker(0, 2) };
        dispatch.apply(&node(name), &[idle], now);
    }
    let mut rounds = Vec::new();
    for _ in 0..100 {
        assert!(names[..5].iter().all(|name| dispatch.wanted(name, &mut rng).unwrap() >= 1));
        rounds.push(names[5..].iter().map(|name| dispatch.wanted(name, &mut rng).unwrap()).sum());
    }
    let mean = f64::from(rounds.iter().sum::<u32>()) / 100.0;
    assert!((4.0..5.5).contains(&mean), "{mean}");
    dispatch.apply(&node("n0"), &[WorkerView { capacity: 4, ..worker(0, 4) }], now);
    assert_eq!(dispatch.wanted("n0", &mut rng), None, "it has everything there already");
}
