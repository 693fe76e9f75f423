//! How registrations end: by silence, by a lost stream, in good order, by what the balancer knows.

use super::*;

#[tokio::test(start_paused = true)]
async fn two_heartbeats_of_silence_end_a_registration() {
    let house = House::new();
    let mut node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    for sequence in 2..6 {
        sleep(Duration::from_millis(1900)).await;
        node.report(sequence, vec![worker(0, 1, 9000, 1)]).await;
        assert_eq!(node.hear().await, acknowledged(sequence));
    }
    let heard = Instant::now();
    assert_eq!(node.ended().await, Some(Code::DeadlineExceeded));
    assert_eq!(heard.elapsed().as_millis() / 10, 200);
    assert_eq!(house.endpoints(), []);
}

#[tokio::test(start_paused = true)]
async fn a_lost_stream_takes_the_node_out_at_once_and_its_routes_stay() {
    let house = House::new();
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    node.say.send(Err(Status::unavailable("connection reset"))).await.unwrap();
    assert_eq!(node.ended().await, None);
    assert_eq!(house.endpoints(), []);
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    let Node { say, task, hear } = node;
    drop(say);
    task.await.unwrap();
    drop(hear);
    assert_eq!(house.endpoints(), []);
    assert_eq!(house.leads_to("/x").as_deref(), Some("demo"), "requests must be able to wait for the next node");
}

#[tokio::test(start_paused = true)]
async fn a_leaving_node_gets_nothing_new_and_is_told_when_nothing_is_in_flight() {
    let house = House::new();
    let mut node = house.node("node-1", vec![worker(0, 1, 9000, 2)]).await;
    let in_flight = permit(&house).await.unwrap();
    node.say(from_node::Message::Leaving(Leaving {})).await;
    node.hears_nothing().await;
    assert!(permit(&house).await.is_err());
    assert!(house.terms.directory.members()[0].leaving);
    // It still reports; that brings it back for nobody.
    node.report(2, vec![worker(0, 1, 9000, 2)]).await;
    assert_eq!(node.hear().await, acknowledged(2));
    assert!(permit(&house).await.is_err());
    drop(in_flight);
    assert_eq!(node.hear().await, from_balancer::Message::Left(Left {}));
    node.hears_nothing().await;
}

#[tokio::test(start_paused = true)]
async fn a_denied_instance_is_ended_and_does_not_come_back() {
    let house = House::new();
    let bad = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    let good = house.node("node-2", vec![worker(0, 1, 9000, 1)]).await;
    house.terms.directory.deny(HashSet::from(["node-1".to_owned()]));
    assert_eq!(house.endpoints().len(), 1, "out of rotation before the stream has ended");
    assert_eq!(bad.ended().await, Some(Code::PermissionDenied));
    let again = house.open("node-1");
    again.hello(hello("demo", "/", vec![worker(0, 1, 9000, 1)])).await;
    assert_eq!(again.ended().await, Some(Code::PermissionDenied));
    house.terms.directory.deny(HashSet::new());
    house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    drop(good);
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_certificate() {
    let house = House::new();
    let mut peer = peer(Role::AppServer, "node-1", &[("demo", &["/"])]);
    peer.not_after = SystemTime::now() + Duration::from_secs(30);
    let mut node = house.open_as(peer);
    let mut patient = hello("demo", "/", vec![worker(0, 1, 9000, 1)]);
    patient.heartbeat_ms = 60_000;
    node.hello(patient).await;
    node.welcomed().await;
    let started = Instant::now();
    assert_eq!(node.ended().await, Some(Code::Unauthenticated));
    assert!((29..=30).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(house.endpoints(), []);
}

#[tokio::test(start_paused = true)]
async fn a_balancer_that_stops_ends_every_stream() {
    let house = House::new();
    let (silent, speaking) = (house.open("node-1"), house.node("node-2", vec![worker(0, 1, 9000, 1)]).await);
    house.terms.stopping.cancel();
    assert_eq!(speaking.ended().await, Some(Code::Unavailable));
    assert_eq!(silent.ended().await, Some(Code::Unavailable));
    assert_eq!(house.endpoints(), []);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_cannot_be_ends_the_registration() {
    let house = House::new();
    let node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    node.report(2, vec![worker(0, 1, 22, 1)]).await;
    assert_eq!(node.ended().await, Some(Code::InvalidArgument));
    assert_eq!(house.endpoints(), []);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_taken_over_keeps_its_workers_and_its_heir_knows_the_routes() {
    let old = House::new();
    let node = old.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    let legacy = old.terms.directory.legacy();
    old.terms.directory.freeze();
    old.terms.stopping.cancel();
    assert_eq!(node.ended().await, Some(Code::Unavailable));
    assert_eq!(old.endpoints().len(), 1);
    drop(permit(&old).await.unwrap());

    let heir = House::new();
    assert_eq!(heir.leads_to("/anything"), None);
    heir.terms.directory.inherit(legacy.clone());
    assert_eq!((heir.leads_to("/anything").as_deref(), heir.terms.directory.legacy()), (Some("demo"), legacy));
    assert!(heir.endpoints().is_empty());
    // what is inherited belongs to nobody who lives: another app's node may have it
    let mut other = heir.open("node-2");
    other.hello(hello("other", "/", vec![worker(0, 1, 9000, 1)])).await;
    other.welcomed().await;
    assert_eq!(heir.leads_to("/anything").as_deref(), Some("other"));
}
