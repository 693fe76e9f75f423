use super::*;
use crate::authority::peer;
use chassis::identity::Role;
use proptest::prelude::*;
use proto::registry::{Restarts, Route, Worker};

const OWN: &str = "10.0.0.7:40000";

pub(crate) fn worker(position: u32, generation: u64, port: u32, grant: u32) -> Worker {
    Worker {
        position,
        generation,
        port,
        state: registry::WorkerState::Ready.into(),
        pid: 1,
        capacity: grant.max(1),
        grant,
        ..Worker::default()
    }
}

pub(crate) fn hello(app: &str, prefix: &str, workers: Vec<Worker>) -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        app: app.to_owned(),
        routes: vec![Route { host: String::new(), prefix: prefix.to_owned(), strip_prefix: false }],
        pass: vec![7; 32],
        advertise: String::new(),
        report: Some(Report { sequence: 1, workers, settled: Vec::new(), lack: None }),
        heartbeat_ms: 1000,
        timeout_ms: 0,
    }
}

fn judge(change: impl FnOnce(&mut Hello)) -> Result<Registration, Refusal> {
    let mut hello = hello("demo", "/shop", vec![worker(0, 1, 9000, 4), worker(1, 1, 9001, 4)]);
    change(&mut hello);
    let peer = peer(Role::AppServer, "node-1", &[("demo", &["/shop"]), ("other", &["/"])]);
    admit(&hello, &peer, OWN.parse().unwrap(), &["192.0.2.0/24".parse().unwrap(), "0.0.0.0/32".parse().unwrap()])
}

