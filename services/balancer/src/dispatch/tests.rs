use super::*;
use crate::endpoint::WorkerState;
use rand::{SeedableRng, rngs::SmallRng};
use std::collections::HashSet;

mod laws;
mod margin;
mod overload;
mod slots;
mod stalls;
mod yielding;

const PLAIN: Class = Class { priority: Priority::Normal, reserve: None };

/// A dispatcher without reserves, with its generator and a moment.
struct Desk<W> {
    dispatch: Dispatch<W>,
    rng: SmallRng,
    now: Instant,
}

impl<W: std::fmt::Debug> Desk<W> {
    fn new(room: Room) -> Self {
        Self { dispatch: Dispatch::new(room, &[]), rng: rng(), now: Instant::now() }
    }

    fn apply(&mut self, node: &Arc<Node>, workers: &[WorkerView]) {
        self.dispatch.apply(node, workers, self.now);
    }

    fn pick(&mut self, tried: &[EndpointId]) -> Option<Arc<Endpoint>> {
        Some(self.pick_for(1, tried)?.0)
    }

    fn pick_for(&mut self, from: u8, tried: &[EndpointId]) -> Option<(Arc<Endpoint>, Held, Why)> {
        self.dispatch.pick(client(from), PLAIN, tried, self.now, &mut self.rng)
    }

    fn held(&self, endpoint: &Endpoint) -> Held {
        Held { id: endpoint.id, class: PLAIN, counted: None, since: self.now, waited: false }
    }

    fn release(&mut self, endpoint: &Endpoint) -> bool {
        self.ended(endpoint, Ended::Unjudged)
    }

    fn ended(&mut self, endpoint: &Endpoint, ended: Ended) -> bool {
        self.dispatch.release(self.held(endpoint), ended, self.now)
    }

    fn enqueue(&mut self, waiter: W, from: u8, tried: &[EndpointId], comes_back: bool) -> Result<Queued<W>, NoRoom<W>> {
        self.dispatch.enqueue(request(waiter, from, tried, comes_back, self.now), self.now)
    }

    /// In the order in which they would be served.
    fn waiting(&self) -> Vec<W>
    where
        W: Copy,
    {
        let newest_first = self.dispatch.load.newest_first();
        self.dispatch.line.next(newest_first).map(|(_, waiter)| waiter.waiter).collect()
    }

    fn handover(&mut self) -> Option<(W, Arc<Endpoint>)> {
        self.dispatch.handover(self.now, &mut self.rng).map(|(waiter, endpoint, _)| (waiter, endpoint))
    }
}

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

/// A request that waits, for an hour at most.
fn request<'a, W>(waiter: W, from: u8, tried: &'a [EndpointId], comes_back: bool, now: Instant) -> Request<'a, W> {
    let deadline = now + Duration::from_secs(3600);
    Request { waiter, client: client(from), class: Class::default(), tried, comes_back, deadline }
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(1)
}

#[test]
fn idle_endpoints_come_first_and_each_gets_its_grant() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(4, 2));
    for round in 0..2 {
        let picked: HashSet<u32> = (0..4).map(|_| desk.pick(&[]).unwrap().position).collect();
        assert_eq!(picked.len(), 4, "round {round} uses every worker once");
    }
    assert!(desk.pick(&[]).is_none());
}

#[test]
fn a_request_that_lost_its_worker_goes_to_another_node_while_there_is_one() {
    let mut desk = Desk::<u32>::new(room(8));
    let (one, two) = (node("a"), node("b"));
    desk.apply(&one, &workers(3, 4));
    assert!(desk.dispatch.companions("a").is_empty(), "there is no other");
    desk.apply(&two, &workers(1, 4));
    let beside = desk.dispatch.companions("a");
    assert_eq!(beside.len(), 3);
    for _ in 0..4 {
        assert_eq!(desk.pick(&beside).unwrap().node.instance, "b");
    }
    desk.apply(&two, &[]);
    assert!(desk.dispatch.companions("a").is_empty(), "it has gone");
    assert_eq!(desk.pick(&beside).unwrap().node.instance, "a", "rather there than nowhere");
}

#[test]
fn equals_share_at_random() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(3, 1));
    let mut counts = [0; 3];
    for _ in 0..3000 {
        let endpoint = desk.pick(&[]).unwrap();
        counts[endpoint.position as usize] += 1;
        desk.release(&endpoint);
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
}

#[test]
fn a_pick_says_whether_anything_else_was_there() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(2, 2));
    let mut why = || desk.pick_for(1, &[]).unwrap().2;
    assert_eq!([why(), why(), why(), why()], [Why::Idle, Why::Idle, Why::LeastBusy, Why::LeastBusy]);
}

#[test]
fn a_freed_permit_goes_to_the_head_and_who_comes_back_is_the_head() {
    let mut desk = Desk::new(room(2));
    desk.apply(&node("a"), &workers(1, 1));
    let mut held = desk.pick(&[]).unwrap();
    desk.enqueue("first", 1, &[], false).unwrap();
    desk.enqueue("second", 1, &[], false).unwrap();
    assert_eq!(desk.enqueue("third", 1, &[], false), Err(NoRoom::Queue("third")));
    desk.enqueue("back again", 1, &[], true).unwrap();
    let mut order = Vec::new();
    for _ in 0..3 {
        desk.release(&held);
        let (waiter, endpoint) = desk.handover().unwrap();
        assert!(desk.pick(&[]).is_none(), "a newcomer finds nothing");
        order.push(waiter);
        held = endpoint;
    }
    assert_eq!(order, ["back again", "first", "second"]);
}

