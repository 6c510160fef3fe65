//! The sizes and habits of a seed.

use crate::limits::{Limits, Part};
use cairn_engine::{CpuBudget, EngineConfig};
use cairn_segment_writer::RequestPolicy;
use cairn_wal::WalConfig;
use cairn_wal::testing::Dice;
use std::time::Duration;

/// One of the choices.
pub(crate) fn pick<T: Copy>(dice: &Dice, choices: &[T]) -> T {
    choices[usize::try_from(dice.below(choices.len() as u64)).expect("an index")]
}

pub(crate) fn millis(dice: &Dice, limit: u64) -> Duration {
    Duration::from_millis(dice.below(limit))
}

/// A small engine, so that every limit is met within a life: batches of a few writes, a ring of four files.
pub(crate) fn engine_config(dice: &Dice, lease_ttl: Duration) -> EngineConfig {
    let wal = WalConfig {
        capacity_bytes: 16 << 20,
        file_bytes: 4 << 20,
        queue_bytes: 4 << 20,
        readers: pick(dice, &[1, 2]),
        ..WalConfig::default()
    };
    let mut config = EngineConfig::new(wal);
    config.write_buffer_bytes = pick(dice, &[64 << 10, 1 << 20, 16 << 20]);
    config.block_cache_bytes = pick(dice, &[1, 256 << 10, 64 << 20]);
    config.map_cache_bytes = 8 << 20;
    config.batch_bytes = pick(dice, &[32 << 10, 256 << 10, 2 << 20]);
    config.batch_age = Duration::from_millis(pick(dice, &[10, 100, 1000]));
    config.batches_in_flight = pick(dice, &[1, 2, 3]);
    config.uploads_in_flight = pick(dice, &[1, 4]);
    config.fetch_region_bytes = pick(dice, &[16 << 10, 128 << 10]);
    config.read_ahead_bytes = pick(dice, &[0, 256 << 10]);
    config.read_deadline = Duration::from_secs(20);
    config.lease_ttl = lease_ttl;
    config.cores = pick(dice, &[1, 2, 5]);
    config.cpu_budget = pick(dice, &CpuBudget::ALL);
    config.reclaim_interval = pick(dice, &[None, Some(50), Some(300), Some(1000)]).map(Duration::from_millis);
    config.reclaim_dead_percent_max = pick(dice, &[5, 5, 20, 100]);
    config.heal_interval = Duration::from_millis(pick(dice, &[20, 200, 1000]));
    config.heal_bytes_per_second = pick(dice, &[None, Some(4 << 20)]);
    config.node_failed_after = pick(dice, &[None, Some(100), Some(1000)]).map(Duration::from_millis);
    config.scrub_period = pick(dice, &[None, Some(1000)]).map(Duration::from_millis);
    config.pack.container_bytes_max = pick(dice, &[64 << 10, 1 << 20, 8 << 20]);
    config
}

/// Short enough that a life sees many rounds of retries.
pub(crate) fn request_policy() -> RequestPolicy {
    RequestPolicy {
        put_attempt_timeout: Duration::from_millis(300),
        get_attempt_timeout: Duration::from_millis(300),
        put_give_up: Duration::from_secs(1),
        get_give_up: Duration::from_secs(1),
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
    }
}

/// What a guest is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Requests in flight.
    pub(crate) depth: usize,
    /// Longest request, in sectors.
    pub(crate) sectors_max: u64,
    /// Requests that begin and end at blocks, of a hundred.
    pub(crate) aligned: u64,
    /// Longest pause between requests.
    pub(crate) pause_ms_max: u64,
    /// Of a hundred requests; the rest are writes.
    pub(crate) flushes: u64,
    pub(crate) destages: u64,
    pub(crate) reads: u64,
    pub(crate) zeroes: u64,
    pub(crate) discards: u64,
    /// Of a hundred writes.
    pub(crate) forced: u64,
    /// Writes of blocks that are written elsewhere too.
    pub(crate) common: u64,
    /// Requests that go to the first few blocks, of a hundred.
    pub(crate) hot: u64,
}

impl Habits {
    pub(crate) fn draw(dice: &Dice, limits: &Limits) -> Self {
        let habits = Self {
            depth: pick(dice, &[1, 2, 8]),
            sectors_max: pick(dice, &[8, 64, 256]),
            aligned: pick(dice, &[0, 60, 95, 100]),
            pause_ms_max: pick(dice, &[2, 20, 100]),
            flushes: pick(dice, &[1, 5, 20]),
            destages: pick(dice, &[0, 0, 2]),
            reads: pick(dice, &[5, 30]),
            zeroes: pick(dice, &[0, 5]),
            discards: pick(dice, &[0, 10]),
            forced: pick(dice, &[0, 10, 50]),
            hot: pick(dice, &[0, 50]),
            common: pick(dice, &[0, 30, 80]),
        };
        let discards = if limits.allow(Part::Discards) { habits.discards } else { 0 };
        let reads = if limits.allow(Part::Reads) { habits.reads } else { 0 };
        Self { reads, discards, ..habits }
    }
}
