//! The threads that hash, compress and seal: their own, few, at low priority, so that guests come first.
//!
//! Their number can change at any time. A thread that is one too many ends between two pieces of work, never within one, and what is
//! queued is left to the others: no change loses work. The pool owns its threads: [`ComputePool::end`] waits for the last one, and
//! so does nothing else need to; threads of a pool that is dropped end by themselves once the queue is empty.

use crate::error::EngineError;
use cairn_model::Spawn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc, oneshot, watch};

type Work = Box<dyn FnOnce() + Send>;

/// Work waiting beyond what runs. Callers wait when it is full.
const QUEUE_LENGTH: usize = 4;
const NICENESS: u8 = 10;

/// A changeable set of threads for CPU-heavy work.
#[derive(Debug)]
pub(crate) struct ComputePool {
    /// `None` once the pool is ending.
    queue: parking_lot::Mutex<Option<mpsc::Sender<Work>>>,
    crew: Arc<Crew>,
    spawn: Arc<dyn Spawn>,
    name: &'static str,
}

/// What the threads share.
#[derive(Debug)]
struct Crew {
    queue: Mutex<mpsc::Receiver<Work>>,
    size: watch::Sender<Size>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    wanted: usize,
    /// Threads that were started and have not ended.
    alive: usize,
}

impl Crew {
    /// Counts one more thread in, if there are too few.
    fn hire(self: &Arc<Self>) -> Option<Worker> {
        let hired = self.size.send_if_modified(|size| {
            let is_short = size.alive < size.wanted;
            size.alive += usize::from(is_short);
            is_short
        });
        hired.then(|| Worker { crew: Arc::clone(self), is_counted: true })
    }

    /// The next piece of work; `None` when there will be none. The guard is held while waiting only: one idle worker waits for
    /// work, the others for the guard.
    async fn next(&self) -> Option<Work> {
        self.queue.lock().await.recv().await
    }
}

/// One thread, counted until it is dropped: at its end, or unstarted, or with the runtime that ran it as a task.
struct Worker {
    crew: Arc<Crew>,
    is_counted: bool,
}

impl Worker {
    async fn work(mut self) {
        let mut changes = self.crew.size.subscribe();
        while !self.is_surplus() {
            tokio::select! {
                biased;
                // Cannot fail: the crew that this worker holds has the sender.
                _ = changes.changed() => {}
                work = self.crew.next() => match work {
                    Some(work) => work(),
                    None => return,
                },
            }
        }
    }

    /// Whether this thread is one too many; then it does not count any more, so that no other one ends in its place.
    fn is_surplus(&mut self) -> bool {
        let surplus = self.crew.size.send_if_modified(|size| {
            let is_surplus = size.alive > size.wanted;
            size.alive -= usize::from(is_surplus);
            is_surplus
        });
        self.is_counted = !surplus;
        surplus
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_counted {
            self.crew.size.send_modify(|size| size.alive -= 1);
        }
    }
}

impl ComputePool {
    /// `name` is the threads'.
    pub(crate) fn start(
        name: &'static str,
        threads: usize,
        spawn: Arc<dyn Spawn>,
    ) -> Result<Self, EngineError> {
        let (queue, receiver) = mpsc::channel(QUEUE_LENGTH);
        let size = watch::Sender::new(Size { wanted: 0, alive: 0 });
        let crew = Arc::new(Crew { queue: Mutex::new(receiver), size });
        let pool = Self { queue: parking_lot::Mutex::new(Some(queue)), crew, spawn, name };
        pool.resize(threads)?;
        Ok(pool)
    }

    /// Makes it so many threads, at least one. Returns at once: new threads have been started, those that are too many end after the
    /// piece of work that they are at. On an error there are fewer than wanted.
    pub(crate) fn resize(&self, threads: usize) -> Result<(), EngineError> {
        self.crew.size.send_modify(|size| size.wanted = threads.max(1));
        while let Some(worker) = self.crew.hire() {
            self.spawn
                .dedicated(self.name, NICENESS, Box::pin(worker.work()))
                .map_err(|error| EngineError::Thread(Arc::new(error)))?;
        }
        Ok(())
    }

