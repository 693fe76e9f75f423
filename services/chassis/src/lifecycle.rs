//! The phases of a process's life, and the signals that end it or ask something of it. In: signals, and the role's own
//! progress. Out: one phase that everybody can await, and only moves forward; commands, one after the other. It never
//! ends the process itself: the role's `run` returns when it has drained.

use rustix::process::Signal as Unix;
use std::{io, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
};

/// Commands that nobody has taken yet. More are dropped: whoever sends so many has lost count.
const COMMANDS: usize = 256;

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

/// What SIGINT and SIGQUIT ask for. SIGTERM always asks for a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The same: finish what is in flight.
    Drains,
    /// An end at once, as Gunicorn's users expect it.
    Stops,
}

/// What a signal asks of a process that goes on living.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// SIGHUP: replace all workers.
    Reload,
    /// SIGTTIN: one worker more.
    More,
    /// SIGTTOU: one worker fewer.
    Fewer,
    /// SIGUSR1: the log files have been moved, open them anew.
    Reopen,
}

/// In the order in which the signals came; ends with the process. Signals of one kind that come faster than the process
/// is scheduled count as one, as Unix has it.
pub type Commands = mpsc::Receiver<Command>;

/// The signals that a process knows, caught from the moment this exists: install it before readiness is announced, or
/// a supervisor's prompt SIGTERM kills where it should drain, and a SIGHUP kills where it should be answered.
#[derive(Debug)]
pub struct Signals {
    interrupts: Interrupt,
    /// From Kubernetes, Docker, systemd, `servery up`.
    terminate: Signal,
    /// From a terminal's Ctrl-C.
    interrupt: Signal,
    /// From a terminal's Ctrl-\, and what some images send as their stop signal.
    quit: Signal,
}

/// Must be called inside a tokio runtime.
pub fn install_signals(interrupts: Interrupt) -> io::Result<(Signals, Commands)> {
    let mut caught = Caught {
        reload: signal(SignalKind::hangup())?,
        more: signal(SignalKind::from_raw(Unix::TTIN.as_raw()))?,
        fewer: signal(SignalKind::from_raw(Unix::TTOU.as_raw()))?,
        reopen: signal(SignalKind::user_defined1())?,
        upgrade: signal(SignalKind::user_defined2())?,
    };
    let signals = Signals {
        interrupts,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        quit: signal(SignalKind::quit())?,
    };
    let (sender, commands) = mpsc::channel(COMMANDS);
    // A task of its own, so that who obeys may take its time without the next signal being merged into this one.
    tokio::spawn(async move {
        loop {
            let command = caught.next().await;
            if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(command) {
                return;
            }
        }
    });
    Ok((signals, commands))
}

/// The signals behind [`Command`].
struct Caught {
    reload: Signal,
    more: Signal,
    fewer: Signal,
    reopen: Signal,
    /// Gunicorn's change of the binary. Uncaught it would kill.
    upgrade: Signal,
}

impl Caught {
    async fn next(&mut self) -> Command {
        loop {
            // `None` never comes: the streams end with the runtime
            return tokio::select! {
                _ = self.reload.recv() => Command::Reload,
                _ = self.more.recv() => Command::More,
                _ = self.fewer.recv() => Command::Fewer,
                _ = self.reopen.recv() => Command::Reopen,
                _ = self.upgrade.recv() => {
                    tracing::warn!("SIGUSR2 does nothing: there is no change of the binary in place");
                    continue;
                }
            };
        }
    }
}

/// For roles that have nothing to obey with: the signals are caught, and said to do nothing. Runs forever.
pub async fn ignore(mut commands: Commands) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Reload => tracing::info!("SIGHUP: there is nothing to reload yet"),
            Command::Reopen => tracing::info!("SIGUSR1: this process writes no log files"),
            Command::More | Command::Fewer => tracing::info!("SIGTTIN and SIGTTOU: this process has no workers"),
        }
    }
}

impl Signals {
    /// The first signal begins the drain or, if it may, ends it at once; a second one does. Runs until then.
    pub async fn follow(mut self, lifecycle: Lifecycle) {
        let (name, stops) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", false),
            _ = self.interrupt.recv() => ("SIGINT", true),
            _ = self.quit.recv() => ("SIGQUIT", true),
        };
        if stops && self.interrupts == Interrupt::Stops {
            tracing::info!(signal = name, "stopping at once");
            lifecycle.advance(Phase::Stopping);
            return;
        }
        tracing::info!(signal = name, "draining");
        lifecycle.advance(Phase::Draining);
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            // an image's stop signal may come twice without impatience; who means it here says so at once
            _ = self.quit.recv(), if self.interrupts == Interrupt::Stops => "SIGQUIT",
        };
        tracing::warn!(signal = name, "stopping at once");
        lifecycle.advance(Phase::Stopping);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use rustix::process::{getpid, kill_process};

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

    /// The signals go to the whole test process, so everything about them is one test: streams of another would see them.
    #[tokio::test]
    async fn signals_become_phases_and_commands() {
        let send = |signal| kill_process(getpid(), signal).unwrap();

        let (signals, mut commands) = install_signals(Interrupt::Drains).unwrap();
        let lifecycle = Lifecycle::new();
        let following = tokio::spawn(signals.follow(lifecycle.clone()));
        for (signal, wanted) in [
            (Unix::HUP, Command::Reload),
            (Unix::TTIN, Command::More),
            (Unix::TTOU, Command::Fewer),
            (Unix::USR1, Command::Reopen),
            (Unix::TTIN, Command::More),
        ] {
            send(signal);
            assert_eq!(commands.recv().await, Some(wanted));
        }
        assert_eq!(lifecycle.phase(), Phase::Starting);
        // survived, and nobody's command
        send(Unix::USR2);
        send(Unix::INT);
        lifecycle.reached(Phase::Draining).await;
        assert_eq!(lifecycle.phase(), Phase::Draining);
        send(Unix::TERM);
        following.await.unwrap();
        assert_eq!((lifecycle.phase(), commands.try_recv().ok()), (Phase::Stopping, None));

        for signal in [Unix::INT, Unix::QUIT] {
            let (signals, _commands) = install_signals(Interrupt::Stops).unwrap();
            let lifecycle = Lifecycle::new();
            let mut following = tokio::spawn(signals.follow(lifecycle.clone()));
            assert!((&mut following).now_or_never().is_none());
            send(signal);
            following.await.unwrap();
            assert_eq!(lifecycle.phase(), Phase::Stopping);
        }
        let (signals, _commands) = install_signals(Interrupt::Stops).unwrap();
        let lifecycle = Lifecycle::new();
        let _following = tokio::spawn(signals.follow(lifecycle.clone()));
        send(Unix::TERM);
        lifecycle.reached(Phase::Draining).await;
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}
