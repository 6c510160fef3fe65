//! Of checks of the site.

use serde::{Deserialize, Serialize};

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `catalog-file`, `sum`, `orphan`, `foreign-object`, `missing-shard`, `wrong-shard`, `doomed`, `segment`, `container`, `footer`, `map` or `record`.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    pub text: String,
    /// What a repair does about it: `delete`, `heal`, `recount`, `checkpoint` or `keep`; absent when it cannot be mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Bytes that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRange {
    pub volume: String,
    /// Absent: the volume as it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    pub offset: u64,
    pub length: u64,
    pub reason: String,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    pub objects: u64,
    pub object_bytes: u64,
    pub segments: u64,
    pub shards: u64,
    pub containers: u64,
    pub map_rows: u64,
    /// At most 10,000; `problem_count` are all.
    pub problems: Vec<Problem>,
    pub problem_count: u64,
    /// At most 10,000; `lost_count` are all, of `lost_bytes`.
    pub lost: Vec<LostRange>,
    pub lost_count: u64,
    pub lost_bytes: u64,
    /// What could not be checked, and why: the first of each kind, and how many more there are; `unchecked_count` are all.
    pub unchecked: Vec<String>,
    pub unchecked_count: u64,
    pub orphans: u64,
    pub orphan_bytes: u64,
    /// Problems that a repair deals with.
    pub repairable: u64,
    /// What can be mended; absent when nothing can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// What became of the plan, when it was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired: Option<Repaired>,
}

/// What a repair would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Names it, for `POST /v1/fsck/repair`.
    pub id: u64,
    /// Objects that are deleted, and their bytes.
    pub delete: u64,
    pub delete_bytes: u64,
    /// Shards that are read, and made anew when they are bad.
    pub heal: u64,
    /// Sums that are set.
    pub recount: u64,
    /// 1: a checkpoint is taken.
    pub checkpoint: u64,
    /// Objects that are not to be deleted any more.
    pub keep: u64,
}

/// How far a check is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckProgress {
    /// `catalog`, `objects`, `segments`, `maps`, `record` or `confirming`.
    pub phase: String,
    pub done: u64,
    /// 0: not known.
    pub total: u64,
    pub problems: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskRepair {
    /// Of the last check.
    pub plan: u64,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Repaired {
    /// Objects that nothing named.
    pub orphans: u64,
    pub orphan_bytes: u64,
    /// Whether these are deleted by now; otherwise reclaim goes on with it.
    pub deleted: bool,
    /// Shards that were given up, and are made anew.
    pub shards: u64,
    /// Shards that were right when they were read, or elsewhere by then.
    pub shards_right: u64,
    pub sums: u64,
    /// Objects that a segment names, and that are not to be deleted any more.
    pub kept: u64,
    /// A checkpoint of the catalog was taken, and is whole.
    pub checkpoint: bool,
    /// What was not done, and why: the first of each kind, and how many more there are; `left_count` are all.
    pub left: Vec<String>,
    pub left_count: u64,
}
