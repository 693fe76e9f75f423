use super::*;
use crate::dispatch::Ended;
use std::collections::HashSet;
use tokio::time::sleep;

fn apps(queue_length: usize) -> Arc<Apps> {
    Apps::new(Limits {
        queue_length,
        client_share: Percent(50),
        stalled_share: Percent(50),
        queue_deadline: Duration::from_secs(10),
    })
}

fn node() -> Arc<Node> {
    Arc::new(Node::new("node".to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"))
}

fn worker(position: u32, grant: u32) -> WorkerView {
    WorkerView::ready(position, ([127, 0, 0, 1], 9000).into(), grant)
}

async fn acquire(app: &Arc<App>, wait: Duration) -> Result<Permit, Reject> {
    let now = Instant::now();
    app.acquire(Client::from(std::net::IpAddr::from([192, 0, 2, 1])).into(), &[], false, now, now + wait).await
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
async fn a_reserve_that_shrinks_lets_those_in_who_wait() {
    let apps = apps(8);
    let limits = |queue_length| Limits {
        queue_length,
        client_share: Percent(50),
        stalled_share: Percent(50),
        queue_deadline: 10 * SECOND,
    };
    let app = apps.obtain("demo");
    apps.retune(limits(8), [("demo".to_owned(), vec![1])].into());
    app.apply(&node(), &[worker(0, 2)]);
    let _held = acquire(&app, SECOND).await.unwrap();
    let mut waiting = Box::pin(acquire(&app, 10 * SECOND));
    assert!(futures_util::poll!(&mut waiting).is_pending(), "the other permit is kept");
    // who waits already stays, though nobody may any more
    apps.retune(limits(0), [("demo".to_owned(), vec![1])].into());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(acquire(&app, SECOND).await.unwrap_err(), Reject::QueueFull);
    apps.retune(limits(0), std::collections::BTreeMap::new());
    assert!(waiting.await.is_ok());
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
            let client = Client::from(std::net::IpAddr::from([192, 0, 2, host])).into();
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

#[tokio::test(start_paused = true)]
async fn a_slot_that_may_be_busy_goes_to_the_next_when_its_worker_says_that_it_is_free() {
    let app = apps(8).obtain("demo");
    app.apply(&node(), &[worker(0, 1)]);
    let mut left = acquire(&app, SECOND).await.unwrap();
    left.begin(7);
    drop(left);
    assert_eq!((app.view().in_flight, app.view().unsettled), (0, 1));
    let mut next = Box::pin(acquire(&app, 10 * SECOND));
    assert!(futures_util::poll!(&mut next).is_pending());
    app.settle("node", &[7]);
    let mut next = next.await.unwrap();
    next.begin(8);
    next.settle();
    drop(next);
    assert_eq!((app.view().in_flight, app.view().unsettled), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_in_vain_is_told_so_and_when_to_come_again() {
    let app = apps(1000).obtain("demo");
    app.apply(&node(), &[worker(0, 1)]);
    for _ in 0..10 {
        let mut permit = acquire(&app, SECOND).await.unwrap();
        sleep(SECOND).await;
        permit.judge(Ended::Answered(SECOND));
    }
    let _held = acquire(&app, SECOND).await.unwrap();
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(acquire(&app, 10 * SECOND))).collect();
    for waits in &mut waiting {
        assert!(futures_util::poll!(waits).is_pending());
    }
    assert_eq!(acquire(&app, 3 * SECOND).await.unwrap_err(), Reject::Overload);
    assert_eq!(app.retry_after(), 3 * SECOND);
    let patient = futures_util::poll!(&mut Box::pin(acquire(&app, 5 * SECOND)));
    assert!(patient.is_pending());
}

#[tokio::test(start_paused = true)]
async fn what_only_time_brings_about_happens() {
    let apps = apps(8);
    let app = apps.obtain("demo");
    app.apply(&node(), &[worker(0, 1), worker(1, 1)]);
    let turning = tokio::spawn(async move { apps.keep_turning().await });
    let (mut bad, good) = (acquire(&app, SECOND).await.unwrap(), acquire(&app, SECOND).await.unwrap());
    for _ in 0..5 {
        bad.judge(Ended::Failed);
        drop(bad);
        bad = match acquire(&app, SECOND).await {
            Ok(permit) => permit,
            Err(reject) => {
                assert_eq!(reject, Reject::QueueDeadline);
                break;
            }
        };
    }
    assert_eq!(app.view().ejections, [1, 0]);
    let probe = acquire(&app, 10 * SECOND).await.unwrap();
    assert_eq!(probe.why(), Why::Queued, "it waited until the endpoint was to be tried again");
    assert_ne!(probe.endpoint().id, good.endpoint().id);
    turning.abort();
}
