//! Of the pool and its data nodes.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub id: String,
    pub url: String,
    /// What fails together with it, such as a rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `active`, `draining` or `failed`.
    pub state: String,
    pub created_at_ms: u64,
    /// What it can hold, as somebody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Shards of segments that it holds, and their bytes.
    pub shards: u64,
    pub used_bytes: u64,
    /// Whether its server honours conditional writes; absent for directories, and when it was not found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conditional_writes: Option<bool>,
    /// What it did since the gateway started; absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<NodeHealth>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeHealth {
    /// The latest request failed for a reason that lies with the node.
    pub failing: bool,
    pub puts: u64,
    pub put_requests: u64,
    pub put_bytes: u64,
    pub gets: u64,
    pub get_requests: u64,
    pub get_bytes: u64,
    pub deletes: u64,
    pub delete_requests: u64,
    pub retries: u64,
    pub errors: u64,
    /// Chunks and shards that failed verification as they came from it.
    #[serde(default)]
    pub damaged: u64,
    /// `closed` (it is asked), `open` (it failed too often and is not asked where others serve) or `half-open` (it is being tried again).
    #[serde(default)]
    pub breaker: String,
    /// `full` or `read-only`: why the latest put was refused; absent when it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuses_puts: Option<String>,
    /// What the latest requests took in the middle and at their slow end; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_p50_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub put_p95_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get_p50_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub get_p95_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddNode {
    pub name: String,
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Makes the bucket or directory if it does not exist.
    #[serde(default)]
    pub create: bool,
    /// The node that is to be emptied onto the others once this one is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place_of: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedNode {
    pub node: Node,
    /// The node whose place it took, because that one was the folder `pool` and held nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
}

/// What is to change in a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeNode {
    /// `active`, `draining` or `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Zero: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveQuery {
    /// Also when it holds shards: they are missing from then on.
    #[serde(default)]
    pub force: bool,
}

/// How the pool protects what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    /// `single`, `replica:N` or `ec:K+M`: of new segments; those that are there follow in the background.
    pub profile: String,
    /// Nodes that a segment is spread over, and how many of them may be lost.
    pub shards: u64,
    pub tolerates: u64,
    /// Nodes that take new segments, and failure domains among them.
    pub active_nodes: u64,
    pub domains: u64,
    pub segments: u64,
    /// Segments of which a shard is missing, and those of them that the next loss would lose.
    pub degraded_segments: u64,
    pub at_risk_segments: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangePool {
    pub profile: String,
}
