//! A real browser in front of the real balancer. Where no Chromium is installed (`apt-get install chromium`) it is skipped, and
//! says so; `SERVERY_TEST_BROWSER` names another program that takes its flags.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::response::Html;
use axum::routing::{any, get};
use servery_harness::{Plan, Process, ensure, eventually};
use tokio::net::TcpListener;

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

/// A browser takes its time to start, on a busy machine above all.
const SOON: Duration = Duration::from_secs(60);

/// Says a word to a WebSocket, and tells the server what it has heard.
const PAGE: &str = "<!doctype html><title>Servery</title><script>
const socket = new WebSocket(`wss://${location.host}/ws`);
socket.onopen = () => socket.send('hello');
socket.onmessage = (message) => fetch(`/heard/${message.data}`);
socket.onerror = () => fetch('/heard/an-error');
</script>";

fn browser() -> Option<String> {
    let named = std::env::var("SERVERY_TEST_BROWSER").ok();
    let usual = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    named.into_iter().chain(usual).find(|program| {
        let mut asked = Command::new(program);
        asked.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    })
}

async fn echo(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// What serves the page; and what the page has told it.
async fn application() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let told = Arc::clone(&heard);
    let router = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/ws", any(|upgrade: WebSocketUpgrade| async { upgrade.on_upgrade(echo) }))
        .route("/heard/{word}", get(async move |Path(word): Path<String>| told.lock().unwrap().push(word)));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, heard)
}

#[tokio::test]
async fn a_browser_opens_its_websocket_on_the_http2_connection_that_it_has() {
    let Some(program) = browser() else {
        println!("skipped: there is no Chromium on this machine");
        return;
    };
    let (address, heard) = application().await;
    let route = format!("[[balancer.route]]\nname = \"page\"\nupstream = \"http://{address}\"\n");
    let cluster = Plan::new(SERVERY).nodes(0).with_tables(&route).start().await;
    let balancer = &cluster.balancers[0];
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(&program);
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
    // what vouches for the balancer here is a root that no browser knows
    command.args(["--ignore-certificate-errors", "--remote-debugging-port=0"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("https://{}/", balancer.https()));
    let process = Process::spawn(&program, command).unwrap();
    eventually("what the page has heard", SOON, async || {
        let heard = heard.lock().unwrap().clone();
        ensure(!heard.is_empty(), || "nothing".to_owned())
    })
    .await;
    assert_eq!(*heard.lock().unwrap(), ["hello"]);
    process.kill().await;

    // its line is written when the socket has ended
    eventually("the socket's line", SOON, async || {
        let log = balancer.access_log();
        let socket = log.iter().find(|line| line["path"] == "/ws").cloned();
        let so = |line: &serde_json::Value| {
            line["method"] == "CONNECT" && line["proto"] == "HTTP/2" && line["status"] == 200
        };
        ensure(socket.as_ref().is_some_and(so), || format!("{log:?}"))
    })
    .await;
}
