//! A worker behind a proxy that speaks the PROXY protocol, and what it writes into its access log.

use super::{alone::alone, *};
use proto::worker::{Limits, ProxyProtocol, Reopen};

const HEADER: &str = "PROXY TCP4 192.0.2.7 192.0.2.1 1000 80\r\n";
const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 1.2.3.4\r\nconnection: close\r\n\r\n";

fn proxied(change: impl FnOnce(&mut proto::worker::Edge)) -> Configure {
    let mut configure = alone(1, PATIENCE);
    let edge = configure.edge.as_mut().unwrap();
    edge.set_proxy_protocol(ProxyProtocol::Auto);
    change(edge);
    Configure { limits: Some(Limits { header_ms: 200, ..Limits::default() }), ..configure }
}

fn told() -> Router {
    Router::new().route("/", get(|headers: HeaderMap| async move { format!("{:?}", headers["x-forwarded-for"]) }))
}

async fn answered(address: SocketAddr, parts: &[&str]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for part in parts {
        // the worker may have closed already
        let _ = stream.write_all(part.as_bytes()).await;
    }
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn the_address_is_the_one_that_the_proxy_names_and_trust_goes_by_it() {
    let worker = Worker::start_as(told(), proxied(|_| {})).await;
    for parts in [vec![HEADER, REQUEST], vec![&HEADER[..9], &HEADER[9..], REQUEST]] {
        assert!(answered(worker.address, &parts).await.ends_with("\"192.0.2.7\""));
    }
    let trusting = proxied(|edge| edge.forwarded_allow_ips = vec!["192.0.2.0/24".to_owned()]);
    let worker = Worker::start_as(told(), trusting).await;
    assert!(answered(worker.address, &[HEADER, REQUEST]).await.ends_with("\"1.2.3.4, 192.0.2.7\""));
    assert!(answered(worker.address, &["PROXY UNKNOWN\r\n", REQUEST]).await.ends_with("\"127.0.0.1\""));
}

#[tokio::test]
async fn a_connection_without_a_header_or_from_a_stranger_is_closed() {
    let worker = Worker::start_as(told(), proxied(|_| {})).await;
    assert_eq!(answered(worker.address, &[REQUEST]).await, "");
    assert_eq!(answered(worker.address, &["PROXY TCP4 nobody\r\n", REQUEST]).await, "");
    assert_eq!(answered(worker.address, &[&HEADER[..9]]).await, "", "one that does not arrive");
    assert!(answered(worker.address, &[HEADER, REQUEST]).await.ends_with("\"192.0.2.7\""), "the slot is free again");

    let strict = proxied(|edge| edge.proxy_allow_ips = vec!["192.0.2.0/24".to_owned()]);
    let worker = Worker::start_as(told(), strict).await;
    assert_eq!(answered(worker.address, &[HEADER, REQUEST]).await, "");
}

#[tokio::test]
async fn each_request_has_its_line_in_the_file_that_has_the_name_then() {
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    let configure = proxied(|edge| edge.access_log = path.to_str().unwrap().to_owned());
    let mut worker =
        Worker::start_as(told().route("/echo", axum::routing::post(|body: Bytes| async { body })), configure).await;
    answered(worker.address, &[HEADER, REQUEST]).await;
    answered(worker.address, &[HEADER, "GET / HTTP/1.1\r\nconnection: close\r\n\r\n"]).await;
    worker.heartbeat(|sum| sum.codes.iter().map(|code| code.count).sum::<u64>() == 2 && sum.busy == 0).await;

    std::fs::rename(&path, &moved).unwrap();
    worker.order(Order::Reopen(Reopen {})).await;
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let post = "POST /echo?q=1 HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\nconnection: close\r\n\r\nabcde";
    answered(worker.address, &["PROXY UNKNOWN\r\n", post]).await;
    worker.order(Order::Stop(Stop {})).await;
    assert!(worker.end().await.is_ok());

    let lines = |path: &std::path::Path| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let before = lines(&moved);
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!((&before[0]["status"], &before[0]["client_ip"]), (&200.into(), &"192.0.2.7".into()));
    assert_eq!((&before[1]["status"], &before[1]["host"]), (&400.into(), &serde_json::Value::Null));
    assert_eq!(before[0]["request_id"].as_str().unwrap().len(), 32);
    let after = lines(&path);
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!((&after[0]["path"], &after[0]["client_ip"]), (&"/echo".into(), &"127.0.0.1".into()));
    assert_eq!((&after[0]["bytes_in"], &after[0]["bytes_out"]), (&5.into(), &5.into()));
    assert_eq!(
        (&after[0]["app"], &after[0]["node"], &after[0]["worker"]),
        (&"demo".into(), &"node-1".into(), &3.into())
    );
}
