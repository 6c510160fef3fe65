//! The single writer: gathers what is pending into a frame, seals it, writes it, and syncs when somebody waits.
//!
//! One at a time has the writer: its thread, or a caller that serves itself (`self_service`). It works when somebody waits.
//!
//! Invariants
//! 1. Frames are written in log order, each on pages of its own; no page is written twice in one use of a file.
//! 2. Only the current file may hold bytes that are not durable: a file is synced before the next one's header is
//!    written. A header is durable before the first frame of its file is written.
//! 3. A file is overwritten only after a durable frame or header says that all its records are freed.
//! 4. After a failed write or sync nothing more is written and nothing is acknowledged, but for a frame that is on its way while
//!    a sync fails beside it (`syncer`).
//!
//! Crash cases when moving to the next file (old file A, next file B):
//! - before A's last frame is durable: A is the newest file; its unsynced end is a torn tail. B is as it was, and
//!   still in the chain if the log says it is needed.
//! - B's header not durable: A is the newest and is complete. B shows its old header, whose records A's last
//!   frame calls freed, or a damaged one, and no frame of the new use: both mean "free".
//! - B's header durable: B is the newest, empty, and names A as the one before it.

use crate::WalError;
use crate::disk::WRITE_BACK_BYTES;
use crate::format::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_MAX, FileHeader, FrameHeader, PAGE, PAGE_BYTES,
    PAYLOAD_BYTES_MAX, frame_bytes, seal_frame,
};
use crate::ring::{LogFile, Slot, countable};
use crate::self_service::Taken;
use crate::shared::{Context, Queued, Shared, pages};
use crate::syncer::{QUICK_BYTES_MAX, ToSync};
use cairn_model::crypto::{Cipher, TAG_BYTES};
use cairn_model::{AlignedBuffer, Lsn};
use futures::FutureExt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Mutex;

/// After a sync that had to cover at most so many frames, the next ones are expected to be synced as well: the device
/// gets them at once, while the client still thinks about its flush.
const FRAMES_OF_EAGER_SYNC: u32 = 2;

/// Frames with a longer payload are not written by callers: sealing them takes longer than the thread takes to wake.
const PAYLOAD_AT_ONCE_MAX: usize = 160 << 10;

/// Callers leave writes to the thread while they take longer: the page cache is being throttled.
const WRITE_TIME_MAX: Duration = Duration::from_micros(200);

/// Where syncs take longer, waking another thread for one is nothing in comparison.
const SYNC_TIME_MAX: Duration = Duration::from_micros(600);

/// The payload of a frame of at most so many bytes.
fn payload_room(bytes: u64) -> usize {
    let bytes = usize::try_from(bytes.min(FRAME_BYTES_MAX)).expect("at most a frame");
    bytes.saturating_sub(FRAME_HEADER_BYTES + TAG_BYTES)
}

/// A moving average that the last eight or so decide.
pub(crate) fn average(before: Duration, now: Duration) -> Duration {
    (before * 7 + now) / 8
}

/// What comes after a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    Sync,
    Unknown,
}

/// The file being written.
#[derive(Debug)]
pub(crate) struct Current {
    slot: Slot,
    cipher: Arc<Cipher>,
    epoch: u64,
    /// Of the next frame.
    counter: u64,
    /// Where the next frame goes.
    offset: u64,
}

impl Current {
    /// Bytes left for frames, besides the page kept for the last one.
    fn remaining(&self) -> u64 {
        self.slot.bytes - PAGE_BYTES - self.offset
    }

    fn countable(&self) -> u64 {
        countable(self.slot.bytes, self.offset)
    }
}

/// Makes `slot` the newest file of the log: durable header, fresh salt. `page` is scratch.
pub(crate) async fn start_file(
    context: &Context,
    slot: Slot,
    header: FileHeader,
    page: &mut AlignedBuffer,
) -> Result<(Current, LogFile), WalError> {
    let cipher = Arc::new(header.encode(&context.identity, &context.key, page));
    let failed = |operation| move |error| WalError::io(operation, &Slot::name_of(slot.number), error);
    slot.file.write(0, &page[..PAGE]).await.map_err(failed("write"))?;
    slot.file.sync().await.map_err(failed("sync"))?;
    let file = LogFile::new(slot.clone(), header.epoch, header.first_lsn, Arc::clone(&cipher));
    Ok((Current { slot, cipher, epoch: header.epoch, counter: 1, offset: PAGE_BYTES }, file))
}

enum Step {
    /// The batch is filled: write it.
    Frame,
    Sync,
    Close,
}

