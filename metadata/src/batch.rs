//! The two big transactions: one destaged batch, and one step of folding.

use crate::{CatalogError, LeafIndex, MapLeaf, NewSnapshot};
use bytes::Bytes;
use cairn_model::{
    BatchId, CommitSeq, ContainerId, DomainId, GatewayId, Generation, LbaRange, LineageId, MapDelta,
    ObjectPlace, Reduction, SegmentId, UploadReceipt, VolumeId, WriteSeq,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Everything that one destaged batch changes. It is committed whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchCommit {
    pub batch: BatchId,
    pub gateway: GatewayId,
    pub segments: Vec<SegmentRow>,
    pub containers: Vec<ContainerRow>,
    pub volumes: Vec<VolumeCommit>,
}

/// A segment that is durable in the pool: the receipt is the proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentRow {
    pub receipt: UploadReceipt,
}

/// A container and where its sealed bytes are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerRow {
    pub id: ContainerId,
    pub segment: SegmentId,
    /// First byte within the segment.
    pub offset: u64,
    pub length: u32,
    /// Plaintext of its chunks.
    pub raw_bytes: u64,
    /// Whose key it is sealed under. If the domain was deleted meanwhile, so were all volumes that could point at the container: it is left out.
    pub domain: DomainId,
    /// Where its chunks are, in the form of whoever reads them.
    pub directory: Bytes,
}

/// What a batch changes in one volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeCommit {
    pub volume: VolumeId,
    pub lineage: LineageId,
    pub generation: Generation,
    /// The batch holds the writes after this one, up to and including `through`.
    pub base: WriteSeq,
    pub through: WriteSeq,
    pub delta: MapDelta,
    /// What packing made of the writes.
    pub reduction: Reduction,
    /// Snapshots of the volume right after the batch. One whose name was taken meanwhile gets its identity added to the name: a batch is
    /// not refused for it.
    pub snapshots: Vec<NewSnapshot>,
}

/// Proof that a batch is committed and durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitReceipt {
    pub batch: BatchId,
    /// In the order of the batch.
    pub volumes: Vec<VolumeReceipt>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeReceipt {
    pub volume: VolumeId,
    pub outcome: VolumeOutcome,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VolumeOutcome {
    Committed(CommitSeq),
    /// The volume was deleted meanwhile; its part was left out.
    Deleted,
}

/// A step of folding: new versions of some leaves of a lineage.
///
/// A fold may take several steps. A step's leaves contain every change through `through`; the deltas stay until the step that says
/// `forget`, so a reader who lays the deltas over the leaves sees the same map between the steps.
///
/// A fold does not pass a snapshot that is not wholly in the leaves yet: `through` is at most its commit, until a step has forgotten through
/// exactly that. Versions of leaves that a snapshot or a clone shows stay beside the new ones. A step through what was forgotten before
/// writes no leaf: it comes late, and what a snapshot shows does not change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoldPlan {
    pub lineage: LineageId,
    pub gateway: GatewayId,
    /// The term of the gateway's lease on the lineage's volume.
    pub generation: Generation,
    pub through: CommitSeq,
    pub leaves: Vec<(LeafIndex, Arc<MapLeaf>)>,
    /// Ranges of whole leaves that hold nothing any more. Not in `leaves`.
    pub emptied: Vec<LbaRange>,
    /// Deltas through this commit are in the leaves now, all of them: delete them. At most `through`.
    pub forget: Option<CommitSeq>,
}

impl FoldPlan {
    /// What can be said against the plan without looking at the catalog.
    pub(crate) fn check(&self) -> Result<(), CatalogError> {
        if self.forget.is_some_and(|forget| forget > self.through) {
            return Err(CatalogError::Invalid("a fold that forgets more than it folds".to_owned()));
        }
        let mut seen = BTreeSet::new();
        match self.leaves.iter().find(|(index, _)| !seen.insert(*index)) {
            Some((index, _)) => Err(CatalogError::Invalid(format!("a fold that writes {index:?} twice"))),
            None => Ok(()),
        }
    }
}

/// A container with the segment that holds it today.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerLocation {
    pub id: ContainerId,
    pub segment: SegmentId,
    /// Of the segment.
    pub place: ObjectPlace,
    /// First byte within the segment.
    pub offset: u64,
    pub length: u32,
    /// Plaintext of its chunks.
    pub raw_bytes: u64,
    pub domain: DomainId,
    pub directory: Bytes,
}
