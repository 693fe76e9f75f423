//! What the service manager is told (sd_notify(3)): come in how the node stands and what it is asked to do, go out READY,
//! RELOADING, STOPPING, one line of status, and the watchdog's sign of life. Where there is no service manager it does
//! nothing. Workers do not see the variables that this is about.

use crate::roster::{Roster, Row, State};
use chassis::admin::Readiness;
use sd_notify::NotifyState;
use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// Between two looks at how the node stands.
const LOOK: Duration = Duration::from_millis(100);

/// The one that started this process, if it wants to hear of it. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct ServiceManager {
    /// READY has been said, so RELOADING may be.
    ready: Arc<AtomicBool>,
}

impl ServiceManager {
    pub(crate) fn new() -> Self {
        Self { ready: Arc::default() }
    }

    /// Says READY once, then what has changed and, if it is asked for, that the supervisor's loop runs. For ever.
    pub(crate) async fn follow(self, readiness: Readiness, roster: Roster) {
        if env::var_os("NOTIFY_SOCKET").is_none() {
            return std::future::pending().await;
        }
        // half of it, as sd_watchdog_enabled(3) advises
        let watchdog = sd_notify::watchdog_enabled().map(|most| most / 2);
        let mut looks = interval(watchdog.map_or(LOOK, |watchdog| watchdog.clamp(Duration::from_millis(1), LOOK)));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut alive_until) = (String::new(), None);
        loop {
            let now = looks.tick().await;
            if readiness.is_ready() && !self.ready.swap(true, Ordering::Relaxed) {
                tell(&[NotifyState::Ready]);
            }
            let status = status(&roster.rows());
            if status != told {
                tell(&[NotifyState::Status(&status)]);
                told = status;
            }
            if let Some(watchdog) = watchdog
                && alive_until.is_none_or(|until| now >= until)
            {
                tell(&[NotifyState::Watchdog]);
                alive_until = Some(now + watchdog - LOOK.min(watchdog / 2));
            }
        }
    }

    /// Every worker is being replaced; [`Self::reloaded`] ends it.
    pub(crate) fn reloading(&self) {
        if self.ready.load(Ordering::Relaxed)
            && let Ok(now) = NotifyState::monotonic_usec_now()
        {
            tell(&[NotifyState::Reloading, now]);
        }
    }

    pub(crate) fn reloaded(&self) {
        if self.ready.load(Ordering::Relaxed) {
            tell(&[NotifyState::Ready]);
        }
    }

    pub(crate) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

/// A service manager that does not listen is no reason not to serve.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// One line for `systemctl status`.
fn status(rows: &[Row]) -> String {
    let counts = State::ALL.map(|state| (state, rows.iter().filter(|row| row.state == state).count()));
    let words: Vec<String> = counts
        .iter()
        .filter(|(state, count)| *count > 0 || *state == State::Ready)
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect();
    format!("workers: {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::status;
    use crate::roster::{Row, State};

    #[test]
    fn the_status_counts_the_workers_of_each_state() {
        let row = |state| Row { state, ..Row::starting() };
        assert_eq!(status(&[]), "workers: 0 ready");
        let rows = [row(State::Ready), row(State::Starting), row(State::Ready), row(State::Draining)];
        assert_eq!(status(&rows), "workers: 1 starting, 2 ready, 1 draining");
    }
}
