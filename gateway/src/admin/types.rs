//! What the admin API says and takes, in JSON. `docs/admin-api.md` documents every field; names are stable.

mod fsck;
mod groups;
mod heal;
mod pool;
mod reclaim;
mod snapshots;

pub use fsck::{AskRepair, CheckProgress, Checked, LostRange, Plan, Problem, Repaired};
pub use groups::{CreateGroup, Event, Group, GroupDetail, GroupMember, GroupRun, LimitQuery, UpdateGroup};
pub use heal::{Heal, HealWork, Healed, Scrub, Scrubbed};
pub use pool::{AddNode, AddedNode, ChangeNode, ChangePool, Node, NodeHealth, PoolState, RemoveQuery};
pub use reclaim::{AskReclaim, LastLook, Reclaim, Reclaimed, ReclaimedAmount};
pub use snapshots::{
    ChangedRange, CloneSnapshot, CreateSnapshot, CreateSnapshots, Difference, DifferenceQuery, RevertVolume,
    Reverted, Snapshot, SnapshotWanted, Space, SpaceQuery,
};

use cairn_engine::CpuBudget;
use cairn_model::ErrorKind;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    pub name: String,
    pub id: String,
    pub size_bytes: u64,
    /// `flush` or `always`.
    pub durability: String,
    pub compress: bool,
    pub dedupe: bool,
    /// How it is packed.
    pub packing: Packing,
    /// Its dedupe domain, and how that is encrypted: `aes-256-gcm` or `off`.
    pub domain: String,
    pub encryption: String,
    pub usage: Usage,
    pub read_only: bool,
    /// Milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// `serving`, `not served`, `fenced` or `stopped` (no gateway runs).
    pub state: String,
    /// Why the volume is not served, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Client connections that have it open, without those to its snapshots; absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachments: Option<u64>,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// Present when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
}

/// Settings of packing, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// Blocks of 4 KiB that a chunk has on average, and at most.
    pub chunk_target_blocks: u8,
    pub chunk_max_blocks: u8,
    /// zstd level; absent when nothing is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<i8>,
    /// Blocks are compared before one is stored for both.
    pub verify_dedupe: bool,
}

/// What guests see of a volume, and what its writes took since it was made.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Blocks that hold data. Of a volume under writes, as of when its map was folded last: seconds after the last write it is exact.
    pub logical_bytes: u64,
    /// Brought to the pool since the volume was made: `zero + shared + unique`.
    pub written_bytes: u64,
    pub zero_bytes: u64,
    /// Stored already, for this volume or another.
    pub shared_bytes: u64,
    pub unique_bytes: u64,
    /// What the unique bytes took, compressed and sealed.
    pub stored_bytes: u64,
    /// `written - stored`.
    pub saved_bytes: u64,
    /// `(shared + unique) / unique`; absent while there is nothing to divide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_ratio: Option<f64>,
    /// `unique / stored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_ratio: Option<f64>,
}

/// What all volumes hold now, and what the pool keeps for it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Reduction {
    /// Blocks that hold data, of all volumes.
    pub logical_bytes: u64,
    /// Plaintext of what the pool holds, also of what nothing points at any more.
    pub unique_bytes: u64,
    /// The same compressed and sealed.
    pub stored_bytes: u64,
    /// `logical - stored`, or zero.
    pub saved_bytes: u64,
    /// `logical / unique`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_ratio: Option<f64>,
    /// `unique / stored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_ratio: Option<f64>,
}

/// Sharing of what is stored already.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dedupe {
    /// Containers that the index knows.
    pub index_containers: u64,
    /// Its disk, and its memory.
    pub index_bytes: u64,
    pub memory_bytes: u64,
    /// Look-ups since the gateway started.
    pub hits: u64,
    pub misses: u64,
    /// Records that were not what had been written. They were removed.
    pub damaged: u64,
    pub errors: u64,
    /// Blocks that had the fingerprint of a stored block and other bytes. They were stored by themselves.
    pub collisions: u64,
    /// Batches packed again because the catalog did not have what they shared.
    pub refused_batches: u64,
    /// Why nothing of the index is on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_memory_only: Option<String>,
}

