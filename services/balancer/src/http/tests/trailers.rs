//! Fields behind bodies, in both directions.

use super::*;
use http::HeaderMap;

const ANSWER: &str = "HTTP/1.1 200 OK\r\ntrailer: grpc-status, set-cookie, host\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\nabc\r\n0\r\ngrpc-status: 0\r\nset-cookie: a=b\r\nunannounced: 1\r\n\r\n";

/// A worker of few slots has its answers read ahead of the client.
async fn worker_of(slots: u32) -> (Plane, Worker) {
    let plane = Plane::start("");
    let worker = Worker::start().await;
    plane.narrow_workers(&[(worker.address, slots)]);
    (plane, worker)
}

#[tokio::test]
async fn an_answers_trailers_reach_an_http1_client_that_takes_them_and_no_other() {
    for slots in [2, 256] {
        let (plane, worker) = worker_of(slots).await;
        let mut client = plane.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: te\r\nte: gzip, trailers\r\n\r\n").await;
        let mut upstream = worker.accept().await;
        let head = upstream.head().await;
        assert!(head.contains("\r\nte: trailers\r\n") && head.contains("\r\nconnection: te\r\n"), "{head}");
        upstream.send(ANSWER).await;
        let head = client.head().await;
        assert!(head.contains("\r\ntrailer: grpc-status\r\n"), "{head}");
        assert_eq!(client.read_until("\r\n\r\n").await, "3\r\nabc\r\n0\r\ngrpc-status: 0\r\n\r\n");

        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // over the same connection: the answer was read to its end
        assert!(!upstream.head().await.contains("\r\nte:"));
        upstream.send(ANSWER).await;
        assert!(!client.head().await.contains("trailer:"));
        assert_eq!(client.read_until("\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
        eventually(|| plane.held() == 0).await;
    }
}

#[tokio::test]
async fn an_answers_trailers_reach_an_http2_client_that_takes_them_and_no_other() {
    for slots in [2, 256] {
        let (plane, worker) = worker_of(slots).await;
        let mut client = plane.http2().await;
        let mut upstream = None;
        for te in [true, false] {
            let mut request = Request::get("https://localhost/");
            if te {
                request = request.header("te", "trailers");
            }
            let response = tokio::spawn(client.send_request(request.body(empty()).unwrap()));
            let upstream = match &mut upstream {
                Some(upstream) => upstream,
                None => upstream.insert(worker.accept().await),
            };
            upstream.head().await;
            upstream.send(ANSWER).await;
            let answer = soon(soon(response).await.unwrap().unwrap().into_body().collect()).await.unwrap();
            let trailers: Option<Vec<&str>> =
                answer.trailers().map(|trailers| trailers.keys().map(http::HeaderName::as_str).collect());
            let expected = vec!["grpc-status", "unannounced"];
            assert_eq!(trailers, te.then_some(expected));
            assert_eq!(answer.to_bytes(), "abc");
        }
    }
}

#[tokio::test]
async fn a_requests_trailers_reach_the_worker_where_they_were_announced_on_each_attempt() {
    for slots in [2, 256] {
        let (plane, worker) = worker_of(slots).await;
        let mut client = plane.client().await;
        client
            .send(
                "POST / HTTP/1.1\r\nhost: a\r\ntrailer: x-sum, authorization, servery-pass\r\ntransfer-encoding: chunked\r\n\r\n\
                 3\r\nabc\r\n0\r\nx-sum: 6\r\nauthorization: evil\r\nservery-pass: evil\r\nunannounced: 1\r\n\r\n",
            )
            .await;
        for answer in [REFUSED, OK] {
            let mut upstream = worker.accept().await;
            let head = upstream.head().await;
            assert!(head.contains("\r\ntrailer: x-sum\r\n"), "{head}");
            assert_eq!(upstream.read_until("\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n");
            upstream.send(answer).await;
        }
        assert_eq!(client.response().await.1, "ok");
    }
}

#[tokio::test]
async fn an_http2_requests_trailers_reach_the_worker() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.http2().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("6"));
    let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)].map(Ok);
    let body = BodyExt::boxed(StreamBody::new(tokio_stream::iter(frames)));
    let request = Request::post("https://localhost/").header("trailer", "x-sum").body(body).unwrap();
    let response = tokio::spawn(client.send_request(request));
    let mut upstream = worker.accept().await;
    upstream.head().await;
    assert_eq!(upstream.read_until("\r\n\r\n").await, "3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n");
    upstream.send(OK).await;
    assert_eq!(soon(response).await.unwrap().unwrap().status(), 200);
}
