//! Where hyper's tasks of an HTTP/2 connection run. In: a stream's future. Out: a task of this core, which ends early when its
//! leash says so; its stream is reset then.

use crate::leash::Leash;
use hyper::rt::Executor;
use std::{cell::RefCell, rc::Rc};

/// Puts HTTP/2's tasks on this core; they end with its runtime.
#[derive(Clone, Debug, Default)]
pub(super) struct LocalExecutor {
    /// Of the request that was just begun: hyper makes its future and then its task, with nothing in between.
    pub(super) leash: Rc<RefCell<Option<Rc<Leash>>>>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        let Some(leash) = self.leash.take() else {
            tokio::task::spawn_local(task);
            return;
        };
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = task => {}
                () = leash.stopped() => {}
            }
        });
    }
}
