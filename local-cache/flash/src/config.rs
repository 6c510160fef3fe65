//! Settings of the flash cache.

use crate::format::{ENTRY_HEADER_BYTES, PAGE_BYTES, footer_bytes};
use std::path::PathBuf;
use std::time::Duration;

/// The largest stored chunk: 64 KiB and its authentication.
pub const PAYLOAD_BYTES_MAX: usize = (64 << 10) + 16;

/// The smallest cache that makes sense: enough regions that overwriting one costs little of it.
pub const CAPACITY_BYTES_MIN: u64 = REGIONS_MIN * REGION_BYTES_MIN;

pub(crate) const REGIONS_MIN: u64 = 8;
pub(crate) const REGION_BYTES_MIN: u64 = 512 << 10;
/// Positions in a region, in units of 8 bytes, have 24 bits in the index.
pub(crate) const REGION_BYTES_MAX: u64 = 64 << 20;
/// Regions have 20 bits in the index.
pub(crate) const REGIONS_MAX: u64 = 1 << 20;
/// With more regions than this of a size that suited another capacity, the cache begins again with the right size.
const REGIONS_KEPT_MAX: u64 = 1024;
/// Memory of one entry at its worst: a table that just doubled (two slots of 17 bytes) and the list of its region.
pub(crate) const ENTRY_MEMORY_BYTES: u64 = 2 * 17 + 8;

const _: () = assert!(
    REGION_BYTES_MIN
        > PAGE_BYTES + ENTRY_HEADER_BYTES as u64 + PAYLOAD_BYTES_MAX as u64 + footer_bytes(1) + 8,
    "a region holds the largest chunk"
);

/// Why settings make no cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("flash cache settings: {0}")]
pub struct ConfigError(String);

/// Settings of a [`crate::FlashCache`]. [`FlashConfig::new`] gives sensible ones for a size.
///
/// Memory for a capacity, with these settings. The index grows with the chunks that are held, the rest is taken at the start or
/// for as long as something waits to be written:
///
/// | capacity | index, chunks of 8 KiB | index, at most | queue, at most | keys asked for | working set |
/// |---|---|---|---|---|---|
/// | 1 GiB | 4 MiB | 8 MiB | 16 MiB | 0.5 MiB | 0.5 MiB |
/// | 64 GiB | 216 MiB | 512 MiB | 16 MiB | 32 MiB | 0.5 MiB |
/// | 1 TiB | 3.4 GiB | 8 GiB | 16 MiB | 512 MiB | 0.5 MiB |
///
/// Chunks of less than 5 KiB on average reach the most: the cache then holds less than its capacity, and
/// [`crate::FlashStatus::capacity_bytes`] says how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlashConfig {
    /// A directory of its own; made if its parent exists.
    pub path: PathBuf,
    /// Bytes on the device, headers included.
    pub capacity_bytes: u64,
    /// Bytes of memory for the index (at most 42 for each chunk, 27 usually) and the queue. Where the index reaches it, the cache
    /// holds less than its capacity.
    pub memory_bytes: u64,
    /// Bytes of chunks that wait to be written. Beyond it they are dropped; those of destage beyond half of it.
    pub queue_bytes: u64,
    /// Bytes that may be written in a second, from all sources.
    pub write_bytes_per_second: u64,
    /// Bytes of destaged chunks that may be written in a second.
    pub destage_bytes_per_second: u64,
    /// Threads that read what is not in the page cache.
    pub readers: usize,
    /// A read that takes longer is a miss. So is one that waits longer for a thread. Reads that take longer count as one error of
    /// the device for each second in which there were any.
    pub read_timeout: Duration,
    /// So many damaged chunks and errors of the device within `damage_window` retire it.
    pub damage_max: usize,
    pub damage_window: Duration,
}

