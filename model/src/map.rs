//! Changes to extent maps: what a destaged batch says about a lineage.

pub mod codec;

use crate::{BLOCKS_PER_CHUNK_MAX, ChunkRef, LbaRange, RangeValue, VOLUME_BLOCKS_MAX};
use codec::MapCodecError;

/// Most runs in one delta: what decoding one may allocate (about 50 MiB) and then some 4 GiB of scattered blocks.
pub const DELTA_OPS_MAX: usize = 1 << 20;

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

impl MapOp {
    /// The part of the run inside `range`; `None` when there is none.
    pub fn clipped(&self, range: LbaRange) -> Option<Self> {
        let common = self.range.intersect(range)?;
        let skipped = common.start().get() - self.range.start().get();
        Some(Self { range: common, target: self.target.advanced(skipped) })
    }
}

/// The changes of one batch to one lineage: disjoint runs in address order. Its byte form is in
/// [`MapDelta::encode`]; the catalog and the segment footers carry the same one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapDelta {
    pub ops: Vec<MapOp>,
}

impl MapDelta {
    /// The runs that touch `range`; the first and the last may reach beyond it.
    pub fn overlapping(&self, range: LbaRange) -> &[MapOp] {
        let from = self.ops.partition_point(|op| op.range.end() <= range.start());
        let to = self.ops.partition_point(|op| op.range.start() < range.end());
        &self.ops[from..to.max(from)]
    }

    /// Whether this is a delta at all: runs that are not empty, in order, disjoint, inside the largest volume and inside
    /// their chunks, and not too many.
    pub fn check(&self) -> Result<(), MapCodecError> {
        if self.ops.len() > DELTA_OPS_MAX {
            return Err(MapCodecError::Invalid("more runs than a delta may have"));
        }
        let mut end = 0;
        for op in &self.ops {
            if op.range.is_empty() {
                return Err(MapCodecError::Invalid("an empty run"));
            }
            if op.range.start().get() < end {
                return Err(MapCodecError::Invalid("runs that overlap or are out of order"));
            }
            end = op.range.end().get();
            if let MapTarget::Chunk(ChunkRef { block, .. }) = op.target
                && u64::from(block) + op.range.blocks() > u64::from(BLOCKS_PER_CHUNK_MAX)
            {
                return Err(MapCodecError::Invalid("a run longer than its chunk"));
            }
        }
        if end > VOLUME_BLOCKS_MAX {
            return Err(MapCodecError::Invalid("a run beyond the end of the largest volume"));
        }
        Ok(())
    }

    /// The byte form, after [`MapDelta::check`].
    pub fn encode(&self) -> Result<Vec<u8>, MapCodecError> {
        self.check()?;
        Ok(codec::encode_delta(self))
    }

    /// The delta in `bytes`: checksum, version, limits and order are verified before anything is believed.
    pub fn decode(bytes: &[u8]) -> Result<Self, MapCodecError> {
        codec::decode_delta(bytes)
    }
}
