//! Of snapshots, clones, reverts and differences.

use super::Volume;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `VOLUME@NAME`, as commands and clients name it.
    pub snapshot: String,
    pub volume: String,
    pub name: String,
    pub id: String,
    /// Size of the volume when it was taken.
    pub size_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// `logged` (in the log), `committed` (in the catalog) or `settled` (its map can be read). All survive alike.
    pub state: String,
    /// Blocks that hold data; absent until it is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_bytes: Option<u64>,
    /// Volumes that began as it, also by a revert to it, and live on.
    pub clones: u64,
    /// Client connections that have it open, or compare something later with it; absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<u64>,
    /// Nobody can delete it, or its volume, before that; absent when it was never locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_until_ms: Option<u64>,
    /// Present when it was asked for and the snapshot is settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
}

/// Whose space: what a snapshot or a volume holds for itself. `docs/snapshots.md` says what exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Blocks of `logical_bytes` that only it shows; of a volume, as it is now.
    pub unique_bytes: u64,
    /// The others: a snapshot or a clone beside it shows them too.
    pub shared_bytes: u64,
    /// What its deletion would leave as garbage in the pool; of a volume, that with all of its snapshots.
    pub freed_bytes: u64,
}

/// What is to be told beside the rest.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceQuery {
    /// Whose space it is, which takes a while.
    #[serde(default)]
    pub space: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Without one it gets a name that tells the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Snapshots of several volumes at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    pub snapshots: Vec<SnapshotWanted>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotWanted {
    pub volume: String,
    /// Those without one get the same name, which tells the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// Name of the new volume.
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevertVolume {
    /// Reverts even while clients have the volume open.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reverted {
    /// As it is now.
    pub volume: Volume,
    /// As it was before.
    pub before: Snapshot,
}

/// Which two snapshots of a volume to compare, and from where on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DifferenceQuery {
    pub from: String,
    pub to: String,
    /// Offset in bytes, rounded down to a block.
    #[serde(default)]
    pub start: u64,
    /// Ranges from which on the answer ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A part of the differences, in address order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Size of the larger snapshot.
    pub size_bytes: u64,
    pub ranges: Vec<ChangedRange>,
    /// The `start` of the next part; absent in the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedRange {
    pub offset_bytes: u64,
    pub length_bytes: u64,
    /// `false`: the later snapshot has nothing stored there, and reads as zeros.
    pub allocated: bool,
}
