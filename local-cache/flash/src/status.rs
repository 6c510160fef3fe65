//! What the cache counts and shows.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The state of a cache, for the admin API. Counts are since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlashStatus {
    /// Bytes the cache may take on the device; fewer than asked for when the disk had no more, or when the memory of the index is
    /// used up before, with chunks as small as those it holds.
    pub capacity_bytes: u64,
    /// Bytes that hold chunks, headers included.
    pub used_bytes: u64,
    /// Chunks that would be found.
    pub chunks: u64,
    pub hits: u64,
    pub misses: u64,
    /// Hits whose bytes were not in the page cache.
    pub device_reads: u64,
    /// Chunks written to the device.
    pub inserted: u64,
    pub inserted_bytes: u64,
    /// Chunks that would have been written but for a full queue or the limits on writing.
    pub dropped: u64,
    /// Chunks that nobody asked for before, while the cache was full.
    pub rejected: u64,
    /// Chunks found near their eviction and kept.
    pub kept: u64,
    /// Bytes of the device that were not what had been written, each time that was found.
    pub damaged: u64,
    pub io_errors: u64,
    /// Bytes waiting to be written.
    pub queued_bytes: u64,
    /// The capacity that would serve nine of ten repeated reads. None until there were enough of them. An estimate.
    pub working_set_bytes: Option<u64>,
    /// What the capacity lacks of that.
    pub shortfall_bytes: Option<u64>,
    /// Why the device is not used any more.
    pub retired: Option<String>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) device_reads: AtomicU64,
    pub(crate) inserted: AtomicU64,
    pub(crate) inserted_bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) kept: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) io_errors: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Counters {
    /// The counts; the rest is for others to fill.
    pub(crate) fn status(&self) -> FlashStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FlashStatus {
            hits: get(&self.hits),
            misses: get(&self.misses),
            device_reads: get(&self.device_reads),
            inserted: get(&self.inserted),
            inserted_bytes: get(&self.inserted_bytes),
            dropped: get(&self.dropped),
            rejected: get(&self.rejected),
            kept: get(&self.kept),
            damaged: get(&self.damaged),
            io_errors: get(&self.io_errors),
            ..FlashStatus::default()
        }
    }
}
