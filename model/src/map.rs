//! Changes to extent maps: what a destaged batch says about a lineage.

use crate::{ChunkRef, LbaRange, RangeValue};

/// What a run of blocks of a map points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapTarget {
    /// Consecutive blocks of one chunk, the first being this one.
    Chunk(ChunkRef),
    /// Nothing: reads as zeros.
    Hole,
}

impl RangeValue for MapTarget {
    fn advanced(&self, blocks: u64) -> Self {
        match *self {
            Self::Hole => Self::Hole,
            Self::Chunk(ChunkRef { chunk, block }) => {
                let advanced = u64::from(block) + blocks;
                let block = u8::try_from(advanced).expect("a chunk's run stays within the chunk");
                Self::Chunk(ChunkRef { chunk, block })
            }
        }
    }
}

/// One run of a delta.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapOp {
    pub range: LbaRange,
    pub target: MapTarget,
}

/// The changes of one batch to one lineage: disjoint runs in address order. Its byte form is in
/// [`MapDelta::encode`]; the catalog and the segment footers carry the same one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapDelta {
    pub ops: Vec<MapOp>,
}
