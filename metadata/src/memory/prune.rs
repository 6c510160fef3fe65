//! Taking away, in bounded steps, what nothing shows any more.
//!
//! The invariants are those of every catalog: a step looks at the pins when it deletes, a lineage that is let go of during a pass gets
//! another one, and a lineage goes after its last row.

use super::Tables;
use crate::{LeafIndex, MapPoint};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{CommitSeq, LineageId};
use std::collections::BTreeSet;
use std::ops::Bound;

/// A pass over the leaves of a lineage.
#[derive(Clone, Copy, Default)]
pub(super) struct Pass {
    /// The last version that was looked at.
    from: Option<(LeafIndex, CommitSeq)>,
    /// Another one is to follow.
    again: bool,
}

impl Tables {
    /// Something of the lineage may be needed no more.
    pub(super) fn mark(&mut self, lineage: LineageId) {
        if let Some(lineage) = self.lineages.get_mut(&lineage) {
            let pass = lineage.pass.get_or_insert_default();
            pass.again = pass.from.is_some();
        }
    }

    fn is_head(&self, lineage: LineageId) -> bool {
        self.volumes.values().any(|volume| !volume.deleted && volume.row.lineage == lineage)
    }

    /// The points of the lineage that must go on to show what they show, besides the head.
    pub(super) fn pins(&self, lineage: LineageId) -> BTreeSet<CommitSeq> {
        let snapshots = self.snapshots.values().map(|snapshot| snapshot.at);
        let children = self.lineages.values().filter_map(|child| child.parent);
        let children = children.filter(|_| !is_planted(Bug::PurgeUnderClone));
        let pins = snapshots.chain(children).filter(|at| at.lineage == lineage);
        pins.map(|at| at.commit).collect()
    }

    pub(super) fn purge_deleted(&mut self, rows_max: u32) -> bool {
        let mut left = usize::try_from(rows_max.max(1)).unwrap_or(usize::MAX);
        while left > 0 {
            let deleted = self.volumes.values().find(|volume| volume.deleted);
            if let Some((id, lineage)) = deleted.map(|volume| (volume.row.id, volume.row.lineage)) {
                self.volumes.remove(&id);
                self.mark(lineage);
                left = left.saturating_sub(2);
            } else if let Some((id, pass)) = self.next_pass() {
                left = left.saturating_sub(self.step(id, pass, left));
            } else {
                break;
            }
        }
        self.volumes.values().any(|volume| volume.deleted) || self.next_pass().is_some()
    }

    fn next_pass(&self) -> Option<(LineageId, Pass)> {
        self.lineages.iter().find_map(|(id, lineage)| Some((*id, lineage.pass?)))
    }

    /// Looks at up to `rows_max` rows. Returns at how many; at least one, so that steps end.
    fn step(&mut self, id: LineageId, pass: Pass, rows_max: usize) -> usize {
        let (is_head, pins) = (self.is_head(id), self.pins(id));
        let lineage = self.lineages.get_mut(&id).expect("the caller found it");
        let mut rows = 0;
        while !is_head && rows < rows_max && lineage.deltas.pop_first().is_some() {
            rows += 1;
        }
        if rows == rows_max {
            return rows;
        }
        let behind = pass.from.map_or(Bound::Unbounded, Bound::Excluded);
        let versions = lineage.leaves.range((behind, Bound::Unbounded)).map(|(version, _)| *version);
        let page: Vec<_> = versions.take(rows_max - rows).collect();
        let is_end = page.len() < rows_max - rows;
        rows += page.len();
        for &(index, version) in &page {
            let end = lineage.next_version((index, version));
            let to = end.unwrap_or(MapPoint::END);
            let is_pinned = pins.range(version..to).next().is_some() && !is_planted(Bug::PurgeNeededLeaf);
            if !(is_pinned || is_head && end.is_none()) {
                lineage.leaves.remove(&(index, version));
            }
        }
        for version in &page {
            self.delete_idle_holes(id, *version);
        }
        match page.last() {
            Some(last) if !is_end => {
                let pass = Pass { from: Some(*last), ..pass };
                self.lineages.get_mut(&id).expect("the caller found it").pass = Some(pass);
            }
            _ => self.finish(id, pass, is_head || !pins.is_empty()),
        }
        rows.max(1)
    }

    /// Deletes the version if it says "holes" with nothing behind it any more that would show instead.
    fn delete_idle_holes(&mut self, id: LineageId, (index, version): (LeafIndex, CommitSeq)) {
        let lineage = &self.lineages[&id];
        let is_oldest = lineage.leaves.range((index, CommitSeq::ZERO)..(index, version)).next().is_none();
        let holes = lineage.leaves.get(&(index, version)).is_some_and(|leaf| leaf.is_empty());
        let inherited = lineage.parent.and_then(|parent| self.shown(parent, index));
        if is_oldest && holes && inherited.is_none_or(|(_, leaf)| leaf.is_empty()) {
            self.lineages.get_mut(&id).expect("the caller found it").leaves.remove(&(index, version));
        }
    }

    /// The pass came to the end. A lineage without a pin goes, if it is empty; if not, or if it was marked again, another pass begins.
    fn finish(&mut self, id: LineageId, pass: Pass, is_pinned: bool) {
        let lineage = self.lineages.get_mut(&id).expect("the caller found it");
        if is_pinned {
            lineage.pass = pass.again.then(Pass::default);
        } else if lineage.leaves.is_empty() {
            let parent = lineage.parent;
            self.lineages.remove(&id);
            if let Some(parent) = parent {
                self.mark(parent.lineage);
            }
        } else {
            lineage.pass = Some(Pass::default());
        }
    }
}
