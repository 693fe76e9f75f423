//! A request's whole path through real processes: client, balancer, worker and back, over HTTP/1.1 and HTTP/2.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use servery_harness::client::{self, Handshake, TlsVersion};
use servery_harness::{Client, Cluster, Plan, Protocol, Raw, Role, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

fn client_of(cluster: &Cluster, protocol: Protocol) -> std::sync::Arc<Client> {
    cluster.balancers[0].client(protocol)
}

#[tokio::test]
async fn three_nodes_get_a_third_each_and_every_worker_answers() {
    let cluster = Plan::new(SERVERY).nodes(3).workers(2).start().await;
    let mut by_node = BTreeMap::<String, u32>::new();
    let mut by_worker = BTreeMap::<String, u32>::new();
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        for _ in 0..1500 {
            let answer = client.get("/whoami").await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let who = answer.json().unwrap();
            let node = who["node"].as_str().unwrap().to_owned();
            *by_worker.entry(format!("{node} {}", who["worker"])).or_default() += 1;
            *by_node.entry(node).or_default() += 1;
        }
    }
    println!("{by_node:?} {by_worker:?}");
    assert_eq!(by_node.len(), 3, "{by_node:?}");
    assert!(by_node.values().all(|count| (900..=1100).contains(count)), "{by_node:?}");
    assert_eq!(by_worker.len(), 6, "{by_worker:?}");
}

#[tokio::test]
async fn the_application_learns_who_asks_for_what() {
    let cluster = Plan::new(SERVERY).start().await;
    let authority = format!("localhost:{}", cluster.balancers[0].https().port());
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        let answer = client.get("/whoami?a=b").await.unwrap();
        let expected = match protocol {
            Protocol::Http1 => http::Version::HTTP_11,
            Protocol::Http2 => http::Version::HTTP_2,
        };
        assert_eq!(answer.version, expected);
        let who = answer.json().unwrap();
        assert_eq!(who["scheme"], "https", "{who}");
        assert_eq!(who["host"], authority.as_str(), "{who}");
        assert_eq!(who["path"], "/whoami", "{who}");
        assert_eq!(who["client_ip"], "127.0.0.1", "{who}");
        assert_eq!(who["app"], "demo", "{who}");
        assert!(who["node"].as_str().unwrap().starts_with("node-0"), "{who}");
        assert_eq!(who["request_id"], answer.header("x-request-id"), "{who}");
        assert!(!answer.header("x-request-id").is_empty());
        let workers = cluster.nodes[0].workers();
        assert!(workers.iter().any(|worker| who["pid"] == worker.pid), "{who} is none of {workers:?}");

        let again = client.get("/whoami").await.unwrap();
        assert_ne!(again.header("x-request-id"), answer.header("x-request-id"), "two requests have one id");
    }
}

