//! What could be had at best: comes in arrivals with their work and servers with their slowness, goes out how long each request takes
//! when there is one queue in the order of arrival, no network, and nobody is idle while somebody waits. Pure.

use std::time::Duration;

use rand::seq::IndexedRandom as _;

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) at: Duration,
    /// On a server that is not slow.
    pub(crate) work: Duration,
}

/// Which of the idle servers takes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Any: it is not known which ones are slow.
    Random,
    /// One that is not slow, if there is one.
    FastFirst,
}

/// How long each of the jobs, in the order of arrival, takes on servers that are so many times slower than they should be.
pub(crate) fn single_queue(jobs: &[Job], slowness: &[u32], choice: Choice, rng: &mut impl rand::Rng) -> Vec<Duration> {
    let mut free_at = vec![Duration::ZERO; slowness.len()];
    let mut last_start = Duration::ZERO;
    jobs.iter()
        .map(|job| {
            // Nobody overtakes: it starts when the one before it has started and somebody is free.
            let soonest = free_at.iter().min().copied().unwrap_or_default();
            let start = job.at.max(last_start).max(soonest);
            last_start = start;
            let idle: Vec<usize> = (0..free_at.len()).filter(|server| free_at[*server] <= start).collect();
            let fastest = idle.iter().map(|server| slowness[*server]).min().unwrap_or(1);
            let fast: Vec<usize> = idle.iter().copied().filter(|server| slowness[*server] == fastest).collect();
            let among = if choice == Choice::FastFirst { &fast } else { &idle };
            let server = *among.choose(rng).expect("one of them is free at that time");
            free_at[server] = start + job.work * slowness[server];
            free_at[server] - job.at
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    const MS: Duration = Duration::from_millis(1);

    fn jobs(times: &[(u32, u32)]) -> Vec<Job> {
        times.iter().map(|(at, work)| Job { at: MS * *at, work: MS * *work }).collect()
    }

    fn took(jobs: &[Job], slowness: &[u32], choice: Choice) -> Vec<u128> {
        let times = single_queue(jobs, slowness, choice, &mut StdRng::seed_from_u64(1));
        times.iter().map(Duration::as_millis).collect()
    }

    #[test]
    fn who_comes_first_starts_first_and_nobody_waits_while_one_is_idle() {
        let jobs = jobs(&[(0, 10), (0, 20), (1, 10), (2, 5), (100, 10)]);
        assert_eq!(took(&jobs, &[1, 1], Choice::Random), [10, 20, 19, 23, 10]);
        assert_eq!(took(&jobs, &[1], Choice::Random), [10, 30, 39, 43, 10]);
    }

    #[test]
    fn the_slow_one_is_taken_only_when_it_is_the_only_one() {
        let jobs = jobs(&[(0, 10), (1, 10), (50, 10)]);
        assert_eq!(took(&jobs, &[5, 1], Choice::FastFirst), [10, 50, 10]);
    }
}
