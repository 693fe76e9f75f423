//! Requests that a balancer has sent ahead of a free slot. The clock stands still where nothing comes over a socket.

use super::*;
use crate::{answer::Answer, front::Front};
use futures_util::{FutureExt, poll};
use std::pin::pin;
use tokio::{task::yield_now, time::Instant};

fn front(capacity: u32) -> Arc<Front> {
    Front::new(&configure(capacity, PATIENCE), Router::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_on_deck_gets_the_next_slot_or_is_refused_as_busy() {
    let front = front(1);
    let first = front.next_slot().await.unwrap();
    let mut second = pin!(front.next_slot());
    assert!(poll!(&mut second).is_pending());
    drop(first);
    let second = second.now_or_never().unwrap().unwrap();
    let start = Instant::now();
    assert_eq!(front.next_slot().await.unwrap_err(), Answer::Busy);
    assert!(start.elapsed() < Duration::from_millis(25), "{:?}", start.elapsed());
    drop(second);
    assert!(front.next_slot().now_or_never().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_drain_empties_the_deck_and_keeps_it_empty() {
    let front = front(1);
    let busy = front.next_slot().await.unwrap();
    let (mut second, mut third) = (pin!(front.next_slot()), pin!(front.next_slot()));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    front.drain(false);
    for on_deck in [second.now_or_never(), third.now_or_never()] {
        assert_eq!(on_deck.unwrap().unwrap_err(), Answer::Draining);
    }
    assert_eq!(front.next_slot().now_or_never().unwrap().unwrap_err(), Answer::Draining);
    assert_eq!(front.heartbeat().on_deck, 0);
    drop(busy);
    assert_eq!(front.next_slot().now_or_never().unwrap().unwrap_err(), Answer::Draining);
}

#[tokio::test]
async fn five_connections_keep_one_slot_busy_without_refusals() {
    let work = || async {
        for _ in 0..3 {
            yield_now().await;
        }
        "hello"
    };
    let worker = Worker::start(Router::new().route("/", get(work)), 1, PATIENCE).await;
    let mut connections = Vec::new();
    for _ in 0..5 {
        let mut connection = connect(worker.address).await;
        connections.push(tokio::spawn(async move {
            let mut refusals = 0;
            for _ in 0..100 {
                let response = send(&mut connection, request("/")).await;
                refusals += u32::from(refused(&response) == Some("busy"));
                text(response).await;
            }
            refusals
        }));
    }
    let mut refusals = 0;
    for connection in connections {
        refusals += connection.await.unwrap();
    }
    // a machine that stands still for longer than the deck's time may cause some
    assert!(refusals < 50, "{refusals} of 500");
}

#[tokio::test]
async fn a_balancer_that_leaves_the_deck_makes_room_there() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut first = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut first, request("/held")).await).await });
    gate.entered.notified().await;
    let mut leaving = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(worker.address).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        leaving.push(stream);
    }
    drop(leaving);
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
    let sum = worker.heartbeat(|sum| sum.busy == 0 && sum.on_deck == 0).await;
    assert!(sum.presences.is_empty());
    assert_eq!(text(send(&mut connect(worker.address).await, request("/")).await).await, "hello");
}
