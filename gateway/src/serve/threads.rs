//! Threads of guests alone.
//!
//! Reclaim, folding, checkpoints and healing look at much of the catalog between two awaits, for milliseconds now and then. No request of a guest is to wait for that: its connection is served by threads of its
//! own, which the operating system lets go first. What a request begins itself runs there too. HTTP connections to data nodes are the exception: they belong to the threads that opened them, and all share them.

use crate::error::GatewayError;
use std::io;
use std::sync::Once;
use tokio::runtime::{Builder, Handle, Runtime};

/// How long a thread may run before another one has its turn: the shortest that Linux takes. A thread that wakes up goes before one whose turn is longer, however long that has still to run
/// (Linux 6.12, `sched_runtime` in sched_setattr(2)); requests take some ten microseconds.
const TURN_NANOS: u64 = 100_000;

/// Ends with its value, and waits for nothing then: it may be dropped by a task.
#[derive(Debug)]
pub(super) struct GuestThreads(Option<Runtime>);

impl GuestThreads {
    pub(super) fn start() -> Result<Self, GatewayError> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.enable_all().thread_name("cairn-nbd").on_thread_start(take_short_turns).build();
        let failed = |source| GatewayError::System { action: "start threads", source };
        runtime.map(|runtime| Self(Some(runtime))).map_err(failed)
    }

    pub(super) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is there until it is dropped").handle()
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Older kernels take it and let all threads have turns of one length. Where the operator chose another policy, it stays.
fn take_short_turns() {
    static TOLD: Once = Once::new();
    if let Err(error) = try_to_take_short_turns() {
        TOLD.call_once(|| tracing::info!(%error, "threads of guests take turns as long as others"));
    }
}

fn try_to_take_short_turns() -> io::Result<()> {
    let mut attributes = attributes_of_this_thread()?;
    if attributes.sched_policy != libc::SCHED_OTHER.unsigned_abs() {
        return Ok(());
    }
    attributes.sched_runtime = TURN_NANOS;
    // SAFETY: the call reads `attributes`, which says its own size, and concerns this thread alone.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn attributes_of_this_thread() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: 0,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let size = size_of::<libc::sched_attr>();
    // SAFETY: the call writes at most `size` bytes to `attributes`, which has as many, and asks of this thread alone.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_guests_keep_their_niceness_and_take_short_turns() {
        let before = attributes_of_this_thread().unwrap();
        let threads = GuestThreads::start().unwrap();
        let inside = threads.handle().spawn(async { attributes_of_this_thread().unwrap() });
        let inside = Builder::new_current_thread().build().unwrap().block_on(inside).unwrap();
        assert_eq!(inside.sched_nice, before.sched_nice);
        // What it is where nothing was asked for; 0: the kernel has turns of one length for all. Another policy stays.
        if before.sched_runtime != 0 && before.sched_policy == libc::SCHED_OTHER.unsigned_abs() {
            assert_eq!(inside.sched_runtime, TURN_NANOS, "{} outside", before.sched_runtime);
        }
    }
}
