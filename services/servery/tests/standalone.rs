//! A node that serves clients by itself, without a balancer: its socket, its connections, whom it believes, and its limits.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rogue::Program;
use serde_json::Value;
use servery_harness::{
    Client, Load, Process, Protocol, Raw, Signal, Site, StandalonePlan, WorkerRow, eventually, forget_servery, run,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

fn plan() -> StandalonePlan {
    StandalonePlan::new(SERVERY)
}

/// Sends these bytes on a connection of their own; everything that came back until the server closed it.
async fn say(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut connection = Raw::dial(address).await.unwrap();
    // A server that has seen enough may have closed already.
    let _ = connection.send(bytes).await;
    connection.to_the_end().await.unwrap()
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n{fields}Connection: close\r\n\r\n")
}

fn body_of(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {answer}"))
}

fn status_of(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or("none")
}

fn directory() -> TempDir {
    tempfile::Builder::new().prefix("servery-alone-").tempdir().unwrap()
}

#[tokio::test]
async fn flags_alone_make_a_server() {
    let (site, data) = (Site::claim(), directory());
    let [address, admin] = [0, 1].map(|port| site.at(1, port));
    let mut command = Command::new(SERVERY);
    forget_servery(&mut command);
    command.args(["app", "--workers", "2", "--bind", &address.to_string(), "--admin", &admin.to_string(), "--data"]);
    command.arg(data.path());
    let process = Process::spawn("servery app --bind", command).unwrap();
    let client = Client::plain(address, Protocol::Http1);
    let begun = Instant::now();
    let answer = eventually("an answer", SOON, async || client.get("/hello").await).await;
    println!("the first answer after {:?}", begun.elapsed());
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello World!"));
    assert!(answer.header("servery-refused").is_empty());
    process.terminate(SOON).await;
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_and_closed_when_there_is_none() {
    let node = plan().with("keepalive = \"2s\"").start().await;
    let mut connection = Raw::dial(node.address()).await.unwrap();
    for path in ["/status/201", "/status/202", "/status/203"] {
        connection.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n")).await.unwrap();
        connection.until(&format!("HTTP/1.1 {}", &path[8..])).await.unwrap();
    }
    let answered = Instant::now();
    let all = connection.to_the_end().await.unwrap();
    let idle = answered.elapsed();
    println!("an idle connection was closed after {idle:?}");
    assert!(Duration::from_millis(1900) < idle && idle < Duration::from_secs(4), "{idle:?}");
    assert_eq!(all.matches("HTTP/1.1 ").count(), 3, "{all}");

    let asked = Instant::now();
    let answer = say(node.address(), get("/hello", "")).await;
    assert!(answer.to_ascii_lowercase().contains("connection: close") && answer.ends_with("Hello World!"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(1), "closed {:?} after it was asked to be", asked.elapsed());
}

#[tokio::test]
async fn a_unix_socket_serves_and_a_stale_one_is_replaced() {
    let directory = directory();
    let path = directory.path().join("app.sock");
    let mut node = plan().bind(&format!("unix:{}", path.display())).start().await;
    let hello = async || {
        let mut connection = Raw::dial_unix(&path).await?;
        connection.send(get("/hello", "X-Forwarded-Proto: https\r\n")).await?;
        connection.to_the_end().await
    };
    assert!(hello().await.unwrap().ends_with("Hello World!"));
    // A second one is told that this one is there.
    let bind = format!("unix:{}", path.display());
    let second = run(SERVERY, &["app", "--bind", &bind, "--admin", "off", "--workers", "1"], &[]).await;
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.stderr.contains("app.sock"), "{second:?}");
    assert!(hello().await.unwrap().ends_with("Hello World!"), "the first one is not harmed");

    node.kill().await;
    assert!(path.exists(), "nobody could remove it");
    node.start();
    node.ready().await;
    assert!(hello().await.unwrap().ends_with("Hello World!"));
    node.stop().await;
    assert!(!path.exists(), "it is gone with the node");
}

#[tokio::test]
async fn four_requests_at_once_go_to_four_workers() {
    let program = Program::new();
    let plan = plan().alone().workers(4).with("capacity = 1").with(&program.line());
    let node = plan.start().await;
    let mut makespans = Vec::new();
    for round in 0..20 {
        let begun = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..4 {
            asking.spawn(say(node.address(), get("/nap/300", "")));
        }
        let answers = asking.join_all().await;
        makespans.push(begun.elapsed());
        let workers: BTreeSet<_> = answers.iter().map(|answer| answer.lines().last().unwrap_or_default()).collect();
        assert_eq!(workers.len(), 4, "round {round}: {answers:?}");
    }
    makespans.sort();
    let median = makespans[makespans.len() / 2];
    println!("20 rounds of four times 300 ms: median {median:?}, longest {:?}", makespans.last().unwrap());
    assert!(median <= Duration::from_millis(345), "{makespans:?}");
}

#[tokio::test]
async fn what_comes_while_every_worker_is_busy_waits_for_its_turn() {
    let node = plan().alone().with("capacity = 1").start().await;
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for _ in 0..6 {
        asking.spawn(say(node.address(), get("/sleep/200", "")));
    }
    for answer in asking.join_all().await {
        assert!(answer.ends_with("slept 200 ms\n"), "{answer}");
    }
    println!("six times 200 ms, one at a time: {:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(1200), "they were not served one at a time");
}

#[tokio::test]
async fn nobody_waits_at_a_busy_worker_while_another_one_is_free() {
    let program = Program::new();
    let node = plan().alone().workers(2).with("capacity = 1").with(&program.line()).start().await;
    let begun = Instant::now();
    let long = tokio::spawn(say(node.address(), get("/nap/3000", "")));
    let short = tokio::spawn(say(node.address(), get("/nap/300", "")));
    let both_busy = |rows: &[WorkerRow]| rows.iter().all(|row| row.busy == 1);
    node.rows_with("two busy workers", SOON, both_busy).await;
    let mut asking = JoinSet::new();
    for _ in 0..6 {
        asking.spawn(say(node.address(), get("/nap/20", "")));
    }
    for answer in asking.join_all().await {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    println!("six that came while both were busy are done after {:?}", begun.elapsed());
    assert!(!long.is_finished(), "they waited for the busier one");
    assert!(short.await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(long.await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_only_worker_is_replaced_and_no_client_notices() {
    let node = plan().alone().with("keepalive = \"3s\"").start().await;
    let clients = || vec![node.client(Protocol::Http1), node.client(Protocol::Http1)];
    let quick = Load::start(clients(), "/whoami", 50);
    let slow = Load::start(clients(), "/sleep/100", 50);
    quick.answered(25).await;
    for _ in 0..3 {
        let before = node.ready_rows(1, SOON).await;
        node.signal(Signal::HUP);
        node.replaced(&before, 1, SOON).await;
        quick.answered(25).await;
    }
    let slow = slow.stop_without_failure().await;
    let quick = quick.stop_without_failure().await;
    println!("0 of {} failed, the slowest took {:?}", slow.ok + quick.ok, quick.latency(100));
}

#[tokio::test]
async fn forwarding_fields_are_believed_of_those_only_who_are_trusted() {
    const CLAIMS: &str = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: bank.test\r\n\
                          Forwarded: for=203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nX_Forwarded_For: 203.0.113.9\r\n\
                          X-Request-Id: 0123456789abcdef0123456789abcdef\r\n";
    let node = plan().start().await;
    let seen = body_of(&say(node.address(), get("/headers", CLAIMS)).await);
    println!("of a stranger: {seen}");
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_ne!(seen["x-forwarded-host"], "bank.test");
    assert_ne!(seen["x-request-id"], "0123456789abcdef0123456789abcdef");
    assert!(!seen.to_string().contains("203.0.113.9"), "{seen}");

    let node = plan().with("forwarded_allow_ips = [\"127.0.0.0/8\"]").start().await;
    let seen = body_of(&say(node.address(), get("/headers", CLAIMS)).await);
    println!("of a trusted peer: {seen}");
    assert_eq!(seen["x-forwarded-for"], "203.0.113.9, 127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "https");
    assert_eq!(seen["x-forwarded-host"], "bank.test");
    assert_eq!(seen["x-request-id"], "0123456789abcdef0123456789abcdef");
}

/// Version 2 of the PROXY protocol: 203.0.113.7:5555 speaks to 192.0.2.1:80.
fn proxy_v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x21, 0x11, 0, 12, 203, 0, 113, 7, 192, 0, 2, 1]);
    header.extend([5555_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat());
    header
}

#[tokio::test]
async fn the_proxy_protocol_says_who_the_client_is() {
    const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 5555 80\r\n";
    let request = get("/headers", "");
    let behind = |header: &[u8]| [header, request.as_bytes()].concat();

    let node = plan().with("proxy_protocol = \"auto\"").start().await;
    for header in [V1, &proxy_v2()] {
        let seen = body_of(&say(node.address(), behind(header)).await);
        assert_eq!(seen["x-forwarded-for"], "203.0.113.7", "{seen}");
    }
    // A balancer's own health check: its address is the connection's.
    for header in [b"PROXY UNKNOWN\r\n".as_slice(), b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"] {
        let seen = body_of(&say(node.address(), behind(header)).await);
        assert_eq!(seen["x-forwarded-for"], "127.0.0.1", "{seen}");
    }
    // In pieces, as a network may bring it.
    let mut connection = Raw::dial(node.address()).await.unwrap();
    for piece in behind(&proxy_v2()).chunks(5) {
        connection.send(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(body_of(&connection.to_the_end().await.unwrap())["x-forwarded-for"], "203.0.113.7");
    for bad in ["", "PROXY TCP4 nonsense\r\n", "PROXY TCP4 203.0.113.7 192.0.2.1 5555 99999\r\n"] {
        let answer = say(node.address(), behind(bad.as_bytes())).await;
        assert!(!answer.contains("200 OK"), "{bad:?} was taken: {answer}");
    }
    node.logged(&["WARN", "PROXY"]).await;

    let node = plan().with("proxy_protocol = \"v2\"").start().await;
    assert_eq!(body_of(&say(node.address(), behind(&proxy_v2())).await)["x-forwarded-for"], "203.0.113.7");
    assert!(!say(node.address(), behind(V1)).await.contains("200 OK"), "the other version was taken");

    let node = plan().with("proxy_protocol = \"v1\"").with("proxy_allow_ips = [\"192.0.2.0/24\"]").start().await;
    let answer = say(node.address(), behind(V1)).await;
    assert!(!answer.contains("200 OK"), "a stranger was believed: {answer}");
}

#[tokio::test]
async fn what_a_client_makes_too_large_or_too_slow_has_a_status_of_its_own() {
    let program = Program::new();
    let mut plan = plan().with(&program.line());
    for line in [
        "limit_request_line = 512",
        "limit_request_fields = 10",
        "limit_request_field_size = 256",
        "max_body = \"1KiB\"",
        "header_timeout = \"500ms\"",
        "body_timeout = \"500ms\"",
    ] {
        plan = plan.with(line);
    }
    let node = plan.start().await;
    let long = |length: usize| "x".repeat(length);
    let many: String = (0..20).map(|number| format!("X-Field-{number}: 1\r\n")).collect();
    let post = |fields: &str, body: &str| format!("POST /take HTTP/1.1\r\nHost: shop.test\r\n{fields}\r\n{body}");
    let chunked = format!("7d0\r\n{}\r\n0\r\n\r\n", long(2000));
    for (what, bytes, status) in [
        ("a request line of 600 bytes", get(&format!("/hello?{}", long(590)), ""), "414"),
        ("22 fields", get("/hello", &many), "431"),
        ("a field of 300 bytes", get("/hello", &format!("X-Field: {}\r\n", long(300))), "431"),
        ("a body said to be of 2000 bytes", post("Content-Length: 2000\r\n", &long(2000)), "413"),
        ("a body that turns out to be of 2000 bytes", post("Transfer-Encoding: chunked\r\n", &chunked), "413"),
        ("a head that does not end", "GET /hello HTTP/1.1\r\nHost: sho".to_owned(), "408"),
        ("a body that does not go on", post("Content-Length: 100\r\n", "some of it"), "408"),
        ("no host", "GET /hello HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "400"),
    ] {
        let asked = Instant::now();
        let answer = say(node.address(), bytes).await;
        println!("{what}: {} after {:?}", status_of(&answer), asked.elapsed());
        assert_eq!(status_of(&answer), status, "{what}: {answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{what}: closed after {:?}", asked.elapsed());
    }
    let body = post("Content-Length: 1000\r\nConnection: close\r\n", &long(1000));
    assert!(say(node.address(), body).await.ends_with("1000"));
    let line = format!("/hello?{}", long(400));
    assert_eq!(status_of(&say(node.address(), get(&line, "")).await), "200");
}
