//! Where hyper puts the tasks of a client's HTTP/2 connection. In: a stream's future. Out: a task of this core, which ends
//! early when its leash says so; its stream is reset then.

use crate::{executor::LocalExecutor, leash::Leash};
use hyper::rt::Executor;
use std::{cell::RefCell, rc::Rc};

#[derive(Clone, Debug, Default)]
pub(super) struct LeashedExecutor {
    /// Of the request that was just begun: hyper makes its future and then its task, with nothing in between.
    next: Rc<RefCell<Option<Rc<Leash>>>>,
}

impl LeashedExecutor {
    /// For the stream that comes next.
    pub(super) fn lead(&self, leash: &Rc<Leash>) {
        self.next.replace(Some(Rc::clone(leash)));
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for LeashedExecutor {
    fn execute(&self, task: F) {
        let Some(leash) = self.next.take() else { return LocalExecutor.execute(task) };
        LocalExecutor.execute(async move {
            tokio::select! {
                biased;
                () = task => {}
                () = leash.stopped() => {}
            }
        });
    }
}
