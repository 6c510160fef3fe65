//! The extent map of a volume in memory: changes that are committed and not folded yet, over leaves that are loaded on demand.
//!
//! ```text
//! overlay             changes since the last snapshot
//! levels, newest ...  changes up to a snapshot that is not folded yet
//! leaves              what the catalog holds
//! ```
//!
//! Invariants:
//! - a committed change enters the overlay in the same critical section in which its layer leaves the write
//!   buffer, so a reader sees it in exactly one of the two;
//! - a leaf enters the cache only if no fold finished since its load began ([`ExtentMap::epoch`]), so a stale leaf never
//!   shows after the overlay let go of what the fold put into the newer one;
//! - a snapshot needs the leaves as they were at its commit. So its commit closes the overlay ([`ExtentMap::pin`]), and folds take the
//!   closed levels first, the oldest first, each to its end: none mixes what came before a snapshot with what came after.

use crate::cache::{Cache, cache};
use cairn_metadata::{LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{
    CommitSeq, Generation, Lba, LbaRange, LineageId, MapDelta, MapOp, MapTarget, RangeMap, RangeValue,
};
use quick_cache::Weighter;
use std::collections::VecDeque;
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

/// The head of a lineage in one term of this gateway's ownership, or a settled snapshot. Between two terms another gateway may have folded,
/// so what is known of the leaves ends with the term; a snapshot's leaves do not change, and its generation here is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MapTerm {
    pub(crate) point: MapPoint,
    pub(crate) generation: Generation,
}

impl MapTerm {
    pub(crate) fn head(lineage: LineageId, generation: Generation) -> Self {
        Self { point: MapPoint::head(lineage), generation }
    }

    pub(crate) fn snapshot(point: MapPoint) -> Self {
        Self { point, generation: Generation::ZERO }
    }
}

/// Changes up to a snapshot.
#[derive(Debug)]
struct Level {
    /// The snapshot's commit.
    through: CommitSeq,
    changes: RangeMap<Unfolded>,
}

/// Unfolded changes of one lineage and the rules for what lies below them.
#[derive(Debug)]
pub(crate) struct ExtentMap {
    term: MapTerm,
    overlay: RangeMap<Unfolded>,
    /// The oldest first.
    levels: VecDeque<Level>,
    last_commit: CommitSeq,
    /// Every delta up to this one is folded and gone.
    folded_through: CommitSeq,
    epoch: u64,
}

impl ExtentMap {
    /// A map whose leaves hold everything through `folded_through`.
    pub(crate) fn new(term: MapTerm, folded_through: CommitSeq) -> Self {
        Self {
            term,
            overlay: RangeMap::new(),
            levels: VecDeque::new(),
            last_commit: folded_through,
            folded_through,
            epoch: 0,
        }
    }

    /// The map of the volume in a fresh lineage. What was known of the leaves means nothing there.
    pub(crate) fn reverted(&self, lineage: LineageId) -> Self {
        let term = MapTerm::head(lineage, self.term.generation);
        let term = if is_planted(Bug::RevertKeepsOldLeaves) { self.term } else { term };
        Self { epoch: self.epoch + 1, ..Self::new(term, CommitSeq::ZERO) }
    }

    /// Deltas that a start would have to read.
    pub(crate) fn unfolded_commits(&self) -> u64 {
        self.last_commit.get() - self.folded_through.get()
    }

    /// Forgets everything: the volume is gone.
    pub(crate) fn clear(&mut self) {
        self.overlay = RangeMap::new();
        self.levels.clear();
    }

    /// The last commit is a snapshot's.
    pub(crate) fn pin(&mut self) {
        if is_planted(Bug::FoldPastSnapshot) {
            return;
        }
        let changes = std::mem::replace(&mut self.overlay, RangeMap::new());
        self.levels.push_back(Level { through: self.last_commit, changes });
    }

    /// Snapshots that wait to be folded.
    pub(crate) fn unsettled(&self) -> usize {
        self.levels.len()
    }

