//! A leaf of an extent map: a fixed stretch of a volume's address space, in memory and in bytes.
//!
//! The byte form is the leaf kind of [`cairn_model::map::codec`]: version, index, containers, runs, checksum. Holes are not
//! stored.

use cairn_model::map::codec::{
    self, CodedRun, CodedSource, ContainerList, MapCodecError, MapKind, MapLimits, MapReader,
};
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, ContainerId, Lba, LbaRange, MapOp, MapTarget, RangeValue,
    VOLUME_BLOCKS_MAX,
};
use std::fmt;

/// Blocks in a leaf: 64 MiB of address space.
///
/// A bigger leaf is rewritten whole for one scattered block; a smaller one makes more rows. At this size the largest volume
/// has 2^20 leaves, a leaf of sequential data is about 4 KiB (one page of the catalog for 64 MiB), the worst leaf, every
/// block from elsewhere, about 80 KiB, and positions in a leaf fit 16 bits.
pub const LEAF_BLOCKS: u64 = 16_384;

/// Leaves of the largest volume.
#[expect(clippy::cast_possible_truncation, reason = "checked below")]
pub const LEAVES_MAX: u32 = (VOLUME_BLOCKS_MAX / LEAF_BLOCKS) as u32;

const _: () = assert!(LEAVES_MAX as u64 * LEAF_BLOCKS == VOLUME_BLOCKS_MAX);
const _: () = assert!(LEAF_BLOCKS <= 1 << 16, "a run's start is 16 bits");

/// Position of a leaf in its volume's address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafIndex(u32);

impl LeafIndex {
    /// `None` beyond the largest volume.
    pub const fn new(index: u32) -> Option<Self> {
        if index < LEAVES_MAX { Some(Self(index)) } else { None }
    }

    /// The leaf of a block. Panics beyond the largest volume.
    pub fn of(block: Lba) -> Self {
        let index = u32::try_from(block.get() / LEAF_BLOCKS).ok().and_then(Self::new);
        index.expect("the block is inside the largest volume")
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The blocks of the leaf.
    pub const fn range(self) -> LbaRange {
        let start = self.0 as u64 * LEAF_BLOCKS;
        LbaRange::between(Lba::new(start), Lba::new(start + LEAF_BLOCKS))
    }
}

impl fmt::Debug for LeafIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaf:{}", self.0)
    }
}

/// A run of consecutive blocks of one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// First block, from the leaf's first.
    start: u16,
    /// Position in the leaf's list.
    container: u16,
    chunk: u32,
    /// Block of the chunk.
    block: u8,
    blocks: u8,
}

impl Run {
    fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.blocks)
    }
}

/// The map of one leaf. The default is all holes.
///
/// Twelve bytes a run in one array in address order, and one identity per container. A run never spans what
/// two chunks hold, and neighbours that continue the same chunk are one run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapLeaf {
    containers: Box<[ContainerId]>,
    runs: Box<[Run]>,
}

impl MapLeaf {
    /// The leaf that `ops` give: in address order, disjoint; what is outside the leaf is left out.
    pub fn from_ops(index: LeafIndex, ops: impl IntoIterator<Item = MapOp>) -> Self {
        let mut leaf = Self::default();
        leaf.apply(index, ops);
        leaf
    }

    /// Lays `ops` over the leaf: in address order, disjoint; what is outside the leaf is left out. Costs one pass over the leaf.
    pub fn apply(&mut self, index: LeafIndex, ops: impl IntoIterator<Item = MapOp>) {
        let origin = index.range().start().get();
        let mut builder = Builder { old: self, at: 0, list: ContainerList::default(), runs: Vec::new() };
        builder.runs.reserve(self.runs.len());
        let mut done = 0;
        for op in ops.into_iter().filter_map(|op| op.clipped(index.range())) {
            let start = op.range.start().get() - origin;
            let end = op.range.end().get() - origin;
            assert!(start >= done, "changes of a leaf are in address order and disjoint");
            builder.keep(done, start);
            if let MapTarget::Chunk(target) = op.target {
                builder.push(start, end - start, target);
            }
            done = end;
        }
        builder.keep(done, LEAF_BLOCKS);
        let containers = builder.list.into_ids().into_boxed_slice();
        let runs = builder.runs.into_boxed_slice();
        *self = Self { containers, runs };
    }

