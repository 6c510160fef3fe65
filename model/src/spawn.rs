//! The port to threads.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// Work that runs beside its creator until it returns. Its owner ends it through its own channel and waits for
/// the channel it answers on; nothing is detached without an owner.
pub type DedicatedWork = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts work that may block, on something of its own: a thread in production, a task of the seeded
/// scheduler in the simulation (where the work's I/O ports do not block but yield).
pub trait Spawn: Send + Sync + fmt::Debug {
    /// `nice` is the thread's niceness, 0 to 19: CPU-heavy background work takes 10.
    fn dedicated(&self, name: &'static str, nice: u8, work: DedicatedWork) -> std::io::Result<()>;

    /// Runs work that may block for a moment on the caller's own thread, when the other tasks of that thread can go on
    /// elsewhere meanwhile. Whether it ran.
    fn in_place(&self, work: &mut dyn FnMut()) -> bool;
}

/// One operating-system thread per piece of work.
#[derive(Debug)]
pub struct ThreadSpawn;

impl Spawn for ThreadSpawn {
    fn dedicated(&self, name: &'static str, nice: u8, work: DedicatedWork) -> std::io::Result<()> {
        let run = move || {
            if nice > 0 {
                lower_priority(nice);
            }
            park_on(work);
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }

    fn in_place(&self, work: &mut dyn FnMut()) -> bool {
        use tokio::runtime::{Handle, RuntimeFlavor};
        let has_others =
            Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
        if has_others {
            tokio::task::block_in_place(work);
        }
        has_others
    }
}

/// Runs `work` on a thread of its own with that niceness, and waits for it. Threads that it starts are as nice: on Linux they inherit it from the thread that starts them. For libraries that
/// have threads of their own. An error when no thread can be started.
pub fn at_niceness<T: Send>(nice: u8, work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    let run = || {
        lower_priority(nice);
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, run)?;
        Ok(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Linux applies setpriority(PRIO_PROCESS, 0) to the calling thread. Failing to be nice is no reason to stop.
fn lower_priority(nice: u8) {
    if let Err(error) = rustix::process::setpriority_process(None, i32::from(nice)) {
        tracing::debug!(%error, "cannot lower a thread's priority");
    }
}

/// Polls `work` on this thread, parking it between wakes.
fn park_on(mut work: DedicatedWork) {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    while work.as_mut().poll(&mut context).is_pending() {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_quiet_work_starts_are_quiet_and_others_are_not() {
        let niceness = || rustix::process::getpriority_process(None).expect("Linux tells it");
        let before = niceness();
        let run = || (niceness(), std::thread::scope(|scope| scope.spawn(niceness).join()));
        let (own, started) = at_niceness(12, run).expect("there are threads");
        let expected = before.max(12);
        assert_eq!((own, started.expect("it does not panic"), niceness()), (expected, expected, before));
    }
}
