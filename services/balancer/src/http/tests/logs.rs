//! What the access log says of whom, and in which form.

use super::*;

/// One request after the other on one connection, each answered with this status by the worker.
async fn served(plane: &Plane, requests: &[(&str, u16)]) {
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    for (request, code) in requests {
        client.send(request).await;
        let mut upstream = worker.accept().await;
        upstream.head().await;
        upstream.send(&format!("HTTP/1.1 {code} X\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")).await;
        assert_eq!(client.response().await.1, "ok");
    }
}

#[tokio::test]
async fn the_combined_format_has_what_nginx_logs_and_nothing_breaks_its_line() {
    let plane = Plane::start("access_log_format = \"combined\"\naccess_log_query = true");
    let request =
        "GET /a%22b?q=1&r=2 HTTP/1.1\r\nhost: a\r\nreferer: https://b.org/\"x\\\r\nuser-agent: caf\u{e9} \"}\r\n\r\n";
    served(&plane, &[(request, 200), ("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n", 404)]).await;
    let log = plane.finish_text().await;
    let lines: Vec<&str> = log.lines().map(|line| line.split_once("] ").unwrap().1).collect();
    assert_eq!(
        lines,
        [
            "\"GET /a%22b?q=1&r=2 HTTP/1.1\" 200 2 \"https://b.org/\\x22x\\x5C\" \"caf\\xC3\\xA9 \\x22}\"",
            "\"GET / HTTP/1.0\" 404 2 \"-\" \"-\"",
        ]
    );
    assert!(log.lines().all(|line| line.starts_with("127.0.0.1 - - [") && line.contains(" +0000] ")), "{log}");
}

#[tokio::test]
async fn a_query_and_who_sent_it_are_not_logged_unless_somebody_wants_that() {
    let request = "GET /a?token=secret HTTP/1.1\r\nhost: a\r\nreferer: r\r\nuser-agent: u\r\n\r\n";
    for (settings, query, agent) in [
        ("", false, false),
        ("access_log_query = true", true, false),
        ("access_log_format = \"combined\"", false, true),
    ] {
        let plane = Plane::start(settings);
        served(&plane, &[(request, 200)]).await;
        let log = plane.finish_text().await;
        assert_eq!((log.contains("secret"), log.contains("\"u\"")), (query, agent), "{log}");
    }
}

#[tokio::test]
async fn of_a_sample_what_went_wrong_is_never_left_out() {
    let plane = Plane::start("access_log_sample = 0");
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    served(&plane, &[(request, 200), (request, 404), (request, 500), (request, 503)]).await;
    let mut client = plane.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a b\r\n\r\n").await;
    assert!(client.head().await.starts_with("http/1.1 400"));
    drop(client);
    let log = plane.finish().await;
    let mut told: Vec<_> = log.iter().map(|line| (line["status"].as_u64().unwrap(), line["reject"].as_str())).collect();
    told.sort_unstable();
    assert_eq!(told, [(400, Some("bad_host")), (500, None), (503, None)]);
}

#[tokio::test]
async fn a_sample_is_about_as_large_as_it_should_be() {
    let plane = Plane::start("access_log_sample = 0.5");
    served(&plane, &[("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200); 100]).await;
    // one in ten million fails by chance
    assert!((25..=75).contains(&plane.finish().await.len()));
}

#[tokio::test]
async fn no_log_is_written_where_it_is_off() {
    let plane = Plane::start("access_log = \"off\"");
    served(&plane, &[("GET / HTTP/1.1\r\nhost: a\r\n\r\n", 500)]).await;
    assert_eq!(plane.finish_text().await, "");
}
