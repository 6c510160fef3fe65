//! The tasks of an engine: owned, joined at shutdown, ended together.

use std::future::Future;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Spawns tasks that end at their next await once the engine is killed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    kill: CancellationToken,
}

impl Tasks {
    /// The result is `None` when the engine ended before the task did.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let kill = self.kill.clone();
        self.tracker.spawn(async move { kill.run_until_cancelled(task).await })
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Ends every task at its next await and waits for all of them.
    pub(crate) async fn end(&self) {
        self.kill.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
