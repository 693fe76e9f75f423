//! A worker behind a balancer: who is let in, what is refused, and what an application may do wrong.

use super::*;

#[tokio::test]
async fn a_request_with_the_pass_reaches_the_application_without_it() {
    let router = Router::new().route(
        "/",
        get(|placement: Placement, headers: HeaderMap| async move {
            let ours = headers.keys().any(|name| name.as_str().starts_with("servery-"));
            let body =
                format!("{} {} {} {} {ours}", placement.app, placement.node, placement.position, placement.generation);
            ([("servery-refused", "busy"), ("servery-anything", "x"), ("x-mine", "y")], body)
        }),
    );
    let worker = Worker::start(router, 4, PATIENCE).await;
    let response = send(&mut connect(worker.address).await, request("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(refused(&response).is_none() && !response.headers().contains_key("servery-anything"));
    assert!(response.headers().contains_key("x-mine"));
    assert_eq!(text(response).await, "demo node-1 3 2 false");
}

#[tokio::test]
async fn a_request_without_the_one_right_pass_reaches_nobody_and_is_counted() {
    let reached = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&reached);
    let router = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { "reached" }
    });
    let mut worker = Worker::start(router, 4, PATIENCE).await;
    for passes in
        [&[][..], &[""], &["0aff11"], &["0AFF10"], &["0aff1000"], &[PASS_TEXT, PASS_TEXT], &["0aff11", PASS_TEXT]]
    {
        let mut request = request("/");
        request.headers_mut().remove("servery-pass");
        request.headers_mut().insert("x-request-id", "id-1".parse().unwrap());
        for pass in passes {
            request.headers_mut().append("servery-pass", pass.parse().unwrap());
        }
        let response = send(&mut connect(worker.address).await, request).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{passes:?}");
        assert!(refused(&response).is_none());
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert!(text(response).await.contains(r#""request_id":"id-1""#));
    }
    worker.heartbeat(|sum| sum.denied == 7).await;
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_over_capacity_is_refused_and_the_next_one_after_an_end_is_not() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut first = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut first, request("/held")).await).await });
    gate.entered.notified().await;
    worker.heartbeat(|sum| sum.busy == 1).await;

    let mut second = connect(worker.address).await;
    let busy = send(&mut second, request("/")).await;
    assert_eq!((busy.status(), refused(&busy)), (StatusCode::SERVICE_UNAVAILABLE, Some("busy")));
    text(busy).await;

    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
    // the connection that was refused serves on, and the slot is free before the end of the answer is seen
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
    let sum = worker.heartbeat(|sum| sum.served == 2 && sum.busy == 0).await;
    assert_eq!(sum.refused, 1);
}

#[tokio::test]
async fn a_slot_is_held_until_the_body_has_ended() {
    let (frames, receive) = mpsc::channel::<Bytes>(1);
    let receive = Arc::new(tokio::sync::Mutex::new(receive));
    let router = Router::new()
        .route(
            "/stream",
            get(move || async move {
                let receive = receive.lock_owned().await;
                let frames = futures_util::stream::unfold(receive, |mut receive| async {
                    let bytes = receive.recv().await?;
                    Some((Ok::<_, Error>(http_body::Frame::data(bytes)), receive))
                });
                Body::new(StreamBody::new(frames))
            }),
        )
        .route("/", get(|| async { "hello" }));
    let mut worker = Worker::start(router, 1, PATIENCE).await;
    let (mut first, mut second) = (connect(worker.address).await, connect(worker.address).await);
    let mut streamed = send(&mut first, request("/stream")).await;
    frames.send(Bytes::from_static(b"part")).await.unwrap();
    let part = timeout(PATIENCE, streamed.body_mut().frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(part.into_data().unwrap(), "part");
    let busy = send(&mut second, request("/")).await;
    assert_eq!(refused(&busy), Some("busy"));
    text(busy).await;
    drop(frames);
    assert_eq!(text(streamed).await, "");
    assert_eq!(text(send(&mut second, request("/")).await).await, "hello");
    worker.heartbeat(|sum| sum.busy == 0 && sum.served == 2).await;
}

#[tokio::test]
async fn a_balancer_that_leaves_frees_the_slot() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut stream = TcpStream::connect(worker.address).await.unwrap();
    stream
        .write_all(format!("GET /held HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    gate.entered.notified().await;
    drop(stream);
    gate.left.notified().await;
    let sum = worker.heartbeat(|sum| sum.served == 1 && sum.busy == 0).await;
    assert!(sum.codes.is_empty(), "nobody was answered: {:?}", sum.codes);
}

#[tokio::test]
async fn a_handler_that_takes_too_long_is_dropped_and_answered_for() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, Duration::from_millis(50)).await;
    let mut sender = connect(worker.address).await;
    let late = send(&mut sender, request("/held")).await;
    assert_eq!((late.status(), refused(&late)), (StatusCode::GATEWAY_TIMEOUT, None));
    text(late).await;
    timeout(PATIENCE, gate.left.notified()).await.expect("the handler's future is dropped");
    assert_eq!(text(send(&mut sender, request("/")).await).await, "hello");
    let sum = worker.heartbeat(|sum| sum.served == 2).await;
    assert_eq!(sum.codes.iter().map(|code| (code.code_class, code.count)).collect::<Vec<_>>().len(), 2);
}

#[tokio::test]
async fn a_handler_that_panics_harms_no_other_request() {
    let gate = Gate::default();
    let panics = || async {
        let broken: Result<&str, &str> = "no number".parse::<u32>().map(|_| "one").map_err(|_| "part of the test");
        broken.expect("this panic is")
    };
    let worker = Worker::start(gate.router().route("/panic", get(panics)), 4, PATIENCE).await;
    let mut neighbour = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut neighbour, request("/held")).await).await });
    gate.entered.notified().await;
    let mut sender = connect(worker.address).await;
    let failed = send(&mut sender, request("/panic")).await;
    assert_eq!((failed.status(), refused(&failed)), (StatusCode::INTERNAL_SERVER_ERROR, None));
    assert!(!text(failed).await.contains("part of the test"));
    assert_eq!(text(send(&mut sender, request("/")).await).await, "hello");
    gate.open.notify_one();
    assert_eq!(held.await.unwrap(), "held");
}
