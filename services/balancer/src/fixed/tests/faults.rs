//! Servers that die, hang, answer nonsense, say too little or too much: what the client is told, and that no connection on
//! which anything was wrong is used again.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx";
/// What would be somebody else's answer.
const STRAY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray";

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

/// A client has an answer on a kept connection, which is returned with it.
async fn kept(front: &Front, server: &Worker) -> (Peer, Peer) {
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.answer("ok").await;
    assert_eq!(client.response().await.1, "ok");
    (client, upstream)
}

/// The next request of this client comes on a connection of its own and is answered there.
async fn expect_fresh(client: &mut Peer, server: &Worker) {
    client.send(POST).await;
    server.accept().await.answer("fresh").await;
    assert_eq!(client.response().await.1, "fresh");
}

#[tokio::test]
async fn a_server_that_dies_between_two_requests_costs_none() {
    let (front, server) = Front::of_one("", KEPT).await;
    let (mut client, upstream) = kept(&front, &server).await;
    drop(upstream);
    expect_fresh(&mut client, &server).await;
}

#[tokio::test]
async fn a_kept_connection_that_is_reset_under_a_request_costs_it_only_where_it_may_not_be_sent_twice() {
    let (front, server) = Front::of_one("", KEPT).await;
    let (mut client, mut upstream) = kept(&front, &server).await;
    client.send(GET).await;
    upstream.head().await;
    drop(upstream);
    let mut upstream = server.accept().await;
    upstream.answer("again").await;
    assert_eq!(client.response().await.1, "again");
    client.send(POST).await;
    upstream.read_until("x").await;
    drop(upstream);
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("connection_terminated"), "{head}");
    server.expect_nobody().await;
    let log = front.plane.finish().await;
    let attempts: Vec<_> = log.iter().map(|line| line["attempts"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2, 1]);
}

#[tokio::test]
async fn when_one_kept_connection_was_too_old_the_others_are_not_tried() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.http2().await;
    let mut ask = || {
        let request = hyper::Request::get("https://localhost/").body(http_body_util::BodyExt::boxed(
            http_body_util::BodyExt::map_err(http_body_util::Empty::new(), |never| match never {}),
        ));
        tokio::spawn(client.send_request(request.unwrap()))
    };
    let (first, second) = (ask(), ask());
    let (mut one, mut two) = (server.accept().await, server.accept().await);
    one.answer("1").await;
    two.answer("2").await;
    for response in [first, second] {
        let body = http_body_util::BodyExt::collect(soon(response).await.unwrap().unwrap().into_body());
        soon(body).await.unwrap();
    }
    eventually(|| front.held() == 0).await;
    let third = ask();
    let (mut one_byte, mut other_byte) = ([0; 1], [0; 1]);
    let mut aged = tokio::select! {
        _ = one.0.peek(&mut one_byte) => one,
        _ = two.0.peek(&mut other_byte) => two,
    };
    aged.head().await;
    drop(aged);
    server.accept().await.answer("3").await;
    assert_eq!(soon(third).await.unwrap().unwrap().status(), 200);
}

/// Answers the first request of each connection, and closes when there is a second one.
async fn serve_once_per_connection(server: Worker) {
    let mut peers = tokio::task::JoinSet::new();
    loop {
        let mut peer = server.accept().await;
        peers.spawn(async move {
            peer.answer("ok").await;
            if peer.0.peek(&mut [0; 1]).await.is_ok_and(|length| length > 0) {
                peer.head().await;
            }
        });
    }
}

#[tokio::test]
async fn resets_of_kept_connections_cost_nothing_and_eject_nobody() {
    let (one, two) = (Worker::start().await, Worker::start().await);
    let front = Front::start("", &[&url(one.address), &url(two.address)], KEPT);
    eventually(|| front.in_rotation() == 2).await;
    let mut client = front.client().await;
    let asking = async {
        for _ in 0..60 {
            assert_eq!(client.get("/").await.1, "ok");
        }
    };
    tokio::select! {
        () = asking => {}
        () = serve_once_per_connection(one) => unreachable!(),
        () = serve_once_per_connection(two) => unreachable!(),
    }
    assert_eq!(front.app.view().ejections, [0, 0]);
    let log = front.plane.finish().await;
    assert!(log.iter().any(|line| line["attempts"] == 2), "none was reset");
}