    pub(crate) fn folded_through(&self) -> CommitSeq {
        self.folded_through
    }

    /// The catalog has deleted the deltas up to `through`.
    pub(crate) fn deltas_deleted(&mut self, through: CommitSeq) {
        self.folded_through = self.folded_through.max(through);
        while self.levels.front().is_some_and(|level| level.through <= through) {
            let level = self.levels.pop_front().expect("looked at");
            debug_assert_eq!(level.changes.len(), 0, "a level is folded to its end");
        }
    }

    /// What folds take next, and the last commit in it: the oldest snapshot's changes, or all there are.
    fn oldest(&self) -> (CommitSeq, &RangeMap<Unfolded>) {
        match self.levels.front() {
            Some(level) => (level.through, &level.changes),
            None => (self.last_commit, &self.overlay),
        }
    }

    /// Where the next fold ends that begins now.
    pub(crate) fn fold_goal(&self) -> CommitSeq {
        self.oldest().0
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn last_commit(&self) -> CommitSeq {
        self.last_commit
    }

    /// Pieces waiting to be folded.
    pub(crate) fn unfolded_len(&self) -> usize {
        self.overlay.len() + self.levels.iter().map(|level| level.changes.len()).sum::<usize>()
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
        self.lookup_from(self.levels.len(), range, cache, pinned, &mut piece)
    }

    /// Where `range` has changes that are not folded, in no particular order; parts may come several times.
    pub(crate) fn touched(&self, range: LbaRange, mut piece: impl FnMut(LbaRange)) {
        for changes in self.levels.iter().map(|level| &level.changes).chain([&self.overlay]) {
            changes.lookup(range, |part, value| {
                if value.is_some() {
                    piece(part);
                }
            });
        }
    }

    /// Looks into the overlay, if `levels` is their number, or else into that level, and in what lies below.
    fn lookup_from(
        &self,
        levels: usize,
        range: LbaRange,
        cache: &LeafCache,
        pinned: &PinnedLeaves,
        piece: &mut dyn FnMut(LbaRange, MapTarget),
    ) -> Result<(), MissingLeaf> {
        let changes = self.levels.get(levels).map_or(&self.overlay, |level| &level.changes);
        let mut missing = None;
        changes.lookup(range, |part, value| {
            if missing.is_some() {
                return;
            }
            if let Some(unfolded) = value {
                piece(part, unfolded.target);
                return;
            }
            let below = match levels.checked_sub(1) {
                Some(below) => self.lookup_from(below, part, cache, pinned, piece),
                None => self.lookup_leaves(part, cache, pinned, piece),
            };
            missing = below.err();
        });
        missing.map_or(Ok(()), Err)
    }

    fn lookup_leaves(
        &self,
        range: LbaRange,
        cache: &LeafCache,
        pinned: &PinnedLeaves,
        piece: &mut dyn FnMut(LbaRange, MapTarget),
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

    /// What waits to be folded next from `from` on, grouped by leaf, as of now: whole leaves, up to `leaves_max` of them and about
    /// `pieces_max` pieces.
    pub(crate) fn next_to_fold(&self, from: Lba, leaves_max: usize, pieces_max: usize) -> FoldStep {
        let (through, changes) = self.oldest();
        let mut step = FoldStep { through, pieces: Vec::new(), emptied: Vec::new(), resume: None };
        let mut pieces = 0;
        for (range, unfolded) in changes.iter_from(from) {
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

    /// Forgets the pieces of the step's leaves, which the catalog has folded through `through`, and shows the new leaves instead. Since the
    /// step was made a snapshot may have closed what it was made of: what was the oldest still is.
    pub(crate) fn folded(
        &mut self,
        step: &FoldStep,
        leaves: &[(LeafIndex, Arc<MapLeaf>)],
        cache: &LeafCache,
    ) {
        self.epoch += 1;
        let changes = self.levels.front_mut().map_or(&mut self.overlay, |level| &mut level.changes);
        for range in step.pieces.iter().map(|(index, _)| index.range()).chain(step.emptied.iter().copied()) {
            let mut newer = Vec::new();
            changes.remove(range, |part, unfolded| {
                if unfolded.commit > step.through {
                    newer.push((part, unfolded));
                }
            });
            for (part, unfolded) in newer {
                changes.insert(part, unfolded);
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
        self.term.point.lineage
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
        let term = MapTerm::head(LineageId::from_bytes([2; 16]), Generation::new(1));
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

    fn found(map: &ExtentMap, cache: &LeafCache, block: u64) -> MapTarget {
        let mut found = Vec::new();
        let range = LbaRange::new(Lba::new(block), 1).unwrap();
        map.lookup(range, cache, &PinnedLeaves::default(), |_, target| found.push(target)).unwrap();
        let [only] = found[..] else { panic!("{found:?}") };
        only
    }

    #[test]
    fn folds_end_at_snapshots_and_what_is_newer_stays_above() {
        let term = MapTerm::head(LineageId::from_bytes([2; 16]), Generation::new(1));
        let cache = LeafCache::new(1 << 20);
        let mut map = ExtentMap::new(term, CommitSeq::ZERO);
        commit(&mut map, 1, vec![write(10, 1), write(20, 2)]);
        map.pin();
        commit(&mut map, 2, vec![write(10, 3)]);
        map.pin();
        commit(&mut map, 3, vec![write(20, 4), write(30, 5)]);
        let mut expected =
            [(1, vec![(10, 1), (20, 2)]), (2, vec![(10, 3)]), (3, vec![(20, 4), (30, 5)])].into_iter();
        let mut leaf = MapLeaf::default();
        while map.unfolded_len() > 0 || map.unsettled() > 0 {
            let goal = map.fold_goal();
            let step = map.next_to_fold(Lba::ZERO, 8, 8);
            let (through, pieces) = expected.next().unwrap();
            assert_eq!((goal, step.through), (CommitSeq::new(through), CommitSeq::new(through)));
            let [(index, ops)] = &step.pieces[..] else { panic!("{step:?}") };
            assert_eq!(*ops, pieces.iter().map(|(block, chunk)| write(*block, *chunk)).collect::<Vec<_>>());
            leaf.apply(*index, ops.iter().copied());
            map.folded(&step, &[(*index, Arc::new(leaf.clone()))], &cache);
            map.deltas_deleted(goal);
            for (block, chunk) in [(10, 3), (20, 4), (30, 5)] {
                assert_eq!(
                    found(&map, &cache, block),
                    write(block, chunk).target,
                    "block {block} after {through}"
                );
            }
        }
        assert_eq!(expected.next(), None);
    }

    #[test]
    fn a_snapshot_that_comes_in_the_middle_of_a_fold_keeps_its_changes() {
        let term = MapTerm::head(LineageId::from_bytes([2; 16]), Generation::new(1));
        let cache = LeafCache::new(1 << 20);
        let mut map = ExtentMap::new(term, CommitSeq::ZERO);
        commit(&mut map, 1, vec![write(10, 1)]);
        let (goal, step) = (map.fold_goal(), map.next_to_fold(Lba::ZERO, 8, 8));
        commit(&mut map, 2, vec![write(11, 2)]);
        map.pin();
        commit(&mut map, 3, vec![write(11, 3)]);
        let (index, ops) = &step.pieces[0];
        let leaf = Arc::new(MapLeaf::from_ops(*index, ops.iter().copied()));
        map.folded(&step, &[(*index, leaf)], &cache);
        map.deltas_deleted(goal);
        assert_eq!((map.unsettled(), map.fold_goal()), (1, CommitSeq::new(2)));
        let next = map.next_to_fold(Lba::ZERO, 8, 8);
        assert_eq!(next.pieces, [(*index, vec![write(11, 2)])]);
        assert_eq!(found(&map, &cache, 11), write(11, 3).target);
    }
}
