use super::*;
use crate::farewell;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use std::{cell::Cell, convert::Infallible};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LIMITS: Limits = Limits { line: 16 * 1024, head: 32 * 1024, fields: 100 };

/// What a client gets for these bytes, with what hyper left of the connection, and how many requests there were. Each is
/// answered with its number after its body was read; the client closes its side only when it has got so many answers.
async fn exchange(pieces: &[&[u8]]) -> (String, Option<Fault>, u32) {
    let (client, server) = tokio::io::duplex(256);
    let turn = Arc::<Turn>::default();
    let requests = Cell::new(0);
    let (stream, remains) = Strict::new(server, LIMITS, &turn);
    let service = service_fn(|request: Request<Incoming>| {
        let answering = turn.begin();
        requests.set(requests.get() + 1);
        let number = requests.get();
        async move {
            // a client that is answered late
            tokio::task::yield_now().await;
            let whole = request.into_body().collect().await.is_ok();
            let text = if whole { format!("[{number}]") } else { "[broken]".to_owned() };
            // the answer lasts until its body is gone
            let body = Full::new(Bytes::from(text)).map_frame(move |frame| {
                let _lasts = &answering;
                frame
            });
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let (mut reads, mut writes) = tokio::io::split(client);
    let speaking = async {
        for piece in pieces {
            if writes.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // long enough for everything that is on its way; the clock is paused
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        drop(writes.shutdown().await);
    };
    let serving = async {
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        drop(connection.with_upgrades().await);
        let left = remains.take();
        left.and_then(|left| left.fault)
    };
    let mut answers = Vec::new();
    let listening = async { drop(reads.read_to_end(&mut answers).await) };
    let (fault, (), ()) = tokio::join!(serving, listening, speaking);
    (String::from_utf8(answers).unwrap(), fault, requests.get())
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn what_came_before_a_fault_is_answered_and_then_the_fault_is_told() {
    for bad in ["x\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", "GET / HTTP/1.1\nhost: a\n\n"] {
        let all = [GET, GET, bad.as_bytes(), GET].concat();
        let bytewise: Vec<&[u8]> = all.chunks(1).collect();
        for pieces in [&[&all[..]][..], &[GET, GET, bad.as_bytes(), GET], &bytewise] {
            let (answers, fault, requests) = exchange(pieces).await;
            assert_eq!(requests, 2, "{bad:?} in {} pieces: {answers}", pieces.len());
            assert!(answers.contains("[1]") && answers.contains("[2]"), "{answers}");
            assert!(fault.is_some(), "{bad:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_is_an_error_to_who_reads_it_and_not_told_twice() {
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let (answers, fault, requests) = exchange(&[head, b"+1\r\nx\r\n0\r\n\r\n", GET]).await;
    assert_eq!((requests, fault), (1, None));
    assert!(answers.contains("[broken]"), "{answers}");
}

#[tokio::test(start_paused = true)]
async fn requests_after_a_wish_that_was_not_granted_are_requests() {
    let wish = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let (answers, fault, requests) = exchange(&[&[&wish[..], GET, wish, GET, b"\0"].concat()]).await;
    assert_eq!(requests, 4);
    assert!(answers.contains("[4]"), "{answers}");
    assert_eq!(fault, Some(Fault::Line));
}

#[tokio::test(start_paused = true)]
async fn bytes_after_the_last_request_are_nobodys() {
    let last = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let (answers, fault, requests) = exchange(&[&[&last[..], GET, b"\0"].concat()]).await;
    assert_eq!((requests, fault), (1, None));
    assert!(answers.contains("[1]"), "{answers}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_on_talking_gets_its_answer_and_is_listened_to_for_a_while() {
    let (mut client, mut server) = tokio::io::duplex(1024);
    let begun = tokio::time::Instant::now();
    let response = Response::new(crate::body::Body::full(Bytes::from_static(b"no")));
    let answering = farewell::answer(&mut server, response);
    let talking = async {
        while client.write_all(&[0; 100]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let mut head = [0; 15];
            if client.read(&mut head).await.unwrap_or(0) == 0 {
                // our side is closed, and the client does not care
                continue;
            }
        }
    };
    tokio::select! {
        () = answering => {}
        () = talking => panic!("it was cut off while it was talking"),
    }
    assert_eq!(begun.elapsed().as_secs(), 2);
}

/// Bytes that are nearly requests.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        8 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /x?y HTTP/1.1\r\n", "GET http://a/ HTTP/1.0\r\n", "GET /\"{|}^\\?`\\{ HTTP/1.1\r\n",
            "GET http://[::1]:?x HTTP/1.1\r\n", "GET http://[:.]/ HTTP/1.1\r\n", "GET http://a.-_:99999999/ HTTP/1.1\r\n",
            "CONNECT [1]:2 HTTP/1.1\r\n", "OPTIONS * HTTP/1.1\r\n", "host: a\r\n", "x: y\r\n", "\r\n", "content-length: 3\r\n",
            "transfer-encoding: chunked\r\n", "connection: close\r\n", "upgrade: x\r\n", "expect: 100-continue\r\n", "abc",
            "3\r\nabc\r\n", "3;x=y\r\nabc\r\n", "0\r\n", "\r\n\r\n", "te: trailers\r\n", "x-\u{e4}: \u{e4}\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn hyper_never_refuses_what_comes_through(bytes in nearly(), cut in 1..200_usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
        let (answers, _, _) = runtime.block_on(exchange(&pieces));
        prop_assert!(!answers.contains("HTTP/1.1 4"), "{answers}");
        prop_assert!(!answers.contains("HTTP/1.0 4"), "{answers}");
    }
}

/// One answer: what is said before it, each so long and after so many turns, and how long it is.
type Said = (Vec<(usize, usize)>, usize);

/// What a client that reads so much at a time gets for as many requests at once as there are answers.
async fn answers_with_interim(plan: &[Said], at_once: usize) -> Vec<u8> {
    let (client, server) = tokio::io::duplex(64);
    let turn = Arc::<Turn>::default();
    let number = Cell::new(0);
    let (stream, _remains) = Strict::new(server, LIMITS, &turn);
    let service = service_fn(|_: Request<Incoming>| {
        let answering = turn.begin();
        let (before, length) = plan[number.get()].clone();
        number.set(number.get() + 1);
        let number = number.get();
        async move {
            for (long, turns) in before {
                let link = HeaderValue::try_from(format!("{number};{}", "x".repeat(long))).unwrap();
                let headers = HeaderMap::from_iter([(header::LINK, link)]);
                answering.turn.interim.put(answering.request, StatusCode::EARLY_HINTS, &headers);
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
            let text = number.to_string().repeat(length);
            let response = Response::builder().header(header::CONTENT_LENGTH, text.len());
            answering.answered();
            let body = Full::new(Bytes::from(text)).map_frame(move |frame| {
                let _lasts = &answering;
                frame
            });
            Ok::<_, Infallible>(response.body(body).unwrap())
        }
    });
    let (mut reads, mut writes) = tokio::io::split(client);
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let asking = async {
        writes.write_all(&GET.repeat(plan.len() - 1)).await.unwrap();
        writes.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    };
    let mut answers = Vec::new();
    let listening = async {
        let mut buffer = vec![0; at_once];
        loop {
            let read = reads.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            answers.extend_from_slice(&buffer[..read]);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    let (served, (), ()) = tokio::join!(serving, asking, listening);
    served.unwrap();
    answers
}

proptest! {
    #[test]
    fn interim_responses_stand_before_their_answer_or_nowhere(
        plan in prop::collection::vec((prop::collection::vec((0..200_usize, 0..4_usize), 0..5), 0..400_usize), 1..6),
        at_once in 1..100_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let answers = String::from_utf8(runtime.block_on(answers_with_interim(&plan, at_once))).unwrap();
        let mut rest = answers.as_str();
        for (number, (before, length)) in (1..).zip(&plan) {
            let mut interim = 0;
            let head = loop {
                let (head, after) = rest.split_once("\r\n\r\n").unwrap();
                rest = after;
                if !head.starts_with("HTTP/1.1 103 ") {
                    break head;
                }
                let links = format!("HTTP/1.1 103 Early Hints\r\nlink: {number};");
                prop_assert!(head.strip_prefix(&links).is_some_and(|long| long.len() == before[interim].0), "{head}");
                interim += 1;
            };
            prop_assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let body = number.to_string().repeat(*length);
            prop_assert!(rest.starts_with(&body), "{rest}");
            rest = &rest[body.len()..];
            // where nothing is on its way before them none is left out
            prop_assert!(number > 1 || interim == before.len(), "{interim} of {before:?}");
        }
        prop_assert_eq!(rest, "");
    }
}
