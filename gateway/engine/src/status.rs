//! What an engine tells about itself. Field names are stable: they are the admin API's.

use crate::budget::CpuBudget;
use crate::engine::Engine;
use crate::group::GroupCounters;
use crate::heal::HealStatus;
use crate::reclaim::ReclaimStatus;
use crate::record::{self, RecordStatus};
use crate::volume::Condition;
use cairn_fingerprints::IndexStatus;
use cairn_flash::FlashStatus;
use cairn_model::{Durability, Reduction};
use serde::Serialize;

/// The write-ahead log.
#[derive(Clone, Debug, Serialize)]
pub struct WalStatus {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Why the log takes no more writes, if it does not.
    pub poisoned: Option<String>,
    /// Whether the log holds anything that the pool does not.
    pub dirty: bool,
}

/// Destage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DestageStatus {
    /// Plaintext written and not destaged yet, as far as it is held in memory.
    pub backlog_bytes: u64,
    pub batches_committed: u64,
    pub batches_in_flight: u64,
    /// What became of the bytes in committed batches.
    pub reduction: Reduction,
    /// The last problem, while it lasts.
    pub problem: Option<String>,
    pub pool_full: bool,
}

/// Sharing of what is stored already.
#[derive(Clone, Debug, Serialize)]
pub struct DedupeStatus {
    pub index: IndexStatus,
    /// Blocks that had the fingerprint of a stored block and other bytes. They were stored by themselves.
    pub collisions: u64,
    /// Batches packed again because the catalog did not have what they shared.
    pub refused_batches: u64,
}

/// Hashing, compressing and sealing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CpuStatus {
    pub budget: CpuBudget,
    /// Cores that the budget is a share of.
    pub cores: u64,
    /// Threads that work.
    pub threads: u64,
    /// The log is nearly full, or somebody waits until everything is in the pool: all cores work whatever the budget.
    pub raised: bool,
}

/// One volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    pub id: cairn_model::VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub read_only: bool,
    /// `flush` or `always`.
    pub durability: &'static str,
    /// `serving`, `fenced`, `deleted` or `unsure`.
    pub condition: &'static str,
    pub generation: u64,
    /// Last write of the order.
    pub last_write: u64,
    /// Map pieces committed and not folded yet.
    pub unfolded_pieces: u64,
}

/// The engine as a whole.
#[derive(Clone, Debug, Serialize)]
pub struct EngineStatus {
    pub wal: WalStatus,
    pub destage: DestageStatus,
    pub dedupe: DedupeStatus,
    /// `None`: this gateway has no flash cache.
    pub flash: Option<FlashStatus>,
    pub cpu: CpuStatus,
    pub reclaim: ReclaimStatus,
    pub heal: HealStatus,
    pub record: RecordStatus,
    pub groups: GroupCounters,
    pub block_cache_bytes: u64,
    pub map_cache_bytes: u64,
    pub volumes: Vec<VolumeStatus>,
    /// Volumes of the site that this gateway does not serve, and why.
    pub not_served: Vec<NotServed>,
}

/// A volume that could not be opened.
#[derive(Clone, Debug, Serialize)]
pub struct NotServed {
    pub name: String,
    pub reason: String,
}

impl Engine {
    /// A snapshot of counters; never waits for I/O.
    pub fn status(&self) -> EngineStatus {
        let shared = self.shared();
        let usage = shared.wal.usage();
        let mut destage = shared.destage.status();
        destage.backlog_bytes = shared.pressure.buffered_bytes();
        destage.pool_full = shared.pressure.is_pool_full();
        EngineStatus {
            wal: WalStatus {
                capacity_bytes: usage.capacity_bytes,
                used_bytes: usage.used_bytes,
                poisoned: usage.poisoned,
                dirty: shared.wal_state.is_dirty(),
            },
            destage,
            dedupe: DedupeStatus {
                index: shared.dedupe.index().status(),
                collisions: shared.dedupe.collisions(),
                refused_batches: shared.dedupe.refusals(),
            },
            flash: shared.flash.as_ref().map(|flash| flash.status()),
            cpu: shared.governor.status(&shared.compute),
            reclaim: shared.reclaim.status(),
            heal: shared.heal.status(),
            record: record::status(shared),
            groups: shared.groups.counters(),
            block_cache_bytes: shared.chunks.cached_bytes(),
            map_cache_bytes: shared.leaves.used_bytes(),
            volumes: shared.registry.all().iter().map(|volume| volume.status()).collect(),
            not_served: self.not_served().cloned().collect(),
        }
    }
}

impl crate::volume::Volume {
    /// A snapshot of the volume's counters.
    pub fn status(&self) -> VolumeStatus {
        let state = self.state().lock();
        VolumeStatus {
            id: self.id(),
            name: state.name.clone(),
            size_bytes: state.size_bytes,
            read_only: state.read_only,
            durability: match self.durability() {
                Durability::Flush => "flush",
                Durability::Always => "always",
            },
            condition: match state.condition {
                Condition::Serving => "serving",
                Condition::Fenced => "fenced",
                Condition::Deleted => "deleted",
                Condition::Unsure => "unsure",
            },
            generation: self.generation().get(),
            last_write: state.buffer.last_seq().get(),
            unfolded_pieces: state.map.unfolded_len() as u64,
        }
    }
}
