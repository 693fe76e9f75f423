//! Positions on a paused clock: each worker is a pair of channels whose other ends the test holds.

use super::{Common, Position, Reloads};
use crate::{
    config::Percent,
    life::Wanted,
    metrics::{Cause, Counters},
    roster::{Roster, State},
    tenure::{Hatch, Past, Place, Standing, Tenure},
    turns::Turns,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const GRACE: Duration = Duration::from_secs(30);

/// The test's side of a worker.
struct Worker {
    place: Place,
    wanted: watch::Receiver<Wanted>,
    stand: watch::Sender<Standing>,
}

struct Hatchery(mpsc::UnboundedSender<Worker>);

impl Hatch for Hatchery {
    fn hatch(&self, place: Place) -> Tenure {
        let hatched = self.0.clone();
        Tenure::begin(place, |wanted, stand| async move {
            let ended = stand.subscribe();
            hatched.send(Worker { place, wanted, stand }).ok().unwrap();
            let mut ended = ended;
            // a sender that is gone is a life that was cut off
            let _ = ended.wait_for(|standing| standing.past.is_some()).await;
        })
    }
}

impl Worker {
    fn becomes_ready(&self) {
        self.stand.send_modify(|standing| standing.ready = true);
    }

    fn is_due(&self, cause: Cause) {
        self.stand.send_modify(|standing| standing.due = Some(cause));
    }

    fn ends(&self, cause: Option<Cause>, ready_for: Option<Duration>) {
        let past = Past { cause, how: "as the test wants it".to_owned(), ready_for };
        self.stand.send_modify(|standing| standing.past = Some(past));
    }

    async fn is_told(&mut self) -> Wanted {
        let wanted = timeout(Duration::from_secs(3600), self.wanted.wait_for(|wanted| *wanted != Wanted::Serve));
        *wanted.await.expect("an order").unwrap()
    }

    fn is_killed(&self) -> bool {
        self.wanted.has_changed().is_err()
    }

    fn is_left_alone(&self) -> bool {
        !self.is_killed() && *self.wanted.borrow() == Wanted::Serve
    }
}

/// Some positions, and the workers as they are started.
struct Node {
    common: Arc<Common<Hatchery>>,
    wanted: Vec<watch::Sender<Wanted>>,
    positions: Vec<JoinHandle<(u32, u64)>>,
    hatched: mpsc::UnboundedReceiver<Worker>,
}

impl Node {
    fn start(positions: u32, share: u8) -> Self {
        let (hatch, hatched) = mpsc::unbounded_channel();
        let turns = Turns::new(Percent(share));
        turns.among(positions);
        let common = Arc::new(Common {
            hatchery: Hatchery(hatch),
            turns,
            reloads: watch::Sender::new(Reloads::default()),
            roster: Roster::new(),
            counters: Counters::new(),
            graceful_timeout: GRACE,
        });
        let (mut wanted, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..positions {
            let (want, node) = watch::channel(Wanted::Serve);
            wanted.push(want);
            tasks.push(tokio::spawn(Position::new(number, 0, Arc::clone(&common), node).keep()));
        }
        Self { common, wanted, positions: tasks, hatched }
    }

    /// One position with a worker that is ready.
    async fn serving() -> (Self, Worker) {
        let mut node = Self::start(1, 25);
        let worker = node.hatched().await;
        worker.becomes_ready();
        node.settle().await;
        (node, worker)
    }

    async fn hatched(&mut self) -> Worker {
        timeout(Duration::from_secs(3600), self.hatched.recv()).await.expect("a worker").unwrap()
    }

    /// Lets every task do what there is to do now.
    async fn settle(&self) {
        sleep(Duration::from_millis(1)).await;
    }

    async fn nothing_hatches(&mut self) {
        self.settle().await;
        assert!(self.hatched.try_recv().is_err(), "another worker was started");
    }

    fn reload(&self) {
        self.common.reloads.send_modify(|reloads| reloads.wanted += 1);
    }

    fn reload_is_over(&self) -> bool {
        self.common.reloads.borrow().is_over()
    }

    fn want(&self, wanted: Wanted) {
        for want in &self.wanted {
            want.send_replace(wanted);
        }
    }

    fn drain(&self) {
        self.want(Wanted::Drain { until: Instant::now() + GRACE, last: true });
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_is_followed_at_once_and_one_that_keeps_dying_ever_later() {
    let (mut node, first) = Node::serving().await;
    first.ends(Some(Cause::Exit), Some(Duration::from_secs(60)));
    let second = node.hatched().await;
    assert_eq!((second.place.generation, second.place.position), (2, 0));
    let mut worker = second;
    for pause in [100, 200, 400] {
        let died = Instant::now();
        worker.becomes_ready();
        worker.ends(Some(Cause::Exit), Some(Duration::from_millis(5)));
        node.settle().await;
        let rows = node.common.roster.rows();
        assert_eq!((rows.len(), rows[0].state, rows[0].causes.len()), (1, State::Dead, 1), "seen meanwhile");
        worker = node.hatched().await;
        let waited = died.elapsed();
        assert!((pause..pause + 5).contains(&waited.as_millis()), "{waited:?} instead of {pause} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_run_is_forgiven_everything() {
    let (mut node, mut worker) = Node::serving().await;
    for _ in 0..5 {
        worker.ends(Some(Cause::Exit), None);
        worker = node.hatched().await;
    }
    worker.becomes_ready();
    sleep(Duration::from_secs(60)).await;
    let died = Instant::now();
    worker.ends(Some(Cause::Heartbeat), Some(Duration::from_secs(60)));
    node.hatched().await;
    assert!(died.elapsed() < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_due_serves_until_its_successor_is_ready() {
    let (mut node, mut first) = Node::serving().await;
    first.is_due(Cause::MaxRequests);
    let second = node.hatched().await;
    sleep(Duration::from_secs(20)).await;
    assert!(first.is_left_alone(), "the fresh one takes its time");
    let ready = Instant::now();
    second.becomes_ready();
    let Wanted::Drain { until, last: false } = first.is_told().await else { panic!("a drain") };
    assert_eq!(until - ready, GRACE);
    assert!(second.is_left_alone());
    first.ends(None, Some(GRACE));
    node.nothing_hatches().await;
    assert_eq!(node.common.roster.rows().len(), 0, "these workers have no rows");
}

#[tokio::test(start_paused = true)]
async fn a_position_has_two_workers_at_most() {
    let (mut node, mut first) = Node::serving().await;
    first.is_due(Cause::MaxLifetime);
    let second = node.hatched().await;
    second.becomes_ready();
    first.is_told().await;
    second.is_due(Cause::MaxLifetime);
    node.reload();
    node.nothing_hatches().await;
    first.ends(None, None);
    assert_eq!(node.hatched().await.place.generation, 3);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_come_up_replaces_nothing_and_is_tried_again_later() {
    let (mut node, first) = Node::serving().await;
    first.is_due(Cause::MaxRss);
    for pause in [0, 100, 200, 400] {
        let before = Instant::now();
        let fresh = node.hatched().await;
        let waited = before.elapsed().as_millis();
        assert!((pause..pause + 5).contains(&(waited + 1)) || waited == pause, "{waited} instead of {pause} ms");
        fresh.ends(Some(Cause::StartTimeout), None);
        node.settle().await;
        assert!(first.is_left_alone());
    }
    let fresh = node.hatched().await;
    fresh.becomes_ready();
    node.settle().await;
    assert!(!first.is_left_alone());
}

#[tokio::test(start_paused = true)]
async fn a_reload_replaces_every_worker_in_turns() {
    let mut node = Node::start(4, 50);
    let mut old = Vec::new();
    for _ in 0..4 {
        let worker = node.hatched().await;
        worker.becomes_ready();
        old.push(worker);
    }
    node.settle().await;
    assert!(node.reload_is_over());
    node.reload();
    let mut fresh = vec![node.hatched().await, node.hatched().await];
    node.nothing_hatches().await;
    for _ in 0..2 {
        for worker in fresh.drain(..) {
            worker.becomes_ready();
            let old = old.iter_mut().find(|old| old.place.position == worker.place.position).unwrap();
            assert!(matches!(old.is_told().await, Wanted::Drain { .. }));
        }
        node.settle().await;
        while let Ok(worker) = node.hatched.try_recv() {
            fresh.push(worker);
        }
    }
    assert!(node.reload_is_over() && fresh.is_empty());
    assert!(node.common.reloads.borrow().failed == 0);
}

#[tokio::test(start_paused = true)]
async fn a_reload_whose_first_worker_does_not_come_up_is_given_up_everywhere() {
    let mut node = Node::start(3, 25);
    let mut old = Vec::new();
    for _ in 0..3 {
        let worker = node.hatched().await;
        worker.becomes_ready();
        old.push(worker);
    }
    node.settle().await;
    node.reload();
    node.hatched().await.ends(Some(Cause::Exit), None);
    node.nothing_hatches().await;
    assert!(node.reload_is_over());
    assert!(old.iter().all(Worker::is_left_alone));
    // what has been mended can be reloaded
    sleep(Duration::from_secs(60)).await;
    node.reload();
    let mut fresh = Vec::new();
    for _ in 0..3 {
        let worker = node.hatched().await;
        worker.becomes_ready();
        fresh.push(worker);
    }
    node.settle().await;
    assert!(node.reload_is_over());
    assert!(!old.iter().any(Worker::is_left_alone));
}

#[tokio::test(start_paused = true)]
async fn a_reload_during_a_reload_replaces_what_the_first_one_started() {
    let (mut node, mut first) = Node::serving().await;
    node.reload();
    let mut second = node.hatched().await;
    node.reload();
    second.becomes_ready();
    first.is_told().await;
    first.ends(None, None);
    let third = node.hatched().await;
    third.becomes_ready();
    second.is_told().await;
    second.ends(None, None);
    node.nothing_hatches().await;
    assert!(node.reload_is_over());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_while_its_successor_starts_is_not_followed_twice() {
    let (mut node, first) = Node::serving().await;
    first.is_due(Cause::MaxRequests);
    let second = node.hatched().await;
    first.ends(Some(Cause::Exit), Some(Duration::from_secs(1)));
    node.nothing_hatches().await;
    second.becomes_ready();
    node.nothing_hatches().await;
    assert!(second.is_left_alone());
    second.ends(Some(Cause::Exit), Some(Duration::from_secs(60)));
    assert_eq!(node.hatched().await.place.generation, 3);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_while_it_waits_for_its_turn_needs_none() {
    let mut node = Node::start(2, 25);
    let (one, two) = (node.hatched().await, node.hatched().await);
    one.becomes_ready();
    two.becomes_ready();
    node.settle().await;
    let (mut one, two) = if one.place.position == 0 { (one, two) } else { (two, one) };
    one.is_due(Cause::MaxRequests);
    let fresh = node.hatched().await;
    two.is_due(Cause::MaxRequests);
    node.nothing_hatches().await;
    two.ends(Some(Cause::Exit), Some(Duration::from_secs(60)));
    assert_eq!(node.hatched().await.place, Place { position: 1, generation: 2 });
    fresh.becomes_ready();
    one.is_told().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_kills_what_starts_and_drains_what_serves() {
    let (mut node, mut first) = Node::serving().await;
    first.is_due(Cause::MaxRequests);
    let second = node.hatched().await;
    node.drain();
    assert!(matches!(first.is_told().await, Wanted::Drain { .. }));
    node.settle().await;
    assert!(second.is_killed() && !node.positions[0].is_finished());
    first.ends(None, None);
    node.settle().await;
    assert_eq!(node.positions.remove(0).await.unwrap(), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_waits_for_the_one_that_leaves_as_well() {
    let (mut node, mut first) = Node::serving().await;
    first.is_due(Cause::MaxRequests);
    let mut second = node.hatched().await;
    second.becomes_ready();
    let Wanted::Drain { until, last: false } = first.is_told().await else { panic!("a drain") };
    sleep(Duration::from_secs(5)).await;
    node.drain();
    second.is_told().await;
    second.ends(None, None);
    node.settle().await;
    assert!(!node.positions[0].is_finished());
    assert_eq!(*first.wanted.borrow(), Wanted::Drain { until, last: false }, "its time is its own");
    first.ends(None, None);
    node.settle().await;
    assert!(node.positions[0].is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_waits_for_nobody() {
    let (mut node, mut first) = Node::serving().await;
    first.is_due(Cause::MaxRequests);
    let second = node.hatched().await;
    second.becomes_ready();
    first.is_told().await;
    node.drain();
    node.settle().await;
    node.want(Wanted::Stop);
    node.settle().await;
    assert_eq!((*first.wanted.borrow(), *second.wanted.borrow()), (Wanted::Stop, Wanted::Stop));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_waits_for_no_pause() {
    let (mut node, mut worker) = Node::serving().await;
    for _ in 0..8 {
        worker.ends(Some(Cause::Exit), None);
        worker = node.hatched().await;
    }
    worker.ends(Some(Cause::Exit), None);
    node.settle().await;
    node.drain();
    node.settle().await;
    assert!(node.positions[0].is_finished());
    node.nothing_hatches().await;
}

#[tokio::test(start_paused = true)]
async fn a_reload_does_not_wait_for_a_position_whose_workers_keep_dying() {
    let mut node = Node::start(2, 100);
    let (one, two) = (node.hatched().await, node.hatched().await);
    let (one, two) = if one.place.position == 0 { (one, two) } else { (two, one) };
    one.becomes_ready();
    two.becomes_ready();
    node.settle().await;
    two.ends(Some(Cause::Exit), None);
    node.hatched().await.ends(Some(Cause::Exit), None);
    node.reload();
    let fresh = node.hatched().await;
    assert_eq!(fresh.place, Place { position: 0, generation: 2 });
    fresh.becomes_ready();
    node.settle().await;
    assert!(node.reload_is_over(), "{:?}", node.common.reloads.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_not_reloaded_before_it_is_ready() {
    let mut node = Node::start(1, 25);
    let first = node.hatched().await;
    node.reload();
    node.nothing_hatches().await;
    first.becomes_ready();
    let second = node.hatched().await;
    second.becomes_ready();
    node.settle().await;
    assert!(node.reload_is_over() && !first.is_left_alone());
}
