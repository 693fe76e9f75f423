//! The end of a worker behind a balancer: what runs is finished, what comes is refused, nothing that was said is lost.

use super::*;

#[tokio::test]
async fn draining_finishes_what_runs_refuses_what_comes_and_ends() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 4, PATIENCE).await;
    let mut busy = connect(worker.address).await;
    let held = tokio::spawn(async move {
        let response = send(&mut busy, request("/held")).await;
        let closes = response.headers().get("connection").is_some_and(|value| value == "close");
        (text(response).await, closes)
    });
    gate.entered.notified().await;
    let mut idle = connect(worker.address).await;
    assert_eq!(text(send(&mut idle, request("/")).await).await, "hello");

    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    // an idle connection is closed, a request that crosses it on the way is refused
    while !idle.is_closed() {
        if timeout(PATIENCE, idle.ready()).await.unwrap().is_err() {
            break;
        }
        let Ok(crossing) = idle.send_request(request("/")).await else { break };
        if let Some(reason) = refused(&crossing) {
            assert_eq!((reason, crossing.status()), ("draining", StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(crossing.headers()["connection"], "close");
        }
        text(crossing).await;
    }
    let new = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(refused(&new), Some("draining"));
    text(new).await;
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), ("held".to_owned(), true));
    loop {
        if let News::Drained(_) = worker.news().await {
            break;
        }
    }
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn draining_without_connections_ends_at_once() {
    let mut worker = Worker::start(Router::new(), 4, PATIENCE).await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    assert!(timeout(Duration::from_secs(5), worker.end()).await.expect("at once").is_ok());
}

#[tokio::test]
async fn draining_cuts_what_does_not_end_in_time() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 4, PATIENCE).await;
    let mut busy = connect(worker.address).await;
    let held = tokio::spawn(async move { busy.send_request(request("/held")).await });
    gate.entered.notified().await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 50 })).await;
    assert!(worker.end().await.is_ok());
    assert!(held.await.unwrap().is_err(), "the request was cut, not answered");
}

#[tokio::test]
async fn a_tunnel_is_not_counted_as_a_slot_but_waited_for() {
    let router = Router::new()
        .route(
            "/ws",
            get(|upgrade: WebSocketUpgrade| async {
                upgrade.on_upgrade(|mut socket| async move {
                    while let Some(Ok(message)) = socket.recv().await {
                        if socket.send(message).await.is_err() {
                            break;
                        }
                    }
                })
            }),
        )
        .route("/", get(|| async { "hello" }));
    let mut worker = Worker::start(router, 1, PATIENCE).await;
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    let head = format!(
        "GET /ws HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    assert_eq!(text(send(&mut connect(worker.address).await, request("/")).await).await, "hello");

    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    // refused, so draining has begun; the tunnel still carries an (unmasked length 2, masked by zero) message both ways
    let new = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(refused(&new), Some("draining"));
    stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(echoed, [0x81, 2, b'h', b'i']);
    assert!(!worker.ended.is_finished());
    drop(stream);
    assert!(worker.end().await.is_ok());
}

#[tokio::test]
async fn a_refusal_is_read_whole_by_a_peer_that_is_still_sending() {
    let mut worker = Worker::start(Router::new(), 1, PATIENCE).await;
    worker.order(Order::Drain(Drain { graceful_timeout_ms: 20_000 })).await;
    drop(worker.heartbeat(|_| true).await);
    for _ in 0..20 {
        let Ok(mut stream) = TcpStream::connect(worker.address).await else { return };
        let head =
            format!("POST / HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\ncontent-length: 1000000\r\n\r\n");
        if stream.write_all(head.as_bytes()).await.is_err() {
            return; // drained already
        }
        let mut answer = Vec::new();
        let (mut read, mut write) = stream.split();
        let sending = async {
            let _ = write.write_all(&vec![b'x'; 1_000_000]).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = timeout(PATIENCE, read.read_to_end(&mut answer)) => { read.unwrap().unwrap(); }
            () = sending => {}
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("servery-refused: draining") && answer.ends_with("}\n"), "{answer}");
    }
}
