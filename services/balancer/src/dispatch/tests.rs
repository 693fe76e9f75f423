use super::*;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::{HashMap, HashSet};

fn node(instance: &str) -> Arc<Node> {
    Arc::new(Node::new(instance.to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"))
}

fn worker(position: u32, grant: u32) -> WorkerView {
    WorkerView::ready(position, ([127, 0, 0, 1], 9000 + u16::try_from(position).unwrap()).into(), grant)
}

fn workers(count: u32, grant: u32) -> Vec<WorkerView> {
    (0..count).map(|position| worker(position, grant)).collect()
}

/// For one client as much as for all.
fn room(all: usize) -> Room {
    Room { all, client: all }
}

fn client(number: u8) -> Client {
    std::net::IpAddr::from([192, 0, 2, number]).into()
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(1)
}

#[test]
fn idle_endpoints_come_first_and_each_gets_its_grant() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    dispatch.apply(&node("a"), &workers(4, 2));
    for round in 0..2 {
        let picked: HashSet<u32> = (0..4).map(|_| dispatch.pick(&[], &mut rng).unwrap().position).collect();
        assert_eq!(picked.len(), 4, "round {round} uses every worker once");
    }
    assert!(dispatch.pick(&[], &mut rng).is_none());
}

#[test]
fn equals_share_at_random() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    dispatch.apply(&node("a"), &workers(3, 1));
    let mut counts = [0; 3];
    for _ in 0..3000 {
        let endpoint = dispatch.pick(&[], &mut rng).unwrap();
        counts[endpoint.position as usize] += 1;
        dispatch.release(endpoint.id);
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
}

#[test]
fn a_pick_says_whether_anything_else_was_there() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    dispatch.apply(&node("a"), &workers(2, 2));
    let mut why = || {
        let picked = dispatch.pick(&[], &mut rng).unwrap();
        dispatch.why(picked.id)
    };
    assert_eq!([why(), why(), why(), why()], [Why::Idle, Why::Idle, Why::LeastBusy, Why::LeastBusy]);
}

#[test]
fn a_freed_permit_goes_to_the_head_and_who_comes_back_is_the_head() {
    let (mut dispatch, mut rng) = (Dispatch::new(room(2)), rng());
    dispatch.apply(&node("a"), &workers(1, 1));
    let held = dispatch.pick(&[], &mut rng).unwrap();
    dispatch.enqueue("first", client(1), &[], false).unwrap();
    dispatch.enqueue("second", client(1), &[], false).unwrap();
    assert_eq!(dispatch.enqueue("third", client(1), &[], false), Err(NoRoom::Queue("third")));
    dispatch.enqueue("back again", client(1), &[], true).unwrap();
    let mut order = Vec::new();
    let mut id = held.id;
    for _ in 0..3 {
        dispatch.release(id);
        let (waiter, endpoint) = dispatch.handover(&mut rng).unwrap();
        assert!(dispatch.pick(&[], &mut rng).is_none(), "a newcomer finds nothing");
        order.push(waiter);
        id = endpoint.id;
    }
    assert_eq!(order, ["back again", "first", "second"]);
}

#[test]
fn an_endpoint_that_failed_is_passed_over_unless_it_is_the_only_one() {
    let (mut dispatch, mut rng) = (Dispatch::new(room(8)), rng());
    let a = node("a");
    dispatch.apply(&a, &workers(2, 2));
    let failed = dispatch.pick(&[], &mut rng).unwrap();
    dispatch.release(failed.id);
    for _ in 0..2 {
        assert_ne!(dispatch.pick(&[failed.id], &mut rng).unwrap().id, failed.id);
    }
    // the other one is full now: the one that failed is free, but this request rather waits ...
    assert!(dispatch.pick(&[failed.id], &mut rng).is_none());
    dispatch.enqueue("waits", client(1), &[failed.id], true).unwrap();
    assert!(dispatch.handover(&mut rng).is_none());
    // ... while a newcomer may have it ...
    assert_eq!(dispatch.pick(&[], &mut rng).unwrap().id, failed.id);
    // ... and so may this one once nothing else is left.
    dispatch.apply(&a, &[worker(failed.position, 2)]);
    assert_eq!(dispatch.handover(&mut rng).unwrap().1.id, failed.id);
}

