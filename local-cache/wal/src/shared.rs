//! State that the handle, the writer, the readers and the grower share.

use crate::format::{PAGE_BYTES, PAYLOAD_BYTES_MAX, frame_bytes};
use crate::progress::{End, Progress, Stopped};
use crate::record::{DATA_BYTES_MAX, RECORD_OVERHEAD_MAX, Record};
use crate::ring::Ring;
use crate::syncer::Syncer;
use crate::{Disk, WalConfig, WalError, WalIdentity};
use cairn_model::crypto::SecretKey;
use cairn_model::{Lsn, Ports};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A record on its way to the writer.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) record: Record,
    /// Pages charged for it, of the ring and of the queue.
    pub(crate) pages: u32,
    /// The next one goes into the same frame.
    pub(crate) with_next: bool,
}

/// Records in log order that no frame has yet.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) records: VecDeque<Queued>,
    pub(crate) next_lsn: Lsn,
    pub(crate) closing: bool,
}

impl Queue {
    fn push(&mut self, permit: &mut Permit, record: Record, with_next: bool) -> Lsn {
        let lsn = self.next_lsn;
        self.next_lsn = lsn.next();
        self.records.push_back(Queued { record, pages: std::mem::take(&mut permit.pages), with_next });
        lsn
    }

    /// The first records that go into one frame: how many, and their bytes. `None` when there are none.
    pub(crate) fn first_unit(&self) -> Option<(usize, usize)> {
        let (mut count, mut bytes) = (0, 0);
        for queued in &self.records {
            count += 1;
            bytes += queued.record.encoded_bytes();
            if !queued.with_next {
                return Some((count, bytes));
            }
        }
        None
    }
}

/// What the log was opened with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: WalConfig,
    pub(crate) identity: WalIdentity,
    pub(crate) key: SecretKey,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) ports: Ports,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) queue: Mutex<Queue>,
    pub(crate) ring: Mutex<Ring>,
    /// Handed to the operating system.
    pub(crate) written: Progress,
    /// Durable.
    pub(crate) synced: Progress,
    pub(crate) syncer: Syncer,
    /// Pages of the ring that nobody is charged for. Fair: first come, first served.
    pub(crate) space: Semaphore,
    /// Pages of the queue that nobody is charged for.
    pub(crate) queue_room: Semaphore,
    /// Wakes the writer's thread. Whoever comes to wait for the writer wakes it, unless they do its work themselves.
    pub(crate) writer_thread: AtomicWaker,
    /// Those who wait for room: the writer works for them as well.
    room_waiters: AtomicUsize,
    pub(crate) grower: AtomicWaker,
    pub(crate) growth_stopped: OnceLock<String>,
    poisoned: OnceLock<Arc<str>>,
}

/// Until it is known better: the writer's thread finds out how long a sync takes before a caller tries.
const SYNC_TIME_EXPECTED: Duration = Duration::from_micros(1200);

pub(crate) fn pages(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE_BYTES).expect("page counts fit memory's size")
}

impl Shared {
    /// `countable_bytes` is what the ring's current and free files can take.
    pub(crate) fn new(context: Context, next_lsn: Lsn, ring: Ring, countable_bytes: u64) -> Self {
        let last = Lsn::new(next_lsn.get() - 1);
        Self {
            queue: Mutex::new(Queue { records: VecDeque::new(), next_lsn, closing: false }),
            ring: Mutex::new(ring),
            written: Progress::new(last),
            synced: Progress::new(last),
            syncer: Syncer::new(SYNC_TIME_EXPECTED),
            space: Semaphore::new(pages(countable_bytes)),
            queue_room: Semaphore::new(pages(context.config.queue_bytes)),
            writer_thread: AtomicWaker::new(),
            room_waiters: AtomicUsize::new(0),
            grower: AtomicWaker::new(),
            growth_stopped: OnceLock::new(),
            poisoned: OnceLock::new(),
            context,
        }
    }

    /// Whether there is something to write, sync or close.
    pub(crate) fn wants_writer(&self) -> bool {
        let (closing, is_empty) = {
            let queue = self.queue.lock();
            (queue.closing, queue.records.is_empty())
        };
        closing
            || if self.syncer.is_busy() {
                !is_empty && self.wants_frame_beside_sync()
            } else {
                !is_empty || self.synced.wanted().is_some()
            }
    }

    /// Whether somebody waits for a frame and not for its sync. For the others the queue gathers until the sync that is under way
    /// has ended: one frame is less work than many.
    pub(crate) fn wants_frame_beside_sync(&self) -> bool {
        self.written.wanted().is_some() || self.room_waiters.load(Ordering::SeqCst) > 0
    }

    /// Nothing is acknowledged from here on. The first cause stays.
    pub(crate) fn poison(&self, cause: &str) {
        if self.poisoned.set(Arc::from(cause)).is_ok() {
            tracing::error!(cause, "the write-ahead log stops acknowledging");
        }
        self.end(End::Poisoned);
    }

    /// The writer is done; everything appended is durable.
    pub(crate) fn finish(&self) {
        self.end(End::Closed);
    }

    /// It was closed, or failed.
    pub(crate) fn has_ended(&self) -> bool {
        self.space.is_closed()
    }

