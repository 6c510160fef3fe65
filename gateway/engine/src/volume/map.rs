//! The extent map of a volume in memory: changes that are committed and not folded yet, over leaves that are loaded on demand.
//!
//! Invariants:
//! - a committed change enters the overlay in the same critical section in which its layer leaves the write
//!   buffer, so a reader sees it in exactly one of the two;
//! - a leaf enters the cache only if no fold finished since its load began ([`ExtentMap::epoch`]), so a stale leaf never
//!   shows after the overlay let go of what the fold put into the newer one.

use crate::cache::{Cache, cache};
use cairn_metadata::{LEAF_BLOCKS, LeafIndex, MapLeaf};
use cairn_model::{
    CommitSeq, Generation, Lba, LbaRange, LineageId, MapDelta, MapOp, MapTarget, RangeMap, RangeValue,
};
use quick_cache::Weighter;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
struct Unfolded {
    target: MapTarget,
    commit: CommitSeq,
}

impl RangeValue for Unfolded {
    fn advanced(&self, blocks: u64) -> Self {
        Self { target: self.target.advanced(blocks), commit: self.commit }
    }
}

/// A lookup needs a leaf that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissingLeaf(pub(crate) LeafIndex);

/// Leaves that one operation holds on to, so that it ends even when the cache is too small for them.
#[derive(Debug, Default)]
pub(crate) struct PinnedLeaves {
    /// The map's epoch when they were loaded; they mean nothing in another.
    pub(crate) epoch: u64,
    pub(crate) leaves: Vec<(LeafIndex, Arc<MapLeaf>)>,
    /// Whole leaves that the catalog does not have: holes.
    pub(crate) absent: Option<LbaRange>,
}

impl PinnedLeaves {
    /// The longest part of `[at, end)` that one lookup covers: a run of absent leaves, or the rest of one leaf.
    pub(crate) fn step(&self, at: Lba, end: Lba) -> LbaRange {
        let step_end = match self.absent {
            Some(absent) if absent.contains(at) => absent.end(),
            _ => LeafIndex::of(at).range().end(),
        };
        LbaRange::between(at, step_end.min(end))
    }
}

/// A lineage in one term of this gateway's ownership. Between two terms another gateway may have folded, so what is known of
/// the leaves ends with the term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MapTerm {
    pub(crate) lineage: LineageId,
    pub(crate) generation: Generation,
}

/// Unfolded changes of one lineage and the rules for what lies below them.
#[derive(Debug)]
pub(crate) struct ExtentMap {
    term: MapTerm,
    overlay: RangeMap<Unfolded>,
    last_commit: CommitSeq,
    /// Every delta up to this one is folded and gone.
    folded_through: CommitSeq,
    epoch: u64,
}

impl ExtentMap {
    /// A map whose leaves hold everything through `folded_through`.
    pub(crate) fn new(term: MapTerm, folded_through: CommitSeq) -> Self {
        Self { term, overlay: RangeMap::new(), last_commit: folded_through, folded_through, epoch: 0 }
    }

    /// Deltas that a start would have to read.
    pub(crate) fn unfolded_commits(&self) -> u64 {
        self.last_commit.get() - self.folded_through.get()
    }

    /// Forgets everything: the volume is gone.
    pub(crate) fn clear(&mut self) {
        self.overlay = RangeMap::new();
    }

