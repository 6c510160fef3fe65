//! What may have changed since a snapshot: of the volume as it is now, or of another snapshot of it.
//!
//! ```text
//! (1) state held, leaf by leaf: all that the write buffer and the unfolded part of the map say anything of ─► changed
//! (2) state not held: leaves of the head, as the catalog has them, compared with those of the snapshot ─────► changed where they differ
//! (3) state held: still the same lineage, otherwise again from (1)
//! ```
//!
//! Invariants:
//! - Nothing that was acknowledged before the call is left out. At (1) a change is in the buffer, in the unfolded map, or in the leaves; it moves only
//!   this way, and never back. What has moved to the leaves by (1) is seen at (2), which looks later. Whatever (1) finds is called
//!   changed, whether it is or not: that is more than the truth while writes are on their way to the leaves, and never less.
//! - The snapshot is settled and held open: its leaves do not change and are not taken away.
//! - The lineage of a volume changes only when it is reverted, to one that never was before: the same one at (1) and at (3) is the same in between.
//!
//! Work is bounded: a call looks at so many leaves and then answers for the part that it has looked at. So is memory, whatever the volume looks like: a
//! step that has found [`RANGES_MAX`] ranges ends with the leaf that it is at, and is answered as far as that.

use super::Volume;
use super::read::{Extents, covering};
use crate::error::EngineError;
use crate::snapshot::{changed, compare, leaves, versions};
use cairn_metadata::{LEAF_BLOCKS, LeafIndex, MapLeaf, MapPoint};
use cairn_model::{ChangeExtent, Lba, LbaRange};

/// Most leaves of a step: 4 GiB of address space.
const STEP_LEAVES_MAX: u64 = 64;
/// Steps of a call.
const STEPS_MAX: usize = 64;
/// Leaves that one call compares; about, as a step is done to its end.
const COMPARED_MAX: usize = 256;
/// Ranges of a step after which it ends: with one more leaf, a few hundred KiB.
const RANGES_MAX: usize = 8 << 10;
/// Leaves, each in two versions, that are held to be compared.
const LEAVES_AT_ONCE: usize = 4;
/// Reverts that may come in between before everything is called changed.
const ATTEMPTS_MAX: u32 = 10;

impl Volume {
    pub(super) async fn changes_bytes(
        &self,
        since: &Self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<ChangeExtent>, EngineError> {
        if !self.shares_lease_with(since) {
            return Err(EngineError::Fenced(since.name()));
        }
        self.state.lock().check_range(offset, length)?;
        let range = covering(offset, length);
        let mut extents = Extents::new(extents_max);
        let (mut at, mut compared) = (range.start(), 0);
        // Many clients ask for one extent at a time: most often that ends in the first leaf.
        let mut step_leaves = 1;
        for _ in 0..STEPS_MAX {
            if at == range.end() || extents.is_full() || compared >= COMPARED_MAX {
                break;
            }
            let end = LeafIndex::of(at).range().start().plus(step_leaves * LEAF_BLOCKS).min(range.end());
            let step = LbaRange::between(at, end);
            let changes = self.changes_of(since, step).await?;
            compared += changes.compared;
            at = changes.end;
            step_leaves = if at < end { 1 } else { (2 * step_leaves).min(STEP_LEAVES_MAX) };
            changes.into_extents(step.start(), &mut extents);
        }
        // Another owner's writes are not known here.
        self.owned().await?;
        let extent = |(length_bytes, changed)| ChangeExtent { length_bytes, changed };
        Ok(extents.clipped(offset, length).map(extent).collect())
    }

    /// Where a step may have changed, as far as it came: at least a leaf.
    async fn changes_of(&self, since: &Self, step: LbaRange) -> Result<Changes, EngineError> {
        for _ in 0..ATTEMPTS_MAX {
            let mut changes = Changes::through(step.end());
            let now = self.note_unfolded(step, &mut changes)?;
            let then = since.point()?;
            self.compare_leaves(then, now, step.start(), &mut changes).await?;
            if self.point()? == now {
                since.state.lock().check_serving()?;
                return Ok(changes);
            }
        }
        // Never wrong, if more than the truth.
        Ok(Changes { ranges: vec![step], ..Changes::through(step.end()) })
    }

    /// What the leaves are looked up by.
    fn point(&self) -> Result<MapPoint, EngineError> {
        let state = self.state.lock();
        state.check_serving()?;
        Ok(state.map.term().point)
    }

    /// (1): notes what is not in the leaves. Returns what these are looked up by.
    fn note_unfolded(&self, step: LbaRange, changes: &mut Changes) -> Result<MapPoint, EngineError> {
        let point = self.point()?;
        let mut at = step.start();
        // Nobody waits for longer than for the look-ups of a leaf.
        while at < changes.end {
            let part = LbaRange::between(at, LeafIndex::of(at).range().end().min(changes.end));
            let state = self.state.lock();
            state.buffer.touched(part, |range| changes.push(range));
            state.map.touched(part, |range| changes.push(range));
            drop(state);
            at = part.end();
            if changes.are_many() {
                changes.end = at;
            }
        }
        Ok(point)
    }

    /// (2): notes where the leaves differ.
    async fn compare_leaves(
        &self,
        then: MapPoint,
        now: MapPoint,
        start: Lba,
        changes: &mut Changes,
    ) -> Result<(), EngineError> {
        let mut at = start;
        while at < changes.end {
            let rest = LbaRange::between(at, changes.end);
            let (old, old_end) = versions(&self.shared, then, rest).await?;
            let (new, new_end) = versions(&self.shared, now, rest).await?;
            let end = old_end.min(new_end);
            let differing: Vec<LeafIndex> =
                changed(&old, &new).filter(|index| index.range().start() < end).collect();
            for some in differing.chunks(LEAVES_AT_ONCE) {
                let old = leaves(&self.shared, then, some).await?;
                let new = leaves(&self.shared, now, some).await?;
                for index in some {
                    let leaf = index.range();
                    let part = LbaRange::between(leaf.start().max(at), leaf.end().min(end));
                    let nothing = MapLeaf::default();
                    let (old, new) = (old.get(index).unwrap_or(&nothing), new.get(index).unwrap_or(&nothing));
                    let mut differences = Vec::new();
                    compare(part, old, new, &mut differences);
                    for difference in differences {
                        changes.push(difference.range);
                    }
                    changes.compared += 1;
                    if changes.are_many() {
                        changes.end = part.end();
                        return Ok(());
                    }
                }
            }
            at = end;
        }
        Ok(())
    }
}

/// Where a step may have changed.
struct Changes {
    /// In any order; they may overlap, and lie beyond the end.
    ranges: Vec<LbaRange>,
    /// So many of them are made one where they overlap or touch, before there are more.
    merge_at: usize,
    /// All changes before it are known.
    end: Lba,
    /// Leaves that were compared.
    compared: usize,
}

impl Changes {
    fn through(end: Lba) -> Self {
        Self { ranges: Vec::new(), merge_at: RANGES_MAX, end, compared: 0 }
    }

