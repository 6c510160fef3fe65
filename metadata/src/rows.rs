//! What the catalog holds, as types.

use crate::{CatalogError, DomainName, LeafIndex, SnapshotName, VolumeName};
use cairn_model::crypto::{Encryption, KeyId};
use cairn_model::{
    CommitSeq, DomainId, Durability, GatewayId, Generation, LineageId, NodeId, Reduction, SiteId, SnapshotId,
    VolumeId, WallTime, WriteSeq,
};
use std::collections::HashMap;
use std::fmt;

/// The site that this catalog is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SiteRow {
    pub id: SiteId,
    pub name: String,
    pub created_at: WallTime,
    /// [`crate::FORMAT_VERSION`] of the program that made it or last upgraded it.
    pub format_version: u32,
}

/// A key, wrapped under another.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// What it is for, such as [`DomainRow::key_purpose`].
    pub purpose: String,
    pub key_id: KeyId,
    /// The key that opens it.
    pub wrapped_by: KeyId,
    pub wrapped: Vec<u8>,
    pub created_at: WallTime,
}

impl fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRow")
            .field("purpose", &self.purpose)
            .field("key_id", &self.key_id)
            .field("wrapped_by", &self.wrapped_by)
            .finish_non_exhaustive()
    }
}

/// A dedupe domain: what is sealed under one key, and where equal blocks are stored once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainRow {
    pub id: DomainId,
    pub name: DomainName,
    pub encryption: Encryption,
    pub created_at: WallTime,
}

impl DomainRow {
    /// The [`KeyRow::purpose`] of a domain's key.
    pub fn key_purpose(id: DomainId) -> String {
        if id == DomainId::DEFAULT { "data".to_owned() } else { format!("domain:{id}") }
    }

    /// Fails when `key` is not this domain's.
    pub(crate) fn check_key(&self, key: &KeyRow) -> Result<(), CatalogError> {
        let purpose = Self::key_purpose(self.id);
        if key.purpose == purpose {
            return Ok(());
        }
        Err(CatalogError::Invalid(format!("a domain with a key for {}, not {purpose}", key.purpose)))
    }
}

/// Whether a gateway's log may hold writes that the catalog does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalState {
    /// Everything was destaged: a missing log is acceptable.
    Clean,
    /// The log may hold acknowledged writes: without it they are lost.
    Dirty,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayRow {
    pub id: GatewayId,
    pub name: String,
    pub wal_state: WalState,
    pub created_at: WallTime,
}

/// What a data node may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeState {
    /// Takes new segments.
    #[default]
    Active,
    /// Is read, takes nothing new.
    Draining,
    /// Declared lost: whoever repairs takes its shards for missing. In the catalog they are there, also for its counts, until they are replaced one by
    /// one or the node is removed by force; what is left to do is what the node holds.
    Failed,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRow {
    pub id: NodeId,
    pub name: String,
    pub url: String,
    /// What fails together with this node, such as a rack.
    pub domain: Option<String>,
    pub state: NodeState,
    pub created_at: WallTime,
    /// Further settings as a JSON object, read and written by whoever opens nodes.
    pub options: String,
    /// What it can hold; `None` when nobody said.
    pub capacity_bytes: Option<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewVolume {
    pub id: VolumeId,
    pub name: VolumeName,
    pub size_bytes: u64,
    pub durability: Durability,
    /// Its map; a fresh one.
    pub lineage: LineageId,
    /// Where its blocks may be shared, and under whose key they are sealed. For good.
    pub domain: DomainId,
    pub compress: bool,
    pub dedupe: bool,
    pub read_only: bool,
    /// Further settings as a JSON object.
    pub options: String,
    pub created_at: WallTime,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeRow {
    pub id: VolumeId,
    pub name: VolumeName,
    pub size_bytes: u64,
    pub durability: Durability,
    pub lineage: LineageId,
    pub domain: DomainId,
    pub compress: bool,
    pub dedupe: bool,
    pub read_only: bool,
    pub options: String,
    pub created_at: WallTime,
    /// Every write through this one is in the map.
    pub destaged_through: WriteSeq,
    /// The last commit of the lineage; zero when there is none.
    pub commit: CommitSeq,
    /// The last commit that is wholly in the leaves.
    pub folded_through: CommitSeq,
    /// The latest lease term ever given; zero when there was none.
    pub generation: Generation,
    /// Who holds that term, unless it was released.
    pub holder: Option<LeaseHolder>,
    pub usage: VolumeUsage,
}

/// A state of a lineage's map: what it was right after a commit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MapPoint {
    pub lineage: LineageId,
    pub commit: CommitSeq,
}

impl MapPoint {
    /// Behind every commit.
    pub(crate) const END: CommitSeq = CommitSeq::new(i64::MAX.cast_unsigned());

    /// Whatever the lineage's newest leaves say.
    pub const fn head(lineage: LineageId) -> Self {
        Self { lineage, commit: Self::END }
    }
}

/// A version of a leaf. Equal versions have equal content, whichever point they were found from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafVersion {
    pub index: LeafIndex,
    /// Who wrote it: the lineage itself, or one that it descends from.
    pub at: MapPoint,
}

