//! Is the node ready? In: the roster and the streams. Out: two latches. Ready means that its workers can take requests and,
//! unless clients reach them themselves, that at least one balancer knows of them. It starts and stops nothing.

use crate::{Roster, State, StreamState, Streams};
use chassis::admin::Readiness;

/// Follows both lists for ever.
pub(crate) async fn follow(readiness: Readiness, roster: Roster, streams: Streams, workers: u32, alone: bool) {
    let starting = readiness.latch("workers are starting");
    let unregistered = readiness.latch("not registered with any balancer");
    if alone {
        unregistered.release();
    }
    let (mut roster, mut streams) = (roster.watch(), streams.changes());
    let mut started = false;
    loop {
        let ready = roster.borrow_and_update().iter().filter(|row| row.state == State::Ready).count();
        // at first all of them; later the ones that are left serve while others are replaced
        started |= ready >= usize::try_from(workers).unwrap_or(usize::MAX);
        if started && ready > 0 {
            starting.release();
        } else {
            starting.hold();
        }
        if streams.borrow_and_update().values().any(|row| row.state == StreamState::Registered) || alone {
            unregistered.release();
        } else {
            unregistered.hold();
        }
        let changed = tokio::select! {
            changed = roster.changed() => changed,
            changed = streams.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
