//! Bytes that two readers could take for different messages, from clients that come by themselves.

use super::{alone::alone, *};
use servery_harness::malformed::{self, Malformed, SMUGGLED};

/// Counts what reaches the application, and answers with how it was asked.
fn counting(asked: &Arc<AtomicU32>) -> Router {
    let asked = Arc::clone(asked);
    Router::new().fallback(async move |request: axum::extract::Request| {
        asked.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path().to_owned();
        match axum::body::to_bytes(request.into_body(), 1 << 20).await {
            Ok(body) => Ok(format!("[{path} {}]", body.len())),
            Err(_) => Err((StatusCode::BAD_REQUEST, format!("[{path} broken]"))),
        }
    })
}

/// Everything that comes back until the worker closes.
async fn say(address: SocketAddr, pieces: &[&str]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for piece in pieces {
        // it may be closed by now
        drop(stream.write_all(piece.as_bytes()).await);
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it should have closed"));
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn malformed_requests_reach_no_application_and_what_follows_them_is_no_request() {
    let asked = Arc::new(AtomicU32::new(0));
    let worker = Worker::start_as(counting(&asked), alone(4, PATIENCE)).await;
    for Malformed { request, status, .. } in malformed::heads() {
        // how many fields are too many, and how long ones too long, is its own business
        if status != 400 {
            continue;
        }
        for answer in [
            say(worker.address, &[&request, SMUGGLED]).await,
            say(worker.address, &[&format!("{request}{SMUGGLED}")]).await,
        ] {
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answer}");
        }
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let answer =
        say(worker.address, &["GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\nhost: a\n\n", SMUGGLED]).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("[/first 0]HTTP/1.1 400 "), "{answer}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_broken_body_has_no_end_and_what_follows_it_is_no_request() {
    let asked = Arc::new(AtomicU32::new(0));
    let worker = Worker::start_as(counting(&asked), alone(4, PATIENCE)).await;
    let bodies = malformed::bodies();
    for body in &bodies {
        let answer = say(worker.address, &[malformed::BEGUN, body, SMUGGLED]).await;
        assert!(!answer.contains("smuggled") && !answer.contains("200"), "{body:?}: {answer}");
    }
    assert_eq!(asked.load(Ordering::Relaxed) as usize, bodies.len());
}

#[tokio::test]
async fn requests_behind_a_wish_that_was_not_granted_and_on_both_sides_of_bodies_are_answered() {
    let asked = Arc::new(AtomicU32::new(0));
    let worker = Worker::start_as(counting(&asked), alone(4, PATIENCE)).await;
    let answer = say(
        worker.address,
        &[
            "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nPOST /b HTTP/1.1\r\nhost: a\r\n\
           transfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nt: 1\r\n\r\nGET /c HTTP/1.1\r\nhost: a\r\n\
           connection: upgrade, close\r\nupgrade: x\r\n\r\n",
            SMUGGLED,
        ],
    )
    .await;
    for part in ["[/a 0]", "[/b 3]", "[/c 0]"] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}