#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    current: Current,
    buffer: AlignedBuffer,
    batch: Vec<Queued>,
    batch_bytes: usize,
    /// Somebody waits for the durability of this position.
    sync_target: Option<Lsn>,
    /// How long writes of short frames took lately.
    write_time: Duration,
    /// Of the last frame. More than one means requests side by side.
    records_in_frame: u32,
    bytes_since_sync: u64,
    frames_since_sync: u32,
    /// The same between the two last syncs.
    frames_before_sync: u32,
    /// Closed or poisoned: nothing is written any more.
    ended: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, current: Current) -> Self {
        Self {
            shared,
            current,
            buffer: AlignedBuffer::zeroed(FRAME_MAX),
            batch: Vec::new(),
            batch_bytes: 0,
            sync_target: None,
            write_time: Duration::ZERO,
            records_in_frame: 0,
            bytes_since_sync: 0,
            frames_since_sync: 0,
            frames_before_sync: u32::MAX,
            ended: false,
        }
    }

    /// Does what there is to do; whether the log is closed now.
    async fn serve(&mut self) -> Result<bool, WalError> {
        while !self.ended {
            // A sync may have failed beside it.
            self.shared.check_alive()?;
            match self.pick_step() {
                Some(Step::Frame) => self.write_batch(Next::Unknown).await?,
                Some(Step::Sync) if self.sync_is_quick() => self.sync().await?,
                Some(Step::Sync) => self.have_synced()?,
                Some(Step::Close) => {
                    self.write_last_frame(self.freed_through()).await?;
                    self.ended = true;
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// After a failure nothing more is written or acknowledged.
    pub(crate) fn fail(&mut self, cause: &str) {
        self.ended = true;
        self.shared.poison(cause);
        self.shared.writer_thread.wake();
    }

    /// Writes all that is queued as one frame of the current file. Does nothing where that is likely to take longer than a copy
    /// into the page cache.
    pub(crate) fn write_at_once(&mut self, next: Next) {
        if self.ended || self.shared.has_ended() || self.write_time > WRITE_TIME_MAX {
            return;
        }
        let to_write_back = WRITE_BACK_BYTES - self.current.offset % WRITE_BACK_BYTES - PAGE_BYTES;
        let limit = payload_room(self.current.remaining().min(to_write_back)).min(PAYLOAD_AT_ONCE_MAX);
        if self.take_queue(limit) {
            let written = self.write_batch(next).now_or_never();
            self.settle(written);
        }
    }

    /// Syncs what is written on the caller's thread, or has it synced where that may take long. Does nothing where it would not and
    /// the caller is not alone, and while a sync is under way.
    pub(crate) fn sync_at_once(&mut self) {
        if self.ended || self.shared.syncer.is_busy() {
            return;
        }
        if !self.sync_is_quick() {
            let begun = self.have_synced();
            return self.settle(Some(begun));
        }
        if self.records_in_frame > 1 || self.frames_since_sync > FRAMES_OF_EAGER_SYNC {
            return;
        }
        let spawn = Arc::clone(&self.shared.context.ports.spawn);
        spawn.in_place(&mut || {
            let synced = self.sync().now_or_never();
            self.settle(synced);
        });
    }

    /// Whether a sync is likely to take little more than waking another thread for it: those of lately did, and this one has no more
    /// to do.
    fn sync_is_quick(&self) -> bool {
        self.shared.syncer.time() <= SYNC_TIME_MAX && self.bytes_since_sync <= QUICK_BYTES_MAX
    }

    fn settle(&mut self, done: Option<Result<(), WalError>>) {
        let done = done.unwrap_or_else(|| {
            Err(WalError::InvalidRecord {
                reason: "a disk said to complete at once did not; this is a bug".to_owned(),
            })
        });
        if let Err(error) = done {
            self.fail(&error.to_string());
        }
    }

    /// A sync comes as soon as everything is written that those who wait at this moment wait for: it serves them
    /// all, and a stream of further writes cannot put it off. Who comes during a sync waits for the next one.
    fn pick_step(&mut self) -> Option<Step> {
        // In this order: what was appended before closing began is taken.
        let closing = self.shared.queue.lock().closing;
        if !self.shared.syncer.is_busy() {
            let synced = self.shared.synced.reached();
            if self.sync_target.is_none_or(|target| target <= synced) {
                self.sync_target = self.shared.synced.wanted();
            }
            if self.sync_target.is_some_and(|target| target <= self.shared.written.reached()) {
                return Some(Step::Sync);
            }
        } else if !closing && !self.shared.wants_frame_beside_sync() {
            return None;
        }
        if self.take_batch() { Some(Step::Frame) } else { closing.then_some(Step::Close) }
    }

    /// Moves the whole queue to the batch, if it takes at most `payload_max` bytes.
    fn take_queue(&mut self, payload_max: usize) -> bool {
        let mut queue = self.shared.queue.lock();
        let bytes = queue.records.iter().map(|queued| queued.record.encoded_bytes()).sum();
        if bytes == 0 || bytes > payload_max {
            return false;
        }
        self.batch.extend(queue.records.drain(..));
        self.batch_bytes = bytes;
        true
    }

    /// Moves what fits one frame from the queue to the batch.
    fn take_batch(&mut self) -> bool {
        let room = payload_room(self.current.remaining());
        let mut queue = self.shared.queue.lock();
        let Some((_, first_bytes)) = queue.first_unit() else { return false };
        // When even the first does not fit here, the frame goes to the next file and may be of any size.
        let limit = if first_bytes <= room { room } else { PAYLOAD_BYTES_MAX };
        while let Some((count, unit_bytes)) = queue.first_unit() {
            let bytes = self.batch_bytes + unit_bytes;
            if bytes > limit {
                break;
            }
            self.batch_bytes = bytes;
            self.batch.extend(queue.records.drain(..count));
        }
        true
    }

    async fn write_batch(&mut self, next: Next) -> Result<(), WalError> {
        let first_lsn = self.shared.written.reached().next();
        if frame_bytes(self.batch_bytes) as u64 > self.current.remaining() {
            self.next_file(first_lsn).await?;
        }
        let mut end = FRAME_HEADER_BYTES;
        for queued in &self.batch {
            end += queued.record.encode(&mut self.buffer[end..]);
        }
        let records = u32::try_from(self.batch.len()).expect("a frame has few records");
        let countable_before = self.current.countable();
        let freed_through = self.freed_through();
        let written = self.write_frame(first_lsn, records, self.batch_bytes, false, freed_through).await?;
        self.shared.ring.lock().current().push(first_lsn, written);
        self.shared.written.advance(Lsn::new(first_lsn.get() + u64::from(records) - 1));
        let charged: usize = self.batch.iter().map(|queued| queued.pages as usize).sum();
        let used = pages(countable_before - self.current.countable());
        self.shared.refund(charged - used, charged);
        self.batch.clear();
        self.batch_bytes = 0;
        self.start_write_back(written, next);
        Ok(())
    }

    /// Gives the device the frame just written, of so many bytes, if it will be synced soon, but not right now.
    fn start_write_back(&self, frame_bytes: usize, next: Next) {
        let will_sync = self.frames_since_sync.max(self.frames_before_sync) <= FRAMES_OF_EAGER_SYNC;
        if will_sync && next == Next::Unknown && self.shared.synced.wanted().is_none() {
            let length = frame_bytes as u64;
            self.current.slot.file.start_write_back(self.current.offset - length, length);
        }
    }

    /// Seals and writes the payload that stands in the buffer; returns the frame's length.
    async fn write_frame(
        &mut self,
        first_lsn: Lsn,
        records: u32,
        payload_bytes: usize,
        last: bool,
        freed_through: Lsn,
    ) -> Result<usize, WalError> {
        let header = FrameHeader {
            payload_bytes,
            epoch: self.current.epoch,
            counter: self.current.counter,
            first_lsn,
            records,
            last,
            synced_through: self.shared.synced.reached(),
            freed_through,
        };
        let frame = seal_frame(&header, &self.current.cipher, &mut self.buffer);
        let clock = &self.shared.context.ports.clock;
        let began = clock.now();
        let written = self.current.slot.file.write(self.current.offset, frame).await;
        written.map_err(|error| WalError::io("write", &self.current.slot.name(), error))?;
        let length = frame.len();
        let reached = self.current.offset + length as u64;
        // A frame that closes a write-back window takes longer for that reason alone.
        if payload_bytes <= PAYLOAD_AT_ONCE_MAX
            && self.current.offset / WRITE_BACK_BYTES == reached / WRITE_BACK_BYTES
        {
            self.write_time = average(self.write_time, clock.now().since(began));
        }
        self.records_in_frame = records;
        self.bytes_since_sync += length as u64;
        self.frames_since_sync = self.frames_since_sync.saturating_add(1);
        self.current.counter += 1;
        self.current.offset += length as u64;
        Ok(length)
    }

    /// What is written is synced while more is written. None is under way.
    fn have_synced(&mut self) -> Result<(), WalError> {
        if let Some(to_sync) = self.begin_sync()? {
            self.shared.syncer.begin(to_sync);
        }
        Ok(())
    }

    /// Syncs what is written, while nothing is. None is under way.
    async fn sync(&mut self) -> Result<(), WalError> {
        match self.begin_sync()? {
            Some(to_sync) => to_sync.run(&self.shared).await,
            None => Ok(()),
        }
    }

    /// What there is to sync, if there is something. None is under way.
    fn begin_sync(&mut self) -> Result<Option<ToSync>, WalError> {
        // The one that just ended may have failed, and this one would not be told again.
        self.shared.check_alive()?;
        self.sync_target = None;
        let through = self.shared.written.reached();
        if through == self.shared.synced.reached() {
            return Ok(None);
        }
        let bytes = self.was_synced();
        Ok(Some(ToSync { slot: self.current.slot.clone(), bytes, through }))
    }

    /// Nothing is left to sync. The bytes that were.
    fn was_synced(&mut self) -> u64 {
        self.frames_before_sync = std::mem::take(&mut self.frames_since_sync);
        std::mem::take(&mut self.bytes_since_sync)
    }

    fn freed_through(&self) -> Lsn {
        self.shared.ring.lock().freed_through()
    }

    /// Ends the current file: nothing can be lost from it afterwards.
    async fn write_last_frame(&mut self, freed_through: Lsn) -> Result<(), WalError> {
        self.shared.syncer.idle().await;
        self.shared.check_alive()?;
        let written = self.shared.written.reached();
        self.write_frame(written.next(), 0, 0, true, freed_through).await?;
        let synced = self.current.slot.file.sync().await;
        synced.map_err(|error| WalError::io("sync", &self.current.slot.name(), error))?;
        self.was_synced();
        self.shared.synced.advance(written);
        Ok(())
    }

    async fn next_file(&mut self, first_lsn: Lsn) -> Result<(), WalError> {
        let next = self.shared.ring.lock().take_next();
        self.shared.grower.wake();
        // The last frame carries the freed_through that made the slot free, so it must be taken with it.
        self.write_last_frame(next.freed_through).await?;
        remove_retired(&*self.shared.context.disk, next.retired).await;
        let slot = next.slot.ok_or_else(|| WalError::InvalidRecord {
            reason: "the ring has no free file although room was reserved; this is a bug".to_owned(),
        })?;
        let header = FileHeader {
            epoch: self.current.epoch + 1,
            previous_epoch: self.current.epoch,
            first_lsn,
            synced_through: self.shared.synced.reached(),
            freed_through: next.freed_through,
            file_bytes: slot.bytes,
            salt: FileHeader::fresh_salt(&*self.shared.context.ports.entropy),
            number: Some(slot.number.into()),
        };
        let (current, file) = start_file(&self.shared.context, slot, header, &mut self.buffer).await?;
        self.current = current;
        self.shared.ring.lock().add_live(file);
        Ok(())
    }
}

/// The writer's thread: does what nobody does for themselves, until the log is closed or fails.
pub(crate) fn run(shared: Arc<Shared>, writer: Arc<Mutex<Writer>>) -> impl Future<Output = ()> + Send {
    // Made here: work that is dropped before its first poll ends as well.
    let thread = Thread { shared, finished: false };
    work(thread, writer)
}

async fn work(mut thread: Thread, writer: Arc<Mutex<Writer>>) {
    let shared = Arc::clone(&thread.shared);
    loop {
        let mut writer = Taken::new(writer.lock().await);
        let served = writer.serve().await;
        if let Err(error) = &served {
            writer.fail(&error.to_string());
        }
        writer.put_back();
        if !matches!(served, Ok(false)) {
            break;
        }
        poll_fn(|context| {
            shared.writer_thread.register(context.waker());
            if shared.wants_writer() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    thread.finished = true;
    if shared.check_alive().is_ok() {
        shared.finish();
    }
}

/// A thread that does not end in order (a panic, a runtime that drops it) must not leave anybody waiting.
struct Thread {
    shared: Arc<Shared>,
    finished: bool,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.poison("the writer ended without being closed");
        }
    }
}

/// Removes files that the settings no longer ask for. A file that stays is freed, so it harms nothing.
pub(crate) async fn remove_retired(disk: &dyn crate::Disk, retired: Vec<Slot>) {
    for slot in retired {
        let name = slot.name();
        drop(slot);
        if let Err(error) = disk.remove(&name).await {
            tracing::warn!(%error, name, "cannot remove a file of the write-ahead log that is no longer needed");
        }
    }
}
