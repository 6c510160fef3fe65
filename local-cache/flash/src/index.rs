//! Where each chunk's entry is: 16 bytes for a chunk, in tables that are locked one by one.

use crate::key::Passed;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tables. One doubles while it is locked, so they are many and small.
const SHARDS: usize = 256;
const LENGTH_BITS: u32 = 17;
const OFFSET_BITS: u32 = 24;
const OFFSET_UNIT: u64 = 8;

/// Region, offset in it and payload length of an entry, in 61 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Location(u64);

impl Location {
    pub(crate) fn new(region: u32, offset: u64, length: usize) -> Self {
        debug_assert!(
            region < 1 << 20 && offset / OFFSET_UNIT < 1 << OFFSET_BITS && length < 1 << LENGTH_BITS
        );
        let offset = offset / OFFSET_UNIT;
        Self(u64::from(region) << (OFFSET_BITS + LENGTH_BITS) | offset << LENGTH_BITS | length as u64)
    }

    pub(crate) fn region(self) -> u32 {
        u32::try_from(self.0 >> (OFFSET_BITS + LENGTH_BITS)).expect("20 bits")
    }

    /// Of the entry's header, in the region.
    pub(crate) fn offset(self) -> u64 {
        (self.0 >> LENGTH_BITS & ((1 << OFFSET_BITS) - 1)) * OFFSET_UNIT
    }

    /// Of the payload.
    pub(crate) fn length(self) -> usize {
        usize::try_from(self.0 & ((1 << LENGTH_BITS) - 1)).expect("17 bits")
    }
}

type Shard = HashMap<u64, Location, BuildHasherDefault<Passed>>;

/// From the hash of a key to its entry.
#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<RwLock<Shard>>,
    entries: AtomicU64,
}

impl Index {
    pub(crate) fn new() -> Self {
        let shards = std::iter::repeat_with(RwLock::default).take(SHARDS).collect();
        Self { shards, entries: AtomicU64::new(0) }
    }

    /// The tables' own hash is this one's low bits and its top seven.
    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        &self.shards[usize::try_from(hash >> 40 & (SHARDS as u64 - 1)).expect("less than SHARDS")]
    }

    pub(crate) fn get(&self, hash: u64) -> Option<Location> {
        self.shard(hash).read().get(&hash).copied()
    }

    pub(crate) fn insert(&self, hash: u64, location: Location) {
        if self.shard(hash).write().insert(hash, location).is_none() {
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove(&self, hash: u64) -> bool {
        let removed = self.shard(hash).write().remove(&hash).is_some();
        self.entries.fetch_sub(u64::from(removed), Ordering::Relaxed);
        removed
    }

    /// Removes the entry if it is the one that `doomed` means.
    pub(crate) fn remove_if(&self, hash: u64, doomed: impl FnOnce(Location) -> bool) -> bool {
        let mut shard = self.shard(hash).write();
        let Entry::Occupied(entry) = shard.entry(hash) else { return false };
        let removed = doomed(*entry.get());
        if removed {
            entry.remove();
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PAYLOAD_BYTES_MAX, REGION_BYTES_MAX};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_location_keeps_its_parts(region in 0u32..1 << 20, unit in 0..REGION_BYTES_MAX / 8, length in 1..=PAYLOAD_BYTES_MAX) {
            let location = Location::new(region, unit * 8, length);
            prop_assert_eq!((location.region(), location.offset(), location.length()), (region, unit * 8, length));
        }
    }

    #[test]
    fn an_entry_that_moved_is_not_removed_with_its_old_region() {
        let index = Index::new();
        index.insert(1, Location::new(0, 4096, 10));
        index.insert(1, Location::new(1, 4096, 10));
        assert_eq!(index.entries(), 1);
        assert!(!index.remove_if(1, |location| location.region() == 0));
        assert_eq!(index.get(1).map(Location::region), Some(1));
        assert!(index.remove(1));
        assert!(!index.remove(1));
        assert_eq!(index.entries(), 0);
    }
}
