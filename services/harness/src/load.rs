//! An open-model load generator: comes in clients, a path and a rate, goes out a count of what was answered and what failed,
//! and why. Requests are sent at their time whether or not the earlier ones have been answered, as a crowd of users does;
//! a server that stalls is seen as latency and failures, not as a lower rate.
//!
//! Bounded: more than [`MAX_IN_FLIGHT`] unanswered requests count as failures and are not sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::client::{Answer, Client, Protocol};
use crate::eventually::{ensure, eventually};
use crate::member::Member;

const MAX_IN_FLIGHT: usize = 1000;

/// How many failures are kept word for word.
const KEPT_FAILURES: usize = 20;

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Answered with 200.
    pub ok: u64,
    /// Everything else, by reason.
    pub failed: BTreeMap<String, u64>,
    /// The first failures, each with the time since the load began.
    pub first_failures: Vec<(Duration, String)>,
    /// Of the requests answered with 200, by what the JSON answer says in its field `node`.
    pub by_node: BTreeMap<String, u64>,
    /// Of the requests answered with 200.
    pub latencies: Vec<Duration>,
}

impl Tally {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// What has happened after `earlier`, which the same load said.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            let grown = |(key, count): (&String, &u64)| (key.clone(), count - then.get(key).copied().unwrap_or(0));
            now.iter().map(grown).filter(|(_, count)| *count > 0).collect()
        };
        Self {
            ok: self.ok - earlier.ok,
            failed: less(&self.failed, &earlier.failed),
            first_failures: self.first_failures[earlier.first_failures.len()..].to_vec(),
            by_node: less(&self.by_node, &earlier.by_node),
            latencies: self.latencies[earlier.latencies.len()..].to_vec(),
        }
    }

    /// The latency that `percent` of the answered requests stayed under.
    pub fn latency(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    fn record(&mut self, at: Duration, took: Duration, outcome: anyhow::Result<Answer>) {
        let reason = match outcome {
            Ok(answer) if answer.status.is_success() => {
                self.ok += 1;
                self.latencies.push(took);
                if let Some(node) = answer.json().ok().as_ref().and_then(|json| json["node"].as_str()) {
                    *self.by_node.entry(node.to_owned()).or_default() += 1;
                }
                return;
            }
            Ok(answer) => format!("{} {}", answer.status, answer.text()),
            Err(error) => format!("{error:#}"),
        };
        if self.first_failures.len() < KEPT_FAILURES {
            self.first_failures.push((at, reason.clone()));
        }
        // Grouped by their beginning: request ids differ.
        let kind = reason.chars().take(60).collect();
        *self.failed.entry(kind).or_default() += 1;
    }
}

