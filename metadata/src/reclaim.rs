//! What reclaim asks and changes.

use crate::{ContainerRow, SegmentRow};
use cairn_model::{ChunkSet, ContainerId, NodeId, PassId, SegmentId};

/// A container, and which of its chunks something points at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerUse {
    pub id: ContainerId,
    pub length: u32,
    /// Chunks that a leaf of any lineage or a delta points at.
    pub live: ChunkSet,
}

/// A segment and all of its containers, in the order of their identities.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentUse {
    pub id: SegmentId,
    /// Of the object.
    pub length_bytes: u64,
    pub containers: Vec<ContainerUse>,
}

/// Part of the segments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UsePage {
    /// In the order of their identities.
    pub segments: Vec<SegmentUse>,
    /// The last segment that was looked at; `None` when there is none after it.
    pub next: Option<SegmentId>,
}

/// Containers that have a new place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerMove {
    /// Who closed them.
    pub pass: PassId,
    /// Where they are now.
    pub segment: SegmentRow,
    pub containers: Vec<MovedContainer>,
}

/// A container as it is in its new place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MovedContainer {
    pub row: ContainerRow,
    /// Its chunks. Those that were left out are gone for good.
    pub present: ChunkSet,
}

/// An object of the pool that is no shard of a segment any more and waits to be deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DoomedObject {
    /// Its number: grows, and is never used again.
    pub id: u64,
    /// The segment that it was of.
    pub segment: SegmentId,
    pub node: NodeId,
    /// Object key inside the node's prefix.
    pub key: String,
    pub length_bytes: u64,
}
