//! SIGHUP to a balancer: what changes, what does not, and what becomes of a file with mistakes, all under load.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use servery_harness::{Load, Member, Plan, Protocol, Raw, Role, Signal, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// Which configuration is in force, and how many were refused.
async fn versions(balancer: &Member) -> (f64, f64) {
    let metrics = balancer.metrics().await.unwrap();
    let refused = metrics.sum("servery_balancer_config_reloads_total", &[("result", "refused")]);
    (metrics.sum("servery_balancer_config_version", &[]), refused)
}

async fn becomes(balancer: &Member, wanted: (f64, f64)) {
    eventually(&format!("version and refusals to be {wanted:?}"), SOON, async || {
        let now = versions(balancer).await;
        ensure(now == wanted, || format!("they are {now:?}"))
    })
    .await;
}

/// A WebSocket that repeats what it is told.
async fn websocket(balancer: &Member) -> Raw {
    let mut raw = Raw::dial(balancer.http()).await.unwrap();
    raw.send(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await
    .unwrap();
    raw.until("\r\n\r\n").await.unwrap();
    raw
}

/// Says something over it, masked by nothing, and waits for the echo.
async fn echoes(websocket: &mut Raw, word: &str) {
    let mut frame = vec![0x81, 0x80 | u8::try_from(word.len()).unwrap(), 0, 0, 0, 0];
    frame.extend(word.as_bytes());
    websocket.send(frame).await.unwrap();
    websocket.until(word).await.unwrap();
}

#[tokio::test]
async fn a_reload_is_in_force_for_what_comes_next_and_fails_nothing() {
    let cluster = Plan::new(SERVERY).plain().with(Role::Balancer, "queue_deadline = \"9s\"").alone().start().await;
    let balancer = &cluster.balancers[0];
    let file = balancer.config_file();
    let first = std::fs::read_to_string(&file).unwrap();
    let client = balancer.plain_client(Protocol::Http1);
    let load = Load::start(vec![client.clone()], "/whoami", 100);
    let mut tunnel = websocket(balancer).await;
    echoes(&mut tunnel, "before").await;
    assert_eq!(versions(balancer).await, (1.0, 0.0));

    let route = "[[balancer.route]]\nprefix = \"/moved\"\nredirect = \"https://example.org/new\"\n";
    let good = first.replace("queue_deadline = \"9s\"", "queue_deadline = \"9s\"\nmax_body = \"10B\"") + route;
    std::fs::write(&file, &good).unwrap();
    balancer.signal(Signal::HUP);
    becomes(balancer, (2.0, 0.0)).await;
    let moved = client.get("/moved/1?a=b").await.unwrap();
    assert_eq!((moved.status.as_u16(), moved.header("location")), (308, "https://example.org/new/1?a=b"));
    let large = client.request("POST", "/echo", servery_harness::client::full("more than ten bytes")).unwrap();
    assert_eq!(client.send(large).await.unwrap().status, 413);

    let bad = good.replace("10B", "a lot") + "[[balancer.route]]\nprefix = \"nowhere\"\napp = \"demo\"\n";
    let line = |word: &str| bad.lines().position(|line| line.contains(word)).unwrap() + 1;
    std::fs::write(&file, &bad).unwrap();
    balancer.signal(Signal::HUP);
    becomes(balancer, (2.0, 1.0)).await;
    for (word, key) in [("a lot", "balancer.max_body"), ("nowhere", "prefix")] {
        balancer.logged(&["ERROR", &format!("servery.toml:{}: ", line(word)), key]).await;
    }
    assert_eq!(client.get("/moved").await.unwrap().status, 308);

    // an address cannot change; the rest of the file is in force
    let port = |port: u16| cluster.site().at(20, port).to_string();
    let admin = balancer.admin().to_string();
    std::fs::write(&file, first.replace(&admin, &port(9)).replace("9s", "8s")).unwrap();
    balancer.signal(Signal::HUP);
    becomes(balancer, (3.0, 1.0)).await;
    balancer.logged(&["WARN", "balancer.admin", "next start"]).await;
    assert_eq!(client.get("/moved").await.unwrap().status, 404, "the demo has no such page");

    echoes(&mut tunnel, "after").await;
    load.stop_without_failure().await;
}

#[tokio::test]
async fn a_hundred_reloads_are_felt_by_nobody() {
    let cluster = Plan::new(SERVERY).plain().alone().start().await;
    let balancer = &cluster.balancers[0];
    let file = balancer.config_file();
    let first = std::fs::read_to_string(&file).unwrap();
    let load = Load::start(vec![balancer.plain_client(Protocol::Http1)], "/whoami", 200);
    let mut tunnel = websocket(balancer).await;
    for round in 0..100 {
        let route = format!(
            "[[balancer.route]]\nprefix = \"/r{round}\"\napp = \"demo\"\nreserve = 1\n[[balancer.route]]\nprefix = \"/\"\napp = \"demo\"\n"
        );
        std::fs::write(&file, format!("{first}{route}")).unwrap();
        balancer.signal(Signal::HUP);
        becomes(balancer, (f64::from(round) + 2.0, 0.0)).await;
        echoes(&mut tunnel, &format!("round {round}.")).await;
    }
    load.stop_without_failure().await;
}
