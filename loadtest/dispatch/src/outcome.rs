//! What a run showed.

use std::time::Duration;

/// Counts of everything that happened, and the waits of what was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub arrived: u64,
    pub served: u64,
    /// Answered by a balancer itself.
    pub shed: u64,
    /// Neither when the run ended.
    pub left: u64,
    /// Found every slot of their worker busy.
    pub queued_at_workers: u64,
    /// Sent back by a worker.
    pub refused: u64,
    /// Permits that were moved from one balancer to another.
    pub moves: u64,
    /// Messages of the control plane.
    pub messages: u64,
    waits: Vec<Duration>,
    /// Wait and service together.
    responses: Vec<Duration>,
    by_worker: Vec<u64>,
    sorted: bool,
}

impl Outcome {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            arrived: 0,
            served: 0,
            shed: 0,
            left: 0,
            queued_at_workers: 0,
            refused: 0,
            moves: 0,
            messages: 0,
            waits: Vec::new(),
            responses: Vec::new(),
            by_worker: vec![0; workers],
            sorted: false,
        }
    }

    pub(crate) fn count(&mut self, worker: usize, wait: Duration, service: Duration) {
        self.waits.push(wait);
        self.responses.push(wait + service);
        self.by_worker[worker] += 1;
        self.sorted = false;
    }

    /// Requests whose wait was counted.
    pub fn counted(&self) -> usize {
        self.waits.len()
    }

    pub fn wait_mean(&self) -> Duration {
        let sum: Duration = self.waits.iter().sum();
        sum / u32::try_from(self.waits.len()).unwrap_or(u32::MAX).max(1)
    }

    /// The share of requests that did not wait at all.
    pub fn at_once(&self) -> f64 {
        let at_once = self.waits.iter().filter(|wait| wait.is_zero()).count();
        at_once as f64 / self.waits.len().max(1) as f64
    }

    /// Which wait so many thousandths of the requests did not exceed.
    pub fn wait(&mut self, thousandths: usize) -> Duration {
        self.sort();
        quantile(&self.waits, thousandths)
    }

    pub fn response(&mut self, thousandths: usize) -> Duration {
        self.sort();
        quantile(&self.responses, thousandths)
    }

    /// Requests that each worker served.
    pub fn by_worker(&self) -> &[u64] {
        &self.by_worker
    }

    fn sort(&mut self) {
        if !self.sorted {
            self.waits.sort_unstable();
            self.responses.sort_unstable();
            self.sorted = true;
        }
    }
}

fn quantile(sorted: &[Duration], thousandths: usize) -> Duration {
    let at = (sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_what_so_many_did_not_exceed() {
        let mut outcome = Outcome::new(1);
        for ms in (0..1000).rev() {
            outcome.count(0, Duration::from_millis(ms), Duration::from_millis(1));
        }
        assert_eq!(outcome.wait(990), Duration::from_millis(990));
        assert_eq!(outcome.response(500), Duration::from_millis(501));
        assert_eq!(outcome.wait(1000), Duration::from_millis(999));
        assert_eq!(outcome.wait_mean(), Duration::from_micros(499_500));
        assert!((outcome.at_once() - 0.001).abs() < 1e-9);
        assert_eq!(Outcome::new(1).wait(990), Duration::ZERO);
    }
}
