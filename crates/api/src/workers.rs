//! The threads that serve connections.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads with a runtime of their own each, one a core. A request is answered by the thread that read it: in a runtime of
/// several threads, every request would wake another one, which costs more than most answers.
pub(crate) struct Workers(Vec<Worker>);

struct Worker {
    runtime: Handle,
    /// Each of its tasks has one more.
    tasks: Arc<()>,
    /// Ends it when it is dropped.
    _running: oneshot::Sender<()>,
}

impl Workers {
    /// Starts the threads. They end, with the tasks that they still have, when this is dropped.
    ///
    /// # Errors
    /// What the system says where it gives no thread or no file descriptor.
    pub(crate) fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, Into::into);
        (0..count).map(|_| Worker::start()).collect::<io::Result<_>>().map(Self)
    }

    /// Has the thread with the fewest tasks carry out one more.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(worker) = self.0.iter().min_by_key(|worker| Arc::strong_count(&worker.tasks)) else {
            return;
        };
        let counted = Arc::clone(&worker.tasks);
        worker.runtime.spawn(async move {
            task.await;
            drop(counted);
        });
    }
}

impl Worker {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel();
        thread::Builder::new().name("api".into()).spawn(move || drop(runtime.block_on(ended)))?;
        Ok(Self { runtime: handle, tasks: Arc::default(), _running: running })
    }
}
