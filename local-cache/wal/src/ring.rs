//! The ring: which files exist, which hold live records, where each frame is, and how much room is left.
//!
//! Room is counted so that an append never fails for space. A frame does not span files, so a file's end may be
//! wasted, but by less than one frame of the largest size: a file with `r` bytes left takes frames of at least
//! `r - FRAME_BYTES_MAX` bytes before the writer moves on. A record is charged what it would take as a frame
//! of its own; together they take no more. So while charges stay below the sum of [`countable`] over the current and the
//! free files, everything charged fits, in whatever order it comes.

use crate::disk::DiskFile;
use crate::format::{FRAME_BYTES_MAX, PAGE_BYTES};
use cairn_model::Lsn;
use cairn_model::crypto::Cipher;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that may be charged against a file whose next frame would start at `offset`. One page is kept for the last frame.
pub(crate) fn countable(file_bytes: u64, offset: u64) -> u64 {
    file_bytes.saturating_sub(PAGE_BYTES + offset + FRAME_BYTES_MAX)
}

/// The same for a file that is not in use.
pub(crate) fn countable_when_free(file_bytes: u64) -> u64 {
    countable(file_bytes, PAGE_BYTES)
}

/// A fully allocated file.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) number: u32,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) bytes: u64,
}

const SUFFIX: &str = ".wal";
const TEMPORARY_SUFFIX: &str = ".wal.new";

impl Slot {
    pub(crate) fn name_of(number: u32) -> String {
        format!("{number:06}{SUFFIX}")
    }

    /// While it is being filled with zeros.
    pub(crate) fn temporary_name_of(number: u32) -> String {
        format!("{number:06}{TEMPORARY_SUFFIX}")
    }

    pub(crate) fn number_of(name: &str) -> Option<u32> {
        name.strip_suffix(SUFFIX)?.parse().ok().filter(|&number| Self::name_of(number) == name)
    }

    pub(crate) fn is_temporary(name: &str) -> bool {
        name.ends_with(TEMPORARY_SUFFIX)
    }

    pub(crate) fn name(&self) -> String {
        Self::name_of(self.number)
    }
}

/// Where a frame starts, relative to its file; eight bytes a frame are all the log keeps in memory.
#[derive(Clone, Copy, Debug)]
struct FramePlace {
    lsn: u32,
    page: u32,
}

/// A file in use and the places of its frames. Every frame but a last one is listed, so a frame's counter is its
/// index plus one.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub(crate) slot: Slot,
    pub(crate) epoch: u64,
    pub(crate) first_lsn: Lsn,
    pub(crate) cipher: Arc<Cipher>,
    frames: Vec<FramePlace>,
    end_page: u32,
}

impl LogFile {
    pub(crate) fn new(slot: Slot, epoch: u64, first_lsn: Lsn, cipher: Arc<Cipher>) -> Self {
        Self { slot, epoch, first_lsn, cipher, frames: Vec::new(), end_page: 1 }
    }

    /// Adds the next frame. Files are at most 1 GiB, so pages and records fit 32 bits.
    pub(crate) fn push(&mut self, first_lsn: Lsn, frame_bytes: usize) {
        let narrow = |value: u64| u32::try_from(value).expect("a file is at most 1 GiB");
        let lsn = narrow(first_lsn.get() - self.first_lsn.get());
        self.frames.push(FramePlace { lsn, page: self.end_page });
        self.end_page += narrow(frame_bytes as u64 / PAGE_BYTES);
    }

    /// Adds the place of frames that cannot be read, and that nobody will want to: those from `first_lsn` to the one before
    /// `counter`.
    pub(crate) fn push_damage(&mut self, first_lsn: Lsn, counter: u64, bytes: u64) {
        for _ in self.frames.len() as u64 + 1..counter {
            self.push(first_lsn, 0);
        }
        self.end_page += u32::try_from(bytes / PAGE_BYTES).expect("a file is at most 1 GiB");
    }

    fn locate(&self, lsn: Lsn) -> Option<FrameAt> {
        let relative = u32::try_from(lsn.get().checked_sub(self.first_lsn.get())?).ok()?;
        let index = self.frames.partition_point(|frame| frame.lsn <= relative).checked_sub(1)?;
        let page = self.frames[index].page;
        let end_page = self.frames.get(index + 1).map_or(self.end_page, |next| next.page);
        Some(FrameAt {
            slot: self.slot.clone(),
            cipher: Arc::clone(&self.cipher),
            epoch: self.epoch,
            counter: index as u64 + 1,
            offset: u64::from(page) * PAGE_BYTES,
            length: usize::try_from(u64::from(end_page - page) * PAGE_BYTES).expect("at most a frame"),
        })
    }
}

