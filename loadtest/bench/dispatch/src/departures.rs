//! Fifty clients leave while four one-slot workers are busy with what cannot be cancelled, one of them for half a second, the others
//! for two: goes out how long it takes until twenty later requests of 5 ms are all answered. Nobody needs more than 0.6 s, unless a
//! request is sent to a worker that is not free.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::Order;
use crate::contender::{Contender, Fleet};
use crate::report::{median, ms, table};

pub(crate) async fn measure(order: &Order) -> String {
    let fleet = Fleet { nodes: 2, workers: 2, slowness: 1 };
    let contenders = [
        Contender::servery(&order.servery, fleet).await,
        Contender::nginx(&order.servery, fleet).await,
        Contender::haproxy(&order.servery, fleet).await,
    ];
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..order.rounds {
        for (index, contender) in contenders.iter().enumerate() {
            times[index].push(round(contender).await);
        }
    }
    let rows: Vec<Vec<String>> = contenders
        .iter()
        .zip(&times)
        .map(|(contender, times)| {
            let longest = times.iter().max().copied().unwrap_or_default();
            vec![contender.name.to_owned(), ms(median(times)), ms(longest)]
        })
        .collect();
    let title =
        "50 clients leave; 20 later requests while one of four workers is free after 0.5 s, the others after 2 s";
    table(title, &["", "median until all are answered, ms", "longest, ms"], &rows)
}

async fn round(contender: &Contender) -> Duration {
    let client = contender.client();
    join_all((0..4).map(|_| client.get("/sleep/50"))).await;
    let began = Instant::now();
    let leaving = async {
        let brief = client.get("/block/500");
        let others = async {
            // The brief one is the first to be there.
            tokio::time::sleep(Duration::from_millis(50)).await;
            join_all((0..49).map(|_| client.get("/block/2000"))).await
        };
        tokio::join!(brief, others)
    };
    // They have all asked by then.
    let left = tokio::time::timeout(Duration::from_millis(200), leaving).await;
    assert!(left.is_err(), "{} answers what nobody can have done yet", contender.name);
    join_all((0..20).map(|_| client.get("/sleep/5"))).await;
    let took = began.elapsed();
    // For the next round everybody has to be free again.
    tokio::time::sleep(Duration::from_secs(9).saturating_sub(took)).await;
    took
}
