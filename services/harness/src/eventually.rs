//! Waiting for something to become true: comes in a probe, goes out its first success or a panic with its last failure.
//!
//! The pause between two probes is no synchronisation: nothing is assumed to have happened because it has passed.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Probes until it succeeds; returns what it returned. Panics after `within`, saying what was waited for and the last failure.
pub async fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        // A probe that hangs must not outlive the deadline: the last failure would never be told.
        let left = within.saturating_sub(started.elapsed()).max(Duration::from_millis(50));
        let failure = match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => "the probe itself did not answer".to_owned(),
        };
        assert!(started.elapsed() < within, "waited {within:?} for {what}: {failure}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(25));
    }
}

/// `Ok(())` when `condition` holds, else what `otherwise` says; for probes.
pub fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_success_is_returned() {
        let mut probes = 0;
        let value = eventually("the third probe", Duration::from_secs(5), async || {
            probes += 1;
            ensure(probes == 3, || format!("probe {probes}")).map(|()| probes)
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test]
    #[should_panic(expected = "waited 20ms for the moon: not today")]
    async fn the_deadline_tells_the_last_failure() {
        eventually("the moon", Duration::from_millis(20), async || Err::<(), _>("not today")).await;
    }

    #[tokio::test]
    #[should_panic(expected = "did not answer")]
    async fn a_hanging_probe_does_not_hang_the_test() {
        eventually("an answer", Duration::from_millis(20), async || {
            std::future::pending::<()>().await;
            Err::<(), _>("never")
        })
        .await;
    }
}