    /// The catalog has deleted the deltas up to `through`.
    pub(crate) fn deltas_deleted(&mut self, through: CommitSeq) {
        self.folded_through = self.folded_through.max(through);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn last_commit(&self) -> CommitSeq {
        self.last_commit
    }

    /// Pieces waiting to be folded.
    pub(crate) fn unfolded_len(&self) -> usize {
        self.overlay.len()
    }

    /// Takes a committed delta. Deltas come in commit order.
    pub(crate) fn apply(&mut self, commit: CommitSeq, delta: &MapDelta) {
        for op in &delta.ops {
            self.overlay.insert(op.range, Unfolded { target: op.target, commit });
        }
        self.last_commit = self.last_commit.max(commit);
    }

    /// Every piece of `range` in address order, holes included.
    pub(crate) fn lookup(
        &self,
        range: LbaRange,
        cache: &LeafCache,
        pinned: &PinnedLeaves,
        mut piece: impl FnMut(LbaRange, MapTarget),
    ) -> Result<(), MissingLeaf> {
        let mut missing = None;
        self.overlay.lookup(range, |part, value| {
            if missing.is_some() {
                return;
            }
            match value {
                Some(unfolded) => piece(part, unfolded.target),
                None => missing = self.lookup_leaves(part, cache, pinned, &mut piece).err(),
            }
        });
        missing.map_or(Ok(()), Err)
    }

    fn lookup_leaves(
        &self,
        range: LbaRange,
        cache: &LeafCache,
        pinned: &PinnedLeaves,
        piece: &mut impl FnMut(LbaRange, MapTarget),
    ) -> Result<(), MissingLeaf> {
        let none = PinnedLeaves::default();
        let pinned = if pinned.epoch == self.epoch { pinned } else { &none };
        let mut at = range.start();
        while at < range.end() {
            let index = LeafIndex::of(at);
            let part = pinned.step(at, range.end());
            if pinned.absent.is_some_and(|absent| absent.contains(at)) {
                piece(part, MapTarget::Hole);
                at = part.end();
                continue;
            }
            let held =
                pinned.leaves.iter().find(|(held, _)| *held == index).map(|(_, leaf)| Arc::clone(leaf));
            let leaf = held.or_else(|| cache.get(self.term, index)).ok_or(MissingLeaf(index))?;
            leaf.lookup(part, &mut *piece);
            at = part.end();
        }
        Ok(())
    }

    /// What waits to be folded from `from` on, grouped by leaf, as of now: whole leaves, up to `leaves_max` of them and about
    /// `pieces_max` pieces.
    pub(crate) fn next_to_fold(&self, from: Lba, leaves_max: usize, pieces_max: usize) -> FoldStep {
        let mut step =
            FoldStep { through: self.last_commit, pieces: Vec::new(), emptied: Vec::new(), resume: None };
        let mut pieces = 0;
        for (range, unfolded) in self.overlay.iter_from(from) {
            let mut at = range.start();
            while at < range.end() {
                let index = LeafIndex::of(at);
                let is_new = step.pieces.last().is_none_or(|(last, _)| *last != index);
                if is_new && (step.pieces.len() + step.emptied.len() >= leaves_max || pieces >= pieces_max) {
                    // At the leaf's start: a change that is committed before the next step may lie before `at`, and
                    // the next step takes everything of the leaf out of the overlay.
                    step.resume = Some(index.range().start());
                    return step;
                }
                pieces += 1;
                at = if let Some(emptied) = emptied_leaves(at, range.end(), unfolded.target) {
                    step.emptied.push(emptied);
                    emptied.end()
                } else {
                    let part = LbaRange::between(at, index.range().end().min(range.end()));
                    let target = unfolded.target.advanced(at.get() - range.start().get());
                    let op = MapOp { range: part, target };
                    match step.pieces.last_mut() {
                        Some((_, ops)) if !is_new => ops.push(op),
                        _ => step.pieces.push((index, vec![op])),
                    }
                    part.end()
                };
            }
        }
        step
    }

    /// Forgets the overlay's pieces of the step's leaves, which the catalog has folded through `through`, and
    /// shows the new leaves instead.
    pub(crate) fn folded(
        &mut self,
        step: &FoldStep,
        leaves: &[(LeafIndex, Arc<MapLeaf>)],
        cache: &LeafCache,
    ) {
        self.epoch += 1;
        for range in step.pieces.iter().map(|(index, _)| index.range()).chain(step.emptied.iter().copied()) {
            let mut newer = Vec::new();
            self.overlay.remove(range, |part, unfolded| {
                if unfolded.commit > step.through {
                    newer.push((part, unfolded));
                }
            });
            for (part, unfolded) in newer {
                self.overlay.insert(part, unfolded);
            }
        }
        for range in &step.emptied {
            cache.forget(self.term, *range);
        }
        for (index, leaf) in leaves {
            cache.insert(self.term, *index, Arc::clone(leaf));
        }
    }

    pub(crate) fn lineage(&self) -> LineageId {
        self.term.lineage
    }

    pub(crate) fn term(&self) -> MapTerm {
        self.term
    }
}

/// The whole leaves at the start of `[at, end)` when they became holes: dropped as one range, however many they are.
fn emptied_leaves(at: Lba, end: Lba, target: MapTarget) -> Option<LbaRange> {
    let starts_leaf = at == LeafIndex::of(at).range().start();
    let whole_blocks = (end.get() - at.get()) / LEAF_BLOCKS * LEAF_BLOCKS;
    let emptied = starts_leaf && whole_blocks > 0 && matches!(target, MapTarget::Hole);
    emptied.then(|| LbaRange::between(at, at.plus(whole_blocks)))
}

/// A bounded part of the folding of a lineage.
#[derive(Debug)]
pub(crate) struct FoldStep {
    /// The step contains every change up to this commit in its leaves.
    pub(crate) through: CommitSeq,
    /// Changes by leaf, in address order.
    pub(crate) pieces: Vec<(LeafIndex, Vec<MapOp>)>,
    /// Runs of whole leaves that hold nothing any more.
    pub(crate) emptied: Vec<LbaRange>,
    /// Where the next step goes on; `None` when this is the last.
    pub(crate) resume: Option<Lba>,
}

const LEAF_BYTES_EXPECTED: u64 = 16 << 10;
/// Leaves that were looked at twice stay.
const HOT_LEAVES: f64 = 0.97;

/// Decoded leaves of all volumes, within a memory bound.
#[derive(Debug)]
pub(crate) struct LeafCache {
    leaves: Cache<(MapTerm, LeafIndex), Arc<MapLeaf>, LeafWeight>,
}

#[derive(Clone, Debug)]
struct LeafWeight;

impl Weighter<(MapTerm, LeafIndex), Arc<MapLeaf>> for LeafWeight {
    fn weight(&self, _key: &(MapTerm, LeafIndex), leaf: &Arc<MapLeaf>) -> u64 {
        leaf.memory_bytes() as u64 + 64
    }
}

impl LeafCache {
    pub(crate) fn new(capacity_bytes: u64) -> Self {
        Self { leaves: cache(capacity_bytes, LEAF_BYTES_EXPECTED, HOT_LEAVES, LeafWeight) }
    }

