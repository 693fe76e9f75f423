//! A server that does something wrong with every other request, and clients that each know what their own answer is.

use super::*;
use rand::{RngExt as _, SeedableRng, rngs::SmallRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const CLIENTS: usize = 6;
const REQUESTS: usize = 150;
/// What would be somebody else's answer.
const STRAY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstray";

/// Answers with the path that was asked for, or does something else. False: the connection is over.
async fn answer(peer: &mut Peer, path: &str, rng: &mut SmallRng) -> bool {
    let length = path.len();
    let good = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
    let chunked = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{path}\r\n0\r\n\r\n");
    let (text, goes_on) = match rng.random_range(0..14) {
        0..4 => (good, true),
        4 => (chunked, true),
        5 => (good + STRAY, true),
        6 => (chunked + STRAY, true),
        7 => (good.replace("200 OK\r\n", "200 OK\r\nconnection: close\r\n") + STRAY, false),
        8 => (format!("HTTP/1.1 103 Early Hints\r\n\r\n{good}"), true),
        9 => (good.replace(&format!(": {length}"), &format!(": {}", length + 5)), false),
        10 => (chunked.trim_end_matches("0\r\n\r\n").to_owned(), false),
        11 => (format!("{good}{good}"), true),
        12 => ("garbage\r\n\r\n".to_owned() + &good, true),
        _ => (String::new(), false),
    };
    peer.0.write_all(text.as_bytes()).await.is_ok() && goes_on
}

async fn misbehave(server: Worker, seed: u64) {
    let mut peers = JoinSet::new();
    for number in 0.. {
        let (stream, mut rng) = (server.accept().await, SmallRng::seed_from_u64(seed + number));
        peers.spawn(async move {
            let mut peer = stream;
            let mut head = Vec::new();
            while let Ok(byte) = peer.0.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                    let path = text.split(' ').nth(1).unwrap();
                    if !answer(&mut peer, path, &mut rng).await {
                        return;
                    }
                }
            }
        });
    }
}

/// The head and body of a response as far as they came, and whether that was all of it.
async fn response(peer: &mut Peer) -> (String, String, bool) {
    let mut head = peer.head().await;
    while head.starts_with("http/1.1 103 ") {
        head = peer.head().await;
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: Option<usize> = length.map(|length| length.parse().unwrap());
    let mut body = String::new();
    let whole = |body: &str| length.map_or_else(|| body.ends_with("0\r\n\r\n"), |length| body.len() == length);
    while !whole(&body) {
        match soon(peer.0.read_u8()).await {
            Ok(byte) => body.push(byte.into()),
            Err(_) => return (head, body, false),
        }
    }
    (head, body, true)
}

/// How many answers were whole.
async fn ask(front: SocketAddr, client: usize) -> usize {
    let connect = async || Peer(tokio::net::TcpStream::connect(front).await.unwrap());
    let (mut peer, mut answered) = (connect().await, 0);
    for number in 0..REQUESTS {
        let path = format!("/{client}/{number}");
        peer.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let (head, body, whole) = response(&mut peer).await;
        if head.starts_with("http/1.1 200") {
            let chunked = format!("{:x}\r\n{path}\r\n0\r\n\r\n", path.len());
            let is_own =
                if whole { body == path || body == chunked } else { format!("{path}{chunked}").contains(&body) };
            assert!(is_own, "{path} was answered with {head}{body}");
            answered += usize::from(whole);
        } else {
            assert!(head.starts_with("http/1.1 502") && whole, "{path} was answered with {head}{body}");
        }
        if !whole || head.contains("connection: close") {
            peer = connect().await;
        }
    }
    answered
}

#[tokio::test]
async fn whatever_a_server_does_nobody_gets_the_answer_of_another() {
    let (front, server) = Front::of_one("", KEPT).await;
    let seed = rand::random_range(0..u64::MAX / 2);
    println!("seed {seed}");
    let serving = tokio::spawn(misbehave(server, seed));
    let mut clients: JoinSet<_> = (0..CLIENTS).map(|client| ask(front.http, client)).collect();
    let mut answered = 0;
    while let Some(client) = clients.join_next().await {
        answered += client.unwrap();
    }
    println!("{answered} of {} were answered", CLIENTS * REQUESTS);
    assert!(answered > CLIENTS * REQUESTS / 2, "{answered}");
    eventually(|| front.held() == 0).await;
    assert_eq!(front.unsettled(), 0);
    serving.abort();
}
