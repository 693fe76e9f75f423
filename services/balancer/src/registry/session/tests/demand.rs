//! What the nodes of an app hear of the requests that wait for it.

use super::*;

fn demand(waiting: u32) -> from_balancer::Message {
    from_balancer::Message::Demand(registry::Demand { waiting })
}

/// A request of `demo` that waits until it is aborted.
fn waits(house: &House) -> JoinHandle<()> {
    let app = house.app("demo");
    tokio::spawn(async move {
        let now = Instant::now();
        drop(
            app.acquire(
                std::net::IpAddr::from([192, 0, 2, 1]).into(),
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
        assert_eq!(node.hear().await, demand(2));
    }
    assert_eq!(start.elapsed().as_millis() / 10, 5);
    leaves(first).await;
    let start = Instant::now();
    for node in [&mut one, &mut two] {
        assert_eq!(node.hear().await, demand(1));
    }
    assert!((150..=260).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    leaves(second).await;
    let start = Instant::now();
    for node in [&mut one, &mut two] {
        assert_eq!(node.hear().await, demand(0));
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
    assert_eq!(node.hear().await, demand(1));
    // A worker takes it: no demand any more.
    node.report(2, vec![worker(0, 1, 9000, 1)]).await;
    assert_eq!(node.hear().await, acknowledged(2));
    assert_eq!(node.hear().await, demand(0));
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
        node.say(from_node::Message::Report(Report { sequence: 2, workers: Vec::new() })).await;
        match node.hear().await {
            from_balancer::Message::Acknowledged(_) => {}
            heard => break heard,
        }
    };
    assert_eq!(heard, demand(1));
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
