//! A steady crowd, alone, and beside 200 clients who read an answer of 400 kB at 1 kB/s and 50 who send a body at a byte per second,
//! before four one-slot workers: goes out how long the crowd's requests take.

use std::time::Duration;

use servery_harness::{Crowd, Slow, evenly, percentile};

use crate::Order;
use crate::contender::{Contender, Fleet};
use crate::report::{median, ms, table};

const PATIENCE: Duration = Duration::from_secs(2);
const LASTING: Duration = Duration::from_secs(5);

/// The slow ones are all there by then.
const ARRIVING: Duration = Duration::from_secs(2);

pub(crate) async fn measure(order: &Order) -> String {
    let fleet = Fleet { nodes: 2, workers: 2, slowness: 1 };
    let mut rows = Vec::new();
    for kind in 0..3 {
        let (mut before, mut during, mut unserved, mut name) = (Vec::new(), Vec::new(), 0, "");
        for _ in 0..order.rounds {
            // A fresh one each time: some never recover.
            let contender = match kind {
                0 => Contender::servery(&order.servery, fleet).await,
                1 => Contender::nginx(&order.servery, fleet).await,
                _ => Contender::haproxy(&order.servery, fleet).await,
            };
            name = contender.name;
            crowd(&contender, Duration::from_secs(1)).await;
            before.push(crowd(&contender, LASTING).await.0);
            let readers = Slow::readers(contender.address, 200, "/bytes/400000", 1000).await;
            let writers = Slow::writers(contender.address, 50, "/echo", 1000).await;
            tokio::time::sleep(ARRIVING).await;
            let (p99, lost) = crowd(&contender, LASTING).await;
            during.push(p99);
            unserved += lost;
            drop((readers, writers));
        }
        rows.push(vec![name.to_owned(), ms(median(&before)), ms(median(&during)), unserved.to_string()]);
    }
    let title = "100 requests of 1 ms per second beside 200 slow readers and 50 slow writers, four one-slot workers";
    table(title, &["", "p99 alone, ms", "p99 beside them, ms", "not served within 2 s"], &rows)
}

/// The p99 of its times, and how many were not served.
async fn crowd(contender: &Contender, lasting: Duration) -> (Duration, usize) {
    let crowd = Crowd { patience: PATIENCE, tries: 1 };
    let visits = crowd.visit(&[contender.client()], &evenly("/sleep/1", 100.0, lasting)).await;
    let unserved = visits.iter().filter(|visit| visit.served().is_none()).count();
    (percentile(visits.iter().map(|visit| visit.took), 99.0), unserved)
}