#[tokio::test]
async fn a_server_that_dies_within_its_head_is_asked_again_where_that_is_safe() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-len").await;
    drop(upstream);
    server.accept().await.answer("whole").await;
    assert_eq!(client.response().await.1, "whole");
    client.send(POST).await;
    let mut upstream = server.accept().await;
    upstream.read_until("x").await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-len").await;
    drop(upstream);
    assert_eq!(status(&client.response().await.0), "502");
    server.expect_nobody().await;
}

#[tokio::test]
async fn a_server_that_dies_within_a_body_never_looks_as_if_it_had_ended() {
    let (front, server) = Front::of_one("", KEPT).await;
    for (head, body) in [("content-length: 10", "abc"), ("transfer-encoding: chunked", "3\r\nabc\r\n")] {
        let mut client = front.client().await;
        client.send(GET).await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        let answer = client.head().await;
        assert!(answer.contains(head), "{answer}");
        assert_eq!(client.exactly(body.len()).await, body);
        drop(upstream);
        assert_eq!(client.rest().await, "", "neither the last chunk nor padding");
    }
    eventually(|| front.held() == 0).await;
    assert_eq!(front.unsettled(), 0, "nobody would ever settle it");
    expect_fresh(&mut front.client().await, &server).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_a_504_and_its_place_is_free() {
    let (front, server) = Front::of_one("connect_timeout = \"100ms\"\nresponse_timeout = \"300ms\"", "").await;
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "504");
    assert!(head.contains("http_response_timeout"), "{head}");
    assert_eq!(upstream.rest().await, "", "it is told that nobody waits");
    eventually(|| front.held() == 0).await;
    assert_eq!(front.unsettled(), 0);
    // one that stops within its body
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    client.head().await;
    assert_eq!(client.rest().await, "abc");
    eventually(|| front.held() == 0).await;
    assert_eq!(front.unsettled(), 0);
    expect_fresh(&mut front.client().await, &server).await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_has_no_more_time_than_any_other() {
    let (front, server) = Front::of_one("connect_timeout = \"100ms\"\nresponse_timeout = \"300ms\"", "").await;
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nx: ").await;
    let drip = async {
        loop {
            if tokio::io::AsyncWriteExt::write_all(&mut upstream.0, b"y").await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (head, _) = tokio::select! {
        () = drip => unreachable!(),
        response = client.response() => response,
    };
    assert_eq!(status(&head), "504");
}

#[tokio::test]
async fn what_is_no_http_is_a_502_and_its_connection_is_closed() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    for answer in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        "\u{0}\u{0}\u{0}\u{0}",
    ] {
        client.send(GET).await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(answer).await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), "502", "{answer:?}");
        assert!(head.contains("http_protocol_error"), "{answer:?}: {head}");
        assert_eq!(upstream.rest().await, "", "{answer:?}");
        server.expect_nobody().await;
    }
    assert_eq!((front.held(), front.unsettled()), (0, 0));
}

#[tokio::test]
async fn chunks_that_are_none_cut_the_response_off() {
    let (front, server) = Front::of_one("", KEPT).await;
    for chunk in ["zz\r\n", "-1\r\n", "fffffffffffffffff\r\n", "3\nabc\r\n"] {
        let mut client = front.client().await;
        client.send(GET).await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n{chunk}")).await;
        let got = client.rest().await;
        assert!(!got.ends_with("0\r\n\r\n"), "{chunk:?}: {got:?}");
        assert_eq!(upstream.rest().await, "", "{chunk:?}");
    }
    eventually(|| front.held() == 0).await;
}

#[tokio::test]
async fn a_server_that_closes_whatever_it_accepts_is_a_502_after_a_few_tries() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send(GET).await;
    for _ in 0..3 {
        server.accept().await;
    }
    let (head, _) = client.response().await;
    assert_eq!(status(&head), "502");
    assert!(head.contains("connection_terminated"), "{head}");
    server.expect_nobody().await;
}

