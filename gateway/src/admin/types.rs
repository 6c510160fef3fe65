//! What the admin API says and takes, in JSON. `docs/admin-api.md` documents every field; names are stable.

use cairn_model::ErrorKind;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub id: String,
    pub size_bytes: u64,
    /// `flush` or `always`.
    pub durability: String,
    pub compress: bool,
    pub dedupe: bool,
    pub read_only: bool,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// `serving`, `not served`, `fenced` or `stopped` (no gateway runs).
    pub state: String,
    /// Why the volume is not served, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Client connections that have it open; absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    pub name: String,
    pub size_bytes: u64,
    #[serde(default)]
    pub durability: DurabilityChoice,
    #[serde(default = "yes")]
    pub compress: bool,
    #[serde(default = "yes")]
    pub dedupe: bool,
    #[serde(default)]
    pub read_only: bool,
}

const fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityChoice {
    /// A write survives a power cut once a flush completed.
    #[default]
    Flush,
    /// Every acknowledged write survives a power cut.
    Always,
}

/// What changes; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateVolume {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// A smaller size, which destroys what it cuts off, needs this.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    /// Deletes even while clients have the volume open.
    #[serde(default)]
    pub force: bool,
}

/// A range of a volume, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeQuery {
    pub offset: u64,
    pub length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffsetQuery {
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
    /// `false`: nothing is stored and it reads as zeros.
    pub allocated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub id: String,
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `active` or `draining`.
    pub state: String,
    pub created_at_ms: u64,
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
    pub retries: u64,
    pub errors: u64,
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
    /// Makes the bucket or directory if it does not exist.
    #[serde(default)]
    pub create: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedNode {
    pub node: Node,
    /// The node whose place it took, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
}

/// One thing that needs attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    /// `error`: something does not work. `warning`: it works, but not as it should.
    pub severity: String,
    pub what: String,
    pub next: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok` or `attention`.
    pub health: String,
    pub attention: Vec<Attention>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// `serving` or `stopped`.
    pub state: String,
    pub health: String,
    pub attention: Vec<Attention>,
    pub site: Site,
    pub gateway: Gateway,
    pub wal: Wal,
    pub destage: Destage,
    pub pool: PoolTotals,
    pub memory: Memory,
    pub volumes: Vec<Volume>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub id: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    pub id: String,
    pub directory: String,
    /// Process id and uptime, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<u64>,
    /// Addresses where NBD is served.
    pub nbd: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_connections: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wal {
    pub capacity_bytes: u64,
    /// Absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Whether it holds acknowledged writes that are not in the pool.
    pub dirty: bool,
    /// Why the log takes no more writes, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisoned: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Destage {
    pub backlog_bytes: u64,
    pub batches_committed: u64,
    pub batches_in_flight: u64,
    pub destaged_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub pool_full: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolTotals {
    pub segments: u64,
    pub segment_bytes: u64,
    /// Sums over the nodes since the gateway started.
    pub puts: u64,
    pub put_requests: u64,
    pub put_bytes: u64,
    pub gets: u64,
    pub get_requests: u64,
    pub get_bytes: u64,
    pub nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    pub block_cache_bytes: u64,
    pub map_cache_bytes: u64,
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub error: FailureDetail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureDetail {
    /// A name of [`ErrorKind`].
    pub kind: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl FailureDetail {
    /// The kind by its name; `Internal` when this version does not know it.
    pub fn kind(&self) -> ErrorKind {
        use ErrorKind::{
            Conflict, Corrupt, Fenced, Internal, NotFound, OutOfRange, OutOfSpace, ReadOnly, Unavailable,
            Unsupported,
        };
        let all = [
            Fenced,
            Unavailable,
            OutOfSpace,
            OutOfRange,
            ReadOnly,
            Corrupt,
            NotFound,
            Conflict,
            Unsupported,
            Internal,
        ];
        all.into_iter().find(|kind| kind.name() == self.kind).unwrap_or(Internal)
    }
}
