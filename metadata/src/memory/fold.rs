//! Deltas, leaves, folding.

use super::leases::check_held;
use super::volumes::Lineage;
use super::{Result, Tables};
use crate::{CatalogError, FoldPlan, LEAF_BLOCKS, LeafIndex, LeafVersion, MapLeaf, MapPoint};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BLOCK_SIZE, CommitSeq, LbaRange, LineageId, MapDelta, VolumeId};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// The indices of a range of whole leaves.
fn whole_leaves(range: LbaRange) -> Result<Range<u64>> {
    let (start, end) = (range.start().get(), range.end().get());
    if !start.is_multiple_of(LEAF_BLOCKS) || !end.is_multiple_of(LEAF_BLOCKS) {
        return Err(CatalogError::Invalid(format!("emptying {range:?}, which is not made of whole leaves")));
    }
    Ok(start / LEAF_BLOCKS..end / LEAF_BLOCKS)
}

impl Lineage {
    /// The newest version of a leaf through `commit`.
    fn newest(&self, index: LeafIndex, commit: CommitSeq) -> Option<(CommitSeq, &Arc<MapLeaf>)> {
        let versions = (index, CommitSeq::ZERO)..=(index, commit);
        self.leaves.range(versions).next_back().map(|((_, version), leaf)| (*version, leaf))
    }

    /// The commit of the version that follows one of a leaf.
    pub(super) fn next_version(&self, (index, version): (LeafIndex, CommitSeq)) -> Option<CommitSeq> {
        let newer = (index, version.next())..=(index, MapPoint::END);
        self.leaves.range(newer).next().map(|((_, version), _)| *version)
    }
}

impl Tables {
    pub(super) fn fold(&mut self, plan: &FoldPlan) -> Result<()> {
        let emptied: Vec<_> = plan.emptied.iter().map(|range| whole_leaves(*range)).collect::<Result<_>>()?;
        plan.check()?;
        let volume = self.check_fold(plan)?;
        let head = MapPoint::head(plan.lineage);
        let folded_through = self.lineages[&plan.lineage].folded_through;
        // Otherwise the leaves have all of it, by the owner's word: the step was done before.
        if plan.through > folded_through {
            let pins = self.pins(plan.lineage);
            let holes = Arc::default();
            for indices in emptied {
                for index in self.present(head, &indices) {
                    self.write_leaf(volume, plan, &pins, (index, &holes));
                }
            }
            for (index, leaf) in &plan.leaves {
                self.write_leaf(volume, plan, &pins, (*index, leaf));
            }
        }
        if let Some(forget) = plan.forget {
            let forget = forget.max(folded_through);
            let lineage = self.lineages.get_mut(&plan.lineage).expect("looked at before");
            lineage.deltas.retain(|commit, _| *commit > forget);
            lineage.folded_through = forget;
            self.settle(plan.lineage, volume, forget);
        }
        Ok(())
    }

    /// Fails unless the gateway owns the lineage's volume, which it returns, and the plan fits its commits and snapshots.
    fn check_fold(&self, plan: &FoldPlan) -> Result<VolumeId> {
        let &FoldPlan { lineage, through, .. } = plan;
        let volume = self.volumes.values().find(|volume| !volume.deleted && volume.row.lineage == lineage);
        let volume = volume.ok_or_else(|| CatalogError::not_found("volume with lineage", &lineage))?;
        check_held(volume.lease.as_ref(), volume.row.id, plan.gateway, plan.generation)?;
        let &Lineage { last_commit: last, folded_through, .. } = &self.lineages[&lineage];
        if through > last {
            return Err(CatalogError::FoldBeyond { lineage, through, last });
        }
        let on_lineage = self.snapshots.values().filter(|snapshot| snapshot.at.lineage == lineage);
        let unfolded =
            on_lineage.map(|snapshot| snapshot.at.commit).filter(|commit| *commit > folded_through);
        match unfolded.min() {
            Some(snapshot) if snapshot < through && !is_planted(Bug::FoldPastSnapshot) => {
                Err(CatalogError::FoldAcross { lineage, through, snapshot })
            }
            _ => Ok(volume.row.id),
        }
    }

