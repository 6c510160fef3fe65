//! What an engine may use.

use crate::budget::CpuBudget;
use cairn_segment_writer::PackConfig;
use cairn_wal::WalConfig;
use std::time::Duration;

/// Limits and habits of an engine. Every memory user has its bound here.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct EngineConfig {
    pub wal: WalConfig,
    /// Plaintext of writes that are not destaged yet. What does not fit is read back from the log.
    pub write_buffer_bytes: u64,
    /// Decoded chunks.
    pub block_cache_bytes: u64,
    /// Decoded map leaves and container directories.
    pub map_cache_bytes: u64,
    /// A batch is cut when this much waits for destage.
    pub batch_bytes: u64,
    /// A batch is cut when its oldest write is this old.
    pub batch_age: Duration,
    /// Batches packed and uploaded at the same time, more when there are compute threads for more. Their commits are in order.
    pub batches_in_flight: usize,
    /// Segments put at the same time.
    pub uploads_in_flight: usize,
    /// Bytes of a container that one read miss fetches.
    pub fetch_region_bytes: u32,
    /// Furthest that a sequential stream is read ahead.
    pub read_ahead_bytes: u64,
    /// How long a read waits for a pool that does not answer before the guest gets an error.
    pub read_deadline: Duration,
    /// How long an ownership lasts without renewal.
    pub lease_ttl: Duration,
    /// The share of the cores that hashes, compresses and seals; can be changed at run time.
    pub cpu_budget: CpuBudget,
    /// Cores of the host that it is a share of.
    pub cores: usize,
    /// How often to look for what nothing points at any more, if anything may have died; `None`: only when asked to.
    pub reclaim_interval: Option<Duration>,
    /// Where more of the pool than this is dead, survivors of sparse segments are moved together. 100: never.
    pub reclaim_dead_percent_max: u8,
    /// How often nodes are looked at, and whether something in the pool is to be healed.
    pub heal_interval: Duration,
    /// What healing reads and writes at most, while no segment is at risk; `None`: as fast as it goes.
    pub heal_bytes_per_second: Option<u64>,
    /// A node that has not answered for so long is declared failed; `None`: never.
    pub node_failed_after: Option<Duration>,
    /// A node that has been silent for so long because its place is empty is used again, without what it held, where the pool cannot be whole without it.
    pub reuse_wiped_nodes: bool,
    /// How long reading everything in the pool once may take; `None`: only when asked to.
    pub scrub_period: Option<Duration>,
    /// How often the catalog is recorded in the pool while batches are committed; rarer changes are recorded soon. `None`: never, and nothing waits for it.
    pub checkpoint_interval: Option<Duration>,
    /// Nothing is done but what is asked for, until [`Engine::release`](crate::Engine::release): a gateway that may find that the site is another's changes nothing before.
    pub held: bool,
    /// Run protection groups by their schedules; otherwise only when asked to.
    pub run_schedules: bool,
    pub pack: PackConfig,
    /// Start even though the log is gone and held acknowledged writes. The operator's word, never a default.
    pub accept_lost_wal: bool,
}

impl EngineConfig {
    /// The defaults around a log configuration.
    pub fn new(wal: WalConfig) -> Self {
        Self {
            wal,
            write_buffer_bytes: 256 << 20,
            block_cache_bytes: 512 << 20,
            map_cache_bytes: 128 << 20,
            batch_bytes: 64 << 20,
            batch_age: Duration::from_secs(5),
            batches_in_flight: 2,
            uploads_in_flight: 4,
            fetch_region_bytes: 128 << 10,
            read_ahead_bytes: 4 << 20,
            read_deadline: Duration::from_mins(2),
            lease_ttl: Duration::from_secs(30),
            cpu_budget: CpuBudget::default(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            reclaim_interval: Some(Duration::from_mins(10)),
            reclaim_dead_percent_max: 20,
            heal_interval: Duration::from_secs(10),
            heal_bytes_per_second: Some(64 << 20),
            node_failed_after: Some(Duration::from_mins(10)),
            reuse_wiped_nodes: true,
            scrub_period: Some(Duration::from_hours(30 * 24)),
            checkpoint_interval: Some(Duration::from_mins(10)),
            held: false,
            run_schedules: true,
            pack: PackConfig::default(),
            accept_lost_wal: false,
        }
    }
}
