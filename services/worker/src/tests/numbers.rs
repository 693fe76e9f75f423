//! The numbers of a balancer's connections: which are named, when, and what is told of the balancers meanwhile.

use super::*;
use proto::worker::Presence;

/// The numbers after it are the same balancer's too.
const NUMBER: u64 = 0x00c0_ffee_0000_0007;
const BALANCER: u32 = 0x00c0_ffee;

fn numbered(method: &str, path: &str, number: u64) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nservery-pass: {PASS_TEXT}\r\n");
    format!("{head}servery-connection: {number:016x}\r\n")
}

async fn sent(address: SocketAddr, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// Until the answer's text has come.
async fn read_until(stream: &mut TcpStream, end: &str) {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        answer.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
}

fn presence(connections: u32, busy: u32) -> Vec<Presence> {
    vec![Presence { balancer: BALANCER, connections, busy, orphaned: 0 }]
}

#[tokio::test]
async fn a_connection_that_is_cut_during_a_request_is_named() {
    let gate = Gate::default();
    let mut worker = Worker::start(gate.router(), 2, PATIENCE).await;
    let stream = sent(worker.address, &format!("{}\r\n", numbered("GET", "/held", NUMBER))).await;
    let idle = sent(worker.address, &format!("{}\r\n", numbered("GET", "/", NUMBER + 1))).await;
    gate.entered.notified().await;
    let sum = worker.heartbeat(|sum| sum.presences == presence(2, 1)).await;
    assert_eq!((sum.busy, sum.settled), (1, vec![]));
    drop(stream);
    gate.left.notified().await;
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.busy, sum.presences), (vec![NUMBER], 0, presence(1, 0)));
    drop(idle);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.presences), (vec![NUMBER + 1], vec![]));
}

#[tokio::test]
async fn a_connection_keeps_its_first_number_and_is_named_once() {
    let mut worker = Worker::start(Gate::default().router(), 2, PATIENCE).await;
    let mut stream = sent(worker.address, &format!("{}\r\n", numbered("GET", "/", NUMBER))).await;
    read_until(&mut stream, "hello").await;
    stream.write_all(format!("{}\r\n", numbered("GET", "/", NUMBER + 1)).as_bytes()).await.unwrap();
    read_until(&mut stream, "hello").await;
    drop(stream);
    let mut last = sent(worker.address, &format!("{}\r\n", numbered("GET", "/", NUMBER + 2))).await;
    read_until(&mut last, "hello").await;
    drop(last);
    let sum = worker.heartbeat(|sum| sum.settled.contains(&(NUMBER + 2))).await;
    assert_eq!(sum.settled, [NUMBER, NUMBER + 2]);
    assert!(sum.service_us > 0 && sum.served == 3);
}

#[tokio::test]
async fn what_has_no_right_number_or_no_right_pass_is_never_named() {
    let mut worker = Worker::start(Gate::default().router(), 2, PATIENCE).await;
    let good = numbered("GET", "/", NUMBER);
    for bad in [
        good.replace(PASS_TEXT, "0aff11"),
        good.replace("00c0ffee00000007", "C0FFEE"),
        good.replace("servery-connection", "servery-connections"),
        format!("{good}servery-connection: 00c0ffee00000007\r\n"),
    ] {
        let mut stream = sent(worker.address, &format!("{bad}connection: close\r\n\r\n")).await;
        timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    }
    // one that has carried no request has nothing to settle
    drop(sent(worker.address, &good).await);
    let mut stream = sent(worker.address, &format!("{}\r\n", numbered("GET", "/", NUMBER + 1))).await;
    read_until(&mut stream, "hello").await;
    drop(stream);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.denied, sum.presences), (vec![NUMBER + 1], 1, vec![]));
}

#[tokio::test]
async fn a_request_that_is_refused_names_its_connection_too() {
    let limits = proto::worker::Limits { body_bytes: 10, ..Default::default() };
    let configure = Configure { limits: Some(limits), ..configure(1, PATIENCE) };
    let mut worker = Worker::start_as(Gate::default().router(), configure).await;
    let too_large = format!("{}content-length: 11\r\n\r\n", numbered("POST", "/", NUMBER));
    drop(sent(worker.address, &too_large).await);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.served), (vec![NUMBER], 0));
}

#[tokio::test]
async fn an_application_that_keeps_what_it_was_given_holds_no_name_back() {
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let hoard = move |request: Request<Body>| async move {
        let (parts, mut body) = request.into_parts();
        let read = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(read, "abcd");
        keep.lock().unwrap().push((parts, body));
        tokio::spawn(std::future::pending::<()>());
        "kept"
    };
    let mut worker = Worker::start(Router::new().route("/", axum::routing::post(hoard)), 1, PATIENCE).await;
    let whole = format!("{}content-length: 4\r\n\r\nabcd", numbered("POST", "/", NUMBER));
    let mut stream = sent(worker.address, &whole).await;
    read_until(&mut stream, "kept").await;
    drop(stream);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.busy, sum.presences), (vec![NUMBER], 0, vec![]));
    assert_eq!(kept.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_answer_that_was_whole_but_never_taken_names_its_connection() {
    const LARGE: usize = 64 << 20;
    let large = || async { Bytes::from(vec![0; LARGE]) };
    let mut worker = Worker::start(Router::new().route("/", get(large)), 1, PATIENCE).await;
    let stream = sent(worker.address, &format!("{}\r\n", numbered("GET", "/", NUMBER))).await;
    // the slot is free, and the answer's bytes are stuck behind a peer that reads none
    let sum = worker.heartbeat(|sum| sum.served == 1 && sum.presences == presence(1, 0)).await;
    assert_eq!((sum.busy, sum.settled), (0, vec![]));
    drop(stream);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!((sum.settled, sum.presences), (vec![NUMBER], vec![]));
}

#[tokio::test]
async fn a_tunnel_is_named_when_it_ends() {
    let router = Router::new().route(
        "/ws",
        get(|upgrade: WebSocketUpgrade| async {
            upgrade.on_upgrade(|mut socket| async move { while let Some(Ok(_)) = socket.recv().await {} })
        }),
    );
    let mut worker = Worker::start(router, 1, PATIENCE).await;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n";
    let head =
        format!("{}{upgrade}sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", numbered("GET", "/ws", NUMBER));
    let mut stream = sent(worker.address, &head).await;
    read_until(&mut stream, "\r\n\r\n").await;
    let sum = worker.heartbeat(|sum| sum.served == 1 && sum.busy == 0).await;
    assert_eq!((sum.settled, sum.presences), (vec![], vec![]), "no request comes on it any more");
    drop(stream);
    let sum = worker.heartbeat(|sum| !sum.settled.is_empty()).await;
    assert_eq!(sum.settled, [NUMBER]);
}