    /// Writes a leaf as of the plan's commit, unless there is a newer version: that changes nothing.
    fn write_leaf(
        &mut self,
        volume: VolumeId,
        plan: &FoldPlan,
        pins: &BTreeSet<CommitSeq>,
        (index, leaf): (LeafIndex, &Arc<MapLeaf>),
    ) {
        let (head, through) = (MapPoint::head(plan.lineage), plan.through);
        let before = self.shown(head, index);
        if before.is_some_and(|(at, _)| at.lineage == plan.lineage && at.commit > through) {
            return;
        }
        let unmapped = before.map_or(0, |(_, leaf)| leaf.blocks());
        let lineage = self.lineages.get_mut(&plan.lineage).expect("a volume has its lineage");
        let older = lineage.leaves.range((index, CommitSeq::ZERO)..=(index, through));
        let mut older: Vec<CommitSeq> = older.map(|((_, version), _)| *version).collect();
        older.push(through);
        for pair in older.windows(2) {
            if pins.range(pair[0]..pair[1]).next().is_none() {
                lineage.leaves.remove(&(index, pair[0]));
            }
        }
        // Holes are a version only where something would be seen through them.
        if !leaf.is_empty() || self.shown(head, index).is_some_and(|(_, leaf)| !leaf.is_empty()) {
            let lineage = self.lineages.get_mut(&plan.lineage).expect("a volume has its lineage");
            lineage.leaves.insert((index, through), Arc::clone(leaf));
        }
        let logical = &mut self.volumes.get_mut(&volume).expect("looked at before").usage.logical_bytes;
        for bytes in [logical, &mut self.totals.logical_bytes] {
            *bytes = *bytes + leaf.blocks() * u64::from(BLOCK_SIZE) - unmapped * u64::from(BLOCK_SIZE);
        }
    }

    pub(super) fn unfolded_deltas(&self, lineage: LineageId) -> Vec<(CommitSeq, MapDelta)> {
        let deltas = self.lineages.get(&lineage).map(|lineage| &lineage.deltas).into_iter().flatten();
        deltas.map(|(commit, delta)| (*commit, delta.clone())).collect()
    }

    /// The points at which a search from `at` looks, one after the other, with their lineages.
    fn way_up(&self, at: MapPoint) -> impl Iterator<Item = (MapPoint, &Lineage)> {
        let with_lineage = |at: MapPoint| Some((at, self.lineages.get(&at.lineage)?));
        let up = |parent: MapPoint| {
            if is_planted(Bug::CloneReadsHead) { MapPoint::head(parent.lineage) } else { parent }
        };
        std::iter::successors(with_lineage(at), move |(_, lineage)| with_lineage(up(lineage.parent?)))
    }

    /// The version of a leaf that `at` shows.
    pub(super) fn shown(&self, at: MapPoint, index: LeafIndex) -> Option<(MapPoint, &Arc<MapLeaf>)> {
        self.way_up(at).find_map(|(at, lineage)| {
            let (commit, leaf) = lineage.newest(index, at.commit)?;
            Some((MapPoint { commit, ..at }, leaf))
        })
    }

    /// The leaves of `indices` of which `at` shows something.
    fn present(&self, at: MapPoint, indices: &Range<u64>) -> BTreeSet<LeafIndex> {
        let through = |(at, lineage): (MapPoint, &Lineage)| {
            let leaves = lineage.leaves.keys().filter(move |(_, version)| *version <= at.commit);
            leaves.map(|(index, _)| *index).collect::<Vec<_>>()
        };
        let leaves = self.way_up(at).flat_map(through);
        leaves.filter(|index| indices.contains(&u64::from(index.get()))).collect()
    }

    pub(super) fn leaf(&self, at: MapPoint, index: LeafIndex) -> Option<MapLeaf> {
        self.shown(at, index).map(|(_, leaf)| MapLeaf::clone(leaf))
    }

    pub(super) fn leaves(&self, at: MapPoint, indices: &[LeafIndex]) -> Vec<(LeafIndex, MapLeaf)> {
        let wanted: BTreeSet<_> = indices.iter().copied().collect();
        let found = wanted.into_iter().filter_map(|index| Some((index, self.leaf(at, index)?)));
        found.collect()
    }

    pub(super) fn leaf_versions(&self, at: MapPoint, range: LbaRange, limit: u32) -> Vec<LeafVersion> {
        if range.is_empty() {
            return Vec::new();
        }
        let wanted = range.start().get() / LEAF_BLOCKS..range.end().get().div_ceil(LEAF_BLOCKS);
        let version = |index: LeafIndex| Some(LeafVersion { index, at: self.shown(at, index)?.0 });
        let present = self.present(at, &wanted).into_iter().filter_map(version);
        present.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
    }
}