    /// The pieces of `range` in address order, holes included. Together they cover `range` exactly, which must lie in one leaf:
    /// this one.
    pub fn lookup(&self, range: LbaRange, mut piece: impl FnMut(LbaRange, MapTarget)) {
        if range.is_empty() {
            return;
        }
        let origin = range.start().get() / LEAF_BLOCKS * LEAF_BLOCKS;
        let (mut at, end) = (range.start().get() - origin, range.end().get() - origin);
        assert!(end <= LEAF_BLOCKS, "a look-up stays within one leaf");
        let mut show = |from: u64, to: u64, target| {
            piece(LbaRange::between(Lba::new(origin + from), Lba::new(origin + to)), target);
        };
        let first = self.runs.partition_point(|run| run.end() <= at);
        for run in &self.runs[first..] {
            let start = u64::from(run.start);
            if start >= end {
                break;
            }
            if start > at {
                show(at, start, MapTarget::Hole);
                at = start;
            }
            let to = run.end().min(end);
            show(at, to, MapTarget::Chunk(self.target(run)).advanced(at - start));
            at = to;
        }
        if at < end {
            show(at, end, MapTarget::Hole);
        }
    }

    /// Whether everything is a hole.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Containers that the leaf points at, in the order of first use.
    pub fn containers(&self) -> &[ContainerId] {
        &self.containers
    }

    /// The chunk of each run: its container's position among [`containers`](Self::containers), and its index.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, ChunkIndex)> {
        self.runs.iter().map(|run| (usize::from(run.container), ChunkIndex::new(run.chunk)))
    }

    /// Runs of data.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Blocks that are mapped: those that are no holes.
    pub fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.blocks)).sum()
    }

    /// What the leaf takes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.containers) + size_of_val(&*self.runs)
    }

    fn target(&self, run: &Run) -> ChunkRef {
        let container = self.containers[usize::from(run.container)];
        ChunkRef { chunk: ChunkId { container, index: ChunkIndex::new(run.chunk) }, block: run.block }
    }

    /// The byte form; `index` goes into it, so that a leaf is not taken for another.
    pub fn encode(&self, index: LeafIndex) -> Vec<u8> {
        let runs = self.runs.iter().map(|run| CodedRun {
            start: u64::from(run.start),
            blocks: u64::from(run.blocks),
            source: Some(CodedSource {
                container: u32::from(run.container),
                chunk: run.chunk,
                block: run.block,
            }),
        });
        codec::encode(MapKind::Leaf, u64::from(index.get()), &self.containers, runs)
    }

    /// The leaf `index` in `bytes`, everything verified.
    pub fn decode(index: LeafIndex, bytes: &[u8]) -> Result<Self, MapCodecError> {
        let runs_max = usize::try_from(LEAF_BLOCKS).expect("a leaf's blocks can be counted");
        let limits = MapLimits { blocks_max: LEAF_BLOCKS, runs_max };
        let mut reader = MapReader::open(MapKind::Leaf, bytes, limits)?;
        if reader.number() != u64::from(index.get()) {
            return Err(MapCodecError::Corrupt("of another leaf"));
        }
        let mut runs = Vec::with_capacity(reader.runs_left());
        while let Some(CodedRun { start, blocks, source }) = reader.next_run()? {
            let source = source.ok_or(MapCodecError::Corrupt("a hole in a leaf"))?;
            runs.push(Run {
                start: u16::try_from(start).expect("the reader checked the end"),
                container: u16::try_from(source.container).expect("fewer containers than runs"),
                chunk: source.chunk,
                block: source.block,
                blocks: u8::try_from(blocks).expect("the reader checked the chunk's end"),
            });
        }
        Ok(Self { containers: reader.into_containers().into_boxed_slice(), runs: runs.into_boxed_slice() })
    }
}

/// Merges old runs and changes into a new leaf.
struct Builder<'a> {
    old: &'a MapLeaf,
    /// First old run that may still be needed.
    at: usize,
    list: ContainerList,
    runs: Vec<Run>,
}

impl Builder<'_> {
    /// Takes over what the old leaf has in `[from, to)`.
    fn keep(&mut self, from: u64, to: u64) {
        while let Some(run) = self.old.runs.get(self.at) {
            let start = u64::from(run.start).max(from);
            let end = run.end().min(to);
            if start < end {
                let mut target = self.old.target(run);
                let skipped = start - u64::from(run.start);
                target.block += u8::try_from(skipped).expect("less than the run's blocks");
                self.push(start, end - start, target);
            }
            if run.end() > to {
                return;
            }
            self.at += 1;
        }
    }

    fn push(&mut self, start: u64, blocks: u64, target: ChunkRef) {
        let container = self.list.position(target.chunk.container);
        let run = Run {
            start: u16::try_from(start).expect("positions in a leaf have 16 bits"),
            container: u16::try_from(container).expect("fewer containers than blocks of a leaf"),
            chunk: target.chunk.index.get(),
            block: target.block,
            blocks: u8::try_from(blocks).expect("a run stays within its chunk"),
        };
        if let Some(last) = self.runs.last_mut()
            && last.end() == start
            && (last.container, last.chunk) == (run.container, run.chunk)
            && last.block + last.blocks == run.block
        {
            last.blocks += run.blocks;
            return;
        }
        self.runs.push(run);
    }
}

#[cfg(test)]
mod tests;
