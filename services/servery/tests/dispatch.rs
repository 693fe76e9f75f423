//! One queue for the whole cluster: a request goes to a slot that is known to be free, wherever it is, and to no other. Workers
//! have one slot here, so that every mistake is a wait. Each time is told beside that of a bare control in the same run.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod rogue;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rogue::Program;
use servery_harness::client::empty;
use servery_harness::{
    Answer, Client, Cluster, Crowd, DEBUG_HEADER, Dispatched, Member, Plan, Protocol, Role, Slow, Visit, ensure,
    evenly, eventually, percentile,
};

const SERVERY: &str = env!("CARGO_BIN_EXE_servery");

const SOON: Duration = Duration::from_secs(30);

/// So many one-slot workers on each of two nodes.
fn one_slot_each(workers: u8) -> Plan {
    let plan = Plan::new(SERVERY).alone().nodes(2).workers(workers);
    plan.with(Role::AppServer, "capacity = 1").with(Role::Balancer, r#"debug_networks = ["127.0.0.0/8"]"#)
}

/// A GET, and how it was dispatched.
async fn ask(client: &Client, path: &str) -> (Answer, Dispatched) {
    let mut request = client.request("GET", path, empty()).unwrap();
    request.headers_mut().insert(DEBUG_HEADER, "1".parse().unwrap());
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let dispatched = answer.dispatched().unwrap();
    (answer, dispatched)
}

/// So many at once.
async fn ask_together(client: &Client, path: &str, count: usize) -> Vec<Dispatched> {
    join_all((0..count).map(|_| ask(client, path))).await.into_iter().map(|(_, dispatched)| dispatched).collect()
}

fn workers_of(dispatched: &[Dispatched]) -> BTreeSet<&(String, u32)> {
    dispatched.iter().map(|dispatched| &dispatched.to).collect()
}

/// What the nodes' workers have sent back to the balancers.
async fn refused(cluster: &Cluster) -> f64 {
    let mut sum = 0.0;
    for node in &cluster.nodes {
        sum += node.metrics().await.unwrap().sum("servery_app_server_requests_refused_total", &[]);
    }
    sum
}

/// Waits until `count` requests are at workers.
async fn in_work(balancer: &Member, count: f64) {
    eventually(&format!("{count} requests at workers"), SOON, async || {
        let now = balancer.metrics().await?.sum("servery_balancer_in_flight", &[("app", "demo")]);
        anyhow::ensure!((now - count).abs() < 0.5, "there are {now}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn four_requests_at_once_are_at_four_workers_and_none_of_them_waits() {
    const ROUNDS: usize = 15;
    const IDEAL: Duration = Duration::from_millis(300);
    let cluster = one_slot_each(2).start().await;
    for protocol in Protocol::BOTH {
        let client = cluster.balancers[0].client(protocol);
        ask_together(&client, "/sleep/10", 4).await;
        let (mut makespans, mut controls, mut waits) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let began = Instant::now();
            let dispatched = ask_together(&client, "/sleep/300", 4).await;
            makespans.push(began.elapsed());
            assert_eq!(workers_of(&dispatched).len(), 4, "round {round}: {dispatched:?}");
            let at_once = |one: &Dispatched| one.attempts == 1 && one.why != "queued";
            assert!(dispatched.iter().all(at_once), "round {round}: {dispatched:?}");
            waits.extend(dispatched.iter().map(|one| one.queue));
            // The same way with nothing to do at its end.
            let began = Instant::now();
            ask_together(&client, "/sleep/0", 4).await;
            controls.push(began.elapsed());
        }
        let [makespan, control] = [makespans, controls].map(|times| percentile(times, 50.0));
        let [wait, longest] = [50.0, 100.0].map(|part| percentile(waits.iter().copied(), part));
        println!("{protocol:?}: median makespan {makespan:?} of {ROUNDS} rounds, of no work {control:?}");
        println!("{protocol:?}: median wait {wait:?}, longest {longest:?}");
        // What the machine takes for four requests of no work is not dispatch's.
        let limit = IDEAL.mul_f64(1.05) + control;
        assert!(makespan <= limit, "median makespan {makespan:?}, at most {limit:?}");
        // Nobody was in the queue; what is left is the time that it takes to find that out, and for some of them the time
        // that the balancer had to wait for a core.
        assert!(wait < Duration::from_millis(1), "requests waited {wait:?}");
    }
    assert!(refused(&cluster).await < 0.5);
}

#[tokio::test]
async fn who_leaves_takes_his_place_in_the_queue_along() {
    let cluster = one_slot_each(2).plain().start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.plain_client(Protocol::Http1);
    for round in 0..3 {
        let leaving = join_all((0..50).map(|_| client.get("/sleep/2000")));
        let mut leaving = Box::pin(leaving);
        tokio::select! {
            _ = &mut leaving => unreachable!("two seconds have not passed"),
            () = in_work(balancer, 4.0) => {}
        }
        drop(leaving);
        let began = Instant::now();
        let dispatched = ask_together(&client, "/sleep/100", 4).await;
        let took = began.elapsed();
        println!("round {round}: four requests after 50 had left: {took:?}");
        assert_eq!(workers_of(&dispatched).len(), 4, "{dispatched:?}");
        assert!(dispatched.iter().all(|one| one.attempts == 1), "{dispatched:?}");
        // The application lets itself be cancelled: the workers are free as soon as they have noticed.
        assert!(took < Duration::from_millis(600), "{took:?}");
    }
    assert!(refused(&cluster).await < 0.5, "a slot was given away before it was free");
}

#[tokio::test]
async fn a_slot_whose_client_has_left_gets_nothing_before_it_is_free() {
    let program = Program::new();
    let cluster = one_slot_each(2).plain().with(Role::AppServer, &program.line()).start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.plain_client(Protocol::Http1);
    ask_together(&client, "/nap/50", 4).await;
    let began = Instant::now();
    // One worker is busy with what cannot be cancelled for half a second, the other three for two.
    let mut brief = Box::pin(ask(&client, "/block/500"));
    tokio::select! {
        _ = &mut brief => unreachable!("half a second has not passed"),
        () = in_work(balancer, 1.0) => {}
    }
    let mut leaving = Box::pin(join_all((0..49).map(|_| client.get("/block/2000"))));
    tokio::select! {
        _ = &mut leaving => unreachable!("two seconds have not passed"),
        () = in_work(balancer, 4.0) => {}
    }
    drop(leaving);
    drop(brief);
    println!("50 clients have left after {:?}", began.elapsed());
    let later = ask_together(&client, "/nap/5", 20).await;
    let (took, workers) = (began.elapsed(), workers_of(&later));
    println!("20 later requests are answered after {took:?} by {workers:?}");
    assert_eq!(workers.len(), 1, "only one worker can have been free: {later:?}");
    assert!(later.iter().all(|one| one.attempts == 1), "{later:?}");
    assert!(took < Duration::from_millis(1700), "somebody waited at a busy slot: {took:?}");
    // And the others come back: as soon as they are free, not at some timeout.
    eventually("all four workers at work again", Duration::from_secs(5), async || {
        let four = ask_together(&client, "/nap/50", 4).await;
        ensure(workers_of(&four).len() == 4, || format!("{four:?}"))
    })
    .await;
    let back = began.elapsed();
    println!("all four workers are at work again after {back:?}");
    assert!(back < Duration::from_millis(3000), "after {back:?}");
    assert!(refused(&cluster).await < 0.5, "a slot was given away before it was free");
}

/// A steady crowd that asks who they are, for so long; the p99 of their times.
async fn steady(client: &Arc<Client>, lasting: Duration) -> (Duration, Vec<Visit>) {
    let visits = Crowd::PATIENT.visit(&[Arc::clone(client)], &evenly("/whoami", 100.0, lasting)).await;
    let failed: Vec<_> = visits.iter().filter(|visit| visit.served().is_none()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    (percentile(visits.iter().map(|visit| visit.took), 99.0), visits)
}

#[tokio::test]
async fn clients_on_bad_lines_keep_nobody_waiting() {
    let cluster = one_slot_each(2).plain().start().await;
    let balancer = &cluster.balancers[0];
    let client = balancer.plain_client(Protocol::Http1);
    // A bystander: what this machine, at this time, lets anybody notice.
    let bystander = Arc::new(Client::plain(cluster.sidecar.admin(), Protocol::Http1));
    let control = async |lasting| {
        let visits = Crowd::PATIENT.visit(&[Arc::clone(&bystander)], &evenly("/livez", 100.0, lasting)).await;
        percentile(visits.iter().map(|visit| visit.took), 99.0)
    };
    let lasting = Duration::from_secs(3);
    steady(&client, Duration::from_millis(500)).await;
    let ((before, _), control_before) = tokio::join!(steady(&client, lasting), control(lasting));
    let mut readers = Slow::readers(balancer.http(), 200, "/bytes/400000", 1000).await;
    let mut writers = Slow::writers(balancer.http(), 50, "/echo", 1000).await;
    eventually("all of them to be served", SOON, async || {
        let (read, written) = (readers.moved(), writers.moved());
        ensure(read >= 200_000 && written >= 50, || format!("{read} bytes are read, {written} written"))
    })
    .await;
    let ((during, _), control_during) = tokio::join!(steady(&client, lasting), control(lasting));
    readers.all_there();
    writers.all_there();
    println!(
        "p99 {before:?} before, {during:?} beside 250 slow clients; of a bystander {control_before:?} and {control_during:?}"
    );
    let most = before.mul_f64(1.2) + Duration::from_millis(5) + control_during.saturating_sub(control_before);
    assert!(during <= most, "p99 went from {before:?} to {during:?}, at most {most:?}");
}

#[tokio::test]
async fn who_is_on_deck_behind_a_slow_request_is_soon_elsewhere() {
    const TURNS: usize = 8;
    let cluster = one_slot_each(1).plain().start().await;
    let client = cluster.balancers[0].plain_client(Protocol::Http1);
    // So many are busy all the time: more than there are slots, so the workers have somebody on deck.
    let busy = async |until: Instant| {
        let turns = (0..TURNS).map(|_| async {
            let mut times = Vec::new();
            while Instant::now() < until {
                let asked = Instant::now();
                let (_, dispatched) = ask(&client, "/whoami").await;
                times.push((asked.elapsed(), dispatched));
            }
            times
        });
        join_all(turns).await.into_iter().flatten().collect::<Vec<_>>()
    };
    let slowest = |times: Vec<(Duration, Dispatched)>| times.into_iter().max_by_key(|(took, _)| *took).unwrap();
    busy(Instant::now() + Duration::from_millis(500)).await;
    let before = refused(&cluster).await;
    let (mut calm, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        calm.push(slowest(busy(Instant::now() + Duration::from_millis(700)).await));
        let slow = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            ask(&client, "/sleep/500").await
        };
        let (times, _) = tokio::join!(busy(Instant::now() + Duration::from_millis(700)), slow);
        beside.push(slowest(times));
    }
    let sent_back = refused(&cluster).await - before;
    println!("the slowest of each round beside a request of 500 ms: {beside:?}; {sent_back} were sent back");
    let [calm, beside] = [calm, beside].map(|slowest| percentile(slowest.into_iter().map(|(took, _)| took), 50.0));
    println!("medians of the slowest: {calm:?} while all is quick, {beside:?} beside a slow one");
    assert!(sent_back >= 1.0, "nobody was on deck behind a slow request: this test has shown nothing");
    // Half as fast while one of two workers is busy.
    assert!(
        beside <= 2 * calm + Duration::from_millis(50),
        "the slowest took {beside:?}, and {calm:?} while all is quick"
    );
}