#[test]
fn a_new_report_carries_permits_over_and_a_lowered_grant_is_kept_once_they_are_back() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    let a = node("a");
    dispatch.apply(&a, &workers(1, 3));
    let held: Vec<_> = (0..3).map(|_| dispatch.pick(&[], &mut rng).unwrap()).collect();
    dispatch.apply(&a, &workers(1, 2));
    assert!(!dispatch.within_grants("a"));
    assert!(dispatch.release(held[0].id), "a control task wants to know");
    assert!(dispatch.within_grants("a"));
    assert!(dispatch.pick(&[], &mut rng).is_none());
    assert!(!dispatch.release(held[1].id));
    assert_eq!(dispatch.pick(&[], &mut rng).unwrap().id, held[0].id);
}

#[test]
fn a_newer_registration_takes_the_endpoints_over_but_not_those_of_another_process() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    dispatch.apply(&node("a"), &workers(1, 2));
    let held = dispatch.pick(&[], &mut rng).unwrap();
    dispatch.drain_node("a");
    assert!(dispatch.pick(&[], &mut rng).is_none());
    dispatch.apply(&node("a"), &workers(1, 2));
    assert_eq!(dispatch.pick(&[], &mut rng).unwrap().id, held.id, "same pass, same generation: the same worker");
    let restarted = Arc::new(Node::new("a".to_owned(), ([127, 0, 0, 1], 1).into(), b"another"));
    dispatch.apply(&restarted, &workers(1, 2));
    assert_ne!(dispatch.pick(&[], &mut rng).unwrap().id, held.id);
    assert!(held.is_gone());
    assert_eq!(dispatch.in_flight("a"), 3, "the old process's requests are still ours");
}

#[test]
fn a_node_that_left_is_remembered_only_until_its_requests_are_done() {
    let (mut dispatch, mut rng) = (Dispatch::<u32>::new(room(8)), rng());
    dispatch.apply(&node("a"), &workers(2, 1));
    let held = dispatch.pick(&[], &mut rng).unwrap();
    dispatch.remove_node("a");
    assert!(!dispatch.has_endpoints());
    assert_eq!(dispatch.in_flight("a"), 1);
    assert!(dispatch.nodes().is_empty());
    assert!(dispatch.release(held.id));
    assert_eq!(dispatch.in_flight("a"), 0);
    assert!(dispatch.nodes.is_empty());
    assert_eq!(dispatch.vacant.len(), dispatch.seats.len());
}

#[test]
fn a_worker_that_pauses_comes_back_as_the_same_with_the_permits_it_had() {
    for pause in [WorkerState::Stalled, WorkerState::Draining] {
        let (mut dispatch, mut rng) = (Dispatch::new(room(8)), rng());
        let node = node("a");
        dispatch.apply(&node, &workers(1, 2));
        let held = dispatch.pick(&[], &mut rng).unwrap();
        dispatch.apply(&node, &[WorkerView { state: pause, ..worker(0, 2) }]);
        assert!(dispatch.pick(&[], &mut rng).is_none(), "{pause:?} takes nothing new");
        assert!(!dispatch.has_endpoints());
        dispatch.enqueue("waits", client(1), &[], false).unwrap();
        assert!(dispatch.handover(&mut rng).is_none());
        assert!(!held.is_gone(), "its connections are kept");
        assert_eq!(dispatch.in_flight("a"), 1);
        dispatch.apply(&node, &workers(1, 2));
        let (waiter, endpoint) = dispatch.handover(&mut rng).unwrap();
        assert_eq!((waiter, endpoint.id), ("waits", held.id), "{pause:?}");
        assert!(dispatch.pick(&[], &mut rng).is_none(), "the permit that was held counts");
        dispatch.release(held.id);
        assert_eq!(dispatch.pick(&[], &mut rng).unwrap().id, held.id);
    }
}