/// A frame on disk.
#[derive(Clone, Debug)]
pub(crate) struct FrameAt {
    pub(crate) slot: Slot,
    pub(crate) cipher: Arc<Cipher>,
    pub(crate) epoch: u64,
    pub(crate) counter: u64,
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

/// What the writer needs to move to the next file, taken at one instant: `freed_through` covers all that the slot held.
#[derive(Debug)]
pub(crate) struct NextFile {
    pub(crate) slot: Option<Slot>,
    pub(crate) retired: Vec<Slot>,
    pub(crate) freed_through: Lsn,
}

#[derive(Debug)]
pub(crate) struct Ring {
    /// In order of epoch; the last is the one being written.
    live: VecDeque<LogFile>,
    free: VecDeque<Slot>,
    /// Files the writer took and has not brought back as live: at most one.
    in_transit: usize,
    /// Freed and no longer wanted (the settings changed); to be removed.
    retired: Vec<Slot>,
    freed_through: Lsn,
    /// Files the settings ask for, and their length.
    target: usize,
    file_bytes: u64,
    next_number: u32,
}

impl Ring {
    pub(crate) fn new(target: usize, file_bytes: u64, freed_through: Lsn) -> Self {
        Self {
            live: VecDeque::new(),
            free: VecDeque::new(),
            in_transit: 0,
            retired: Vec::new(),
            freed_through,
            target,
            file_bytes,
            next_number: 0,
        }
    }

    /// Takes in a file found at start or made since; returns the bytes it adds to what may be charged.
    pub(crate) fn add_free(&mut self, slot: Slot) -> u64 {
        self.next_number = self.next_number.max(slot.number + 1);
        if slot.bytes != self.file_bytes || self.files() >= self.target {
            self.retired.push(slot);
            return 0;
        }
        self.free.push_back(slot);
        countable_when_free(self.file_bytes)
    }

    pub(crate) fn add_live(&mut self, file: LogFile) {
        self.next_number = self.next_number.max(file.slot.number + 1);
        self.in_transit = 0;
        self.live.push_back(file);
    }

    pub(crate) fn files(&self) -> usize {
        self.live.len() + self.free.len() + self.in_transit
    }

    pub(crate) fn current(&mut self) -> &mut LogFile {
        self.live.back_mut().expect("a file is always being written")
    }

    pub(crate) fn freed_through(&self) -> Lsn {
        self.freed_through
    }

    /// The oldest record that is still kept.
    pub(crate) fn first_lsn(&self) -> Lsn {
        let oldest = self.live.front().map_or(Lsn::ZERO, |file| file.first_lsn);
        oldest.max(self.freed_through.next())
    }

    pub(crate) fn take_next(&mut self) -> NextFile {
        let slot = self.free.pop_front();
        self.in_transit = usize::from(slot.is_some());
        NextFile { slot, retired: std::mem::take(&mut self.retired), freed_through: self.freed_through }
    }

    /// Records up to `lsn` are no longer needed. Returns the bytes that this adds to what may be charged.
    pub(crate) fn free_through(&mut self, lsn: Lsn) -> u64 {
        self.freed_through = self.freed_through.max(lsn);
        let mut added = 0;
        while self.live.get(1).is_some_and(|next| next.first_lsn <= self.freed_through.next()) {
            let file = self.live.pop_front().expect("there are two");
            added += self.add_free(file.slot);
        }
        added
    }

    /// The number for a new file, when one is wanted so that `ahead` files are free.
    pub(crate) fn wants_file(&self, ahead: usize) -> Option<u32> {
        (self.free.len() < ahead && self.files() < self.target).then_some(self.next_number)
    }

    /// Growth failed; the ring stays as it is.
    pub(crate) fn stop_growing(&mut self) {
        self.target = self.files();
    }

    /// Bytes that may be charged when the ring has all its files.
    pub(crate) fn capacity(&self) -> u64 {
        countable_when_free(self.file_bytes) * self.target as u64
    }

    /// Bytes that files yet to be made will add.
    pub(crate) fn missing(&self) -> u64 {
        countable_when_free(self.file_bytes) * self.target.saturating_sub(self.files()) as u64
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let live = self.live.iter().map(|file| file.slot.bytes);
        live.chain(self.free.iter().chain(&self.retired).map(|slot| slot.bytes)).sum()
    }

    /// The frame with record `lsn`; `None` when the ring does not have it.
    pub(crate) fn locate(&self, lsn: Lsn) -> Option<FrameAt> {
        if lsn <= self.freed_through {
            return None;
        }
        let index = self.live.partition_point(|file| file.first_lsn <= lsn).checked_sub(1)?;
        self.live[index].locate(lsn)
    }
}
