use super::*;
use std::collections::HashSet;
use tokio::time::sleep;

fn apps(queue_length: usize) -> Arc<Apps> {
    Apps::new(Limits { queue_length, client_share: Percent(50), queue_deadline: Duration::from_secs(10) })
}

fn node() -> Arc<Node> {
    Arc::new(Node::new("node".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"))
}

fn worker(position: u32, grant: u32) -> WorkerView {
    WorkerView::ready(position, ([127, 0, 0, 1], 9000).into(), grant)
}

async fn acquire(app: &Arc<App>, wait: Duration) -> Result<Permit, Reject> {
    let now = Instant::now();
    app.acquire(std::net::IpAddr::from([192, 0, 2, 1]).into(), &[], false, now, now + wait).await
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn an_app_without_endpoints_queues_until_one_comes() {
    let app = apps(8).obtain("demo");
    let waiting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { acquire(&app, 10 * SECOND).await.map(|permit| (permit.endpoint().position, permit.why())) }
    });
    sleep(3 * SECOND).await;
    app.apply(&node(), &[worker(7, 1)]);
    assert_eq!(waiting.await.unwrap(), Ok((7, Why::Queued)));
    assert_eq!(app.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_reason_says_whether_it_was_busy_or_not_there() {
    let app = apps(1).obtain("demo");
    let start = Instant::now();
    assert_eq!(acquire(&app, SECOND).await.unwrap_err(), Reject::NoEndpoint);
    assert_eq!(start.elapsed(), SECOND);
    app.apply(&node(), &[worker(0, 1)]);
    let held = acquire(&app, SECOND).await.unwrap();
    assert_eq!(acquire(&app, SECOND).await.unwrap_err(), Reject::QueueDeadline);
    let waiting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { acquire(&app, SECOND).await.is_ok() }
    });
    tokio::task::yield_now().await;
    assert_eq!(acquire(&app, SECOND).await.unwrap_err(), Reject::QueueFull);
    drop(held);
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_permit_on_its_way_to_someone_who_left_goes_to_the_next() {
    let app = apps(8).obtain("demo");
    app.apply(&node(), &[worker(0, 1)]);
    let held = acquire(&app, SECOND).await.unwrap();
    let mut first = Box::pin(acquire(&app, 10 * SECOND));
    let mut second = Box::pin(acquire(&app, 10 * SECOND));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(held); // the first one's cell holds the permit now, though it has not looked yet
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    let permit = second.await.unwrap();
    assert_eq!((app.view().in_flight, app.view().queue_depth), (1, 0));
    drop(permit);
    assert_eq!(app.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_out_of_the_queue() {
    let app = apps(1).obtain("demo");
    drop(tokio::time::timeout(SECOND, acquire(&app, 10 * SECOND)).await);
    assert_eq!(app.view().queue_depth, 0);
    app.apply(&node(), &[worker(0, 1)]);
    assert!(acquire(&app, SECOND).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_control_task_hears_when_a_leaving_node_is_done() {
    let app = apps(8).obtain("demo");
    app.apply(&node(), &[worker(0, 2)]);
    let held = acquire(&app, SECOND).await.unwrap();
    app.drain_node("node");
    let waiting = tokio::spawn({
        let app = Arc::clone(&app);
        async move {
            loop {
                let changed = app.changed().notified();
                if app.in_flight("node") == 0 {
                    break;
                }
                changed.await;
            }
        }
    });
    tokio::task::yield_now().await;
    drop(held);
    tokio::time::timeout(SECOND, waiting).await.unwrap().unwrap();
}

#[test]
fn permits_are_conserved_across_threads_that_come_wait_and_give_up() {
    let app = apps(1 << 16).obtain("demo");
    app.apply(&node(), &(0..4).map(|position| worker(position, 2)).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let app = Arc::clone(&app);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut tasks = tokio::task::JoinSet::new();
                    for turn in 0..2000u64 {
                        let app = Arc::clone(&app);
                        tasks.spawn(async move {
                            let patience = Duration::from_micros((turn * 7 + seed) % 300);
                            if let Ok(permit) = acquire(&app, patience).await {
                                assert!(app.view().in_flight <= 8);
                                tokio::task::yield_now().await;
                                drop(permit);
                            }
                        });
                    }
                    while let Some(ended) = tasks.join_next().await {
                        ended.unwrap();
                    }
                });
            });
        }
    });
    let view = app.view();
    assert_eq!((view.in_flight, view.queue_depth), (0, 0));
    // all eight permits are there again
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut permits = Vec::new();
        for _ in 0..8 {
            permits.push(acquire(&app, SECOND).await.unwrap());
        }
        let used: HashSet<_> = permits.iter().map(|permit| permit.endpoint().position).collect();
        assert_eq!(used.len(), 4);
    });
}

#[tokio::test(start_paused = true)]
async fn who_has_more_than_its_share_hears_it_when_it_has_to_make_room() {
    let app = apps(2).obtain("demo");
    app.apply(&node(), &[worker(0, 1)]);
    let held = acquire(&app, SECOND).await.unwrap();
    let from = |host| {
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let now = Instant::now();
            let client = std::net::IpAddr::from([192, 0, 2, host]).into();
            app.acquire(client, &[], false, now, now + SECOND).await.map(|permit| permit.why())
        })
    };
    let (first, second) = (from(1), from(1));
    tokio::task::yield_now().await;
    let other = from(2);
    assert_eq!(second.await.unwrap(), Err(Reject::ClientShare), "at once");
    assert_eq!(from(1).await.unwrap(), Err(Reject::ClientShare));
    drop(held);
    assert_eq!((first.await.unwrap(), other.await.unwrap()), (Ok(Why::Queued), Ok(Why::Queued)));
    assert_eq!(app.view().in_flight, 0);
}
