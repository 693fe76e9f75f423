//! The phases of a process's life, and the signals that end it. In: signals, and the role's own progress. Out: one
//! phase that everybody can await; it only moves forward. It never ends the process itself: the role's `run` returns
//! when it has drained.

use std::{io, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Ordered as a process lives through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not every listener is bound yet.
    Starting,
    Serving,
    /// Refuses new work, finishes old.
    Draining,
    /// Out of patience: what is unfinished is dropped.
    Stopping,
}

/// The phase this process is in. Clones share it.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Arc<watch::Sender<Phase>>,
}

impl Lifecycle {
    pub fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Starting)) }
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on to `to`; does nothing if that lies behind.
    pub fn advance(&self, to: Phase) {
        let moved = self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
            }
            forward
        });
        if moved {
            tracing::debug!(phase = ?to, "lifecycle");
        }
    }

    /// Returns at once if the process is in `wanted` or beyond it, else when it gets there.
    pub async fn reached(&self, wanted: Phase) {
        // The sender lives in self, so the only way out is that the phase is reached.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// The signals that end a process, caught from the moment this exists: install it before readiness is announced, or
/// a supervisor's prompt SIGTERM kills where it should drain.
#[derive(Debug)]
pub struct Signals {
    /// From Kubernetes, Docker, systemd, `servery up`.
    terminate: Signal,
    /// From a terminal's Ctrl-C.
    interrupt: Signal,
    /// From a terminal's Ctrl-\, and what some images send as their stop signal.
    quit: Signal,
}

/// Must be called inside a tokio runtime.
pub fn install_signals() -> io::Result<Signals> {
    Ok(Signals {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        quit: signal(SignalKind::quit())?,
    })
}

impl Signals {
    /// The first signal begins the drain, a second SIGTERM or SIGINT ends it. Runs until then.
    pub async fn follow(mut self, lifecycle: Lifecycle) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        };
        tracing::info!(signal = name, "draining");
        lifecycle.advance(Phase::Draining);
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::warn!(signal = name, "stopping at once");
        lifecycle.advance(Phase::Stopping);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn phases_only_move_forward() {
        let lifecycle = Lifecycle::new();
        assert_eq!(lifecycle.phase(), Phase::Starting);
        lifecycle.advance(Phase::Draining);
        lifecycle.advance(Phase::Serving);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }

    #[tokio::test]
    async fn who_waits_for_a_phase_is_woken_by_it_and_by_a_later_one() {
        let lifecycle = Lifecycle::new();
        assert!(lifecycle.reached(Phase::Serving).now_or_never().is_none());
        let waiting = lifecycle.clone();
        let (_, ()) = tokio::join!(waiting.reached(Phase::Serving), async { lifecycle.advance(Phase::Stopping) });
        assert!(lifecycle.reached(Phase::Draining).now_or_never().is_some());
    }
}
