//! Four requests at once before four one-slot workers on two nodes: comes in how many rounds, goes out how long the four took
//! together, how many workers had a part in it, and what the ideal is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use servery_harness::Client;

use crate::Order;
use crate::contender::{Contender, Fleet};
use crate::report::{median, ms, table};

const IDEAL: Duration = Duration::from_millis(300);
const AT_ONCE: usize = 4;

pub(crate) async fn measure(order: &Order) -> String {
    let rounds = order.rounds.max(40);
    let fleet = Fleet { nodes: 2, workers: 2, slowness: 1 };
    let contenders = [
        Contender::servery(&order.servery, fleet).await,
        Contender::nginx(&order.servery, fleet).await,
        Contender::haproxy(&order.servery, fleet).await,
        Contender::gunicorn(fleet).await,
    ];
    let clients: Vec<_> = contenders.iter().map(Contender::client).collect();
    for client in &clients {
        together(client, "/sleep/10").await;
    }
    let (mut makespans, mut distinct) = (vec![Vec::new(); contenders.len()], vec![0; contenders.len()]);
    let mut controls = Vec::new();
    for _ in 0..rounds {
        let began = Instant::now();
        tokio::time::sleep(IDEAL).await;
        controls.push(began.elapsed());
        for (index, client) in clients.iter().enumerate() {
            let (makespan, workers) = together(client, "/sleep/300").await;
            makespans[index].push(makespan);
            distinct[index] += usize::from(workers == AT_ONCE);
        }
    }
    let mut rows =
        vec![vec!["a bare sleep".to_owned(), ms(median(&controls)), ratio(median(&controls)), String::new()]];
    rows.extend(contenders.iter().enumerate().map(|(index, contender)| {
        let makespan = median(&makespans[index]);
        vec![contender.name.to_owned(), ms(makespan), ratio(makespan), format!("{} of {rounds}", distinct[index])]
    }));
    let title = "Four requests of 300 ms at once, four one-slot workers on two nodes";
    table(title, &["", "median makespan, ms", "of the ideal", "rounds with four workers"], &rows)
}

async fn together(client: &Client, path: &str) -> (Duration, usize) {
    let began = Instant::now();
    let answers = join_all((0..AT_ONCE).map(|_| client.get(path))).await;
    let took = began.elapsed();
    let workers: BTreeSet<String> = answers.into_iter().map(|answer| answer.expect("an answer").text()).collect();
    (took, workers.len())
}

fn ratio(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() / IDEAL.as_secs_f64())
}