#[test]
fn a_good_hello_comes_in_with_what_it_says() {
    let registration = judge(|_| {}).unwrap();
    assert_eq!(registration.app, "demo");
    assert_eq!((registration.node.instance.as_str(), registration.node.timeout), ("node-1", None));
    assert_eq!(registration.routes.len(), 1);
    let addresses: Vec<String> = registration.workers.iter().map(|worker| worker.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.7:9000", "10.0.0.7:9001"]);
    assert_eq!(registration.sequence, Some(1));
    assert_eq!(registration.silence, Duration::from_secs(2));
    let registration = judge(|hello| hello.timeout_ms = 30_000).unwrap();
    assert_eq!(registration.node.timeout, Some(Duration::from_secs(30)));
}

#[test]
fn neighbouring_protocol_versions_work_together() {
    for (version, good) in
        [(0, false), (PROTOCOL_VERSION, true), (PROTOCOL_VERSION + 1, true), (PROTOCOL_VERSION + 2, false)]
    {
        let judged = judge(|hello| hello.protocol_version = version);
        assert_eq!(judged.is_ok(), good, "{version}");
        assert!(good || matches!(judged, Err(Refusal::Version { .. })));
    }
}

#[test]
fn only_what_the_certificate_names_may_be_claimed() {
    for (app, prefix, good) in [
        ("demo", "/shop", true),
        ("demo", "/shop/cart", true),
        ("demo", "/shop/", true),
        ("demo", "/shopping", false),
        ("demo", "/", false),
        ("other", "/anything", true),
    ] {
        let judged = judge(|hello| {
            hello.app = app.to_owned();
            hello.routes[0].prefix = prefix.to_owned();
        });
        assert_eq!(judged.is_ok(), good, "{app} {prefix}: {judged:?}");
        assert!(good || matches!(judged, Err(Refusal::Prefix { .. })));
    }
    assert_eq!(judge(|hello| hello.app = "third".to_owned()).unwrap_err(), Refusal::App("third".to_owned()));
    assert_eq!(judge(|hello| hello.app = "No Name".to_owned()).unwrap_err(), Refusal::AppName);
}

#[test]
fn workers_are_at_the_nodes_own_address_or_an_allowed_one() {
    for (advertise, wanted) in [
        ("", Some("10.0.0.7:9000")),
        ("10.0.0.7", Some("10.0.0.7:9000")),
        ("::ffff:10.0.0.7", Some("10.0.0.7:9000")),
        ("192.0.2.9", Some("192.0.2.9:9000")),
        ("10.0.0.8", None),
        ("0.0.0.0", None),
        ("169.254.169.254", None),
        ("127.0.0.1", None),
        ("node-1", None),
    ] {
        let judged = judge(|hello| hello.advertise = advertise.to_owned());
        let address = judged.as_ref().ok().map(|registration| registration.workers[0].address.to_string());
        assert_eq!(address.as_deref(), wanted, "{advertise}: {judged:?}");
        assert!(wanted.is_some() || matches!(judged, Err(Refusal::Advertised(_))));
    }
    // A dual-stack listener sees an IPv4 peer as an IPv6 address.
    let hello = hello("demo", "/", vec![worker(0, 1, 9000, 1)]);
    let peer = peer(Role::AppServer, "n", &[("demo", &["/"])]);
    let registration = admit(&hello, &peer, "[::ffff:10.0.0.7]:40000".parse().unwrap(), &[]).unwrap();
    assert_eq!(registration.workers[0].address, "10.0.0.7:9000".parse().unwrap());
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    type Change = fn(&mut Hello);
    let cases: [(&str, Change); 14] = [
        ("pass", |hello| hello.pass.truncate(31)),
        ("pass", |hello| hello.pass.push(0)),
        ("heartbeat_ms", |hello| hello.heartbeat_ms = 0),
        ("heartbeat_ms", |hello| hello.heartbeat_ms = 60_001),
        ("number of routes", |hello| hello.routes = vec![hello.routes[0].clone(); 65]),
        ("length of a prefix", |hello| hello.routes[0].prefix = format!("/shop/{}", "a".repeat(2000))),
        ("length of a prefix", |hello| hello.routes[0].prefix.clear()),
        ("port", |hello| first(hello).port = 1023),
        ("port", |hello| first(hello).port = 65_536 + 9000),
        ("capacity", |hello| first(hello).capacity = 0),
        ("capacity", |hello| first(hello).capacity = 65_537),
        ("grant", |hello| first(hello).grant = 5),
        ("number of workers", |hello| {
            hello.report.as_mut().unwrap().workers = (0..513).map(|n| worker(n, 1, 2000 + n, 1)).collect();
        }),
        ("host name", |hello| hello.routes[0].host = "a b".to_owned()),
    ];
    for (word, change) in cases {
        let refusal = judge(change).unwrap_err();
        assert!(refusal.to_string().contains(word), "{word}: {refusal}");
        assert_eq!(refusal.code(), tonic::Code::InvalidArgument);
    }
}

fn first(hello: &mut Hello) -> &mut Worker {
    &mut hello.report.as_mut().unwrap().workers[0]
}

#[test]
fn what_is_only_shown_is_shown_within_bounds_and_refuses_nobody() {
    let registration = judge(|hello| {
        let first = first(hello);
        first.age_ms = 61_500;
        first.memory_bytes = 1 << 40;
        first.cpu_millicores = 250;
        first.causes = ["crash", "out_of_memory", "", "Crash", "exit 1", "\"", &"a".repeat(32), &"a".repeat(33)]
            .map(|cause| Restarts { cause: cause.to_owned(), count: 3 })
            .to_vec();
    })
    .unwrap();
    let worker = &registration.workers[0];
    assert_eq!(worker.age, Duration::from_millis(61_500));
    assert_eq!((worker.memory_bytes, worker.cpu_millicores), (1 << 40, 250));
    let causes: Vec<&str> = worker.restarts_by_cause.keys().map(String::as_str).collect();
    assert_eq!(causes, ["a".repeat(32).as_str(), "crash", "out_of_memory"]);
    assert!(worker.restarts_by_cause.values().all(|count| *count == 3));
    let registration = judge(|hello| {
        let letters = (b'a'..=b'z').chain(b'a'..=b'z').enumerate();
        first(hello).causes = letters
            .map(|(at, letter)| Restarts { cause: char::from(letter).to_string().repeat(1 + at / 26), count: 1 })
            .collect();
    });
    assert_eq!(registration.unwrap().workers[0].restarts_by_cause.len(), CAUSES_MAX);
}

#[test]
fn nothing_is_named_twice() {
    let twice = judge(|hello| hello.routes.push(hello.routes[0].clone()));
    assert_eq!(twice.unwrap_err(), Refusal::SameRoute("/shop".to_owned()));
    let worker_twice = judge(|hello| {
        let workers = &mut hello.report.as_mut().unwrap().workers;
        workers[1].position = 0;
    });
    assert_eq!(worker_twice.unwrap_err(), Refusal::SameWorker("position and generation"));
    let port_twice = judge(|hello| first(hello).port = 9001);
    assert_eq!(port_twice.unwrap_err(), Refusal::SameWorker("port"));
    // A replacement runs beside the one that it replaces.
    judge(|hello| {
        let workers = &mut hello.report.as_mut().unwrap().workers;
        workers[1].position = 0;
        workers[1].generation = 2;
    })
    .unwrap();
}

#[test]
fn every_known_state_comes_in_as_itself() {
    for (said, state) in [
        (registry::WorkerState::Starting, WorkerState::Starting),
        (registry::WorkerState::Ready, WorkerState::Ready),
        (registry::WorkerState::Draining, WorkerState::Draining),
        (registry::WorkerState::Stalled, WorkerState::Stalled),
    ] {
        let registration = judge(|hello| first(hello).state = said.into()).unwrap();
        assert_eq!(registration.workers[0].state, state);
    }
}

#[test]
fn a_state_that_is_not_known_takes_nothing() {
    let registration = judge(|hello| first(hello).state = 99).unwrap();
    assert_eq!(registration.workers[0].state, WorkerState::Starting);
}

proptest! {
    /// Whatever a node says, what comes in is within bounds and at an allowed place.
    #[test]
    fn what_comes_in_is_within_bounds(
        version in 0_u32..4, heartbeat_ms: u32, pass in prop::collection::vec(any::<u8>(), 30..34), advertise in "|10\\.0\\.0\\.[78]|192\\.0\\.2\\.1|[a-z0-9.:]{0,12}",
        workers in prop::collection::vec((0_u32..3, 0_u64..2, 0_u32..70_000, 0_u32..70_000, 0_u32..70_000, -1_i32..6), 0..4),
        prefix in "/(shop)?/?[a-z/.%]{0,8}",
    ) {
        let judged = judge(|hello| {
            hello.protocol_version = version;
            hello.heartbeat_ms = heartbeat_ms;
            hello.pass = pass;
            hello.advertise = advertise;
            hello.routes[0].prefix = prefix;
            hello.report.as_mut().unwrap().workers = workers.into_iter().map(|(position, generation, port, capacity, grant, state)| {
                Worker { position, generation, port, capacity, grant, state, ..Worker::default() }
            }).collect();
        });
        if let Ok(registration) = judged {
            prop_assert!(registration.silence >= HEARTBEAT_MIN * 2 && registration.silence <= HEARTBEAT_MAX * 2);
            for worker in &registration.workers {
                prop_assert!(u32::from(worker.address.port()) >= PORT_MIN);
                prop_assert!(worker.grant <= worker.capacity && worker.capacity <= CAPACITY_MAX);
                let ip = worker.address.ip().to_string();
                prop_assert!(ip == "10.0.0.7" || ip.starts_with("192.0.2."), "{}", ip);
            }
            for route in &registration.routes {
                let prefix = route.prefix.as_str();
                prop_assert!(prefix == "/shop" || prefix.starts_with("/shop/"), "{}", prefix);
            }
        }
    }
}
