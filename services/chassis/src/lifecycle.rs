//! The phases of a process's life.

use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Starting,
    Serving,
    Draining,
    Stopping,
}

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

    pub fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
            }
            forward
        });
    }

    pub async fn reached(&self, wanted: Phase) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

pub async fn follow_signals(_lifecycle: Lifecycle) {
    unimplemented!()
}