impl FlashConfig {
    /// A cache of `capacity_bytes` in `path`.
    pub fn new(path: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        let queue_bytes = 16 << 20;
        Self {
            path: path.into(),
            capacity_bytes,
            // Chunks of 5 KiB on average, none of them in a table that just doubled, fit this with room to spare.
            memory_bytes: (capacity_bytes / 128).max(8 << 20).saturating_add(queue_bytes),
            queue_bytes,
            write_bytes_per_second: 128 << 20,
            destage_bytes_per_second: 64 << 20,
            readers: 4,
            read_timeout: Duration::from_secs(1),
            damage_max: 64,
            damage_window: Duration::from_hours(1),
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |reason: String| Err(ConfigError(reason));
        if self.capacity_bytes < CAPACITY_BYTES_MIN || self.capacity_bytes > REGIONS_MAX * REGION_BYTES_MAX {
            return refuse(format!(
                "a capacity of {} bytes is not between {CAPACITY_BYTES_MIN} and {}",
                self.capacity_bytes,
                REGIONS_MAX * REGION_BYTES_MAX
            ));
        }
        if !(1 << 20..=1 << 30).contains(&self.queue_bytes) {
            return refuse(format!("a queue of {} bytes is not between 1 MiB and 1 GiB", self.queue_bytes));
        }
        if self.memory_bytes < self.queue_bytes + (1 << 20) {
            return refuse(format!(
                "{} bytes of memory are less than the queue and 1 MiB for the index",
                self.memory_bytes
            ));
        }
        if !(1..=64).contains(&self.readers) {
            return refuse(format!("{} reader threads are not between 1 and 64", self.readers));
        }
        if self.damage_max == 0 || self.damage_max > 1 << 20 {
            return refuse(format!("{} damaged chunks are not between 1 and 1048576", self.damage_max));
        }
        Ok(())
    }

    /// Entries that the memory allows.
    pub(crate) fn entries_max(&self) -> u64 {
        (self.memory_bytes - self.queue_bytes) / ENTRY_MEMORY_BYTES
    }

    /// Whether a region may have this size: one that a marker says is not believed.
    pub(crate) fn suits(region_bytes: u64) -> bool {
        (REGION_BYTES_MIN..=REGION_BYTES_MAX).contains(&region_bytes)
            && region_bytes.is_multiple_of(PAGE_BYTES)
    }

    /// Whether regions of the size that a marker says serve this capacity. A size that suited another capacity may: what they hold
    /// is kept, while overwriting one costs little and they are not many.
    pub(crate) fn keeps(&self, region_bytes: u64) -> bool {
        let kept = REGIONS_MIN..=REGIONS_KEPT_MAX;
        Self::suits(region_bytes)
            && (region_bytes == self.region_bytes() || kept.contains(&(self.capacity_bytes / region_bytes)))
    }

    /// The regions' size for a new cache: a hundred of them or so, so that overwriting one costs little.
    pub(crate) fn region_bytes(&self) -> u64 {
        let wanted = (self.capacity_bytes / 128).clamp(REGION_BYTES_MIN, REGION_BYTES_MAX);
        wanted / PAGE_BYTES * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_for_a_size_are_valid() {
        for capacity in [CAPACITY_BYTES_MIN, 1 << 30, 64 << 30, REGIONS_MAX * REGION_BYTES_MAX] {
            let config = FlashConfig::new("/flash", capacity);
            assert_eq!(config.validate(), Ok(()));
            assert!(config.capacity_bytes / config.region_bytes() >= REGIONS_MIN);
            assert!(config.capacity_bytes / config.region_bytes() <= REGIONS_MAX);
        }
    }

    #[test]
    fn regions_of_another_capacity_are_kept_while_their_number_makes_sense() {
        let config = |capacity| FlashConfig::new("/flash", capacity);
        assert!(config(512 << 20).keeps(REGION_BYTES_MIN));
        assert!(!config(1 << 30).keeps(REGION_BYTES_MIN));
        assert!(config(1 << 30).keeps(64 << 20));
        assert!(!config(256 << 20).keeps(64 << 20));
        assert!(!config(REGIONS_MAX * REGION_BYTES_MAX).keeps(REGION_BYTES_MIN));
        // The right size is always kept, however many that are.
        for capacity in [CAPACITY_BYTES_MIN, 1 << 40, REGIONS_MAX * REGION_BYTES_MAX] {
            assert!(config(capacity).keeps(config(capacity).region_bytes()));
        }
    }

    #[test]
    fn what_makes_no_cache_is_refused_with_the_reason() {
        let good = FlashConfig::new("/flash", 1 << 30);
        for bad in [
            FlashConfig { capacity_bytes: 1 << 20, ..good.clone() },
            FlashConfig { queue_bytes: 0, ..good.clone() },
            FlashConfig { memory_bytes: good.queue_bytes, ..good.clone() },
            FlashConfig { readers: 0, ..good.clone() },
            FlashConfig { damage_max: 0, ..good.clone() },
        ] {
            assert!(bad.validate().unwrap_err().to_string().starts_with("flash cache settings: "));
        }
    }
}