#[tokio::test]
async fn forwarding_fields_are_ours_unless_a_trusted_proxy_sent_them() {
    let spoofed = |client: &Client| {
        let mut request = client.request("GET", "/headers", client::empty()).unwrap();
        let headers = request.headers_mut();
        headers.insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
        headers.insert("x-forwarded-proto", "gopher".parse().unwrap());
        headers.insert("x-forwarded-host", "evil.example".parse().unwrap());
        headers.insert("x-forwarded-prefix", "/evil".parse().unwrap());
        headers.insert("forwarded", "for=203.0.113.9;proto=gopher".parse().unwrap());
        headers.insert("x-kept", "yes".parse().unwrap());
        request
    };
    let cluster = Plan::new(SERVERY).start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        let seen = client.send(spoofed(&client)).await.unwrap().text().to_lowercase();
        for lie in ["203.0.113.9", "gopher", "evil"] {
            assert!(!seen.contains(lie), "{lie} reached the application over {protocol:?}: {seen}");
        }
        for truth in ["x-forwarded-for", "127.0.0.1", "x-forwarded-proto", "x-forwarded-host", "x-kept"] {
            assert!(seen.contains(truth), "{truth} is missing over {protocol:?}: {seen}");
        }
    }
    drop(cluster);

    let cluster = Plan::new(SERVERY).with(Role::Balancer, r#"trusted_proxies = ["127.0.0.0/8"]"#).start().await;
    let client = client_of(&cluster, Protocol::Http1);
    let mut request = client.request("GET", "/whoami", client::empty()).unwrap();
    request.headers_mut().insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    let who = client.send(request).await.unwrap().json().unwrap();
    assert_eq!(who["client_ip"], "203.0.113.9", "{who}");
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let cluster = Plan::new(SERVERY).start().await;
    let client = client_of(&cluster, Protocol::Http1);
    let mut request = client.request("GET", "/headers", client::empty()).unwrap();
    let headers = request.headers_mut();
    headers.insert("connection", "keep-alive, x-secret-of-this-hop".parse().unwrap());
    headers.insert("x-secret-of-this-hop", "one".parse().unwrap());
    headers.insert("keep-alive", "timeout=5".parse().unwrap());
    headers.insert("proxy-connection", "keep-alive".parse().unwrap());
    headers.insert("te", "trailers, deflate".parse().unwrap());
    let seen = client.send(request).await.unwrap().text().to_lowercase();
    for field in ["x-secret-of-this-hop", "keep-alive", "proxy-connection", "deflate"] {
        assert!(!seen.contains(field), "{field} reached the application: {seen}");
    }
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let cluster = Plan::new(SERVERY).with(Role::Balancer, "public_https_port = 443").start().await;
    let at = cluster.balancers[0].http();
    // A browser keeps a 308 for ever: not on names that the next project will use too.
    for (host, status) in [("localhost", 307), ("127.0.0.1", 307), ("www.example.org", 308)] {
        let client = Client::plain(at, Protocol::Http1).asking_for(&format!("{host}:8080"));
        let answer = client.get("/a/b?c=d").await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{host}");
        assert_eq!(answer.header("location"), format!("https://{host}/a/b?c=d"));
    }
    drop(cluster);

    let cluster = Plan::new(SERVERY).start().await;
    let balancer = &cluster.balancers[0];
    let client = Client::plain(balancer.http(), Protocol::Http1);
    let answer = client.get("/").await.unwrap();
    assert_eq!(answer.header("location"), format!("https://localhost:{}/", balancer.https().port()));
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_sessions_resumed_on_any_core() {
    let cluster = Plan::new(SERVERY).with(Role::Balancer, "threads = 2").start().await;
    let balancer = &cluster.balancers[0];
    let root = balancer.data().join("identity/root.pem");
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let client = Client::with_tls_version(&root, balancer.https(), version).unwrap();
        let first = client.handshake().await.unwrap();
        assert_eq!(first, Handshake { version, resumed: false });
        for turn in 0..8 {
            let next = client.handshake().await.unwrap();
            assert!(next.resumed, "handshake {turn} after the first was a whole one again: {next:?}");
        }
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let cluster = Plan::new(SERVERY).start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        // Each piece is sent only after the one before has come back: nothing on the way collects a body.
        let (feed, body) = client::fed();
        feed.send(Bytes::from_static(b"piece 0")).await.unwrap();
        let request = client.request("POST", "/echo", body).unwrap();
        let mut echo = tokio::time::timeout(SOON, client.open(request)).await.expect("the head of the echo").unwrap();
        for turn in 0..5 {
            let expected = format!("piece {turn}");
            let mut heard = Vec::new();
            while heard.len() < expected.len() {
                let piece = tokio::time::timeout(SOON, echo.piece()).await;
                heard.extend(
                    piece.expect("the echo of a piece before the next is sent").unwrap().expect("more to come"),
                );
            }
            assert_eq!(heard, expected.as_bytes(), "{protocol:?}");
            if turn < 4 {
                feed.send(format!("piece {}", turn + 1).into()).await.unwrap();
            }
        }
        drop(feed);
        let rest = tokio::time::timeout(SOON, echo.rest()).await.expect("the end of the echo").unwrap();
        assert!(rest.is_empty(), "{protocol:?}: {rest:?} was never sent");

        // Much more than any buffer on the way, unharmed.
        let large: Bytes = (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let request = client.request("POST", "/echo", client::full(large.clone())).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body == large, "{} bytes came back for {}", answer.body.len(), large.len());
        let answer = client.get("/bytes/3000000").await.unwrap();
        assert_eq!(answer.body.len(), 3_000_000);
    }
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let cluster = Plan::new(SERVERY).start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        // A minute between two events: whoever waits for the whole body fails.
        let request = client.request("GET", "/stream/2/60000", client::empty()).unwrap();
        let mut events = tokio::time::timeout(SOON, client.open(request)).await.expect("the head").unwrap();
        assert_eq!(events.response.headers()["content-type"], "text/event-stream");
        let first = tokio::time::timeout(SOON, events.piece()).await.expect("the first event").unwrap().unwrap();
        assert!(String::from_utf8_lossy(&first).contains("data:"), "{first:?}");
    }
}

