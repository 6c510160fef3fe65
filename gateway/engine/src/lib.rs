//! The volume engine: what turns a log, a catalog and a pool into block devices.
//!
//! | module | idea |
//! |---|---|
//! | [`engine`] | start, recover, registry of volumes, shutdown |
//! | `volume` | one virtual disk: write path, read path, ordering, resize |
//! | `volume::buffer` | the write buffer: what was written and is not destaged yet, in layers |
//! | `volume::map` | the extent map in memory: unfolded changes over leaves loaded on demand |
//! | `patience` | a pool or catalog that is away for a moment is waited for |
//! | `compute`, `budget` | threads that hash, compress and seal, and how many of them |
//! | `pressure` | what holds writers back and sets destage going |
//! | `destage` | cut, pack, upload, commit, free the log; folding |
//! | `dedupe` | what is stored already is not stored again |
//! | `domains`, `options` | how a volume's data is packed, and under which key |
//! | `read` | chunk cache in RAM, flash, one fetch for concurrent misses, read-ahead |
//! | `snapshot` | volumes at a moment: taken, read, cloned, compared, reverted to |
//! | `group` | protection groups: runs by schedule, retention |
//! | `reclaim` | what nothing points at any more is deleted from the pool |
//! | `heal` | repair, draining, rebalance, conversion: placements become what they should be; scrub |
//! | `fsck` | the catalog, its maps and the pool are held against each other, and what can be mended is |
//! | `in_flight` | segments that are put and that the catalog does not name yet |
//! | `lease` | ownership, renewed; a gateway that cannot renew stops acknowledging |
//! | `wal_state` | whether the log holds anything that the catalog does not |

mod budget;
mod cache;
mod compute;
mod config;
mod dedupe;
mod destage;
mod domains;
mod engine;
mod error;
mod fsck;
mod group;
mod heal;
mod in_flight;
mod lease;
mod options;
mod patience;
mod pressure;
mod read;
mod reclaim;
mod record;
mod recovery;
mod registry;
mod snapshot;
mod status;
mod tasks;
#[cfg(test)]
mod testing;
mod volume;
mod wal_state;

pub use budget::{CpuBudget, UnknownCpuBudget};
pub use config::EngineConfig;
pub use engine::{Engine, EngineParts};
pub use error::EngineError;
pub use fsck::{
    Fsck, FsckParts, FsckPhase, FsckProgress, FsckReport, LostRange, PlanCounts, Problem, ProblemKind,
    Remedy, Repaired,
};
pub use group::GroupCounters;
pub use heal::{HealKind, HealProgress, HealStatus, Healed, ScrubReport, ScrubStatus, members};
pub use options::VolumeOptions;
pub use reclaim::{PoolUse, ReclaimReport, ReclaimStatus};
pub use record::RecordStatus;
pub use snapshot::{Difference, DifferencePage, SnapshotPhase, SnapshotStatus};
pub use status::{CpuStatus, DedupeStatus, DestageStatus, EngineStatus, VolumeStatus, WalStatus};
pub use volume::Volume;
