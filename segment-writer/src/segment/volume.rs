//! What a batch changes in one volume, and how much of it footers have told.

use super::{VolumeDelta, VolumeHeader};
use cairn_model::{ChunkRef, Lba, LbaRange, MapDelta, MapOp, MapTarget, Reduction};

/// A volume of the batch.
pub(super) struct VolumeState {
    pub(super) header: VolumeHeader,
    pub(super) reduction: Reduction,
    ops: Vec<MapOp>,
    /// Ops before this one are in the footers of earlier segments.
    told: usize,
    /// A segment's footer names the volume.
    named: bool,
}

impl VolumeState {
    pub(super) fn new(header: VolumeHeader) -> Self {
        Self { header, reduction: Reduction::default(), ops: Vec::new(), told: 0, named: false }
    }

    pub(super) fn push(&mut self, op: MapOp) {
        self.ops.push(op);
    }

    /// The last operation, unless a footer has it.
    fn last_untold(&mut self) -> Option<&mut MapOp> {
        self.ops[self.told..].last_mut()
    }

    /// Makes the last operation longer when it is a hole that ends where `range` begins.
    pub(super) fn extend_hole(&mut self, range: LbaRange) -> bool {
        if let Some(MapOp { range: last, target: MapTarget::Hole }) = self.last_untold()
            && last.end() == range.start()
        {
            *last = LbaRange::between(last.start(), range.end());
            return true;
        }
        false
    }

    /// Makes the last operation longer when the block at `at` follows on in its chunk.
    pub(super) fn extend_chunk(&mut self, at: Lba, to: ChunkRef) -> bool {
        if let Some(MapOp { range, target: MapTarget::Chunk(first) }) = self.last_untold()
            && range.end() == at
            && first.chunk == to.chunk
            && u64::from(first.block) + range.blocks() == u64::from(to.block)
        {
            *range = LbaRange::between(range.start(), at.plus(1));
            return true;
        }
        false
    }

    /// Whether the footer of a segment would say something of the volume. `all`: every volume must be named by now.
    pub(super) fn has_news(&self, all: bool) -> bool {
        self.told < self.ops.len() || (all && !self.named)
    }

    /// What the next footer says of the volume; nothing when there is nothing to say yet.
    pub(super) fn share(&mut self, all: bool) -> Option<VolumeDelta> {
        if !self.has_news(all) {
            return None;
        }
        let delta = ordered(self.ops[self.told..].to_vec());
        self.told = self.ops.len();
        self.named = true;
        Some(VolumeDelta { header: self.header, delta })
    }

    /// All changes.
    pub(super) fn into_delta(self) -> MapDelta {
        ordered(self.ops)
    }
}

/// A delta's runs are disjoint and in address order. Overlapping input has no meaning, and would lose a write.
fn ordered(mut ops: Vec<MapOp>) -> MapDelta {
    ops.sort_by_key(|op| op.range.start());
    for pair in ops.windows(2) {
        assert!(
            pair[0].range.end() <= pair[1].range.start(),
            "{:?} and {:?} of one batch overlap",
            pair[0].range,
            pair[1].range
        );
    }
    MapDelta { ops }
}
