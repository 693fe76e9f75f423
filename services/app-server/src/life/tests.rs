//! Lives on a paused clock: the worker is a pair of channels.

use super::{End, Event, Limits, Wanted, Wishes, live};
use crate::metrics::Cause;
use futures_util::{SinkExt, stream};
use proto::worker::{
    Configure, Drained, FromSupervisor, FromWorker, Heartbeat, Ready, from_supervisor::Message as Order,
    from_worker::Message as News,
};
use std::{io, sync::Arc, sync::Mutex, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

const LIMITS: Limits =
    Limits { start: Duration::from_secs(30), unheard: Duration::from_secs(3), silence: Duration::from_secs(10) };

/// The other side of a life.
struct Actor {
    says: Option<mpsc::Sender<FromWorker>>,
    exits: Option<oneshot::Sender<String>>,
    told: mpsc::Receiver<FromSupervisor>,
    wanted: watch::Sender<Wanted>,
    reopen: watch::Sender<u64>,
    events: Arc<Mutex<Vec<Event>>>,
    life: JoinHandle<End>,
    born: Instant,
}

impl Actor {
    fn born() -> Self {
        let (says, mut heard) = mpsc::channel(16);
        let (exits, exit) = oneshot::channel();
        let (tell, told) = mpsc::channel(16);
        let (wanted, want) = watch::channel(Wanted::Serve);
        let (reopen, reopens) = watch::channel(0);
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let seen = Arc::clone(&events);
        let life = tokio::spawn(async move {
            let news = stream::poll_fn(move |cx| heard.poll_recv(cx).map(|said| said.map(Ok::<_, io::Error>)));
            let orders = futures_util::sink::unfold(tell, |tell, order| async move {
                tell.send(order).await.map(|()| tell).map_err(io::Error::other)
            });
            let exit = Box::pin(async move {
                match exit.await {
                    Ok(how) => how,
                    Err(_) => std::future::pending().await,
                }
            });
            let mut wishes = Wishes { wanted: want, reopens };
            let observe = move |event| seen.lock().unwrap().push(event);
            live(Configure::default(), LIMITS, Box::pin(news), Box::pin(orders), exit, &mut wishes, observe).await
        });
        let born = Instant::now();
        Self { says: Some(says), exits: Some(exits), told, wanted, reopen, events, life, born }
    }

    async fn ready() -> Self {
        let mut actor = Self::born();
        assert!(matches!(actor.told().await, Order::Configure(_)));
        actor.say(News::Ready(Ready { protocol_version: proto::PROTOCOL_VERSION, capacity: 8 })).await;
        // heard, too
        while actor.events.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        actor
    }

    async fn say(&self, news: News) {
        let says = self.says.as_ref().unwrap();
        says.send(FromWorker { message: Some(news) }).await.unwrap();
    }

    async fn told(&mut self) -> Order {
        self.told.recv().await.unwrap().message.unwrap()
    }

    /// How it ended, and after how many seconds of life.
    async fn end(self) -> (End, u64) {
        let end = timeout(Duration::from_secs(3600), self.life).await.expect("an end").unwrap();
        (end, self.born.elapsed().as_secs())
    }

    fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

fn heartbeat(busy: u32) -> News {
    News::Heartbeat(Heartbeat { busy, ..Heartbeat::default() })
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_not_ready_in_time_is_killed() {
    let mut actor = Actor::born();
    assert!(matches!(actor.told().await, Order::Configure(_)));
    sleep(Duration::from_secs(29)).await;
    assert!(!actor.life.is_finished());
    assert_eq!(actor.end().await, (End::Kill(Cause::StartTimeout), 30));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_while_it_starts_has_died() {
    let mut actor = Actor::born();
    actor.exits.take().unwrap().send("exit status: 2".to_owned()).unwrap();
    assert_eq!(actor.end().await.0, End::Died("exit status: 2".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_worker_of_another_age_is_killed() {
    let actor = Actor::born();
    actor.say(News::Ready(Ready { protocol_version: proto::PROTOCOL_VERSION + 2, capacity: 8 })).await;
    assert_eq!(actor.end().await.0, End::Kill(Cause::Version));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_does_not_wait_for_a_worker_that_starts() {
    let actor = Actor::born();
    actor.wanted.send_replace(Wanted::Drain { until: Instant::now() + Duration::from_secs(30), last: true });
    assert_eq!(actor.end().await, (End::Unwanted, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_lives_as_long_as_it_is_heard() {
    let actor = Actor::ready().await;
    for busy in 0..20 {
        sleep(Duration::from_secs(9)).await;
        actor.say(heartbeat(busy)).await;
    }
    sleep(Duration::from_secs(9)).await;
    let events = actor.events();
    assert_eq!(events[0], Event::Ready { capacity: 8 });
    let heartbeats = events.iter().filter(|event| matches!(event, Event::Heartbeat(_)));
    assert_eq!(heartbeats.count(), 20);
    assert_eq!(actor.end().await, (End::Kill(Cause::Heartbeat), 20 * 9 + 10));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_says_nothing_is_stalled_until_it_speaks_again() {
    let actor = Actor::ready().await;
    sleep(Duration::from_millis(2900)).await;
    assert_eq!(actor.events(), [Event::Ready { capacity: 8 }]);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(actor.events(), [Event::Stalled]);
    actor.say(heartbeat(1)).await;
    sleep(Duration::from_millis(100)).await;
    let beat = Heartbeat { busy: 1, ..Heartbeat::default() };
    assert_eq!(actor.events(), [Event::Recovered, Event::Heartbeat(beat)]);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(actor.events(), [Event::Stalled], "and again");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_wanted_dead_is_killed_for_that_reason_at_any_time() {
    let actor = Actor::born();
    actor.wanted.send_replace(Wanted::Kill(Cause::MaxRssHard));
    assert_eq!(actor.end().await.0, End::Kill(Cause::MaxRssHard));
    let actor = Actor::ready().await;
    actor.wanted.send_replace(Wanted::Kill(Cause::MaxRssHard));
    assert_eq!(actor.end().await.0, End::Kill(Cause::MaxRssHard));
    let mut actor = Actor::ready().await;
    actor.wanted.send_replace(Wanted::Drain { until: Instant::now() + Duration::from_secs(30), last: true });
    assert!(matches!(actor.told().await, Order::Drain(_)));
    actor.wanted.send_replace(Wanted::Kill(Cause::MaxRssHard));
    assert_eq!(actor.end().await.0, End::Kill(Cause::MaxRssHard));
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_told_to_open_its_log_files_anew() {
    let mut actor = Actor::ready().await;
    actor.reopen.send_replace(1);
    assert!(matches!(actor.told().await, Order::Reopen(_)));
}

#[test]
fn behind_balancers_a_silent_worker_outlives_what_they_answer_for_it() {
    let (start, timeout) = (Duration::from_secs(30), Duration::from_secs(5));
    let behind = Limits::new(start, timeout, true);
    // the last request it can have been sent, its time limit, and the second that balancers take
    assert!(behind.silence > behind.unheard + timeout + Duration::from_secs(1));
    assert_eq!(Limits::new(start, timeout, false).silence, timeout);
    assert!(Limits::new(start, Duration::from_millis(1), false).silence >= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_tells_why_before_its_socket_does() {
    let mut actor = Actor::ready().await;
    actor.says = None;
    sleep(Duration::from_millis(100)).await;
    actor.exits.take().unwrap().send("signal: 9 (SIGKILL)".to_owned()).unwrap();
    assert_eq!(actor.end().await, (End::Died("signal: 9 (SIGKILL)".to_owned()), 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_closes_its_control_socket_and_lives_on_is_killed() {
    let mut actor = Actor::ready().await;
    sleep(Duration::from_secs(5)).await;
    actor.says = None;
    assert_eq!(actor.end().await, (End::Kill(Cause::Control), 5));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_drains_is_told_how_long_and_left_alone_until_then() {
    let mut actor = Actor::ready().await;
    sleep(Duration::from_secs(5)).await;
    actor.wanted.send_replace(Wanted::Drain { until: Instant::now() + Duration::from_secs(30), last: true });
    let Order::Drain(drain) = actor.told().await else { panic!("Drain") };
    assert_eq!((drain.graceful_timeout_ms, drain.last), (30_000, true));
    // silent and busy for longer than a serving worker may be
    sleep(Duration::from_secs(25)).await;
    actor.say(News::Drained(Drained {})).await;
    actor.says = None;
    sleep(Duration::from_secs(1)).await;
    actor.exits.take().unwrap().send("exit status: 0".to_owned()).unwrap();
    assert!(actor.events().contains(&Event::Draining));
    assert_eq!(actor.end().await, (End::Drained, 31));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_when_its_time_is_up_is_killed() {
    let actor = Actor::ready().await;
    actor.wanted.send_replace(Wanted::Drain { until: Instant::now() + Duration::from_secs(30), last: true });
    assert_eq!(actor.end().await, (End::Kill(Cause::DrainTimeout), 31));
}

#[tokio::test(start_paused = true)]
async fn a_second_signal_waits_for_nothing() {
    let mut actor = Actor::ready().await;
    actor.wanted.send_replace(Wanted::Drain { until: Instant::now() + Duration::from_secs(30), last: true });
    assert!(matches!(actor.told().await, Order::Drain(_)));
    actor.wanted.send_replace(Wanted::Stop);
    assert_eq!(actor.end().await, (End::Unwanted, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_reads_no_order_is_killed() {
    let (says, mut heard) = mpsc::channel::<FromWorker>(1);
    let news = stream::poll_fn(move |cx| heard.poll_recv(cx).map(|said| said.map(Ok::<_, io::Error>)));
    let orders =
        futures_util::sink::unfold((), |(), _: FromSupervisor| std::future::pending::<Result<(), io::Error>>());
    let (_wanted, wanted) = watch::channel(Wanted::Serve);
    let (_reopen, reopens) = watch::channel(0);
    let mut wishes = Wishes { wanted, reopens };
    let exit = Box::pin(std::future::pending());
    let born = Instant::now();
    let orders = Box::pin(orders.sink_map_err(|error| error));
    let end = live(Configure::default(), LIMITS, Box::pin(news), orders, exit, &mut wishes, |_| {}).await;
    assert_eq!((end, born.elapsed().as_secs()), (End::Kill(Cause::Control), 5));
    drop(says);
}
