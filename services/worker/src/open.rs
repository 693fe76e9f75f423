//! How many connections of a worker are open: each is counted from its accept to its last byte, also when it has become
//! a tunnel.

use std::sync::Arc;
use tokio::sync::watch;

/// The count.
#[derive(Debug)]
pub(crate) struct Open {
    count: watch::Sender<usize>,
}

/// Counts one connection until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    open: Arc<Open>,
}

impl Open {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { count: watch::Sender::new(0) })
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Counted {
        self.count.send_modify(|count| *count += 1);
        Counted { open: Arc::clone(self) }
    }

    /// Until no connection is open.
    pub(crate) async fn none(&self) {
        self.fewer_than(1).await;
    }

    /// Until there are fewer than that.
    pub(crate) async fn fewer_than(&self, most: usize) {
        if self.count() >= most {
            // the sender is ours and lives, so this cannot fail
            let _ = self.count.subscribe().wait_for(|count| *count < most).await;
        }
    }

    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.open.count.send_modify(|count| *count -= 1);
    }
}
