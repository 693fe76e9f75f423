//! The balancer's access log in a file that is rotated while requests run, and one that cannot be written at all.

use std::{fs, time::Duration};

use servery_harness::{Plan, Protocol, Role, Signal, ensure, eventually};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_log_that_is_rotated_loses_no_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let lines = format!("access_log = {path:?}\naccess_log_format = \"combined\"\naccess_log_query = true");
    let mut cluster = Plan::new(SERVERY).plain().with(Role::Balancer, &lines).start().await;
    let balancer = &mut cluster.balancers[0];
    let client = balancer.plain_client(Protocol::Http1);
    let moved = |round: usize| directory.path().join(format!("access.log.{round}"));
    let mut asked = 0;
    for round in 0..3 {
        for _ in 0..50 {
            assert_eq!(client.get(&format!("/hello?number={asked}")).await.unwrap().status, 200);
            asked += 1;
        }
        fs::rename(&path, moved(round)).unwrap();
        balancer.signal(Signal::USR1);
        eventually("a new file to be there", SOON, async || ensure(path.exists(), || "there is none".to_owned())).await;
    }
    assert_eq!(client.get(&format!("/hello?number={asked}")).await.unwrap().status, 200);
    balancer.stop().await;
    assert!(balancer.access_log().is_empty(), "nothing on stdout");

    let files: Vec<String> =
        (0..3).map(moved).chain([path.clone()]).map(|path| fs::read_to_string(path).unwrap()).collect();
    assert!(files.last().unwrap().contains(&format!("number={asked} ")), "what came last is in the last");
    let text = files.concat();
    for number in 0..=asked {
        let wanted = format!("\"GET /hello?number={number} HTTP/1.1\" 200 ");
        assert_eq!(text.lines().filter(|line| line.contains(&wanted)).count(), 1, "{wanted} in:\n{text}");
    }
}

#[tokio::test]
async fn a_disk_that_is_full_stops_no_request() {
    let cluster = Plan::new(SERVERY).plain().with(Role::Balancer, "access_log = \"/dev/full\"").start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.plain_client(Protocol::Http1);
    for _ in 0..5 {
        assert_eq!(client.get("/hello").await.unwrap().status, 200);
    }
    eventually("the lost lines to be counted", SOON, async || {
        let lost = balancer.metrics().await.unwrap().sum("servery_balancer_access_log_lost_lines_total", &[]);
        ensure(lost >= 5.0, || format!("{lost} are"))
    })
    .await;
    let told = balancer.log().iter().filter(|line| line.contains("the access log cannot be written")).count();
    assert_eq!(told, 1, "{:?}", balancer.log());
}

#[tokio::test]
async fn a_file_that_cannot_be_made_is_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no/access.log");
    let data = directory.path().join("data");
    let words = [
        "balancer",
        "--http",
        "127.0.0.1:0",
        "--https",
        "off",
        "--control",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--data",
        data.to_str().unwrap(),
        "--access-log",
        path.to_str().unwrap(),
    ];
    let ended = servery_harness::run(SERVERY, &words, &[]).await;
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("no/access.log") && ended.stderr.contains("directory"), "{}", ended.stderr);
}
