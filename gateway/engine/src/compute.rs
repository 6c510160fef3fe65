//! The threads that hash, compress and seal: their own, few, at low priority, so that guests come first.

use crate::error::EngineError;
use cairn_model::Spawn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot};

type Work = Box<dyn FnOnce() + Send>;

/// Work waiting beyond what runs. Callers wait when it is full.
const QUEUE_LENGTH: usize = 4;
const NICENESS: u8 = 10;

/// A fixed set of threads for CPU-heavy work. They end when the last handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct ComputePool {
    queue: mpsc::Sender<Work>,
}

impl ComputePool {
    pub(crate) fn start(threads: usize, spawn: &dyn Spawn) -> Result<Self, EngineError> {
        let (queue, receiver) = mpsc::channel::<Work>(QUEUE_LENGTH);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads.max(1) {
            let receiver = Arc::clone(&receiver);
            let work = async move {
                // The guard is held while waiting only: one idle worker waits for work, the others for the guard.
                while let Some(work) = { receiver.lock().await.recv().await } {
                    work();
                }
            };
            spawn
                .dedicated("cairn-compute", NICENESS, Box::pin(work))
                .map_err(|error| EngineError::Thread(Arc::new(error)))?;
        }
        Ok(Self { queue })
    }

    /// Runs `work` on one of the threads and returns its result. Work that was queued runs even if the caller
    /// stops waiting.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let (answer, result) = oneshot::channel();
        // A panic ends the piece of work that it is in, not the thread that others need.
        let job: Work = Box::new(move || drop(answer.send(catch_unwind(AssertUnwindSafe(work)))));
        self.queue.send(job).await.map_err(|_| EngineError::Stopped)?;
        let done = result.await.map_err(|_| EngineError::Stopped)?;
        done.map_err(|panic| {
            let said = panic.downcast_ref::<&str>().map(ToString::to_string);
            EngineError::Panicked(said.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::ThreadSpawn;

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_thread_goes_on() {
        let pool = ComputePool::start(1, &ThreadSpawn).unwrap();
        let failed = pool.run(|| -> u32 { panic!("no luck") }).await;
        assert!(matches!(failed, Err(EngineError::Panicked(said)) if said == "no luck"));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }
}
