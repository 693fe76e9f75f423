use super::{Estate, Opened, parcel};
use crate::{
    registry::Inherited,
    route::{HostPattern, Prefix},
};
use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

fn opened(cores: usize) -> Opened {
    let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
    Opened {
        http: (0..cores).map(|_| socket()).collect(),
        https: (0..cores).map(|_| socket()).collect(),
        control: socket(),
        admin: None,
    }
}

fn ports(opened: &Opened) -> Vec<u16> {
    let sockets = opened.http.iter().chain(&opened.https).chain([&opened.control]).chain(&opened.admin);
    sockets.map(|socket| socket.local_addr().unwrap().port()).collect()
}

#[test]
fn more_sockets_than_go_at_once_arrive_in_order_with_the_routes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sent = Estate { opened: opened(80), lock: tempfile::tempfile().unwrap() };
    let route = |host: &str| Inherited {
        app: "shop".to_owned(),
        host: HostPattern::parse(host).unwrap(),
        prefix: Prefix::parse("/cart").unwrap(),
        strip_prefix: true,
    };
    let routes = ["", "a.example.org", "*.example.org", "[::1]"].map(route);
    parcel::send(&ours, &sent, &routes).unwrap();
    let (Estate { opened: received, lock }, inherited) = parcel::receive(&theirs).unwrap();
    assert_eq!((ports(&received), inherited), (ports(&sent.opened), routes.to_vec()));
    // held by both, until the last one ends
    sent.lock.try_lock().unwrap();
    assert!(lock.try_lock().is_ok());
    assert!(received.admin.is_none());
    // the same queue: who came before the old one closed is accepted by the new one
    let address = sent.opened.control.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    drop(sent);
    received.control.accept().unwrap();
}

#[test]
fn half_a_parcel_is_none() {
    let whole = br#"{"version":1,"http":1,"https":1,"admin":false,"routes":[]}"#;
    let later = br#"{"version":2,"http":1,"https":1,"admin":false,"routes":[]}"#;
    let greedy = br#"{"version":1,"http":18446744073709551615,"https":1,"admin":false,"routes":[]}"#;
    for (text, length, word) in [
        (&whole[..], whole.len(), "ended before"),
        (&whole[..], whole.len() + 1, "fill"),
        (&whole[..], usize::MAX, "too long"),
        (&later[..], later.len(), "version"),
        (&greedy[..], greedy.len(), "more sockets"),
    ] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ours.write_all(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()).unwrap();
        ours.write_all(text).unwrap();
        drop(ours);
        let error = parcel::receive(&theirs).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