    pub(crate) fn get(&self, term: MapTerm, index: LeafIndex) -> Option<Arc<MapLeaf>> {
        self.leaves.get(&(term, index))
    }

    pub(crate) fn insert(&self, term: MapTerm, index: LeafIndex, leaf: Arc<MapLeaf>) {
        self.leaves.insert((term, index), leaf);
    }

    fn forget(&self, term: MapTerm, range: LbaRange) {
        self.leaves.retain(|(held, index), _| *held != term || !range.overlaps(index.range()));
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.leaves.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{ChunkId, ChunkIndex, ChunkRef, ContainerId};

    fn write(block: u64, chunk: u32) -> MapOp {
        let chunk = ChunkId { container: ContainerId::from_bytes([1; 16]), index: ChunkIndex::new(chunk) };
        let range = LbaRange::new(Lba::new(block), 1).unwrap();
        MapOp { range, target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
    }

    fn commit(map: &mut ExtentMap, number: u64, ops: Vec<MapOp>) {
        map.apply(CommitSeq::new(number), &MapDelta { ops });
    }

    #[test]
    fn a_commit_between_two_steps_of_a_fold_is_kept_wherever_it_lands() {
        let term = MapTerm { lineage: LineageId::from_bytes([2; 16]), generation: Generation::new(1) };
        let cache = LeafCache::new(1 << 20);
        let mut map = ExtentMap::new(term, CommitSeq::ZERO);
        commit(&mut map, 1, vec![write(10, 1), write(LEAF_BLOCKS + 100, 2)]);
        let first = map.next_to_fold(Lba::ZERO, 1, 1);
        // Before the first piece of the leaf where the next step begins, and in the leaf that is done.
        commit(&mut map, 2, vec![write(20, 3), write(LEAF_BLOCKS + 50, 4)]);
        let mut leaves = Vec::new();
        let mut step = first;
        loop {
            for (index, ops) in &step.pieces {
                let leaf = Arc::new(MapLeaf::from_ops(*index, ops.iter().copied()));
                leaves.push((*index, Arc::clone(&leaf)));
                map.folded(&step, &[(*index, leaf)], &cache);
            }
            match step.resume {
                Some(resume) => step = map.next_to_fold(resume, 1, 1),
                None => break,
            }
        }
        for (block, chunk) in [(10, 1), (20, 3), (LEAF_BLOCKS + 50, 4), (LEAF_BLOCKS + 100, 2)] {
            let mut found = Vec::new();
            let range = LbaRange::new(Lba::new(block), 1).unwrap();
            map.lookup(range, &cache, &PinnedLeaves::default(), |_, target| found.push(target)).unwrap();
            assert_eq!(found, vec![write(block, chunk).target], "block {block}");
        }
    }
}
