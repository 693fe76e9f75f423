//! More than four one-slot workers of 20 ms can do, from clients who give up after a second, once or after three tries at once: goes
//! out what was answered in time, how long that took, and when all was normal again.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use servery_harness::{Client, Crowd, Outcome, Visit, evenly, percentile};

use crate::Order;
use crate::contender::{Contender, Fleet};
use crate::report::{middle, ms, table};

const WORK: &str = "/sleep/20";
const PATIENCE: Duration = Duration::from_secs(1);

/// How long it is too much; the first half second only fills the queues and is not counted.
const LASTING: Duration = Duration::from_secs(6);
const FULL: Duration = Duration::from_millis(500);

/// How long is looked for normality afterwards.
const AFTERWARDS: Duration = Duration::from_secs(8);

const HALF_SECOND: Duration = Duration::from_millis(500);

/// Of one contender under one load, a number per round.
#[derive(Debug, Default)]
struct Numbers {
    goodput: Vec<f64>,
    p99: Vec<f64>,
    normal_after: Vec<f64>,
    refused: usize,
    gave_up: usize,
    failed: usize,
}

pub(crate) async fn measure(order: &Order) -> String {
    let fleet = Fleet { nodes: 2, workers: 2, slowness: 1 };
    let contenders = [
        Contender::servery(&order.servery, fleet).await,
        Contender::nginx(&order.servery, fleet).await,
        Contender::haproxy(&order.servery, fleet).await,
        Contender::gunicorn(fleet).await,
    ];
    let mut capacities = vec![Vec::new(); contenders.len()];
    for _ in 0..order.rounds {
        for (index, contender) in contenders.iter().enumerate() {
            capacities[index].push(saturated(&contender.client()).await);
        }
    }
    let capacities: Vec<f64> = capacities.iter().map(|all| middle(all)).collect();
    let mut text = String::new();
    for (factor, tries) in [(3.0, 1), (3.0, 3), (10.0, 1), (10.0, 3)] {
        let mut numbers: Vec<Numbers> = contenders.iter().map(|_| Numbers::default()).collect();
        for _ in 0..order.rounds {
            for (index, contender) in contenders.iter().enumerate() {
                round(contender, capacities[index], factor, tries, &mut numbers[index]).await;
            }
        }
        let rows: Vec<Vec<String>> = contenders
            .iter()
            .enumerate()
            .map(|(index, contender)| row(contender.name, capacities[index], &numbers[index]))
            .collect();
        let manner = if tries == 1 { "who ask once" } else { "who ask three times, at once" };
        let title = format!("{factor} x the capacity for {} s, clients of 1 s patience {manner}", LASTING.as_secs());
        let columns =
            ["", "capacity, 1/s", "goodput", "p99 of it, ms", "normal after, s", "refused", "gave up", "failed"];
        text.push_str(&table(&title, &columns, &rows));
        text.push('\n');
    }
    text
}

/// What it can do when nobody gives up: more clients than slots, who never pause.
async fn saturated(client: &Client) -> f64 {
    let began = Instant::now();
    let lasting = Duration::from_secs(2);
    let turns = (0..12).map(|_| async {
        let mut answered = 0.0;
        while began.elapsed() < lasting {
            if client.get(WORK).await.is_ok_and(|answer| answer.status == 200) {
                answered += 1.0;
            }
        }
        answered
    });
    join_all(turns).await.into_iter().sum::<f64>() / began.elapsed().as_secs_f64()
}

async fn round(contender: &Contender, capacity: f64, factor: f64, tries: u32, numbers: &mut Numbers) {
    let clients = [contender.client()];
    let quietly = Crowd { patience: 10 * PATIENCE, tries: 1 };
    let calm = |lasting| evenly(WORK, capacity / 2.0, lasting);
    let before = quietly.visit(&clients, &calm(Duration::from_secs(2))).await;
    let before = percentile(before.iter().map(|visit| visit.took), 99.0);
    let crowd = Crowd { patience: PATIENCE, tries };
    let mut afterwards = calm(AFTERWARDS);
    for arrival in &mut afterwards {
        arrival.at += LASTING;
    }
    let too_many = evenly(WORK, factor * capacity, LASTING);
    let (during, after) = tokio::join!(crowd.visit(&clients, &too_many), quietly.visit(&clients, &afterwards));

    let useful: Vec<&Visit> = during.iter().filter(|visit| visit.served().is_some()).collect();
    let counted = useful.iter().filter(|visit| (FULL..LASTING).contains(&visit.ended)).count();
    numbers.goodput.push(counted as f64 / (LASTING - FULL).as_secs_f64());
    numbers.p99.push(percentile(useful.iter().map(|visit| visit.took), 99.0).as_secs_f64() * 1000.0);
    for visit in &during {
        match visit.outcome {
            Outcome::Served(_) => {}
            Outcome::Refused(_) => numbers.refused += 1,
            Outcome::GaveUp => numbers.gave_up += 1,
            Outcome::Failed(_) => numbers.failed += 1,
        }
    }
    let limit = before.mul_f64(1.2) + Duration::from_millis(20);
    let end = during.iter().map(|visit| visit.ended).max().unwrap_or_default().max(LASTING);
    numbers.normal_after.push(normal_after(&after, limit, end).as_secs_f64());
    // The next one starts with a clean slate.
    let client = contender.client();
    let rest = servery_harness::eventually("an answer at once", Duration::from_secs(60), async || {
        let asked = Instant::now();
        client.get(WORK).await?;
        anyhow::ensure!(asked.elapsed() < PATIENCE / 5, "it took {} ms", ms(asked.elapsed()));
        Ok(())
    });
    rest.await;
}

/// Since the end of the overload, when its last user has left: from then on, in every half second, nine of ten are served within the limit. One late answer is
/// the machine's.
fn normal_after(visits: &[Visit], limit: Duration, end: Duration) -> Duration {
    let half_seconds = (0..).map(|index| HALF_SECOND * index).take_while(|start| *start < AFTERWARDS);
    let is_bad = |start: &Duration| {
        let visits = visits.iter().filter(|visit| (*start..*start + HALF_SECOND).contains(&(visit.at - LASTING)));
        let (all, late) = visits.fold((0, 0), |(all, late), visit| {
            (all + 1, late + usize::from(visit.served().is_none() || visit.took > limit))
        });
        10 * late > all
    };
    let last_bad = half_seconds.filter(is_bad).last();
    last_bad.map_or(Duration::ZERO, |start| (LASTING + start + HALF_SECOND).saturating_sub(end))
}

fn row(name: &str, capacity: f64, numbers: &Numbers) -> Vec<String> {
    let goodput = middle(&numbers.goodput);
    vec![
        name.to_owned(),
        format!("{capacity:.0}"),
        format!("{goodput:.0} ({:.0} %)", 100.0 * goodput / capacity),
        format!("{:.0}", middle(&numbers.p99)),
        format!("{:.2}", middle(&numbers.normal_after)),
        numbers.refused.to_string(),
        numbers.gave_up.to_string(),
        numbers.failed.to_string(),
    ]
}
