//! Time and size: clients that send or take too slowly or too much, and applications that stop in the middle.

use super::{alone::alone, *};
use proto::worker::Limits;

/// Long enough that nothing here reaches it by accident, short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

fn limited(limits: Limits, configure: Configure) -> Configure {
    Configure { limits: Some(limits), ..configure }
}

/// Everything that is answered until the connection's end.
async fn answered(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // a reset counts as an end
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn sent(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// A handler that reads the whole body, and says that it could not.
fn reader() -> Router {
    let read = |body: Body| async move {
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => (StatusCode::OK, format!("read {}", bytes.len())),
            Err(error) => (StatusCode::IM_A_TEAPOT, error.to_string()),
        }
    };
    Router::new().route("/", axum::routing::post(read))
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_the_application_sees_it_and_counted() {
    let limits = Limits { request_line_bytes: 100, fields: 3, field_bytes: 100, body_bytes: 10, ..Limits::default() };
    let mut worker = Worker::start_as(reader(), limited(limits, alone(1, PATIENCE))).await;
    let long = "x".repeat(100);
    for (head, status) in [
        (format!("POST /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), "414"),
        ("POST / HTTP/1.1\r\nhost: a\r\na: 1\r\nb: 2\r\nc: 3\r\n\r\n".to_owned(), "431"),
        (format!("POST / HTTP/1.1\r\nhost: a\r\na: {long}\r\n\r\n"), "431"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n".to_owned(), "413"),
    ] {
        let answer = answered(&mut sent(worker.address, &head).await).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("application/problem+json") && answer.contains("connection: close"), "{answer}");
    }
    let sum = worker.heartbeat(|sum| sum.codes.iter().map(|code| code.count).sum::<u64>() == 4).await;
    assert!(sum.codes.iter().all(|code| code.code_class == 4) && sum.served == 0);
    let fits = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nconnection: close\r\n\r\n0123456789";
    assert!(answered(&mut sent(worker.address, fits).await).await.ends_with("read 10"));
}

#[tokio::test]
async fn heads_up_to_the_default_limits_reach_the_application() {
    let worker = Worker::start_as(Gate::default().router(), alone(1, PATIENCE)).await;
    let line = format!("GET /?{} HTTP/1.1\r\n", "q".repeat(16_384 - "GET /? HTTP/1.1".len()));
    let large = format!("a: {}\r\n", "x".repeat(32_768 - 1));
    let many: String = (0..253).map(|number| format!("f{number}: 1\r\n")).collect();
    let head = format!("{line}host: a\r\nconnection: close\r\n{large}{many}\r\n");
    let answer = answered(&mut sent(worker.address, &head).await).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_grows_too_large_ends_the_applications_reading_and_is_answered() {
    let limits = Limits { body_bytes: 10, ..Limits::default() };
    let mut worker = Worker::start_as(reader(), limited(limits, configure(1, PATIENCE))).await;
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\nservery-pass: {PASS_TEXT}\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut stream = sent(worker.address, &format!("{head}8\r\n01234567\r\n3\r\n012\r\n")).await;
    let answer = answered(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{answer}");
    worker.heartbeat(|sum| sum.busy == 0 && sum.served == 1).await;
}

#[tokio::test]
async fn a_body_that_stops_arriving_is_answered_but_only_when_somebody_waits_for_it() {
    let limits = Limits { body_stall_ms: 100, ..Limits::default() };
    let gate = Gate::default();
    let held = gate.clone();
    let later = move |body: Body| async move {
        held.entered.notify_one();
        held.open.notified().await;
        format!("{:?}", axum::body::to_bytes(body, usize::MAX).await.unwrap())
    };
    let router = reader().route("/later", axum::routing::post(later));
    let worker = Worker::start_as(router, limited(limits, alone(1, PATIENCE))).await;
    let head = "HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab";
    let answer = answered(&mut sent(worker.address, &format!("POST / {head}")).await).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");

    let mut stream = sent(worker.address, &format!("POST /later {head}")).await;
    gate.entered.notified().await;
    // longer than the limit: nobody waits for the body yet
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.write_all(b"cd").await.unwrap();
    gate.open.notify_one();
    let answer = answered(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abcd\""), "{answer}");
}

/// What a handler streams; locked for as long as it does.
type Parts = Arc<tokio::sync::Mutex<mpsc::Receiver<Bytes>>>;

/// A handler that sends what it is told to, and ends when the sender is dropped.
fn streamed() -> (Router, mpsc::Sender<Bytes>, Parts) {
    let (parts, receive) = mpsc::channel::<Bytes>(1);
    let receive = Arc::new(tokio::sync::Mutex::new(receive));
    let held = Arc::clone(&receive);
    let stream = move || async move {
        let receive = receive.lock_owned().await;
        Body::from_stream(futures_util::stream::unfold(receive, |mut receive| async {
            Some((Ok::<_, Error>(receive.recv().await?), receive))
        }))
    };
    (Router::new().route("/", get(stream)), parts, held)
}

#[tokio::test]
async fn an_application_that_stops_in_the_middle_is_cut_and_its_slot_is_free() {
    for version in ["1.1", "1.0"] {
        let (router, parts, held) = streamed();
        let mut worker = Worker::start_as(router, alone(1, SHORT)).await;
        let mut stream = sent(worker.address, &format!("GET / HTTP/{version}\r\nhost: a\r\n\r\n")).await;
        parts.send(Bytes::from_static(b"part")).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        if version == "1.1" {
            assert!(answer.ends_with("part\r\n"), "no last chunk: {answer}");
        } else {
            assert!(ended.is_err(), "an end would look like the body's: {answer}");
        }
        worker.heartbeat(|sum| sum.busy == 0 && sum.served == 1).await;
        assert!(held.try_lock().is_ok(), "what the application had is dropped");
    }
}

#[tokio::test]
async fn an_answer_that_keeps_moving_is_never_cut() {
    let (router, parts, _) = streamed();
    let worker = Worker::start_as(router, alone(1, SHORT)).await;
    let mut stream = sent(worker.address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 2 * SHORT {
        parts.send(Bytes::from_static(b"part")).await.unwrap();
        tokio::time::sleep(SHORT / 10).await;
    }
    drop(parts);
    assert!(answered(&mut stream).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_after_its_own_limit_not_the_applications() {
    let endless = || async {
        let part = Bytes::from(vec![b'x'; 64 << 10]);
        Body::from_stream(futures_util::stream::repeat_with(move || Ok::<_, Error>(part.clone())))
    };
    let router = Router::new().route("/", get(endless));
    let limits = Limits { body_stall_ms: 600, ..Limits::default() };
    // the application's limit is much shorter
    let mut worker = Worker::start_as(router, limited(limits, alone(1, Duration::from_millis(50)))).await;
    let begun = tokio::time::Instant::now();
    let stream = sent(worker.address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    worker.heartbeat(|sum| sum.served == 1 && sum.busy == 0).await;
    assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
    drop(stream);
}

#[tokio::test]
async fn a_heartbeat_tells_how_long_requests_took() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 1, PATIENCE).await;
    let mut sender = connect(worker.address).await;
    let held = tokio::spawn(async move { text(send(&mut sender, request("/held")).await).await });
    gate.entered.notified().await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    gate.open.notify_one();
    held.await.unwrap();
    let durations = worker.heartbeat(|sum| sum.served == 1 && sum.durations.is_some()).await.durations.unwrap();
    assert_eq!(durations.counts.len(), proto::DURATION_BOUNDS_S.len() + 1);
    assert_eq!(durations.counts.iter().sum::<u64>(), 1);
    assert_eq!(durations.counts[..7].iter().sum::<u64>(), 0, "none was as fast as 50 ms");
    assert!(durations.sum_s >= 0.06);
}

#[tokio::test]
async fn an_upload_that_keeps_moving_may_take_longer_than_the_application_may() {
    let worker = Worker::start_as(reader(), alone(1, SHORT)).await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\nconnection: close\r\n\r\n";
    let mut stream = sent(worker.address, head).await;
    let began = tokio::time::Instant::now();
    for byte in 0..8 {
        tokio::time::sleep(SHORT / 4).await;
        stream.write_all(&[b'0' + byte]).await.unwrap();
    }
    assert!(began.elapsed() > SHORT);
    assert!(answered(&mut stream).await.ends_with("read 8"));
    // one that reads nothing has no more time for it
    let deaf = Router::new().route("/", axum::routing::post(std::future::pending::<&str>));
    let worker = Worker::start_as(deaf, alone(1, SHORT)).await;
    let mut stream = sent(worker.address, head).await;
    assert!(answered(&mut stream).await.starts_with("HTTP/1.1 504 "));
}
