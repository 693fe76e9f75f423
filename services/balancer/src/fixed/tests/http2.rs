//! Servers that are spoken with over HTTP/2: many requests on one connection, and what ends one of them and not the others.

use super::*;
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
};
use std::{future::poll_fn, io};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

const H2C: &str = "protocol = \"h2c\"";

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A connection of a server. It goes away, in good order, when it is told to, or when this is dropped.
struct Side {
    requests: mpsc::Receiver<Asked>,
    leave: Option<oneshot::Sender<()>>,
}

impl Side {
    async fn of(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, most: u32) -> Self {
        let mut connection = soon(server::Builder::new().max_concurrent_streams(most).handshake(stream)).await.unwrap();
        let (sender, requests) = mpsc::channel(100);
        let (leave, mut left) = oneshot::channel();
        tokio::spawn(async move {
            let mut leaving = false;
            loop {
                tokio::select! {
                    asked = connection.accept() => match asked {
                        Some(Ok(asked)) => sender.send(asked).await.unwrap(),
                        Some(Err(_)) | None => return,
                    },
                    _ = &mut left, if !leaving => {
                        leaving = true;
                        connection.graceful_shutdown();
                    }
                }
            }
        });
        Self { requests, leave: Some(leave) }
    }

    async fn next(&mut self) -> Asked {
        soon(self.requests.recv()).await.expect("a request")
    }
}

async fn accept(server: &Worker) -> Side {
    Side::of(server.accept().await.0, 200).await
}

fn answer(to: &mut SendResponse<Bytes>, body: &'static str) {
    let mut stream = to.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from(body), true).unwrap();
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, io::Error> {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn request(method: &str, body: BoxBody<Bytes, io::Error>) -> Request<BoxBody<Bytes, io::Error>> {
    Request::builder().method(method).uri("https://localhost/a?b").header("te", "trailers").body(body).unwrap()
}

fn trailers(name: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), "1".parse().unwrap())])
}

#[tokio::test]
async fn a_request_of_http1_looks_like_one_of_http2() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.client().await;
    client
        .send(
            "POST /1?x HTTP/1.1\r\nhost: shop.test:81\r\nconnection: x-hop\r\nx-hop: 1\r\nte: trailers\r\n\
             transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
        .await;
    let (mut asked, mut to) = accept(&server).await.next().await;
    assert_eq!(asked.uri(), "http://shop.test:81/1?x");
    let headers = asked.headers();
    for name in ["host", "connection", "x-hop", "servery-pass", "transfer-encoding"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    for (name, value) in [("x-forwarded-for", "127.0.0.1"), ("via", "1.1 servery"), ("te", "trailers")] {
        assert_eq!(headers[name], value);
    }
    assert_eq!(soon(asked.body_mut().data()).await.unwrap().unwrap(), "abc");
    answer(&mut to, "1");
    assert!(client.read_until("\r\n0\r\n\r\n").await.ends_with("\r\n1\r\n1\r\n0\r\n\r\n"));
    eventually(|| front.held() == 0 && front.unsettled() == 0).await;
}

/// Asks, and does not wait for the answer.
fn ask(
    client: &mut SendRequest<BoxBody<Bytes, io::Error>>,
    method: &str,
) -> JoinHandle<hyper::Result<Response<Incoming>>> {
    tokio::spawn(client.send_request(request(method, full("x"))))
}

async fn text(asked: JoinHandle<hyper::Result<Response<Incoming>>>) -> String {
    let response = soon(asked).await.unwrap().unwrap();
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.into()).unwrap()
}

#[tokio::test]
async fn requests_at_once_are_streams_of_one_connection() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let first = ask(&mut client, "GET");
    let mut side = accept(&server).await;
    let mut to_first = side.next().await.1;
    let second = ask(&mut client, "POST");
    answer(&mut side.next().await.1, "2");
    assert_eq!(text(second).await, "2");
    answer(&mut to_first, "1");
    assert_eq!(text(first).await, "1");
    server.expect_nobody().await;
    eventually(|| front.held() == 0 && front.unsettled() == 0).await;
}

#[tokio::test]
async fn trailers_go_both_ways_without_having_been_announced() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let frames = [Ok(Frame::data(Bytes::from("up"))), Ok(Frame::trailers(trailers("x-up")))];
    let body = StreamBody::new(tokio_stream::iter(frames)).boxed();
    let (response, ()) = tokio::join!(soon(client.send_request(request("POST", body))), async {
        let (mut asked, mut to) = accept(&server).await.next().await;
        assert_eq!(asked.headers()["te"], "trailers");
        assert_eq!(soon(asked.body_mut().data()).await.unwrap().unwrap(), "up");
        let got = soon(asked.body_mut().trailers()).await.unwrap();
        assert_eq!(got, Some(trailers("x-up")));
        let mut stream = to.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from("down"), false).unwrap();
        stream.send_trailers(trailers("grpc-status")).unwrap();
    });
    let whole = soon(response.unwrap().into_body().collect()).await.unwrap();
    assert_eq!(whole.trailers(), Some(&trailers("grpc-status")));
    assert_eq!(whole.to_bytes(), "down");
}

