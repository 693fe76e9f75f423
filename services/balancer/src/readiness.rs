//! When is this balancer ready? In: the first certificates, and nodes that register. Out: latches released, each once.
//! A balancer that says so too early answers 503 for nodes that are about to come back; one that waits too long keeps
//! traffic from a site that has no nodes.

use crate::certificates::{Standing, write_private};
use chassis::admin::Latch;
use std::{path::Path, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// So long without a registration, and those who wanted to come back are back: nodes retry within half a second.
const QUIET: Duration = Duration::from_secs(1);

/// There from the first registration on, so that the next start knows that nodes will come back.
const MARKER: &str = "registered";

/// When waiting for nodes is over, as far as is known: `opened` is when the registry did.
fn settled_at(first_start: bool, hold: Duration, opened: Instant, last: Option<Instant>) -> Instant {
    if first_start {
        return opened;
    }
    (last.unwrap_or(opened) + QUIET).min(opened + hold)
}

/// Returns when registrations have been quiet, or `hold` is over, or at once if no node has ever registered.
/// `registrations` counts them; call this when the registry opens.
pub(crate) async fn settled(first_start: bool, hold: Duration, mut registrations: watch::Receiver<u64>) {
    let opened = Instant::now();
    let mut last = None;
    loop {
        tokio::select! {
            biased; // nodes that come one after another must not make it longer than `hold`
            () = sleep_until(settled_at(first_start, hold, opened, last)) => return,
            Ok(()) = registrations.changed() => last = Some(Instant::now()),
        }
    }
}

/// Whether no node has ever registered here.
pub(crate) fn is_first_start(data: &Path) -> bool {
    !data.join(MARKER).exists()
}

/// Returns after the first registration, which it has written down.
pub(crate) async fn remember_first(data: &Path, mut registrations: watch::Receiver<u64>) {
    if registrations.wait_for(|count| *count > 0).await.is_ok()
        && is_first_start(data)
        && let Err(error) = write_private(&data.join(MARKER), "")
    {
        tracing::warn!(%error, "cannot remember in the data directory that nodes have registered");
    }
}

/// Releases `latch` once there is a certificate that is not our own.
pub(crate) async fn certificates(latch: Latch, mut standing: watch::Receiver<Standing>) {
    if standing.wait_for(|standing| !standing.sources.is_empty()).await.is_ok() {
        latch.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::time::{advance, sleep};

    const HOLD: Duration = Duration::from_secs(10);

    /// How long it takes from the opening until it is settled, with registrations so long after it.
    async fn takes(first_start: bool, registrations_ms: &[u64]) -> u64 {
        let opened = Instant::now();
        let counter = watch::Sender::new(0);
        let settled = settled(first_start, HOLD, counter.subscribe());
        let nodes = async {
            for at in registrations_ms {
                sleep_until(opened + Duration::from_millis(*at)).await;
                counter.send_modify(|count| *count += 1);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = settled => {}
            () = nodes => {}
        }
        opened.elapsed().as_millis().try_into().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_very_first_start_waits_for_nobody() {
        assert_eq!(takes(true, &[500]).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_start_waits_until_registrations_are_quiet() {
        assert_eq!(takes(false, &[]).await, 1000);
        assert_eq!(takes(false, &[300]).await, 1300);
        assert_eq!(takes(false, &[300, 900, 1800]).await, 2800);
        assert_eq!(takes(false, &[300, 1400]).await, 1300);
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_come_without_end_do_not_hold_it_for_ever() {
        let steady: Vec<u64> = (0..100).map(|n| n * 500).collect();
        assert_eq!(takes(false, &steady).await, 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_settled_though_nobody_can_register_any_more() {
        let (counter, registrations) = watch::channel(0);
        drop(counter);
        settled(false, HOLD, registrations).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_registration_is_remembered_over_a_restart() {
        let data = tempfile::tempdir().unwrap();
        assert!(is_first_start(data.path()));
        let counter = watch::Sender::new(0_u64);
        let register = async {
            sleep(Duration::from_secs(5)).await;
            assert!(is_first_start(data.path()));
            counter.send_modify(|count| *count += 1);
        };
        tokio::join!(remember_first(data.path(), counter.subscribe()), register);
        assert!(!is_first_start(data.path()));
        advance(Duration::from_secs(1)).await;
        remember_first(data.path(), counter.subscribe()).await;
    }

    proptest! {
        #[test]
        fn it_is_never_later_than_the_hold_nor_sooner_than_a_quiet_second(hold_ms in 0_u64..20_000, last_ms in prop::option::of(0_u64..20_000)) {
            let opened = Instant::now();
            let last = last_ms.map(|last| opened + Duration::from_millis(last));
            let at = settled_at(false, Duration::from_millis(hold_ms), opened, last);
            prop_assert!(at <= opened + Duration::from_millis(hold_ms));
            prop_assert!(at == opened + Duration::from_millis(hold_ms) || at >= last.unwrap_or(opened) + QUIET);
            prop_assert_eq!(settled_at(true, Duration::from_millis(hold_ms), opened, last), opened);
        }
    }
}
