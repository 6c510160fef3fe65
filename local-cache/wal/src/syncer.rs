//! Syncs beside the writer.
//!
//! A sync may take long, for reasons of others: another program's writes, the device's own housekeeping. While it goes on, records
//! go on being written, and acknowledged to those who asked for no more, and those who ask for durability gather for the next sync.
//! Where syncs have been fast, one of little is done by whoever has the writer: that takes less than waking somebody. (The first slow
//! one after many fast ones does stop the writer then.) So is the sync that ends a file, and the one of the next file's header: nothing
//! can be written before them.
//!
//! One sync at a time, whoever does it: of two calls that meet the same failure, the kernel may tell one of them alone, and the
//! other would acknowledge what is lost. And it is of the current file: the writer waits for it before it ends that file. A sync that
//! fails poisons the log before it counts as ended, and whoever has the writer looks whether the log is alive after it has seen the end.

use crate::WalError;
use crate::ring::Slot;
use crate::shared::Shared;
use crate::writer::average;
use cairn_model::Lsn;
use cairn_model::planted::{Bug, is_planted};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

/// A sync of more has much to do, however fast those of little are.
pub(crate) const QUICK_BYTES_MAX: u64 = 512 << 10;

/// What is to be synced.
#[derive(Debug)]
pub(crate) struct ToSync {
    pub(crate) slot: Slot,
    /// Written since the sync before.
    pub(crate) bytes: u64,
    /// What is durable then.
    pub(crate) through: Lsn,
}

impl ToSync {
    /// Does it. One at a time.
    pub(crate) async fn run(self, shared: &Shared) -> Result<(), WalError> {
        let clock = &shared.context.ports.clock;
        let began = clock.now();
        let synced = self.slot.file.sync().await;
        if !is_planted(Bug::IgnoreFailedSync) {
            synced.map_err(|error| WalError::io("sync", &self.slot.name(), error))?;
        }
        if self.bytes <= QUICK_BYTES_MAX {
            shared.syncer.took(clock.now().since(began));
        }
        shared.synced.advance(self.through);
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct Syncer {
    asked: Mutex<Option<ToSync>>,
    /// From the request until its end.
    is_busy: AtomicBool,
    thread: AtomicWaker,
    /// The writer, which waits for the end.
    writer: AtomicWaker,
    /// How long syncs of little took lately, in nanoseconds.
    time: AtomicU64,
}

impl Syncer {
    pub(crate) fn new(expected: Duration) -> Self {
        let time = AtomicU64::new(nanos(expected));
        Self {
            asked: Mutex::default(),
            is_busy: AtomicBool::new(false),
            thread: AtomicWaker::new(),
            writer: AtomicWaker::new(),
            time,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Acquire)
    }

    /// Only whoever has the writer asks, and not while one is under way.
    pub(crate) fn begin(&self, what: ToSync) {
        debug_assert!(!self.is_busy(), "one at a time");
        self.is_busy.store(true, Ordering::Release);
        *self.asked.lock() = Some(what);
        self.thread.wake();
    }

    /// Waits until none is under way. For the writer alone.
    pub(crate) async fn idle(&self) {
        poll_fn(|context| {
            self.writer.register(context.waker());
            if self.is_busy() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn ended(&self) {
        self.is_busy.store(false, Ordering::Release);
        self.writer.wake();
    }

    /// The log has ended.
    pub(crate) fn wake(&self) {
        self.thread.wake();
    }

    /// Lately, on average.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.time.load(Ordering::Relaxed))
    }

    fn took(&self, time: Duration) {
        self.time.store(nanos(average(self.time(), time)), Ordering::Relaxed);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The thread that does it, until the log has ended.
pub(crate) fn run(shared: Arc<Shared>) -> impl Future<Output = ()> + Send {
    // Made here: work that is dropped before its first poll ends as well.
    let thread = Thread { shared, in_order: false };
    work(thread)
}

async fn work(mut thread: Thread) {
    let shared = Arc::clone(&thread.shared);
    let syncer = &shared.syncer;
    loop {
        let asked = poll_fn(|context| {
            syncer.thread.register(context.waker());
            match syncer.asked.lock().take() {
                Some(asked) => Poll::Ready(Some(asked)),
                None if shared.has_ended() => Poll::Ready(None),
                None => Poll::Pending,
            }
        });
        let Some(to_sync) = asked.await else { break };
        // A write may have failed meanwhile: nothing is done after that.
        if !shared.has_ended()
            && let Err(error) = to_sync.run(&shared).await
        {
            shared.poison(&error.to_string());
        }
        syncer.ended();
        // Who came before this line shows there, who comes after it wakes the writer and finds no sync under way.
        if shared.wants_writer() {
            shared.writer_thread.wake();
        }
    }
    thread.in_order = true;
}

/// A thread that does not end in order must not leave anybody waiting.
struct Thread {
    shared: Arc<Shared>,
    in_order: bool,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !self.in_order {
            self.shared.poison("the thread that syncs ended unasked");
            self.shared.syncer.ended();
            self.shared.writer_thread.wake();
        }
    }
}