#[tokio::test]
async fn what_follows_a_response_is_nobodys_answer() {
    let (front, server) = Front::of_one("", KEPT).await;
    for (method, answer) in [
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n"),
    ] {
        for at_once in [true, false] {
            let mut client = front.client().await;
            client.send(&format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            let mut upstream = server.accept().await;
            upstream.head().await;
            if at_once {
                upstream.send(&format!("{answer}{STRAY}")).await;
                client.head().await;
            } else {
                upstream.send(answer).await;
                client.head().await;
                upstream.send(STRAY).await;
            }
            assert_eq!(upstream.rest().await, "", "{method} {answer:?} {at_once}: closed, and not used again");
            // whoever comes next, on whichever core
            for _ in 0..4 {
                expect_fresh(&mut front.client().await, &server).await;
            }
            let rest = client_saw(client).await;
            assert!(!rest.contains("stray"), "{method} {answer:?} {at_once}: {rest:?}");
        }
    }
}

/// Everything else that a client is sent once it says that it will send nothing more.
async fn client_saw(mut client: Peer) -> String {
    tokio::io::AsyncWriteExt::shutdown(&mut client.0).await.unwrap();
    client.rest().await
}

#[tokio::test]
async fn a_response_that_may_end_in_two_places_is_not_passed_on() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    for framing in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: identity",
        "transfer-encoding: \u{b}chunked",
        "content-length: 3\r\ncontent-length: 3",
        "content-length: 3, 3",
    ] {
        client.send(GET).await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n6\r\nabcdef\r\n0\r\n\r\n")).await;
        assert_eq!(status(&client.response().await.0), "502", "{framing:?}");
        assert_eq!(upstream.rest().await, "", "{framing:?}: not used again");
    }
    expect_fresh(&mut client, &server).await;
}

#[tokio::test]
async fn interim_responses_are_no_answer_however_many_they_are() {
    let (front, server) = Front::of_one("connect_timeout = \"100ms\"\nresponse_timeout = \"500ms\"", "").await;
    let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
    let mut client = front.client().await;
    client.send(GET).await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send(&hint.repeat(3)).await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let mut head = client.head().await;
    while status(&head) == "103" {
        head = client.head().await;
    }
    assert_eq!((status(&head), client.exactly(2).await.as_str()), ("200", "ok"));
    drop(upstream);

    // without end
    client.send(POST).await;
    let mut upstream = server.accept().await;
    upstream.read_until("x").await;
    let flood = hint.repeat(1000);
    let flooding = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut upstream.0, flood.as_bytes()).await.is_ok() {}
    });
    let mut head = client.head().await;
    while status(&head) == "103" {
        head = client.head().await;
    }
    assert!(matches!(status(&head), "502" | "504"), "{head}");
    soon(flooding).await.unwrap();
    eventually(|| front.held() == 0).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_a_502() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    for head in
        [format!("x: {}\r\n", "y".repeat(100 * 1024)), (0..200).map(|at| format!("x-{at}: y\r\n")).collect::<String>()]
    {
        client.send(GET).await;
        let mut upstream = server.accept().await;
        upstream.head().await;
        let answer = format!("HTTP/1.1 200 OK\r\n{head}content-length: 0\r\n\r\n");
        // it may be closed before all of it is taken
        let _ = soon(tokio::io::AsyncWriteExt::write_all(&mut upstream.0, answer.as_bytes())).await;
        assert_eq!(status(&client.response().await.0), "502");
        upstream.rest().await;
    }
}

#[tokio::test]
async fn an_answer_before_the_request_was_read_is_passed_on_and_its_connection_is_not_used_again() {
    let (front, server) = Front::of_one("", KEPT).await;
    let mut client = front.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").await;
    let mut upstream = server.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 413 Too Much\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), ("413", "no"));
    eventually(|| front.held() == 0).await;
    assert_eq!(front.unsettled(), 0);
    expect_fresh(&mut front.client().await, &server).await;
}