/// The flash cache. Counts are since the gateway started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flash {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub chunks: u64,
    pub hits: u64,
    pub misses: u64,
    /// Hits that the kernel's cache did not have.
    pub device_reads: u64,
    pub inserted: u64,
    pub inserted_bytes: u64,
    /// Not written for lack of room in the queue or of bandwidth.
    pub dropped: u64,
    /// Not written because nobody had asked for it before, and the cache was full.
    pub rejected: u64,
    /// Chunks, or other parts of its files, that were not what had been written.
    pub damaged: u64,
    pub io_errors: u64,
    /// The size that would serve nine of ten repeated reads, an estimate; absent until there were enough of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<u64>,
    /// What the cache lacks of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortfall_bytes: Option<u64>,
    /// Why it is not used any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct CreateVolume {
    pub name: String,
    pub size_bytes: u64,
    #[serde(default)]
    pub durability: DurabilityChoice,
    #[serde(default = "yes")]
    pub compress: bool,
    #[serde(default = "yes")]
    pub dedupe: bool,
    /// Compare blocks before one is stored for both.
    #[serde(default)]
    pub verify_dedupe: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_target_blocks: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_max_blocks: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_level: Option<i8>,
    /// Name of its dedupe domain; the site's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default)]
    pub read_only: bool,
}

impl CreateVolume {
    /// A volume with the usual settings.
    pub fn new(name: String, size_bytes: u64) -> Self {
        Self {
            name,
            size_bytes,
            durability: DurabilityChoice::default(),
            compress: true,
            dedupe: true,
            verify_dedupe: false,
            chunk_target_blocks: None,
            chunk_max_blocks: None,
            compression_level: None,
            domain: None,
            read_only: false,
        }
    }
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
    /// Deletes even while clients have the volume open, and its snapshots with it.
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

/// The master key, and what it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `file`, `passphrase` (a file that needs one) or `command`.
    pub source: String,
    /// The file, or the program.
    pub location: String,
    /// Public id of the key that the site's keys are wrapped with.
    pub id: String,
    /// Public id of the key that the file holds now; absent for a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_id: Option<String>,
    /// Why that key cannot be used, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Number of the latest change of keys.
    pub revision: u64,
    pub domains: Vec<Domain>,
    /// The wrapped keys' copies on the data nodes, as they were last seen; empty when no gateway runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<KeyCopy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCopy {
    pub node: String,
    /// Why it is not up to date, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Another master key, or the same in another wrapping. Only on `admin.sock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceKey {
    /// The new key, wrapped with the present one: hexadecimal.
    pub sealed: String,
    /// The key file to write when it shall need a passphrase; absent for one that needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishKeys {
    /// Also over keys that are none of the catalog's past, and over what cannot be read.
    #[serde(default)]
    pub force: bool,
}

/// A dedupe domain: what is sealed under one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    pub name: String,
    pub id: String,
    /// `aes-256-gcm` or `off`.
    pub encryption: String,
    /// Public id of its key.
    pub key_id: String,
    pub created_at_ms: u64,
    /// Volumes that are in it.
    pub volumes: u64,
    /// Why it cannot be used, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateDomain {
    pub name: String,
    /// `aes-256-gcm`, which is the default, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    pub cpu: Cpu,
    pub pool: PoolTotals,
    pub reduction: Reduction,
    pub reclaim: Reclaim,
    /// Since the start.
    #[serde(default)]
    pub heal: Heal,
    /// Since the start.
    #[serde(default)]
    pub record: Record,
    /// Absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<Dedupe>,
    /// Absent when no gateway runs, or without a flash cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<Flash>,
    pub memory: Memory,
    /// Snapshots of all volumes.
    pub snapshots: u64,
    /// Protection groups.
    #[serde(default)]
    pub groups: u64,
    pub volumes: Vec<Volume>,
}

/// Checkpoints: copies of the catalog in the pool, of which `cairn recover` makes it again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    pub taken: u64,
    /// When the last one was, in milliseconds since the Unix epoch; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at_ms: Option<u64>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Something but writes was changed that none has yet.
    pub waits: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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

/// What hashes, compresses and seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cpu {
    /// As chosen last while the gateway runs, else as configured.
    pub budget: CpuBudget,
    /// Threads that work now; absent when no gateway runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Cores that the budget is a share of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<u64>,
    /// The log is nearly full, or somebody waits until everything is in the pool: all cores work whatever the budget.
    pub raised: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeCpu {
    pub budget: CpuBudget,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolTotals {
    pub segments: u64,
    pub segment_bytes: u64,
    /// `single`, `replica:N` or `ec:K+M`.
    #[serde(default)]
    pub profile: String,
    /// Segments of which a shard is missing, and those of them that the next loss would lose.
    #[serde(default)]
    pub degraded_segments: u64,
    #[serde(default)]
    pub at_risk_segments: u64,
    /// Sums over the nodes since the gateway started.
    pub puts: u64,
    pub put_requests: u64,
    pub put_bytes: u64,
    pub gets: u64,
    pub get_requests: u64,
    pub get_bytes: u64,
    pub deletes: u64,
    pub delete_requests: u64,
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
