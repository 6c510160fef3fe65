//! Of what comes back to the pool.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskReclaim {
    /// Only tells what would be taken back.
    #[serde(default)]
    pub dry_run: bool,
}

/// What one pass took back, or would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reclaimed {
    pub dry_run: bool,
    #[serde(flatten)]
    pub amount: ReclaimedAmount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReclaimedAmount {
    /// Containers that nothing points at any more; what they take in the pool, and what was left out of those that moved.
    pub containers: u64,
    pub container_bytes: u64,
    /// Containers with something live that moved out of sparse objects, and what was written to the pool for that.
    #[serde(default)]
    pub moved_containers: u64,
    #[serde(default)]
    pub moved_bytes: u64,
    /// Objects deleted from the pool. A dry run does not tell them.
    pub objects: u64,
    pub object_bytes: u64,
}

/// Since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reclaim {
    pub passes: u64,
    pub total: ReclaimedAmount,
    /// When the last pass ended, in milliseconds since the Unix epoch; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at_ms: Option<u64>,
    /// What the last pass found in the pool; absent before the first, and where nothing is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_look: Option<LastLook>,
}

/// How full of live data the pool was. Whatever something points at is live, with all of its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LastLook {
    pub object_bytes: u64,
    pub live_bytes: u64,
}
