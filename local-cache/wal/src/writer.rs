//! The single writer: gathers what is pending into a frame, seals it, writes it, and syncs when somebody waits.
//!
//! Invariants
//! 1. Frames are written in log order, each on pages of its own; no page is written twice in one use of a file.
//! 2. Only the current file may hold bytes that are not durable: a file is synced before the next one's header is
//!    written. A header is durable before the first frame of its file is written.
//! 3. A file is overwritten only after a durable frame or header says that all its records are freed.
//! 4. After a failed write or sync nothing more is written and nothing is acknowledged.
//!
//! Crash cases when moving to the next file (old file A, next file B):
//! - before A's last frame is durable: A is the newest file; its unsynced end is a torn tail. B is as it was, and
//!   still in the chain if the log says it is needed.
//! - B's header not durable: A is the newest and is complete. B shows its old header, whose records A's last
//!   frame calls freed, or a damaged one, and no frame of the new use: both mean "free".
//! - B's header durable: B is the newest, empty, and names A as the one before it.

use crate::WalError;
use crate::buffer::AlignedBuffer;
use crate::format::{
    FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_MAX, FileHeader, FrameHeader, PAGE, PAGE_BYTES,
    PAYLOAD_BYTES_MAX, frame_bytes, seal_frame,
};
use crate::ring::{LogFile, Slot, countable};
use crate::shared::{Context, Queued, Shared, pages};
use cairn_model::Lsn;
use cairn_model::crypto::{Cipher, TAG_BYTES};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

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
    finished: bool,
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
            finished: false,
        }
    }

    /// Serves until the log is closed or fails.
    pub(crate) async fn run(mut self) {
        match self.serve().await {
            Ok(()) => self.shared.finish(),
            Err(error) => self.shared.poison(&error.to_string()),
        }
        self.finished = true;
    }

    async fn serve(&mut self) -> Result<(), WalError> {
        loop {
            match self.next_step().await {
                Step::Frame => self.write_batch().await?,
                Step::Sync => self.sync().await?,
                Step::Close => return self.write_last_frame(self.freed_through()).await,
            }
        }
    }

    async fn next_step(&mut self) -> Step {
        if let Some(step) = self.pick_step() {
            return step;
        }
        let shared = Arc::clone(&self.shared);
        poll_fn(|context| {
            shared.writer.register(context.waker());
            self.pick_step().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// A sync comes as soon as everything is written that those who wait at this moment wait for: it serves them
    /// all, and a stream of further writes cannot put it off.
    fn pick_step(&mut self) -> Option<Step> {
        if self.sync_target.is_none() {
            self.sync_target = self.shared.synced.wanted();
        }
        if self.sync_target.is_some_and(|target| target <= self.shared.written.reached()) {
            return Some(Step::Sync);
        }
        if self.take_batch() {
            Some(Step::Frame)
        } else {
            self.shared.queue.lock().closing.then_some(Step::Close)
        }
    }

    /// Moves what fits one frame from the queue to the batch.
    fn take_batch(&mut self) -> bool {
        let room = usize::try_from(self.current.remaining().min(FRAME_BYTES_MAX)).expect("at most a frame");
        let room = room.saturating_sub(FRAME_HEADER_BYTES + TAG_BYTES);
        let mut queue = self.shared.queue.lock();
        let Some(first) = queue.records.front() else { return false };
        // When even the first does not fit here, the frame goes to the next file and may be of any size.
        let limit = if first.record.encoded_bytes() <= room { room } else { PAYLOAD_BYTES_MAX };
        while let Some(next) = queue.records.front() {
            let bytes = self.batch_bytes + next.record.encoded_bytes();
            if bytes > limit {
                break;
            }
            self.batch_bytes = bytes;
            self.batch.extend(queue.records.pop_front());
        }
        true
    }

    async fn write_batch(&mut self) -> Result<(), WalError> {
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
        Ok(())
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
        let written = self.current.slot.file.write(self.current.offset, frame).await;
        written.map_err(|error| WalError::io("write", &self.current.slot.name(), error))?;
        self.current.counter += 1;
        self.current.offset += frame.len() as u64;
        Ok(frame.len())
    }

    async fn sync(&mut self) -> Result<(), WalError> {
        self.sync_target = None;
        let written = self.shared.written.reached();
        if written > self.shared.synced.reached() {
            let synced = self.current.slot.file.sync().await;
            synced.map_err(|error| WalError::io("sync", &self.current.slot.name(), error))?;
            self.shared.synced.advance(written);
        }
        Ok(())
    }

    fn freed_through(&self) -> Lsn {
        self.shared.ring.lock().freed_through()
    }

    /// Ends the current file: nothing can be lost from it afterwards.
    async fn write_last_frame(&mut self, freed_through: Lsn) -> Result<(), WalError> {
        let written = self.shared.written.reached();
        self.write_frame(written.next(), 0, 0, true, freed_through).await?;
        let synced = self.current.slot.file.sync().await;
        synced.map_err(|error| WalError::io("sync", &self.current.slot.name(), error))?;
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
        };
        let (current, file) = start_file(&self.shared.context, slot, header, &mut self.buffer).await?;
        self.current = current;
        self.shared.ring.lock().add_live(file);
        Ok(())
    }
}

/// A writer that does not end in order (a panic, a runtime that drops it) must not leave anybody waiting.
impl Drop for Writer {
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
