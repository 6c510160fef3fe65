//! Deltas, leaves, folding.

use super::leases::check_held;
use super::volumes::Lineage;
use super::{Result, Tables};
use crate::{CatalogError, FoldPlan, LEAF_BLOCKS, LeafIndex, MapLeaf};
use cairn_model::{BLOCK_SIZE, CommitSeq, LbaRange, LineageId, MapDelta};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Deletes the leaves of these indices, in versions through `through`.
    fn delete_leaves(&mut self, indices: &Range<u64>, through: CommitSeq) {
        self.leaves
            .retain(|(index, version), _| !indices.contains(&u64::from(index.get())) || *version > through);
    }

    /// Blocks mapped by the newest versions of the leaves of these indices.
    fn mapped_blocks(&self, indices: &Range<u64>) -> u64 {
        let leaves = self.leaves.iter().filter(|((index, _), _)| indices.contains(&u64::from(index.get())));
        let newest: BTreeMap<LeafIndex, &Arc<MapLeaf>> =
            leaves.map(|((index, _), leaf)| (*index, leaf)).collect();
        newest.values().map(|leaf| leaf.blocks()).sum()
    }

    fn newest(&self, index: LeafIndex) -> Option<&Arc<MapLeaf>> {
        let versions = (index, CommitSeq::ZERO)..=(index, CommitSeq::new(u64::MAX));
        self.leaves.range(versions).next_back().map(|(_, leaf)| leaf)
    }
}

impl Tables {
    pub(super) fn fold(&mut self, plan: &FoldPlan) -> Result<()> {
        let emptied: Vec<_> = plan.emptied.iter().map(|range| whole_leaves(*range)).collect::<Result<_>>()?;
        plan.check()?;
        let volume =
            self.volumes.values().find(|volume| !volume.deleted && volume.row.lineage == plan.lineage);
        let volume = volume.ok_or_else(|| CatalogError::not_found("volume with lineage", &plan.lineage))?;
        check_held(volume.lease.as_ref(), volume.row.id, plan.gateway, plan.generation)?;
        let lineage = self.lineages.get_mut(&plan.lineage).expect("a volume has its lineage");
        if plan.through > lineage.last_commit {
            let last = lineage.last_commit;
            return Err(CatalogError::FoldBeyond { lineage: plan.lineage, through: plan.through, last });
        }
        let (volume, mut mapped, mut unmapped) = (volume.row.id, 0, 0);
        for indices in emptied {
            unmapped += lineage.mapped_blocks(&indices);
            lineage.delete_leaves(&indices, plan.through);
            mapped += lineage.mapped_blocks(&indices);
        }
        for (index, leaf) in &plan.leaves {
            let at = u64::from(index.get());
            unmapped += lineage.mapped_blocks(&(at..at + 1));
            // The older versions go, as no snapshot needs them; a leaf of holes is no leaf.
            lineage.delete_leaves(&(at..at + 1), plan.through);
            if !leaf.is_empty() {
                lineage.leaves.insert((*index, plan.through), Arc::clone(leaf));
            }
            mapped += lineage.mapped_blocks(&(at..at + 1));
        }
        if let Some(forget) = plan.forget {
            let forget = forget.max(lineage.folded_through);
            lineage.deltas.retain(|commit, _| *commit > forget);
            lineage.folded_through = forget;
        }
        let logical = &mut self.volumes.get_mut(&volume).expect("looked at before").usage.logical_bytes;
        for bytes in [logical, &mut self.totals.logical_bytes] {
            *bytes = *bytes + mapped * u64::from(BLOCK_SIZE) - unmapped * u64::from(BLOCK_SIZE);
        }
        Ok(())
    }

    pub(super) fn unfolded_deltas(&self, lineage: LineageId) -> Vec<(CommitSeq, MapDelta)> {
        let deltas = self.lineages.get(&lineage).map(|lineage| &lineage.deltas).into_iter().flatten();
        deltas.map(|(commit, delta)| (*commit, delta.clone())).collect()
    }

    pub(super) fn leaf(&self, lineage: LineageId, index: LeafIndex) -> Option<MapLeaf> {
        self.lineages.get(&lineage)?.newest(index).map(|leaf| MapLeaf::clone(leaf))
    }

    pub(super) fn leaves(&self, lineage: LineageId, indices: &[LeafIndex]) -> Vec<(LeafIndex, MapLeaf)> {
        let wanted: BTreeSet<_> = indices.iter().copied().collect();
        let found = wanted.into_iter().filter_map(|index| Some((index, self.leaf(lineage, index)?)));
        found.collect()
    }

    pub(super) fn leaves_present(&self, lineage: LineageId, range: LbaRange, limit: u32) -> Vec<LeafIndex> {
        if range.is_empty() {
            return Vec::new();
        }
        let wanted = range.start().get() / LEAF_BLOCKS..range.end().get().div_ceil(LEAF_BLOCKS);
        let leaves = self.lineages.get(&lineage).map(|lineage| &lineage.leaves).into_iter().flatten();
        let indices: BTreeSet<_> = leaves.map(|((index, _), _)| *index).collect();
        let present = indices.into_iter().filter(|index| wanted.contains(&u64::from(index.get())));
        present.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
    }
}
