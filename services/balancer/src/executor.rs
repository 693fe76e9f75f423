//! Where hyper puts the tasks of an HTTP/2 connection: on the core that it belongs to. They end with its runtime.

use hyper::rt::Executor;

#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