/// A steady load, until stopped or dropped.
#[derive(Debug)]
pub struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends GETs for `path` at `per_second`, taking turns over `clients`.
    pub fn start(clients: Vec<Arc<Client>>, path: &str, per_second: u32) -> Self {
        assert!(!clients.is_empty() && per_second > 0);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(run(clients, path.to_owned(), per_second, stopped, Arc::clone(&tally)));
        Self { tally, stop: Some(stop), task }
    }

    /// The same over HTTP/1.1 and HTTP/2 to each of the balancers, well under way.
    pub async fn across(balancers: &[Member], path: &str, per_second: u32) -> Self {
        let clients = balancers.iter().flat_map(|balancer| Protocol::BOTH.map(|protocol| balancer.client(protocol)));
        let load = Self::start(clients.collect(), path, per_second);
        load.answered(u64::from(per_second.div_ceil(2))).await;
        load
    }

    pub fn so_far(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Waits until `count` more requests have been answered with 200.
    pub async fn answered(&self, count: u64) {
        let before = lock(&self.tally).ok;
        eventually(&format!("{count} more answers"), Duration::from_secs(60), async || {
            let tally = lock(&self.tally);
            ensure(tally.ok >= before + count, || format!("{} answered, failed: {:?}", tally.ok - before, tally.failed))
        })
        .await;
    }

    /// Waits until `node` has answered one request more.
    pub async fn answered_by(&self, node: &str, within: Duration) {
        let count = || lock(&self.tally).by_node.get(node).copied().unwrap_or(0);
        let before = count();
        eventually(&format!("an answer from {node}"), within, async || {
            ensure(count() > before, || format!("answers came from {:?} only", lock(&self.tally).by_node))
        })
        .await;
    }

    /// Sends nothing more, waits for what is under way, tells how it went.
    pub async fn stop(mut self) -> Tally {
        drop(self.stop.take());
        (&mut self.task).await.expect("the load generator does not panic");
        self.so_far()
    }

    /// [`Load::stop`], and panics when a single request failed.
    pub async fn stop_without_failure(self) -> Tally {
        let tally = self.stop().await;
        assert!(
            tally.failures() == 0,
            "{} of {} requests failed: {:#?}\nthe first: {:#?}",
            tally.failures(),
            tally.ok + tally.failures(),
            tally.failed,
            tally.first_failures
        );
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    clients: Vec<Arc<Client>>,
    path: String,
    per_second: u32,
    mut stopped: tokio::sync::oneshot::Receiver<()>,
    tally: Arc<Mutex<Tally>>,
) {
    let started = Instant::now();
    let path: Arc<str> = path.into();
    let mut arrivals = tokio::time::interval(Duration::from_secs(1) / per_second);
    // A late generator catches up: the arrivals are the crowd's, not its.
    arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    for turn in 0_usize.. {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            _ = arrivals.tick() => {}
        }
        while under_way.try_join_next().is_some() {}
        let at = started.elapsed();
        if under_way.len() >= MAX_IN_FLIGHT {
            lock(&tally).record(at, Duration::ZERO, Err(anyhow::anyhow!("{MAX_IN_FLIGHT} requests are unanswered")));
            continue;
        }
        let (client, path, tally) = (Arc::clone(&clients[turn % clients.len()]), Arc::clone(&path), Arc::clone(&tally));
        under_way.spawn(async move {
            let sent = Instant::now();
            let outcome = client.get(&path).await;
            lock(&tally).record(at, sent.elapsed(), outcome);
        });
    }
    while under_way.join_next().await.is_some() {}
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use http::Response;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::server::conn::auto;

    use super::*;
    use crate::client::full;

    /// Answers every tenth request with 503, the others with the name of a node.
    async fn server() -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let count = Arc::new(AtomicU64::new(0));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                let service = service_fn(move |_| {
                    let failing = count.fetch_add(1, Ordering::Relaxed) % 10 == 9;
                    async move {
                        let answer = Response::builder().status(if failing { 503 } else { 200 });
                        Ok::<_, Infallible>(answer.body(full(r#"{"node":"one"}"#)).expect("a valid answer"))
                    }
                });
                tokio::spawn(async move {
                    drop(
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await,
                    );
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn every_answer_is_counted_and_every_failure_told() {
        let address = server().await;
        let clients = Protocol::BOTH.map(|protocol| Arc::new(Client::plain(address, protocol)));
        let load = Load::start(clients.to_vec(), "/", 500);
        load.answered_by("one", Duration::from_secs(10)).await;
        load.answered(180).await;
        let tally = load.stop().await;
        let all = tally.ok + tally.failures();
        assert_eq!(tally.failures(), all / 10, "{tally:?}");
        assert!(tally.failed.keys().all(|reason| reason.starts_with("503")), "{tally:?}");
        assert_eq!(tally.by_node["one"], tally.ok);
        assert!(tally.latency(50) > Duration::ZERO && tally.latency(50) <= tally.latency(100));
        let nothing = tally.since(&tally);
        assert_eq!((nothing.ok, nothing.failures(), nothing.latencies.len()), (0, 0, 0));
        assert_eq!(tally.since(&Tally::default()).by_node, tally.by_node);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_a_failure() {
        let address = server().await;
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let clients = [address, nobody].map(|address| Arc::new(Client::plain(address, Protocol::Http1)));
        let load = Load::start(clients.to_vec(), "/", 200);
        load.answered(20).await;
        let tally = load.stop().await;
        assert!(tally.failed.keys().any(|reason| reason.starts_with("connect 127.0.0.1:1")), "{tally:?}");
    }
}