#[tokio::test]
async fn the_applications_own_answers_pass_unchanged() {
    let cluster = Plan::new(SERVERY).start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        for code in [201, 404, 418, 500, 503] {
            let answer = client.get(&format!("/status/{code}")).await.unwrap();
            assert_eq!(answer.status.as_u16(), code);
            assert_ne!(answer.header("content-type"), "application/problem+json", "{}", answer.text());
        }
        let hello = client.get("/hello").await.unwrap();
        assert_eq!(hello.text(), "Hello World!");
        let head = client.send(client.request("HEAD", "/hello", client::empty()).unwrap()).await.unwrap();
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    }
}

#[tokio::test]
async fn an_answer_of_our_own_is_problem_json_with_the_request_id() {
    let plan = Plan::new(SERVERY).with_tables("[[app_server.route]]\nprefix = \"/here\"\nstrip_prefix = true");
    let cluster = plan.start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        let answer = client.get("/elsewhere").await.unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert!(answer.header("proxy-status").contains("destination_not_found"), "{:?}", answer.headers);
        let problem = answer.json().unwrap();
        assert_eq!(problem["status"], 404, "{problem}");
        assert!(problem["title"].is_string(), "{problem}");
        let id = answer.header("x-request-id");
        assert!(!id.is_empty() && answer.text().contains(id), "{problem} lacks the id {id:?}");
        let internals = cluster.directory().to_string_lossy().into_owned();
        assert!(!answer.text().contains(&internals) && !answer.text().contains("127.0.0.1"), "{problem}");
    }
}

