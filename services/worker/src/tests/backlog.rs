//! What waits at a shared socket when the node stops: the kernel has accepted it, so its client believes it was heard.

use super::*;
use proto::worker::Edge;

/// One slot, and clients that come by themselves.
async fn alone(gate: &Gate) -> Worker {
    let configure = Configure { pass: Vec::new(), edge: Some(Edge::default()), ..configure(1, PATIENCE) };
    Worker::start_as(gate.router(), configure).await
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // an error is a reset, which is what must not be
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end in time").unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn the_last_worker_takes_what_waits_and_answers_it() {
    let gate = Gate::default();
    let mut worker = alone(&gate).await;
    let held = ask(worker.address, "/held").await;
    gate.entered.notified().await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(ask(worker.address, "/").await);
    }
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000, last: true })).await;
    // the socket closes: from here on it is refused, and not lost
    let refused = async {
        while TcpStream::connect(worker.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused).await.expect("a closed socket");
    gate.open.notify_one();
    assert!(answer(held).await.starts_with("HTTP/1.1 200"));
    for stream in waiting {
        let answer = answer(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn one_that_is_followed_leaves_it_to_its_followers() {
    let gate = Gate::default();
    let (listener, address) = listener();
    // the supervisor's share, which outlives the worker
    let share = listener.share().unwrap();
    // long enough for its next request, and then it is closed as without a drain
    let edge = Some(Edge { keepalive_ms: 300, ..Edge::default() });
    let configure = Configure { pass: Vec::new(), edge, ..configure(1, PATIENCE) };
    let mut worker = Worker::start_on(listener, address, gate.router(), configure).await;
    let idle = ask(address, "/").await;
    idle.readable().await.unwrap();
    let held = ask(address, "/held").await;
    gate.entered.notified().await;
    let waiting = ask(address, "/").await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000, last: false })).await;
    // closed: it drains
    assert!(answer(idle).await.starts_with("HTTP/1.1 200"));
    gate.open.notify_one();
    assert!(answer(held).await.starts_with("HTTP/1.1 200"));
    assert!(worker.end().await.is_ok());
    let mut share = share;
    let (_accepted, peer) = share.next().expect("the connection still waits");
    assert_eq!(peer, Some(waiting.local_addr().unwrap()));
}
