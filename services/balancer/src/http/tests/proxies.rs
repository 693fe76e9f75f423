//! Behind somebody else's proxy: whose word counts, and for what.

use super::*;

const TRUSTING: &str = "trusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]\ndebug_networks = [\"203.0.113.0/24\"]";

#[tokio::test]
async fn tls_that_a_trusted_proxy_has_taken_off_is_not_asked_for_again() {
    let plane = Plane::start_with(TRUSTING, Some(8443));
    let worker = plane.worker().await;
    for says in ["X-Forwarded-Proto: https", "Forwarded: for=203.0.113.5;proto=https"] {
        let mut client = plane.client().await;
        client.send(&format!("GET /a HTTP/1.1\r\nhost: a.org\r\n{says}\r\n\r\n")).await;
        let head = worker.accept().await.answer("ok").await;
        assert!(head.contains("x-forwarded-proto: https\r\n") && head.contains("x-forwarded-port: 443\r\n"), "{head}");
        assert!(head.contains("host: a.org\r\n"), "{head}");
        assert_eq!(client.response().await.1, "ok");
    }
    for says in
        ["X-Forwarded-Proto: http", "X-Forwarded-Proto: https, http", "Forwarded: for=203.0.113.5;proto=http", "A: b"]
    {
        let mut client = plane.client().await;
        client.send(&format!("GET /a HTTP/1.1\r\nhost: a.org\r\n{says}\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.1 308") && head.contains("location: https://a.org:8443/a\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_stranger_who_says_that_it_came_over_tls_is_redirected() {
    let plane = Plane::start_with("trusted_proxies = [\"10.0.0.0/8\"]", Some(8443));
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=10.0.0.1;proto=https\r\n\r\n")
        .await;
    assert!(client.head().await.starts_with("http/1.1 308"));
    worker.expect_nobody().await;
}

#[tokio::test]
async fn the_client_that_a_trusted_proxy_names_is_the_client_everywhere() {
    let plane = Plane::start(TRUSTING);
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    for (fields, address, told) in [
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.5, 10.0.0.1\r\n", "203.0.113.5", true),
        ("Forwarded: for=6.6.6.6, for=203.0.113.5, for=10.0.0.1\r\n", "203.0.113.5", true),
        // only its own claim
        ("X-Forwarded-For: 203.0.113.5, 198.51.100.7\r\n", "198.51.100.7", false),
        ("", "127.0.0.1", false),
    ] {
        client.send(&format!("GET / HTTP/1.1\r\nhost: a\r\nServery-Debug: 1\r\n{fields}\r\n")).await;
        let mut upstream = worker.accept().await;
        let head = upstream.answer("").await;
        let list = head.lines().find_map(|line| line.strip_prefix("x-forwarded-for: ")).unwrap();
        assert_eq!(list.split(", ").next(), Some(address), "{head}");
        assert!(head.contains(&format!("forwarded: for={address}")), "{head}");
        let (answer, _) = client.response().await;
        assert_eq!(answer.contains("servery-debug: "), told, "{answer}");
        // the next one gets a connection of its own, so that one test reads each
        upstream.0.shutdown().await.unwrap();
        assert_eq!(upstream.rest().await, "");
    }
    let log = plane.finish().await;
    let clients: Vec<_> = log.iter().map(|line| line["client_ip"].as_str().unwrap()).collect();
    assert_eq!(clients, ["203.0.113.5", "203.0.113.5", "198.51.100.7", "127.0.0.1"]);
}

#[tokio::test]
async fn connection_cannot_name_away_what_we_say() {
    let plane = Plane::start("");
    let worker = plane.worker().await;
    let mut client = plane.client().await;
    let names =
        "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port, Forwarded, X-Request-Id, Servery-Pass";
    client.send(&format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: {names}\r\nx-forwarded-for: 6.6.6.6\r\n\r\n")).await;
    let head = worker.accept().await.answer("").await;
    for field in [
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: a\r\n",
        "x-forwarded-port: 80\r\n",
        "forwarded: for=127.0.0.1;host=\"a\";proto=http\r\n",
        "x-request-id: ",
        "servery-pass: abcd\r\n",
    ] {
        assert_eq!(head.matches(field).count(), 1, "{field} in {head}");
    }
}