    /// Threads that there are to be; while some still end, there are more.
    pub(crate) fn threads(&self) -> usize {
        self.crew.size.borrow().wanted
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
        let queue = self.queue.lock().clone().ok_or(EngineError::Stopped)?;
        queue.send(job).await.map_err(|_| EngineError::Stopped)?;
        let done = result.await.map_err(|_| EngineError::Stopped)?;
        done.map_err(|panic| {
            let said = panic.downcast_ref::<&str>().map(ToString::to_string);
            EngineError::Panicked(said.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
        })
    }

    /// Takes no more work, lets what is queued be done, and waits until every thread has ended.
    pub(crate) async fn end(&self) {
        drop(self.queue.lock().take());
        // Cannot fail: the crew has the sender.
        let _ = self.crew.size.subscribe().wait_for(|size| size.alive == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{DedicatedWork, ThreadSpawn};
    use cairn_wal::testing::TaskSpawn;
    use futures::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc as blocking;

    fn pool(threads: usize) -> ComputePool {
        ComputePool::start("test", threads, Arc::new(ThreadSpawn)).unwrap()
    }

    async fn until_alive(pool: &ComputePool, threads: usize) {
        pool.crew.size.subscribe().wait_for(|size| size.alive == threads).await.unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_thread_goes_on() {
        let pool = pool(1);
        let failed = pool.run(|| -> u32 { panic!("no luck") }).await;
        assert!(matches!(failed, Err(EngineError::Panicked(said)) if said == "no luck"));
        assert_eq!(pool.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn so_many_pieces_of_work_run_at_once_as_there_are_threads() {
        let pool = pool(1);
        pool.resize(3).unwrap();
        let meeting = Arc::new(std::sync::Barrier::new(3));
        let all = (0..3).map(|_| {
            let meeting = Arc::clone(&meeting);
            pool.run(move || meeting.wait().is_leader())
        });
        assert_eq!(join_all(all).await.into_iter().filter(|met| *met.as_ref().unwrap()).count(), 1);
    }

    #[tokio::test]
    async fn a_thread_that_is_too_many_finishes_what_it_is_at() {
        let pool = pool(2);
        let (go, wait) = blocking::channel::<()>();
        let (started, is_started) = oneshot::channel();
        let busy = pool.run(move || {
            started.send(()).unwrap();
            wait.recv().unwrap();
            "done"
        });
        let change = async {
            is_started.await.unwrap();
            pool.resize(1).unwrap();
            until_alive(&pool, 1).await;
            go.send(()).unwrap();
        };
        let (answer, ()) = tokio::join!(busy, change);
        assert_eq!(answer.unwrap(), "done");
        assert_eq!(pool.run(|| 1).await.unwrap(), 1, "one thread is left");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_work_is_lost_while_the_number_changes() {
        let pool = Arc::new(pool(1));
        let done = Arc::new(AtomicUsize::new(0));
        let work = join_all((0..1000).map(|number| {
            let (pool, done) = (Arc::clone(&pool), Arc::clone(&done));
            async move {
                if number % 7 == 0 {
                    pool.resize(1 + number % 5).unwrap();
                }
                pool.run(move || done.fetch_add(1, Ordering::Relaxed)).await.unwrap();
            }
        }));
        work.await;
        assert_eq!(done.load(Ordering::Relaxed), 1000);
        let wanted = pool.threads();
        until_alive(&pool, wanted).await;
    }

    #[tokio::test]
    async fn the_end_does_what_is_queued_and_waits_for_every_thread() {
        let pool = pool(1);
        let (go, wait) = blocking::channel::<()>();
        let first = pool.run(move || wait.recv().unwrap());
        let second = pool.run(|| 2);
        let end = async {
            go.send(()).unwrap();
            pool.end().await;
            assert_eq!(pool.crew.size.borrow().alive, 0);
        };
        let (first, second, ()) = tokio::join!(biased; first, second, end);
        assert_eq!((first.unwrap(), second.unwrap()), ((), 2));
        assert!(matches!(pool.run(|| 3).await, Err(EngineError::Stopped)));
        pool.end().await;
    }

    #[tokio::test]
    async fn a_pool_that_is_dropped_leaves_no_thread() {
        let pool = pool(3);
        let mut size = pool.crew.size.subscribe();
        drop(pool);
        let size = size.wait_for(|size| size.alive == 0).await.map(|size| size.alive);
        // The last thread takes the count with it.
        assert!(matches!(size, Ok(0) | Err(_)));
    }

    #[test]
    fn tasks_that_vanish_with_their_runtime_are_not_waited_for() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        let life = runtime();
        let pool = life.block_on(async {
            let pool = ComputePool::start("test", 2, Arc::new(TaskSpawn::default())).unwrap();
            assert_eq!(pool.run(|| 1).await.unwrap(), 1);
            pool
        });
        drop(life);
        runtime().block_on(pool.end());
    }

    #[tokio::test]
    async fn a_thread_that_cannot_be_started_is_an_error_and_the_others_work() {
        #[derive(Debug, Default)]
        struct Two(AtomicUsize);
        impl Spawn for Two {
            fn dedicated(&self, name: &'static str, nice: u8, work: DedicatedWork) -> std::io::Result<()> {
                if self.0.fetch_add(1, Ordering::Relaxed) < 2 {
                    return ThreadSpawn.dedicated(name, nice, work);
                }
                Err(std::io::ErrorKind::OutOfMemory.into())
            }
            fn in_place(&self, work: &mut dyn FnMut()) -> bool {
                ThreadSpawn.in_place(work)
            }
        }
        let pool = ComputePool::start("test", 1, Arc::new(Two::default())).unwrap();
        assert!(matches!(pool.resize(4), Err(EngineError::Thread(_))));
        assert_eq!(pool.crew.size.borrow().alive, 2);
        assert_eq!(pool.run(|| 1).await.unwrap(), 1);
        pool.end().await;
    }
}
