//! Of healing and scrub.

use serde::{Deserialize, Serialize};

/// What was made anew since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Healed {
    /// Segments that got another place, shards that were made for them, and what was put for that.
    pub segments: u64,
    pub shards: u64,
    pub bytes: u64,
    /// Shards that were found missing or damaged.
    pub lost: u64,
}

/// Work under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealWork {
    /// `check`, `rescue`, `repair`, `drain`, `conversion` or `rebalance`.
    pub kind: String,
    pub since_ms: u64,
    /// Segments looked at, of so many by an estimate.
    pub segments_done: u64,
    pub segments_total: u64,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

/// What reading everything found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scrubbed {
    pub segments: u64,
    pub shards: u64,
    pub bytes: u64,
    /// Shards that were not where they should be, and shards that were not what they should be.
    pub missing: u64,
    pub damaged: u64,
    /// Of both, those without enough others to make them anew.
    pub beyond_repair: u64,
    /// Shards whose node does not answer.
    pub unread: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scrub {
    /// Segments read in the pass under way, of so many.
    pub segments_done: u64,
    pub segments_total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// Passes that came to their end since the start.
    pub passes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at_ms: Option<u64>,
    pub total: Scrubbed,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heal {
    /// Absent when nothing is to be done, or nothing can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<HealWork>,
    pub total: Healed,
    /// Segments that are not as they should be and wait, and what the first of them waits for.
    pub waiting_segments: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Nodes that have been silent for long, and are not declared failed because nothing would be gained by it.
    pub silent_nodes: Vec<String>,
    /// When everything was found to be as it should be the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub scrub: Scrub,
}