#[tokio::test]
async fn a_client_that_leaves_resets_its_stream_and_no_other() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let first = ask(&mut client, "GET");
    let mut side = accept(&server).await;
    let (_first, mut to_first) = side.next().await;
    let second = ask(&mut client, "GET");
    let (_second, mut to_second) = side.next().await;
    first.abort();
    assert_eq!(soon(poll_fn(|cx| to_first.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    // nor does one that leaves in the middle of its answer
    let third = ask(&mut client, "GET");
    let (_third, mut to_third) = side.next().await;
    let mut stream = to_third.send_response(Response::new(()), false).unwrap();
    drop(soon(third).await.unwrap().unwrap());
    assert_eq!(soon(poll_fn(|cx| stream.poll_reset(cx))).await.unwrap(), Reason::CANCEL);
    answer(&mut to_second, "2");
    assert_eq!(text(second).await, "2");
    server.expect_nobody().await;
    eventually(|| front.held() == 0 && front.unsettled() == 0).await;
}

#[tokio::test]
async fn what_a_server_has_not_looked_at_is_sent_again_whatever_it_is() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let asked = ask(&mut client, "POST");
    let mut side = accept(&server).await;
    side.next().await.1.send_reset(Reason::REFUSED_STREAM);
    answer(&mut side.next().await.1, "again");
    assert_eq!(text(asked).await, "again");
    // a server that may have looked at it is not asked twice
    let asked = ask(&mut client, "POST");
    side.next().await.1.send_reset(Reason::INTERNAL_ERROR);
    assert_eq!(soon(asked).await.unwrap().unwrap().status(), 502);
    // and the connection is as good as before
    let asked = ask(&mut client, "POST");
    answer(&mut side.next().await.1, "same");
    assert_eq!(text(asked).await, "same");
    server.expect_nobody().await;
}

#[tokio::test]
async fn a_server_that_goes_away_finishes_what_it_has_and_gets_nothing_new() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let first = ask(&mut client, "POST");
    let mut old = accept(&server).await;
    let (_first, mut to_first) = old.next().await;
    old.leave.take().unwrap().send(()).unwrap();
    // it is told at some moment during these, and each of them is answered, wherever
    let mut new: Option<Side> = None;
    for _ in 0..20 {
        let asked = ask(&mut client, "POST");
        let mut to = match &mut new {
            Some(new) => new.next().await.1,
            None => tokio::select! {
                biased;
                Some((_, to)) = old.requests.recv() => to,
                peer = server.accept() => {
                    let new = new.insert(Side::of(peer.0, 200).await);
                    new.next().await.1
                }
            },
        };
        answer(&mut to, "2");
        assert_eq!(text(asked).await, "2");
    }
    assert!(new.is_some(), "it never went");
    answer(&mut to_first, "1");
    assert_eq!(text(first).await, "1");
}

#[tokio::test]
async fn a_server_gets_no_more_streams_of_a_connection_than_it_wants() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.http2().await;
    let first = ask(&mut client, "GET");
    let mut one = Side::of(server.accept().await.0, 1).await;
    answer(&mut one.next().await.1, "1");
    assert_eq!(text(first).await, "1");
    // by now it is known
    let second = ask(&mut client, "GET");
    let mut to_second = one.next().await.1;
    let third = ask(&mut client, "GET");
    let mut two = Side::of(server.accept().await.0, 1).await;
    answer(&mut two.next().await.1, "3");
    assert_eq!(text(third).await, "3");
    answer(&mut to_second, "2");
    assert_eq!(text(second).await, "2");
}

#[tokio::test]
async fn another_protocol_is_nothing_that_it_could_change_to() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("http/1.1 501 "), "{head}");
    server.expect_nobody().await;
}

#[tokio::test]
async fn one_that_does_not_speak_it_is_a_502() {
    let (front, server) = Front::of_one("", H2C).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    let mut upstream = server.accept().await;
    upstream.read_until("SM\r\n\r\n").await;
    upstream.send("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.starts_with("http/1.1 502 "), "{head}");
}

#[tokio::test]
async fn checks_are_spoken_in_it_too() {
    let (front, server) = Front::of_one("", &format!("{H2C}\n{CHECKED}")).await;
    let mut side = accept(&server).await;
    let (asked, mut to) = side.next().await;
    assert_eq!(asked.uri().path(), "/healthz");
    assert_eq!(front.in_rotation(), 0);
    answer(&mut to, "well");
    eventually(|| front.in_rotation() == 1).await;
}

#[tokio::test]
async fn many_streams_carry_whole_bodies_and_none_stands_in_the_way_of_another() {
    let (front, server) = Front::of_one("", H2C).await;
    let serving = tokio::spawn(async move {
        loop {
            let side = accept(&server).await;
            tokio::spawn(async move {
                // all of it, or else it would go away
                let mut side = side;
                while let Some((asked, mut to)) = side.requests.recv().await {
                    tokio::spawn(async move {
                        let mut body = asked.into_body();
                        let mut stream = to.send_response(Response::new(()), false).unwrap();
                        while let Some(data) = body.data().await {
                            let data = data.unwrap();
                            body.flow_control().release_capacity(data.len()).unwrap();
                            stream.send_data(data, false).unwrap();
                        }
                        stream.send_data(Bytes::new(), true).unwrap();
                    });
                }
            });
        }
    });
    let mut client = front.http2().await;
    // nobody reads this one's answer
    let large = |length| full(vec![7; length]);
    let _unread = soon(client.send_request(request("POST", large(1_000_000)))).await.unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100 {
        let asked = client.send_request(request("POST", large(1000 * number)));
        asking.spawn(async move {
            let (head, body) = asked.await.unwrap().into_parts();
            let whole = body.collect().await.unwrap().to_bytes();
            assert_eq!(head.status, 200, "{whole:?}");
            assert_eq!((whole.len(), whole.iter().all(|byte| *byte == 7)), (1000 * number, true));
        });
    }
    soon(async {
        while let Some(done) = asking.join_next().await {
            done.unwrap();
        }
    })
    .await;
    serving.abort();
}