    fn push(&mut self, range: LbaRange) {
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.start() => *last = LbaRange::between(last.start(), range.end()),
            _ => self.ranges.push(range),
        }
        // Many layers say the same of a leaf.
        if self.ranges.len() >= self.merge_at {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start());
        self.ranges.dedup_by(|next, before| {
            let is_one = next.start() <= before.end();
            if is_one {
                *before = LbaRange::between(before.start(), before.end().max(next.end()));
            }
            is_one
        });
        // A leaf has half as many ranges as blocks at most: what comes before the next leaf fits without sorting for each.
        self.merge_at = RANGES_MAX.max(2 * self.ranges.len());
    }

    /// Whether the step has to end.
    fn are_many(&mut self) -> bool {
        if self.ranges.len() < RANGES_MAX {
            return false;
        }
        self.merge();
        self.ranges.len() >= RANGES_MAX
    }

    /// Appends everything from `start` to the end, changed or not; no more than is asked for.
    fn into_extents(mut self, start: Lba, extents: &mut Extents) {
        self.merge();
        let mut at = start;
        for range in self.ranges {
            let end = range.end().min(self.end);
            if end <= at {
                continue;
            }
            if extents.is_full() {
                return;
            }
            let start = range.start().max(at);
            if at < start {
                extents.push(LbaRange::between(at, start).bytes(), false);
            }
            extents.push(LbaRange::between(start, end).bytes(), true);
            at = end;
        }
        if at < self.end {
            extents.push(LbaRange::between(at, self.end).bytes(), false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::BLOCK;
    use super::*;

    fn range(start: u64, end: u64) -> LbaRange {
        LbaRange::between(Lba::new(start), Lba::new(end))
    }

    #[test]
    fn what_several_say_has_changed_is_told_once_and_in_order() {
        let mut changes = Changes::through(Lba::new(40));
        for (start, end) in [(20, 30), (5, 7), (7, 9), (22, 24), (28, 34), (5, 6)] {
            changes.push(range(start, end));
        }
        let mut extents = Extents::new(100);
        changes.into_extents(Lba::new(4), &mut extents);
        let found: Vec<(u64, bool)> = extents.clipped(4 * BLOCK, 36 * BLOCK).collect();
        let blocks = |blocks: u64, changed| (blocks * BLOCK, changed);
        assert_eq!(
            found,
            [blocks(1, false), blocks(4, true), blocks(11, false), blocks(14, true), blocks(6, false)]
        );
    }

    #[test]
    fn what_is_held_is_bounded_and_told_as_far_as_it_is_known() {
        let many = RANGES_MAX as u64;
        let mut changes = Changes::through(Lba::new(4 * many));
        // Layers that say the same are not many ranges.
        for _ in 0..20 {
            for at in 0..many / 2 {
                changes.push(range(2 * at, 2 * at + 1));
            }
            assert!(!changes.are_many());
            assert!(changes.ranges.len() <= 2 * RANGES_MAX);
        }
        for at in many / 2..many {
            changes.push(range(2 * at, 2 * at + 1));
        }
        assert!(changes.are_many());
        assert_eq!(changes.ranges.len(), RANGES_MAX);
        // Only the first leaves of these are known to have nothing more.
        changes.end = Lba::new(3);
        let mut extents = Extents::new(100);
        changes.into_extents(Lba::new(0), &mut extents);
        let found: Vec<(u64, bool)> = extents.clipped(0, 100 * BLOCK).collect();
        assert_eq!(found, [(BLOCK, true), (BLOCK, false), (BLOCK, true)]);
    }

    #[test]
    fn no_more_extents_are_made_than_are_asked_for() {
        let mut changes = Changes::through(Lba::new(1000));
        for at in 0..400 {
            changes.push(range(2 * at, 2 * at + 1));
        }
        let mut extents = Extents::new(1);
        changes.into_extents(Lba::new(0), &mut extents);
        assert!(extents.is_full() && extents.held() <= 4, "{}", extents.held());
        assert_eq!(extents.clipped(0, 1000 * BLOCK).collect::<Vec<_>>(), [(BLOCK, true)]);
    }
}
