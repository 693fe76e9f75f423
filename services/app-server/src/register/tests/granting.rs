//! What moves between balancers, and what each is told of its own connections.

use super::{Authority, Balancer, Entry, Node, PATIENCE, Reply, Session, grants};
use proto::{
    registry::{Demand, Report, Yielded},
    worker::Presence,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// The balancers' numbers.
const ONE: u32 = 0x1111_1111;
const TWO: u32 = 0x2222_2222;

/// Two balancers that have acknowledged equal shares.
struct Pair {
    authority: Authority,
    node: Node,
    workers: Vec<Entry>,
    one: Balancer,
    two: Balancer,
    first: Session,
    second: Session,
}

impl Pair {
    async fn new() -> Self {
        Self::with(false).await
    }

    /// `yields`: the second one gives back by itself what the first one lacks.
    async fn with(yields: bool) -> Self {
        let authority = Authority::new();
        let (mut one, mut two) = (Balancer::bind(&authority, "b-1").await, Balancer::bind(&authority, "b-2").await);
        (one.connections, two.connections, two.yields) = (ONE, TWO, yields);
        let (node, workers) = Node::start(&authority, &[&one, &two]);
        let ((mut first, said), (mut second, also)) = tokio::join!(one.welcome(), two.welcome());
        first.acknowledge(&said.report.unwrap()).await;
        second.acknowledge(&also.report.unwrap()).await;
        let half = |report: &Report| grants(report) == [5, 5];
        tokio::join!(first.report(half), second.report(half));
        Self { authority, node, workers, one, two, first, second }
    }

    /// What both workers say of the balancers.
    fn presence(&self, presences: &[Presence]) {
        for worker in &self.workers {
            worker.update(|row| row.presences = presences.to_vec());
        }
    }
}

fn presence(balancer: u32, connections: u32, busy: u32, orphaned: u32) -> Presence {
    Presence { balancer, connections, busy, orphaned }
}

fn demand(wanted: u32) -> Reply {
    Reply::Demand(Demand { waiting: wanted, wanted, wait_ms: 1, sequence: 0 })
}

fn granted(report: &Report) -> u32 {
    grants(report).iter().sum()
}

fn number(half: u32, count: u32) -> u64 {
    u64::from(half) << 32 | u64::from(count)
}

#[tokio::test]
async fn permits_go_where_they_are_wanted_and_come_back_within_milliseconds() {
    let Pair { node, mut first, mut second, workers: _workers, one: _one, two: _two, .. } = Pair::new().await;
    let mut took = Vec::new();
    for _ in 0..10 {
        for turn in [false, true] {
            let (wants, yields) = if turn { (&mut second, &mut first) } else { (&mut first, &mut second) };
            let started = Instant::now();
            wants.reply(demand(20)).await;
            let (_, _) = tokio::join!(
                yields.report(|report| granted(report) == 0),
                wants.report(|report| granted(report) == 20)
            );
            took.push(started.elapsed());
            wants.reply(demand(0)).await;
        }
    }
    took.sort_unstable();
    let median = took[took.len() / 2];
    println!("moved after {median:?} (median), {:?} at most", took[took.len() - 1]);
    assert!(median < Duration::from_millis(100), "{took:?}");
    assert!(node.audience.moves() >= 20 * 10);
    let rows = node.streams.rows();
    assert_eq!(rows.iter().map(|row| row.granted).sum::<u64>(), 20);
}

#[tokio::test]
async fn what_is_in_use_stays_while_something_else_is_idle() {
    let pair = Pair::new().await;
    // of each five of b-2 three are in use
    pair.presence(&[presence(TWO, 3, 3, 0)]);
    let Pair { mut first, mut second, .. } = pair;
    second.report(|report| report.workers.len() == 2).await;
    first.reply(demand(4)).await;
    let (_, yielded) =
        tokio::join!(first.report(|report| granted(report) == 14), second.report(|report| granted(report) == 6));
    assert_eq!(grants(&yielded), [3, 3]);
}

#[tokio::test]
async fn each_balancer_hears_once_of_its_own_connections_and_of_its_own_orphans() {
    let pair = Pair::new().await;
    pair.presence(&[presence(ONE, 1, 2, 2), presence(TWO, 1, 1, 1)]);
    pair.workers[0].update(|row| (row.service_us, row.on_deck) = (750, 3));
    let Pair { node, mut first, mut second, workers: _workers, .. } = pair;
    let started = Instant::now();
    node.audience.settled(&[number(ONE, 1), number(TWO, 1), number(0x3333_3333, 1), number(ONE, 2)]);
    let settled = |report: &Report| !report.settled.is_empty();
    let (one, two) = tokio::join!(first.report(settled), second.report(settled));
    println!("told after {:?}", started.elapsed());
    assert_eq!(one.settled, [number(ONE, 1), number(ONE, 2)]);
    assert_eq!(two.settled, [number(TWO, 1)]);
    let orphans = |report: &Report| report.workers.iter().map(|worker| worker.orphaned).collect::<Vec<_>>();
    assert_eq!((orphans(&two), two.workers[0].service_us, two.workers[0].on_deck), (vec![1, 1], 750, 3));
    node.audience.settled(&[number(ONE, 3)]);
    let next = first.report(settled).await;
    assert_eq!((next.settled.as_slice(), orphans(&next)), ([number(ONE, 3)].as_slice(), vec![2, 2]));
}

#[tokio::test]
async fn a_connection_that_is_settled_before_the_welcome_is_named_after_it() {
    let authority = Authority::new();
    let mut balancer = Balancer::bind(&authority, "b-1").await;
    balancer.connections = ONE;
    let (node, _workers) = Node::start(&authority, &[&balancer]);
    let mut session = balancer.session().await;
    node.audience.settled(&[number(ONE, 1), number(TWO, 1)]);
    assert!(matches!(session.word().await, Some(super::Word::Hello(_))));
    session.reply(balancer.word_of_welcome()).await;
    let report = session.report(|report| !report.settled.is_empty()).await;
    assert_eq!(report.settled, [number(ONE, 1)]);
}

#[tokio::test]
async fn a_killed_balancers_permits_are_with_the_others_when_its_connections_are_closed() {
    let pair = Pair::new().await;
    pair.presence(&[presence(ONE, 4, 2, 0)]);
    let Pair { node, mut second, first, one, workers, .. } = pair;
    let killed = Instant::now();
    drop((first, one));
    node.states(&[super::StreamState::Registered, super::StreamState::Connecting]).await;
    assert!(node.streams.rows().iter().any(|row| row.granted == 10));
    for worker in &workers {
        worker.update(|row| row.presences.clear());
    }
    second.report(|report| granted(report) == 20).await;
    println!("back after {:?}", killed.elapsed());
}

#[tokio::test]
async fn a_balancer_that_may_live_keeps_its_permits_for_two_heartbeats_and_then_what_runs() {
    let pair = Pair::new().await;
    pair.presence(&[presence(ONE, 4, 1, 0)]);
    let Pair { mut second, first, one, workers: _workers, node: _node, .. } = pair;
    let lost = Instant::now();
    drop((first, one));
    second.report(|report| granted(report) > 10).await;
    assert!(lost.elapsed() >= Duration::from_secs(2), "{:?}", lost.elapsed());
    second.report(|report| granted(report) == 18).await;
}

#[tokio::test]
async fn a_balancer_that_is_back_as_the_same_process_goes_on_with_what_it_held() {
    let pair = Pair::new().await;
    pair.presence(&[presence(ONE, 4, 1, 0)]);
    let Pair { node, mut one, mut second, first, workers: _workers, authority: _authority, two: _two } = pair;
    let lost = Instant::now();
    drop(first);
    let mut session = one.session().await;
    // named while it was away
    node.audience.settled(&[number(ONE, 1)]);
    let Some(super::Word::Hello(hello)) = session.word().await else { panic!("Hello comes first") };
    assert_eq!(granted(&hello.report.unwrap()), 0, "it may be another process");
    session.reply(one.word_of_welcome()).await;
    let report = timeout(PATIENCE, session.report(|report| granted(report) == 10)).await.unwrap();
    println!("back after {:?}", lost.elapsed());
    let names = if report.settled.is_empty() {
        session.report(|report| !report.settled.is_empty()).await.settled
    } else {
        report.settled
    };
    assert_eq!(names, [number(ONE, 1)]);
    second.report(|report| granted(report) == 10).await;
}

#[tokio::test]
async fn a_balancer_that_yields_is_told_what_the_other_lacks_and_what_it_gives_back_moves_at_once() {
    let Pair { node, mut first, mut second, workers: _workers, one: _one, two: _two, .. } = Pair::with(true).await;
    first.reply(demand(20)).await;
    let told = second.report(|report| report.lack.is_some()).await;
    let lack = told.lack.unwrap().permits;
    assert_eq!((lack >= 10, granted(&told)), (true, 10), "nothing is asked back");
    second.acknowledge(&told).await;
    let worker = &told.workers[0];
    let (position, generation) = (worker.position, worker.generation);
    let started = Instant::now();
    second.reply(Reply::Yielded(Yielded { sequence: told.sequence, position, generation, permits: 1 })).await;
    let more = first.report(|report| granted(report) == 11).await;
    println!("a permit that was given back is the other's after {:?}", started.elapsed());
    assert_eq!(grants(&more), [6, 5]);
    first.reply(demand(0)).await;
    let less = second.report(|report| report.lack.is_none()).await;
    assert_eq!(granted(&less), 9);
    drop(node);
}
