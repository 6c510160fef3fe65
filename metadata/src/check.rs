//! What a check of the catalog asks and changes (`cairn fsck`): rows as they are, sums that should be what rows add up to, and objects that nothing names.
//!
//! - Each call looks at one state of the catalog, so what it returns belongs together, whatever is committed, folded, moved or purged beside it. No look is
//!   longer than a page: the catalog's own log can be shortened in between. Sums are the exception: they are only right in the moment that the rows are of.
//! - A row that cannot be read is told, not an error: the rest is looked at all the same.

use crate::{CatalogError, LeafIndex, VolumeName};
use async_trait::async_trait;
use bytes::Bytes;
use cairn_model::{CommitSeq, ContainerId, DomainId, LineageId, MapOp, NodeId, ObjectPlace, SegmentId};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, CatalogError>;

/// A catalog that keeps sums and references, and so can be wrong about them. One that counts anew whenever somebody asks has nothing to check.
#[async_trait]
pub trait CheckSource: Send + Sync {
    /// What the database says of its own file, and references to rows that are not there; a few of each.
    async fn check_file(&self) -> Result<Vec<String>>;

    /// The first `limit` segments after `after`, in the order of their identities.
    async fn segment_rows(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<CheckedSegment>>;

    /// Those of these segments that the catalog has.
    async fn segments(&self, ids: &[SegmentId]) -> Result<Vec<CheckedSegment>>;

    /// The containers of these segments, by segment and place in it.
    async fn containers_in(&self, segments: &[SegmentId]) -> Result<Vec<CheckedContainer>>;

    /// The last row of the maps' table of `kind` that there is: what is written later is for the next check.
    async fn last_map_row(&self, kind: MapKind) -> Result<i64>;

    /// The next few rows of maps behind number `after`, through number `through`. The containers that they point at and `is_known` does not have go to `take`, a few at a time, as they
    /// are in the same state of the catalog. A page ends with the row with which they become many.
    async fn map_rows(
        &self,
        kind: MapKind,
        after: i64,
        through: i64,
        is_known: &(dyn Fn(ContainerId) -> bool + Sync),
        take: &mut (dyn FnMut(Vec<CheckedContainer>) + Send),
    ) -> Result<MapRows>;

    /// Volumes of which changes are neither in the leaves nor among the deltas.
    async fn missing_changes(&self) -> Result<Vec<MissingChanges>>;

    /// The domain of each lineage, where a volume or snapshot tells it. One that waits to be purged has none.
    async fn lineage_domains(&self) -> Result<BTreeMap<LineageId, DomainId>>;

    /// Sums that are not what the rows add up to, each with what it is added up of in one state of the catalog. Reads every row of segments, shards and containers, and an index of all leaves.
    async fn wrong_sums(&self) -> Result<Vec<WrongSum>>;

    /// Makes sums what the rows add up to, in short transactions whatever there is to count; returns those that were not. Of the given versions of leaves, what they map is counted anew first. One at a time.
    /// Sums over maps that say more than is counted then ([`WrongSum::says_more`]) stay as they are: leaves may be missing, and nothing else tells of them.
    async fn recount(&self, leaves: &[(LineageId, LeafIndex, CommitSeq)]) -> Result<Vec<WrongSum>>;

    /// Which of these objects the catalog neither names nor has among the doomed, in one state of it.
    async fn unnamed(&self, objects: &[UnnamedObject]) -> Result<Vec<UnnamedObject>>;

    /// Which of these objects a segment names, in one state of the catalog. One that is doomed is never named, so those that were are a contradiction.
    async fn named(&self, objects: &[UnnamedObject]) -> Result<Vec<UnnamedObject>>;

    /// Takes those of the objects from the doomed that a segment names, in one transaction. Returns how many.
    async fn keep_named(&self, objects: &[UnnamedObject]) -> Result<u64>;

    /// Dooms those of the objects that the catalog does not name and has not doomed: in one transaction, so that what is named meanwhile is left out. From
    /// then on no segment can be placed on them ([`CatalogError::ObjectDoomed`]). Returns how many, and their bytes. Objects of nodes that are not there are left out.
    async fn doom_unnamed(&self, objects: &[UnnamedObject]) -> Result<(u64, u64)>;
}

/// An object in the pool that may be named by nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UnnamedObject {
    pub node: NodeId,
    /// Inside the node's prefix.
    pub key: String,
    /// That the key is of.
    pub segment: SegmentId,
    pub length_bytes: u64,
}

/// A segment, and where it is; or why its rows make no sense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedSegment {
    pub id: SegmentId,
    pub place: std::result::Result<ObjectPlace, String>,
}

/// A container as its row is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedContainer {
    pub id: ContainerId,
    pub segment: SegmentId,
    pub offset: u64,
    pub length: u32,
    /// `None` in rows of the time before they were counted.
    pub raw_bytes: Option<u64>,
    pub domain: DomainId,
    /// In the form of whoever reads it.
    pub directory: Bytes,
    /// The chunks that are there, if some were left out: a bit for each, as the catalog holds it.
    pub thinned: Option<Vec<u8>>,
}

/// Where a map is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapKind {
    Leaves,
    Deltas,
}

/// A row of a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapRow {
    pub lineage: LineageId,
    pub commit: CommitSeq,
    /// Of a leaf; `None`: a delta.
    pub leaf: Option<LeafIndex>,
    /// Blocks that the row says it maps, where it says so.
    pub blocks: Option<u64>,
    /// What it maps, of a leaf without holes; or why it cannot be read.
    pub content: std::result::Result<Vec<MapOp>, String>,
}

/// Some rows of maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapRows {
    pub rows: Vec<MapRow>,
    /// The number of the last row; `None` when there are no more.
    pub last: Option<i64>,
}

/// Changes of a volume that are nowhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingChanges {
    pub volume: VolumeName,
    pub lineage: LineageId,
    /// How many.
    pub count: u64,
}

/// A sum that is not what the rows add up to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrongSum {
    /// Of what, for people: `segments of the pool`, `shards on node n1`.
    pub what: String,
    pub recorded: i64,
    pub counted: i64,
    /// It is over what maps show, and more is recorded than counted: what is missing may be gone.
    pub says_more: bool,
}
