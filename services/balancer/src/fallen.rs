//! The workers that reset one request. In: each endpoint at whose connection the request ended. Out: how many of them
//! died, once their nodes had a moment to say so. A reset alone says nothing: connections break for many reasons. Never
//! decides what follows (`retry` does).

use crate::{endpoint::Endpoint, record::Record};
use futures_util::future::join_all;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::timeout;

/// A node reports a death within milliseconds of the reset. Longer than this and the worker may as well have a fault that
/// it lives with.
const REPORT: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Fallen {
    /// Each once, in the order of the attempts.
    endpoints: Vec<Arc<Endpoint>>,
}

impl Fallen {
    /// Whose node reports no deaths is not counted: nothing would ever be known of it.
    pub fn add(&mut self, endpoint: &Arc<Endpoint>) {
        if endpoint.node.reports() && !self.endpoints.iter().any(|other| other.id == endpoint.id) {
            self.endpoints.push(Arc::clone(endpoint));
        }
    }

    /// Different workers that reset the request.
    pub fn resets(&self) -> u32 {
        count(self.endpoints.len())
    }

    /// How many of them died. Waits for the reports of those that seem alive.
    pub async fn deaths(&self) -> u32 {
        // How many are gone when it is over counts, not whether all are.
        let _ = timeout(REPORT, join_all(self.endpoints.iter().map(|endpoint| endpoint.gone()))).await;
        // What took a node away took all its workers: one death, whatever it was.
        let mut lost = HashSet::new();
        let dead = self.endpoints.iter().filter(|endpoint| endpoint.is_gone());
        count(dead.filter(|endpoint| !endpoint.is_lost() || lost.insert(&endpoint.node.instance)).count())
    }

    /// Tells the operator which request it was. Without its query, as in the access log.
    pub fn accuse(&self, record: &Record) {
        let workers: Vec<String> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.is_gone())
            .map(|endpoint| {
                format!("{} {} (generation {})", endpoint.node.instance, endpoint.position, endpoint.generation)
            })
            .collect();
        tracing::warn!(
            method = %record.method,
            path = %String::from_utf8_lossy(record.words.path()),
            request_id = record.id.to_str().unwrap_or_default(),
            workers = workers.join(", "),
            "a request killed the workers that had it: it is not sent to another one"
        );
    }
}

fn count(endpoints: usize) -> u32 {
    u32::try_from(endpoints).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoint::{EndpointId, Node, Server, WorkerView},
        foreign::Foreign,
    };
    use tokio::time::Instant;

    fn endpoint(instance: &str, position: u32) -> Arc<Endpoint> {
        let node = Arc::new(Node::new(instance.to_owned(), ([127, 0, 0, 1], 1).into(), b"pass"));
        let worker = WorkerView::ready(position, ([127, 0, 0, 1], 9000).into(), 1);
        Arc::new(Endpoint::new(EndpointId { number: position.into(), seat: position }, &node, &worker))
    }

    fn fallen(endpoints: &[&Arc<Endpoint>]) -> Fallen {
        let mut fallen = Fallen::default();
        endpoints.iter().for_each(|endpoint| fallen.add(endpoint));
        fallen
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_counted_as_soon_as_all_are_reported() {
        let (one, two) = (endpoint("node-1", 1), endpoint("node-1", 2));
        let fallen = fallen(&[&one, &two, &one]);
        assert_eq!(fallen.resets(), 2, "each once");
        one.list(false, true);
        let start = Instant::now();
        let (deaths, ()) = tokio::join!(fallen.deaths(), async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            two.list(false, true);
        });
        assert_eq!((deaths, start.elapsed().as_millis()), (2, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_lives_is_waited_for_a_moment_and_not_counted() {
        let (one, two) = (endpoint("node-1", 1), endpoint("node-1", 2));
        one.list(false, true);
        let start = Instant::now();
        assert_eq!(fallen(&[&one, &two]).deaths().await, 1);
        assert_eq!(start.elapsed(), REPORT);
    }

    #[test]
    fn whose_node_tells_nothing_is_not_counted() {
        let foreign = Foreign {
            security: None,
            host: None,
            protocol: crate::config::UpstreamProtocol::Http1,
            keepalive: Duration::ZERO,
        };
        let address = ([127, 0, 0, 1], 1).into();
        let server = Server::Foreign(Arc::new(foreign));
        let node = Arc::new(Node { instance: "127.0.0.1:1".to_owned(), address, server, timeout: None });
        let id = EndpointId { number: 1, seat: 0 };
        let endpoint = Arc::new(Endpoint::new(id, &node, &WorkerView::ready(0, address, 1)));
        assert_eq!(fallen(&[&endpoint]).resets(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_dies_once() {
        let (one, two, other) = (endpoint("node-1", 1), endpoint("node-1", 2), endpoint("node-2", 3));
        [&one, &two, &other].iter().for_each(|endpoint| endpoint.list(false, false));
        assert_eq!(fallen(&[&one, &two]).deaths().await, 1);
        assert_eq!(fallen(&[&one, &other]).deaths().await, 2);
    }
}