#[tokio::test]
async fn routes_are_picked_by_host_and_longest_prefix() {
    let plan = Plan::new(SERVERY).with_tables(
        r#"
        [[balancer.route]]
        prefix = "/old"
        redirect = "https://example.org/new"

        [[balancer.route]]
        prefix = "/shop"
        app = "demo"
        strip_prefix = true

        [[balancer.route]]
        prefix = "/shop/nobody"
        app = "nobody"

        [[balancer.route]]
        host = "other.example"
        redirect = "https://example.org/other"
        "#,
    );
    let cluster = plan.with(Role::Balancer, "queue_deadline = \"300ms\"").start().await;
    for protocol in Protocol::BOTH {
        let client = client_of(&cluster, protocol);
        let whole = client.get("/whoami").await.unwrap().json().unwrap();
        assert_eq!(whole["path"], "/whoami", "{whole}");
        let stripped = client.get("/shop/whoami").await.unwrap().json().unwrap();
        assert_eq!(stripped["app"], "demo", "{stripped}");
        let headers = client.get("/shop/headers").await.unwrap().text().to_lowercase();
        assert!(headers.contains("x-forwarded-prefix") && headers.contains("/shop"), "{headers}");

        // A prefix ends at a segment: /shopping is not in /shop.
        assert_eq!(client.get("/shopping").await.unwrap().status, 404);
        let answer = client.get("/old").await.unwrap();
        assert!(answer.status.is_redirection(), "{}", answer.status);
        assert!(answer.header("location").starts_with("https://example.org/new"), "{:?}", answer.headers);

        // An app without nodes queues until the deadline.
        let answer = client.get("/shop/nobody").await.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(!answer.header("retry-after").is_empty(), "{:?}", answer.headers);

        let mut request = client.request("GET", "/", client::empty()).unwrap();
        match protocol {
            Protocol::Http1 => drop(request.headers_mut().insert("host", "other.example".parse().unwrap())),
            Protocol::Http2 => *request.uri_mut() = "https://other.example/".parse().unwrap(),
        }
        let answer = client.send(request).await.unwrap();
        assert!(answer.header("location").starts_with("https://example.org/other"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_full_queue_is_told_at_once_and_who_waits_is_served() {
    let plan = Plan::new(SERVERY).with(Role::AppServer, "capacity = 1").with(Role::Balancer, "queue_length = 1");
    let cluster = plan.start().await;
    let balancer = &cluster.balancers[0];
    let state = async |name: &str, least: f64| {
        eventually(&format!("{name} to be {least}"), SOON, async || {
            let now = balancer.metrics().await?.sum(name, &[("app", "demo")]);
            anyhow::ensure!(now >= least, "it is {now}");
            Ok(())
        })
        .await;
    };
    let client = client_of(&cluster, Protocol::Http2);
    let ask = |path: &'static str| {
        let client = std::sync::Arc::clone(&client);
        tokio::spawn(async move { client.get(path).await.unwrap() })
    };
    let running = ask("/sleep/2000");
    state("servery_balancer_in_flight", 1.0).await;
    let waiting = ask("/whoami");
    state("servery_balancer_queue_depth", 1.0).await;
    let refused = client.get("/whoami").await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(!refused.header("retry-after").is_empty(), "{:?}", refused.headers);
    assert!(!running.is_finished(), "the refusal took as long as a place in the queue");
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(waiting.await.unwrap().status, 200);
    let metrics = balancer.metrics().await.unwrap();
    assert!(metrics.sum("servery_balancer_rejects_total", &[("reason", "queue_full")]) > 0.5);
}

#[tokio::test]
async fn every_request_has_one_line_in_the_access_log() {
    const FIELDS: [&str; 18] = [
        "ts",
        "request_id",
        "client_ip",
        "method",
        "host",
        "path",
        "proto",
        "status",
        "bytes_in",
        "bytes_out",
        "duration_ms",
        "queue_ms",
        "attempts",
        "app",
        "node",
        "worker",
        "reject",
        "trace_id",
    ];
    let cluster = Plan::new(SERVERY).with_tables("[[app_server.route]]\nprefix = \"/echo\"").start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.client(Protocol::Http2);
    let echo = client.request("POST", "/echo?secret=1", client::full("hello")).unwrap();
    let echoed = client.send(echo).await.unwrap();
    assert_eq!(echoed.text(), "hello");
    let refused = client.get("/nowhere").await.unwrap();
    assert_eq!(refused.status, 404);

    let line_of = async |id: &str| -> Value {
        eventually("the request's line", SOON, async || {
            let mut lines = balancer.access_log();
            lines.retain(|line| line["request_id"] == id);
            anyhow::ensure!(lines.len() == 1, "{} lines", lines.len());
            Ok(lines.remove(0))
        })
        .await
    };
    let line = line_of(echoed.header("x-request-id")).await;
    for field in FIELDS {
        assert!(line.get(field).is_some(), "{field} is missing in {line}");
    }
    assert_eq!(line["method"], "POST");
    assert_eq!(line["path"], "/echo", "the query string may hold secrets: {line}");
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes_in"], 5);
    assert_eq!(line["bytes_out"], 5);
    assert_eq!(line["attempts"], 1);
    assert_eq!(line["app"], "demo");
    assert_eq!(line["client_ip"], "127.0.0.1");
    assert!(line["node"].as_str().unwrap().starts_with("node-0"), "{line}");
    assert!(line["duration_ms"].is_number() && line["queue_ms"].is_number(), "{line}");
    assert!(line["proto"].as_str().unwrap().contains('2'), "{line}");
    assert!(line["reject"].is_null(), "{line}");

    let line = line_of(refused.header("x-request-id")).await;
    assert_eq!(line["status"], 404);
    assert_eq!(line["attempts"], 0);
    assert!(line["reject"].is_string(), "{line}");
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let cluster = Plan::new(SERVERY).workers(2).start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.client(Protocol::Http1);
    for _ in 0..20 {
        assert_eq!(client.get("/whoami").await.unwrap().status, 200);
    }
    assert_eq!(client.get("/status/500").await.unwrap().status, 500);

    let demo = ("app", "demo");
    eventually("the balancer's counters", SOON, async || {
        let metrics = balancer.metrics().await?;
        for (name, labels, expected) in [
            ("servery_balancer_requests_total", vec![demo, ("code_class", "2xx")], 20.0),
            ("servery_balancer_requests_total", vec![demo, ("code_class", "5xx")], 1.0),
            ("servery_balancer_request_duration_seconds_count", vec![demo], 21.0),
            ("servery_balancer_queue_wait_seconds_count", vec![demo], 21.0),
            ("servery_balancer_upstream_duration_seconds_count", vec![demo], 21.0),
            ("servery_balancer_in_flight", vec![demo], 0.0),
            ("servery_balancer_queue_depth", vec![demo], 0.0),
            ("servery_balancer_permits", vec![demo, ("state", "free")], 512.0),
            ("servery_balancer_permits", vec![demo, ("state", "held")], 0.0),
        ] {
            let found = metrics.sum(name, &labels);
            anyhow::ensure!(metrics.matching(name, &labels).next().is_some(), "no {name}{labels:?}");
            anyhow::ensure!((found - expected).abs() < 0.5, "{name}{labels:?} is {found}, not {expected}");
        }
        for name in [
            "servery_balancer_attempts_total",
            "servery_balancer_endpoints",
            "servery_balancer_nodes",
            "servery_balancer_connections",
            "servery_balancer_tls_handshakes_total",
            "servery_balancer_registrations_total",
            "servery_balancer_certificate_not_after_seconds",
        ] {
            anyhow::ensure!(metrics.sum(name, &[]) > 0.0, "{name} is missing or 0");
        }
        Ok(())
    })
    .await;
    eventually("the node's counters", SOON, async || {
        let metrics = cluster.nodes[0].metrics().await?;
        let requests = metrics.sum("servery_app_server_requests_total", &[]);
        anyhow::ensure!((requests - 21.0).abs() < 0.5, "{requests} requests");
        let workers = metrics.sum("servery_app_server_workers", &[("state", "ready")]);
        anyhow::ensure!((workers - 2.0).abs() < 0.5, "{workers} workers ready");
        anyhow::ensure!(metrics.sum("servery_app_server_streams", &[]) > 0.5, "no stream");
        Ok(())
    })
    .await;
    let metrics = cluster.sidecar.metrics().await.unwrap();
    for role in ["balancer", "app_server"] {
        let enrolled = metrics.sum("servery_cert_sidecar_enrolments_total", &[("role", role), ("result", "enrolled")]);
        assert!((enrolled - 1.0).abs() < 0.5, "{enrolled} enrolments of role {role}");
    }
}

#[tokio::test]
async fn a_draining_balancer_finishes_what_it_has_and_says_so() {
    let mut cluster = Plan::new(SERVERY).start().await;
    let clients = Protocol::BOTH.map(|protocol| client_of(&cluster, protocol));
    // Idle connections must not hold up the drain.
    let idle = Protocol::BOTH.map(|protocol| client_of(&cluster, protocol));
    for client in &idle {
        assert_eq!(client.get("/hello").await.unwrap().status, 200);
    }
    let slow = clients.clone().map(|client| tokio::spawn(async move { client.get("/sleep/1000").await }));
    let balancer = &cluster.balancers[0];
    eventually("both requests in flight", SOON, async || {
        let in_flight = balancer.metrics().await?.sum("servery_balancer_in_flight", &[("app", "demo")]);
        anyhow::ensure!(in_flight > 1.5, "{in_flight} in flight");
        Ok(())
    })
    .await;
    let stopping = cluster.balancers[0].stop();
    let answers = async {
        for (task, protocol) in slow.into_iter().zip(Protocol::BOTH) {
            let answer = task.await.unwrap().unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            if protocol == Protocol::Http1 {
                assert_eq!(answer.header("connection"), "close");
            }
        }
    };
    tokio::time::timeout(SOON, async { tokio::join!(stopping, answers) }).await.expect("well before the drain's limit");
    assert!(clients[0].get("/hello").await.is_err(), "a balancer that is gone answers");
}

#[tokio::test]
async fn malformed_requests_are_refused_and_do_no_harm() {
    let cluster = Plan::new(SERVERY).start().await;
    let balancer = &cluster.balancers[0];
    for bad in ["\0\0\0\0\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\n\r\n"] {
        let mut raw = Raw::dial(balancer.http()).await.unwrap();
        raw.send(bad).await.unwrap();
        let answer = raw.until("\r\n\r\n").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?} was answered with {answer:?}");
    }
    let client = balancer.client(Protocol::Http1);
    assert_eq!(client.get("/hello").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_program_of_the_users_own_serves_as_worker() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("my-app");
    std::fs::write(&program, format!("#!/bin/sh\nMINE=yes exec {SERVERY} worker\n")).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let plan = Plan::new(SERVERY).workers(2).with(Role::AppServer, &format!("exec = {program:?}"));
    let cluster = plan.start().await;
    let client = client_of(&cluster, Protocol::Http1);
    let who = client.get("/whoami").await.unwrap().json().unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", who["pid"])).unwrap();
    assert!(String::from_utf8_lossy(&environment).contains("MINE=yes"), "{who}");
}

#[tokio::test]
async fn a_websocket_goes_through_and_leaves_the_one_slot_to_others() {
    let cluster = Plan::new(SERVERY).workers(1).with(Role::AppServer, "capacity = 1").start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.client(Protocol::Http1);
    let mut socket = client.raw().await.unwrap();
    socket
        .send(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await
        .unwrap();
    let head = socket.until("\r\n\r\n").await.unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    // the answer to this key, as RFC 6455 section 1.3 gives it
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    let tunnels = async || balancer.metrics().await.unwrap().sum("servery_balancer_tunnels", &[("app", "demo")]);
    assert!((tunnels().await - 1.0).abs() < f64::EPSILON);
    for word in ["one", "two", "six"] {
        // a text frame whose mask is zero
        let mut frame = vec![0x81, 0x80 | 3, 0, 0, 0, 0];
        frame.extend_from_slice(word.as_bytes());
        socket.send(frame).await.unwrap();
        socket.until(word).await.unwrap();
        assert_eq!(client.get("/hello").await.unwrap().status, 200, "the slot is free");
    }
    drop(socket);
    eventually("the end of the tunnel", SOON, async || {
        let open = tunnels().await;
        anyhow::ensure!(open < 0.5, "{open} tunnels");
        Ok(())
    })
    .await;
    let of_it = |line: &Value| line["path"] == "/ws" && line["status"] == 101 && line["bytes_in"] == 27;
    eventually("its line in the access log", SOON, async || {
        let log = balancer.access_log();
        anyhow::ensure!(log.iter().any(of_it), "{log:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_an_application_that_knows_only_http1() {
    let cluster = Plan::new(SERVERY).workers(1).with(Role::AppServer, "capacity = 1").start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.client(Protocol::Http2);
    let mut request = client.request("CONNECT", "/ws", client::empty()).unwrap();
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let response = client.open(request).await.unwrap().response;
    assert_eq!(response.status(), 200);
    let mut socket = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    for word in [b"one", b"two", b"six"] {
        // a text frame whose mask is zero, and the same without one
        socket.write_all(&[0x81, 0x80 | 3, 0, 0, 0, 0]).await.unwrap();
        socket.write_all(word).await.unwrap();
        let mut echo = [0; 5];
        socket.read_exact(&mut echo).await.unwrap();
        assert_eq!((&echo[..2], &echo[2..]), (&[0x81, 3][..], &word[..]));
        assert_eq!(client.get("/hello").await.unwrap().status, 200, "the slot and the connection are for others too");
    }
    drop(socket);
    let of_it = |line: &Value| line["path"] == "/ws" && line["method"] == "CONNECT" && line["bytes_in"] == 27;
    eventually("its line in the access log", SOON, async || {
        let log = balancer.access_log();
        anyhow::ensure!(log.iter().any(of_it), "{log:?}");
        Ok(())
    })
    .await;
}