    fn end(&self, end: End) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.closing = true;
            std::mem::take(&mut queue.records)
        };
        drop(dropped);
        self.written.stop(end);
        self.synced.stop(end);
        self.space.close();
        self.queue_room.close();
        self.grower.wake();
        self.syncer.wake();
    }

    pub(crate) fn poison_cause(&self) -> Option<&Arc<str>> {
        self.poisoned.get()
    }

    /// Why the log takes no more.
    pub(crate) fn stop_error(&self) -> WalError {
        match self.poison_cause() {
            Some(cause) => WalError::Poisoned { cause: Arc::clone(cause) },
            None => WalError::Closed,
        }
    }

    pub(crate) fn check_alive(&self) -> Result<(), WalError> {
        if self.poison_cause().is_some() { Err(self.stop_error()) } else { Ok(()) }
    }

    pub(crate) fn stopped(&self, _: Stopped) -> WalError {
        self.stop_error()
    }

    pub(crate) async fn reserve(self: &Arc<Self>, data_bytes: usize) -> Result<Permit, WalError> {
        if data_bytes > DATA_BYTES_MAX {
            return Err(WalError::InvalidRecord {
                reason: format!("{data_bytes} bytes exceed the {DATA_BYTES_MAX} of one record"),
            });
        }
        let bytes = frame_bytes(data_bytes + RECORD_OVERHEAD_MAX) as u64;
        let pages = u32::try_from(bytes / PAGE_BYTES).expect("at most a frame");
        let space = self.take_pages(&self.space, pages).await?;
        let room = self.take_pages(&self.queue_room, pages).await?;
        space.forget();
        room.forget();
        Ok(Permit { shared: Arc::clone(self), pages, data_bytes })
    }

    async fn take_pages<'a>(&self, from: &'a Semaphore, pages: u32) -> Result<SemaphorePermit<'a>, WalError> {
        if let Ok(taken) = from.try_acquire_many(pages) {
            return Ok(taken);
        }
        // What is queued, now or later, and not waited for takes the room that is waited for here.
        let _waiting = RoomWaiter::new(&self.room_waiters);
        self.writer_thread.wake();
        from.acquire_many(pages).await.map_err(|_| self.stop_error())
    }

    pub(crate) fn append(&self, mut permit: Permit, record: Record) -> Result<Lsn, WalError> {
        self.check_record(&permit, &record)?;
        let mut queue = self.queue.lock();
        if queue.closing {
            drop(queue);
            return Err(self.stop_error());
        }
        let lsn = queue.push(&mut permit, record, false);
        drop(queue);
        self.was_appended();
        Ok(lsn)
    }

    /// Appends records that one frame holds: a crash leaves all of them or none. Returns the last one's number.
    pub(crate) fn append_together(&self, records: Vec<(Permit, Record)>) -> Result<Lsn, WalError> {
        let bytes: usize = records.iter().map(|(_, record)| record.encoded_bytes()).sum();
        if records.is_empty() || bytes > PAYLOAD_BYTES_MAX {
            return Err(WalError::InvalidRecord {
                reason: format!("{} records of {bytes} bytes are no frame", records.len()),
            });
        }
        for (permit, record) in &records {
            self.check_record(permit, record)?;
        }
        let mut queue = self.queue.lock();
        if queue.closing {
            drop(queue);
            return Err(self.stop_error());
        }
        let (mut last, mut left) = (Lsn::ZERO, records.len());
        for (mut permit, record) in records {
            left -= 1;
            last = queue.push(&mut permit, record, left > 0);
        }
        drop(queue);
        self.was_appended();
        Ok(last)
    }

    fn check_record(&self, permit: &Permit, record: &Record) -> Result<(), WalError> {
        record.validate()?;
        if record.data_bytes() > permit.data_bytes || !std::ptr::eq(self, &raw const *permit.shared) {
            return Err(WalError::InvalidRecord {
                reason: "the permit is for less, or of another log".to_owned(),
            });
        }
        Ok(())
    }

    fn was_appended(&self) {
        if self.room_waiters.load(Ordering::SeqCst) > 0 {
            self.writer_thread.wake();
        }
    }

    /// Gives back what a written or abandoned record was charged.
    pub(crate) fn refund(&self, space_pages: usize, queue_pages: usize) {
        self.space.add_permits(space_pages);
        self.queue_room.add_permits(queue_pages);
    }

    pub(crate) fn free_through(&self, lsn: Lsn) {
        let last = Lsn::new(self.queue.lock().next_lsn.get() - 1);
        let added = self.ring.lock().free_through(lsn.min(last));
        self.space.add_permits(pages(added));
        self.grower.wake();
    }
}

struct RoomWaiter<'a>(&'a AtomicUsize);

impl<'a> RoomWaiter<'a> {
    fn new(waiters: &'a AtomicUsize) -> Self {
        waiters.fetch_add(1, Ordering::SeqCst);
        Self(waiters)
    }
}

impl Drop for RoomWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Room for one record. Dropping it gives the room back.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    shared: Arc<Shared>,
    pages: u32,
    data_bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.refund(self.pages as usize, self.pages as usize);
    }
}