#[test]
fn a_client_fills_the_queue_alone_and_makes_room_for_others() {
    let mut dispatch = Dispatch::<u32>::new(Room { all: 4, client: 2 });
    let mut come = |number, from| dispatch.enqueue(number, client(from), &[], false);
    for number in 0..4 {
        assert!(come(number, 1).is_ok(), "nobody else is there");
    }
    assert_eq!(come(4, 1), Err(NoRoom::Queue(4)));
    assert_eq!(come(5, 2).unwrap().displaced, Some(3), "the youngest of the greediest");
    assert_eq!(come(6, 1), Err(NoRoom::Client(6)));
    assert_eq!(come(7, 3).unwrap().displaced, Some(2));
    assert_eq!(come(8, 4), Err(NoRoom::Queue(8)), "everybody is within their share");
    assert_eq!(dispatch.queue.iter().map(|(_, waiter)| waiter.waiter).collect::<Vec<_>>(), [0, 1, 5, 7]);
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(u8),
    ComeBack(usize),
    End(usize),
    Leave(usize),
    Report { node: u8, workers: Vec<(u32, u64, u32, WorkerState)>, new_stream: bool },
    Drain(u8),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pauses = prop::sample::select(WorkerState::ALL.to_vec());
    let state = prop_oneof![4 => Just(WorkerState::Ready), 1 => pauses];
    let report = prop::collection::vec((0..3u32, 0..2u64, 0..4u32, state), 0..5);
    let step = prop_oneof![
        6 => (0..3u8).prop_map(Step::Arrive),
        2 => any::<usize>().prop_map(Step::ComeBack),
        4 => any::<usize>().prop_map(Step::End),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => (0..3u8, report, prop::bool::weighted(0.2))
            .prop_map(|(node, workers, new_stream)| Step::Report { node, workers, new_stream }),
        1 => (0..3u8).prop_map(Step::Drain),
        1 => (0..3u8).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 0..120)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_laws_hold_in_any_interleaving(steps in steps(), seed in any::<u64>()) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut dispatch: Dispatch<u32> = Dispatch::new(Room { all: 5, client: 2 });
        let mut streams: Vec<Arc<Node>> = NAMES.iter().map(|name| node(name)).collect();
        // the model: who holds what, who waits (in order, with what it excludes)
        let mut holders: Vec<(u32, Arc<Endpoint>)> = Vec::new();
        let mut waiting: Vec<(u32, Ticket, Vec<EndpointId>)> = Vec::new();
        let mut clients: HashMap<u32, u8> = HashMap::new();
        let mut tried: HashMap<u32, Vec<EndpointId>> = HashMap::new();
        let mut requests = 0u32;
        for step in steps {
            match step {
                Step::Arrive(from) => {
                    requests += 1;
                    clients.insert(requests, from);
                    let of = |who: u8| waiting.iter().filter(|(request, ..)| clients[request] == who).count();
                    let (own, most) = (of(from), (0..3).map(of).max().unwrap());
                    match dispatch.pick(&[], &mut rng) {
                        Some(endpoint) => {
                            prop_assert!(waiting.iter().all(|(_, _, exclude)| !exclude.is_empty()), "overtook a newcomer");
                            holders.push((requests, endpoint));
                        }
                        None => match dispatch.enqueue(requests, client(from), &[], false) {
                            Ok(Queued { ticket, displaced }) => {
                                prop_assert!(own < 2 || own == waiting.len(), "more than its share beside another client");
                                prop_assert_eq!(displaced.is_some(), waiting.len() >= 5);
                                if let Some(displaced) = displaced {
                                    prop_assert!(most > 2 && of(clients[&displaced]) == most && clients[&displaced] != from);
                                    waiting.retain(|(request, ..)| *request != displaced);
                                }
                                waiting.push((requests, ticket, Vec::new()));
                            }
                            Err(NoRoom::Client(_)) => prop_assert!(own >= 2 && own < waiting.len()),
                            // who has less than its share is refused only where nobody has more
                            Err(NoRoom::Queue(_)) => {
                                let newcomers = |who| {
                                    let comes_back = |request: &u32| tried.contains_key(request);
                                    waiting.iter().any(|(request, ..)| clients[request] == who && !comes_back(request))
                                };
                                let greedy = (0..3).filter(|who| of(*who) == most).max().unwrap();
                                prop_assert!(waiting.len() >= 5 && (own >= 2 || most <= 2 || !newcomers(greedy)));
                            }
                        },
                    }
                }
                Step::ComeBack(at) if !holders.is_empty() => {
                    let (request, endpoint) = holders.swap_remove(at % holders.len());
                    let exclude = tried.entry(request).or_default();
                    if !exclude.contains(&endpoint.id) {
                        exclude.push(endpoint.id);
                    }
                    dispatch.release(endpoint.id);
                    while let Some((waiter, endpoint)) = dispatch.handover(&mut rng) {
                        waiting.retain(|(request, ..)| *request != waiter);
                        holders.push((waiter, endpoint));
                    }
                    match dispatch.pick(exclude, &mut rng) {
                        Some(endpoint) => holders.push((request, endpoint)),
                        None => {
                            let Queued { ticket, displaced } =
                                dispatch.enqueue(request, client(clients[&request]), exclude, true).unwrap();
                            prop_assert!(displaced.is_none());
                            waiting.insert(0, (request, ticket, exclude.clone()));
                        }
                    }
                }
                Step::End(at) if !holders.is_empty() => {
                    let (_, endpoint) = holders.swap_remove(at % holders.len());
                    dispatch.release(endpoint.id);
                }
                Step::Leave(at) if !waiting.is_empty() => {
                    let (request, ticket, _) = waiting.remove(at % waiting.len());
                    prop_assert_eq!(dispatch.leave(ticket), Some(request));
                    prop_assert_eq!(dispatch.leave(ticket), None);
                }
                Step::Report { node: at, workers, new_stream } => {
                    if new_stream {
                        streams[at as usize] = node(NAMES[at as usize]);
                    }
                    let workers: Vec<WorkerView> = workers
                        .into_iter()
                        .map(|(position, generation, grant, state)| WorkerView {
                            generation,
                            state,
                            ..worker(position, grant)
                        })
                        .collect();
                    dispatch.apply(&streams[at as usize], &workers);
                }
                Step::Drain(at) => dispatch.drain_node(NAMES[at as usize]),
                Step::Remove(at) => dispatch.remove_node(NAMES[at as usize]),
                Step::ComeBack(_) | Step::End(_) | Step::Leave(_) => {}
            }
            while let Some((waiter, endpoint)) = dispatch.handover(&mut rng) {
                let at = waiting.iter().position(|(request, ..)| *request == waiter).expect("handed to someone who waits");
                prop_assert!(waiting[..at].iter().all(|(_, _, exclude)| !exclude.is_empty()), "jumped the queue");
                waiting.remove(at);
                holders.push((waiter, endpoint));
            }

            // permits are conserved
            prop_assert_eq!(dispatch.held(), holders.len() as u64);
            let mut held: HashMap<EndpointId, u32> = HashMap::new();
            for (_, endpoint) in &holders {
                *held.entry(endpoint.id).or_default() += 1;
            }
            let mut seen = 0;
            for seat in dispatch.seats.iter().flatten() {
                prop_assert_eq!(seat.held, held.get(&seat.endpoint.id).copied().unwrap_or(0));
                prop_assert_eq!(seat.endpoint.is_gone(), !seat.listed);
                seen += seat.held as usize;
            }
            prop_assert_eq!(seen, holders.len());
            for name in NAMES {
                let expected = holders.iter().filter(|(_, endpoint)| endpoint.node.instance == name).count();
                prop_assert_eq!(dispatch.in_flight(name) as usize, expected);
            }
            // nobody is lost, and the order is kept
            let order: Vec<u32> = dispatch.queue.iter().map(|(_, waiter)| waiter.waiter).collect();
            prop_assert_eq!(&order, &waiting.iter().map(|(request, ..)| *request).collect::<Vec<_>>());
            prop_assert_eq!(dispatch.clients.values().sum::<usize>(), waiting.len());
            // never a free permit beside a request that may use it
            let open: Vec<&Seat> = dispatch.seats.iter().flatten().filter(|seat| seat.open).collect();
            prop_assert_eq!(open.len(), dispatch.open);
            for (_, _, exclude) in &waiting {
                let others = open.iter().any(|seat| !exclude.contains(&seat.endpoint.id));
                for seat in &open {
                    if seat.held < seat.worker.grant {
                        prop_assert!(others && exclude.contains(&seat.endpoint.id), "a permit is free while a request waits");
                    }
                }
            }
            // what can be picked is exactly what is free
            let free: HashSet<EndpointId> =
                open.iter().filter(|seat| seat.held < seat.worker.grant).map(|seat| seat.endpoint.id).collect();
            prop_assert_eq!(dispatch.free.is_empty(), free.is_empty());
        }
        // all ends well: nothing stays behind
        for name in NAMES {
            dispatch.remove_node(name);
        }
        for (_, endpoint) in holders {
            dispatch.release(endpoint.id);
        }
        prop_assert!(dispatch.nodes.is_empty());
        prop_assert_eq!(dispatch.vacant.len(), dispatch.seats.len());
        prop_assert_eq!(dispatch.held(), 0);
    }
}