#[test]
fn an_endpoint_that_failed_is_passed_over_unless_it_is_the_only_one() {
    let mut desk = Desk::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(2, 2));
    let failed = desk.pick(&[]).unwrap();
    desk.release(&failed);
    for _ in 0..2 {
        assert_ne!(desk.pick(&[failed.id]).unwrap().id, failed.id);
    }
    // the other one is full now: the one that failed is free, but this request rather waits ...
    assert!(desk.pick(&[failed.id]).is_none());
    desk.enqueue("waits", 1, &[failed.id], true).unwrap();
    assert!(desk.handover().is_none());
    // ... while a newcomer may have it ...
    assert_eq!(desk.pick(&[]).unwrap().id, failed.id);
    // ... and so may this one once nothing else is left.
    desk.apply(&a, &[worker(failed.position, 2)]);
    assert_eq!(desk.handover().unwrap().1.id, failed.id);
}

#[test]
fn a_new_report_carries_permits_over_and_a_lowered_grant_is_kept_once_they_are_back() {
    let mut desk = Desk::<u32>::new(room(8));
    let a = node("a");
    desk.apply(&a, &workers(1, 3));
    let held: Vec<_> = (0..3).map(|_| desk.pick(&[]).unwrap()).collect();
    desk.apply(&a, &workers(1, 2));
    assert_eq!(desk.dispatch.over("a"), [Over { position: 0, generation: 1, held: 3 }]);
    assert!(desk.release(&held[0]), "a control task wants to know");
    assert_eq!(desk.dispatch.over("a"), []);
    assert!(desk.pick(&[]).is_none());
    assert!(!desk.release(&held[1]));
    assert_eq!(desk.pick(&[]).unwrap().id, held[0].id);
}

#[test]
fn a_newer_registration_takes_the_endpoints_over_but_not_those_of_another_process() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(1, 2));
    let held = desk.pick(&[]).unwrap();
    desk.dispatch.drain_node("a");
    assert!(desk.pick(&[]).is_none());
    desk.apply(&node("a"), &workers(1, 2));
    assert_eq!(desk.pick(&[]).unwrap().id, held.id, "same pass, same generation: the same worker");
    let restarted = Arc::new(Node::new("a".to_owned(), ([127, 0, 0, 1], 1).into(), b"another"));
    desk.apply(&restarted, &workers(1, 2));
    assert_ne!(desk.pick(&[]).unwrap().id, held.id);
    assert!(held.is_gone());
    assert_eq!(desk.dispatch.in_flight("a"), 3, "the old process's requests are still ours");
}

#[test]
fn a_node_that_left_is_remembered_only_until_its_requests_are_done() {
    let mut desk = Desk::<u32>::new(room(8));
    desk.apply(&node("a"), &workers(2, 1));
    let held = desk.pick(&[]).unwrap();
    desk.dispatch.remove_node("a");
    assert!(!desk.dispatch.has_endpoints());
    assert_eq!(desk.dispatch.in_flight("a"), 1);
    assert!(desk.dispatch.nodes().is_empty());
    assert!(desk.release(&held));
    assert_eq!(desk.dispatch.in_flight("a"), 0);
    assert!(desk.dispatch.seats.is_vacant());
}

#[test]
fn a_worker_that_pauses_comes_back_as_the_same_with_the_permits_it_had() {
    for pause in [WorkerState::Stalled, WorkerState::Draining] {
        let mut desk = Desk::new(room(8));
        let node = node("a");
        desk.apply(&node, &workers(1, 2));
        let held = desk.pick(&[]).unwrap();
        desk.apply(&node, &[WorkerView { state: pause, ..worker(0, 2) }]);
        assert!(desk.pick(&[]).is_none(), "{pause:?} takes nothing new");
        assert!(!desk.dispatch.has_endpoints());
        desk.enqueue("waits", 1, &[], false).unwrap();
        assert!(desk.handover().is_none());
        assert!(!held.is_gone(), "its connections are kept");
        assert_eq!(desk.dispatch.in_flight("a"), 1);
        desk.apply(&node, &workers(1, 2));
        let (waiter, endpoint) = desk.handover().unwrap();
        assert_eq!((waiter, endpoint.id), ("waits", held.id), "{pause:?}");
        assert!(desk.pick(&[]).is_none(), "the permit that was held counts");
        desk.release(&held);
        assert_eq!(desk.pick(&[]).unwrap().id, held.id);
    }
}

#[test]
fn a_client_fills_the_queue_alone_and_makes_room_for_others() {
    let mut desk = Desk::new(Room { all: 4, client: 2 });
    let mut come = |number, from| desk.enqueue(number, from, &[], false);
    for number in 0..4 {
        assert!(come(number, 1).is_ok(), "nobody else is there");
    }
    assert_eq!(come(4, 1), Err(NoRoom::Queue(4)));
    assert_eq!(come(5, 2).unwrap().displaced, Some(NoRoom::Client(3)), "the youngest of the greediest");
    assert_eq!(come(6, 1), Err(NoRoom::Client(6)));
    assert_eq!(come(7, 3).unwrap().displaced, Some(NoRoom::Client(2)));
    assert_eq!(come(8, 4), Err(NoRoom::Queue(8)), "everybody is within their share");
    assert_eq!(desk.waiting(), [0, 1, 5, 7]);
}
