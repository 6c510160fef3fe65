//! What the disk tells of itself.
//!
//! It is kept apart from the disk: the store's own numbers are behind locks that are held while its files are synced, and a status must not wait for that.
//! Whoever waits for the disk anyway brings them up to date.

use crate::store::StoreSize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub(crate) struct DiskCounters {
    pub(crate) containers: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) errors: AtomicU64,
    anchors: AtomicU64,
    disk_bytes: AtomicU64,
    filter_bytes: AtomicU64,
    containers_max: u64,
    given_up: OnceLock<String>,
}

impl DiskCounters {
    pub(crate) fn new(containers_max: u64) -> Self {
        Self { containers_max, ..Self::default() }
    }

    pub(crate) fn containers_max(&self) -> u64 {
        self.containers_max
    }

    /// The store as it was measured last.
    pub(crate) fn size(&self) -> StoreSize {
        StoreSize {
            anchors: self.anchors.load(Ordering::Relaxed),
            disk_bytes: self.disk_bytes.load(Ordering::Relaxed),
            filter_bytes: self.filter_bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_size(&self, size: StoreSize) {
        self.anchors.store(size.anchors, Ordering::Relaxed);
        self.disk_bytes.store(size.disk_bytes, Ordering::Relaxed);
        self.filter_bytes.store(size.filter_bytes, Ordering::Relaxed);
    }

    /// Why the disk is no longer used.
    pub(crate) fn given_up(&self) -> Option<&str> {
        self.given_up.get().map(String::as_str)
    }

    /// Returns whether this was the first time.
    pub(crate) fn give_up(&self, reason: &str) -> bool {
        self.given_up.set(reason.to_owned()).is_ok()
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
