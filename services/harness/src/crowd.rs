//! A crowd of users with little patience: come in the moments at which they arrive and what each wants, goes out how it went for
//! each of them. They arrive by the clock, whether or not the earlier ones have been answered; a user who has waited long enough
//! leaves (the connection is closed), and an obstinate one comes back at once.
//!
//! Bounded: a user who would be more than the [`MOST_AT_ONCE`]th has failed and sends nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::{Answer, Client};

const MOST_AT_ONCE: usize = 8000;

/// Somebody comes.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Since the crowd began.
    pub at: Duration,
    pub path: Arc<str>,
}

/// How many arrive per second, and for how long, all with the same wish.
pub fn evenly(path: &str, per_second: f64, lasting: Duration) -> Vec<Arrival> {
    let path: Arc<str> = path.into();
    let gap = Duration::from_secs_f64(1.0 / per_second);
    let moments = (0..).map(|index| gap * index).take_while(|at| *at < lasting);
    moments.map(|at| Arrival { at, path: Arc::clone(&path) }).collect()
}

/// What its users are like.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// How long one of them waits for an answer.
    pub patience: Duration,
    /// How often each asks before it leaves for good; each time at once.
    pub tries: u32,
}

/// How it went for one user.
#[derive(Clone, Debug)]
pub struct Visit {
    /// Since the crowd began.
    pub at: Duration,
    pub path: Arc<str>,
    /// Of the last try, up to its end. The first one begins when the user should have come: a generator that is late cannot
    /// hide a wait.
    pub took: Duration,
    /// Since the crowd began.
    pub ended: Duration,
    pub tries: u32,
    pub outcome: Outcome,
}

#[derive(Clone, Debug)]
pub enum Outcome {
    Served(Answer),
    /// Any status that is no success.
    Refused(Answer),
    GaveUp,
    Failed(String),
}

impl Visit {
    /// The answer, where it was one with success.
    pub fn served(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Served(answer) => Some(answer),
            Outcome::Refused(_) | Outcome::GaveUp | Outcome::Failed(_) => None,
        }
    }
}

impl Crowd {
    /// Users who stay until they have an answer, and ask once.
    pub const PATIENT: Self = Self { patience: Duration::from_secs(60), tries: 1 };

    /// Lets everybody come at their time, in turn over `clients`, and waits for the last one to leave. In the order of arrival.
    pub async fn visit(self, clients: &[Arc<Client>], arrivals: &[Arrival]) -> Vec<Visit> {
        assert!(!clients.is_empty() && self.tries > 0);
        let began = Instant::now();
        let mut visits = JoinSet::new();
        let mut done = Vec::with_capacity(arrivals.len());
        for (index, arrival) in arrivals.iter().enumerate() {
            let due = began + arrival.at;
            sleep_until(due).await;
            while let Some(visit) = visits.try_join_next() {
                done.push(visit.expect("a user does not panic"));
            }
            let (client, arrival) = (Arc::clone(&clients[index % clients.len()]), arrival.clone());
            if visits.len() >= MOST_AT_ONCE {
                let outcome = Outcome::Failed(format!("{MOST_AT_ONCE} users are there already"));
                let Arrival { at, path } = arrival;
                done.push((index, Visit { at, path, took: Duration::ZERO, ended: at, tries: 0, outcome }));
                continue;
            }
            visits.spawn(async move { (index, self.one(&client, arrival, began).await) });
        }
        while let Some(visit) = visits.join_next().await {
            done.push(visit.expect("a user does not panic"));
        }
        done.sort_unstable_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, visit)| visit).collect()
    }

    async fn one(self, client: &Client, arrival: Arrival, began: Instant) -> Visit {
        let Arrival { at, path } = arrival;
        let mut asked = began + at;
        let mut tries = 1;
        loop {
            let outcome = match timeout(self.patience, client.get(&path)).await {
                Err(_) => Outcome::GaveUp,
                Ok(Err(error)) => Outcome::Failed(format!("{error:#}")),
                Ok(Ok(answer)) if answer.status.is_success() => Outcome::Served(answer),
                Ok(Ok(answer)) => Outcome::Refused(answer),
            };
            if matches!(outcome, Outcome::Served(_)) || tries == self.tries {
                return Visit { at, path, took: asked.elapsed(), ended: began.elapsed(), tries, outcome };
            }
            tries += 1;
            asked = Instant::now();
        }
    }
}

/// The time that `percent` of these stay under; zero when there are none.
pub fn percentile(times: impl IntoIterator<Item = Duration>, percent: f64) -> Duration {
    let mut sorted: Vec<Duration> = times.into_iter().collect();
    sorted.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (sorted.len() as f64 * percent / 100.0) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Protocol;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers the first request of every connection with what its path asks for: a status, or nothing at all.
    async fn server() -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 1024];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let status = head.strip_prefix("GET /").and_then(|rest| rest.get(..3)).unwrap_or("500").to_owned();
                    if status == "nev" {
                        std::future::pending::<()>().await;
                    }
                    let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    drop(stream.write_all(answer.as_bytes()).await);
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn everybody_comes_in_turn_and_leaves_when_it_is_enough() {
        let clients = [Arc::new(Client::plain(server().await, Protocol::Http1))];
        let paths = ["/200", "/503", "/never", "/200"];
        let arrivals = paths.map(|path| Arrival { at: Duration::ZERO, path: path.into() });
        let crowd = Crowd { patience: Duration::from_millis(200), tries: 2 };
        let visits = crowd.visit(&clients, &arrivals).await;
        assert_eq!(visits.iter().map(|visit| &*visit.path).collect::<Vec<_>>(), paths);
        assert!(visits[0].served().is_some() && visits[3].served().is_some(), "{visits:?}");
        assert!(matches!(&visits[1].outcome, Outcome::Refused(answer) if answer.status == 503), "{visits:?}");
        assert!(matches!(&visits[2].outcome, Outcome::GaveUp), "{visits:?}");
        assert_eq!(visits.iter().map(|visit| visit.tries).collect::<Vec<_>>(), [1, 2, 2, 1]);
        assert!(
            visits[2].took >= crowd.patience && visits[2].took < 2 * crowd.patience,
            "the last try only: {visits:?}"
        );
    }

    #[test]
    fn an_even_crowd_has_its_rate_and_its_length() {
        let arrivals = evenly("/", 200.0, Duration::from_secs(2));
        assert_eq!((arrivals.len(), arrivals[399].at), (400, Duration::from_millis(1995)));
    }

    #[test]
    fn percentiles_are_of_what_is_there() {
        let times = || (1..=200).rev().map(Duration::from_millis);
        assert_eq!(percentile(times(), 50.0), Duration::from_millis(101));
        assert_eq!(percentile(times(), 99.0), Duration::from_millis(199));
        assert_eq!(percentile(times(), 100.0), Duration::from_millis(200));
        assert_eq!(percentile([], 99.0), Duration::ZERO);
    }
}