/// A snapshot to be taken of a volume by the commit of a batch: of the map that the batch leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewSnapshot {
    pub id: SnapshotId,
    pub name: SnapshotName,
    /// The volume's size at the cut.
    pub size_bytes: u64,
    pub created_at: WallTime,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRow {
    pub id: SnapshotId,
    pub volume: VolumeId,
    pub name: SnapshotName,
    pub at: MapPoint,
    pub size_bytes: u64,
    pub created_at: WallTime,
    /// Blocks that its map maps, in bytes. `None` until everything through its commit is folded: before that, leaves alone do not tell
    /// what the snapshot shows.
    pub logical_bytes: Option<u64>,
    /// Clones of it, and volumes that were reverted to it, and live on.
    pub children: u64,
    /// Nobody can delete it before that.
    pub locked_until: Option<WallTime>,
}

impl SnapshotRow {
    /// By creation; where clocks jumped, those of one lineage still by commit.
    pub(crate) fn sort_oldest_first(snapshots: &mut [Self]) {
        snapshots.sort_unstable_by_key(|snapshot| {
            (snapshot.at.lineage, snapshot.at.commit, snapshot.created_at, snapshot.id)
        });
        let mut latest: HashMap<SnapshotId, WallTime> = HashMap::with_capacity(snapshots.len());
        for of_one_lineage in snapshots.chunk_by(|one, next| one.at.lineage == next.at.lineage) {
            let mut seen = WallTime::default();
            for snapshot in of_one_lineage {
                seen = seen.max(snapshot.created_at);
                latest.insert(snapshot.id, seen);
            }
        }
        snapshots.sort_by_key(|snapshot| {
            (latest[&snapshot.id], snapshot.at.commit, snapshot.created_at, snapshot.id)
        });
    }
}

/// What a volume holds, kept up to date by every commit and fold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeUsage {
    /// Blocks that the leaves map, in bytes: the map as far as it is folded.
    pub logical_bytes: u64,
    /// What became of all that was written since the volume was created; of what was written before catalogs counted, nothing.
    pub reduction: Reduction,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseHolder {
    pub gateway: GatewayId,
    pub name: String,
    /// By the holder's wall clock, to be shown: nobody decides by it.
    pub expires_at: WallTime,
}

/// One state of a lease: every acquisition and every renewal makes another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseStamp {
    pub generation: Generation,
    pub expires_at: WallTime,
}

/// The right to write a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    pub generation: Generation,
    /// The term in which this gateway's unbroken ownership began. A log record of an older term must not be replayed:
    /// another gateway has written since.
    pub held_since: Generation,
    /// Who had the term before, this gateway itself perhaps.
    pub previous: Option<(GatewayId, Generation)>,
    pub expires_at: WallTime,
}

/// A lease that a gateway believes it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldLease {
    pub volume: VolumeId,
    pub generation: Generation,
}

/// Sums over the whole catalog, kept up to date by every change: as cheap to read as one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    pub volumes: u64,
    pub snapshots: u64,
    pub segments: u64,
    pub segment_bytes: u64,
    pub containers: u64,
    /// [`VolumeUsage::logical_bytes`] of all volumes.
    pub logical_bytes: u64,
    /// Stored bytes of all containers.
    pub container_bytes: u64,
    /// Plaintext of all containers: the unique blocks.
    pub container_raw_bytes: u64,
    /// Segments of which a shard is missing. One on a node that is declared lost is not.
    pub degraded_segments: u64,
    /// Those of them that can be read and no more: the next loss loses data.
    pub at_risk_segments: u64,
}
