//! What the nodes of an app hear of the requests that wait for it.

use super::*;

fn demand(waiting: u32) -> from_balancer::Message {
    from_balancer::Message::Demand(registry::Demand { waiting, wanted: 0, wait_ms: 0, sequence: 0 })
}

/// The same without the wait, and without the report that was known.
fn bare(message: from_balancer::Message) -> from_balancer::Message {
    match message {
        from_balancer::Message::Demand(said) => {
            from_balancer::Message::Demand(registry::Demand { wait_ms: 0, sequence: 0, ..said })
        }
        other => other,
    }
}

/// A request of `demo` that waits until it is aborted.
fn waits(house: &House) -> JoinHandle<()> {
    let app = house.app("demo");
    tokio::spawn(async move {
        let now = Instant::now();
        drop(
            app.acquire(
                crate::client::Client::from(std::net::IpAddr::from([192, 0, 2, 1])).into(),
                &[],
                false,
                now,
                now + Duration::from_secs(3600),
            )
            .await,
        );
    })
}

async fn leaves(request: JoinHandle<()>) {
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn every_node_of_an_app_hears_of_its_demand_and_of_the_end_of_it() {
    let house = House::new();
    let (mut one, mut two) = (house.node("node-1", Vec::new()).await, house.node("node-2", Vec::new()).await);
    let mut other = house.open("node-3");
    other.hello(hello("other", "/other", Vec::new())).await;
    other.welcomed().await;
    let start = Instant::now();
    let (first, second) = (waits(&house), waits(&house));
    for node in [&mut one, &mut two] {
        assert_eq!(bare(node.hear().await), demand(2));
    }
    assert_eq!(start.elapsed().as_millis() / 10, 5);
    leaves(first).await;
    let start = Instant::now();
    for node in [&mut one, &mut two] {
        assert_eq!(bare(node.hear().await), demand(1));
    }
    assert!((150..=260).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    leaves(second).await;
    let start = Instant::now();
    for node in [&mut one, &mut two] {
        assert_eq!(bare(node.hear().await), demand(0));
    }
    assert!(start.elapsed().as_millis() <= 60, "{:?}", start.elapsed());
    for node in [&mut one, &mut two, &mut other] {
        node.say.send(Ok(FromNode { message: None })).await.unwrap();
        node.hears_nothing().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_hears_of_the_demand_that_was_there_before_it() {
    let house = House::new();
    let _waits = waits(&house);
    tokio::task::yield_now().await;
    let mut node = house.node("node-1", Vec::new()).await;
    assert_eq!(bare(node.hear().await), demand(1));
    // A worker takes it: no demand any more.
    node.report(2, vec![worker(0, 1, 9000, 1)]).await;
    assert_eq!(node.hear().await, acknowledged(2));
    assert_eq!(bare(node.hear().await), demand(0));
}

#[tokio::test(start_paused = true)]
async fn a_queue_of_a_moment_is_no_demand_and_messages_do_not_put_a_look_off() {
    let house = House::new();
    let mut node = house.node("node-1", Vec::new()).await;
    let moment = waits(&house);
    sleep(Duration::from_millis(20)).await;
    leaves(moment).await;
    sleep(Duration::from_millis(20)).await;
    node.hears_nothing().await;
    let start = Instant::now();
    let _waits = waits(&house);
    let heard = loop {
        sleep(Duration::from_millis(10)).await;
        node.say(from_node::Message::Report(Report {
            sequence: 2,
            workers: Vec::new(),
            settled: Vec::new(),
            lack: None,
        }))
        .await;
        match node.hear().await {
            from_balancer::Message::Acknowledged(_) => {}
            heard => break heard,
        }
    };
    assert_eq!(bare(heard), demand(1));
    assert!(start.elapsed().as_millis() <= 80, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leaving_node_hears_of_no_demand() {
    let house = House::new();
    let mut node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    let in_flight = permit(&house).await.unwrap();
    node.say(from_node::Message::Leaving(Leaving {})).await;
    node.hears_nothing().await;
    let _waits = waits(&house);
    node.hears_nothing().await;
    sleep(Duration::from_millis(100)).await;
    drop(in_flight);
    assert_eq!(node.hear().await, from_balancer::Message::Left(Left {}));
}

#[tokio::test(start_paused = true)]
async fn a_node_is_asked_at_once_for_what_other_balancers_have_there() {
    let house = House::new();
    let shared = |granted| Worker { capacity: 2, grant: granted, ..worker(0, 1, 9000, 1) };
    let mut node = house.node("node-1", vec![shared(1)]).await;
    let held = permit(&house).await.unwrap();
    let start = Instant::now();
    let waiting = waits(&house);
    let asked = registry::Demand { waiting: 0, wanted: 1, wait_ms: 0, sequence: 1 };
    assert_eq!(node.hear().await, from_balancer::Message::Demand(asked));
    assert!(start.elapsed().as_millis() <= 1, "{:?}", start.elapsed());
    let from_balancer::Message::Demand(again) = node.hear().await else { panic!("something else") };
    assert_eq!((again.wanted, again.waiting), (1, 1));
    node.report(2, vec![shared(2)]).await;
    waiting.await.unwrap();
    assert_eq!(node.hear().await, acknowledged(2));
    assert_eq!(bare(node.hear().await), demand(1), "nothing is wanted any more; the queue is looked at less often");
    assert_eq!(bare(node.hear().await), demand(0));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_free_again_when_the_node_names_its_connection() {
    let house = House::new();
    let mut node = house.node("node-1", vec![worker(0, 1, 9000, 1)]).await;
    let mut left = permit(&house).await.unwrap();
    left.begin(7);
    drop(left);
    assert!(permit(&house).await.is_err());
    let report = Report { sequence: 2, workers: vec![worker(0, 1, 9000, 1)], settled: vec![7], lack: None };
    node.say(from_node::Message::Report(report)).await;
    assert_eq!(node.hear().await, acknowledged(2));
    assert!(permit(&house).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_others_lack_and_nobody_here_needs_is_given_back() {
    let house = House::new();
    let two = || vec![worker(0, 1, 9000, 1), worker(1, 1, 9001, 1)];
    let mut node = house.node("node-1", two()).await;
    let in_use = permit(&house).await.unwrap();
    let lack = Some(registry::Lack { permits: 2, wait_ms: 0 });
    let report = Report { sequence: 2, workers: two(), settled: Vec::new(), lack };
    node.say(from_node::Message::Report(report)).await;
    assert_eq!(node.hear().await, acknowledged(2));
    let (free, busy) = (1 - in_use.endpoint().position, in_use.endpoint().position);
    let yielded =
        |position| from_balancer::Message::Yielded(Yielded { sequence: 2, position, generation: 1, permits: 1 });
    assert_eq!(node.hear().await, yielded(free));
    node.hears_nothing().await;
    assert!(permit(&house).await.is_err());
    drop(in_use);
    assert_eq!(node.hear().await, yielded(busy), "as soon as it is not needed");
    node.report(3, two()).await;
    assert_eq!(node.hear().await, acknowledged(3));
    node.hears_nothing().await;
    assert!(permit(&house).await.is_ok());
}
