//! Containers that nothing points at, and objects that are to be deleted.

use super::{Result, Tables};
use crate::{CatalogError, DoomedObject, UnreferencedContainer, UnreferencedPage};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ContainerId, MapTarget, PassId, SegmentId};
use std::collections::BTreeSet;
use std::ops::Bound;

impl Tables {
    pub(super) fn unreferenced_containers(
        &self,
        after: Option<ContainerId>,
        window: u32,
    ) -> UnreferencedPage {
        let lineages = || self.lineages.values();
        let of_leaves =
            lineages().flat_map(|lineage| lineage.leaves.values()).flat_map(|leaf| leaf.containers());
        let ops = lineages().flat_map(|lineage| lineage.deltas.values()).flat_map(|delta| &delta.ops);
        let of_deltas = ops.filter_map(|op| match &op.target {
            MapTarget::Chunk(target) => Some(&target.chunk.container),
            MapTarget::Hole => None,
        });
        let of_deltas = of_deltas.filter(|_| !is_planted(Bug::ReclaimOverlooksDeltas));
        let referenced: BTreeSet<&ContainerId> = of_leaves.chain(of_deltas).collect();
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let looked_at: Vec<_> = self.containers.range((from, Bound::Unbounded)).take(window).collect();
        let next = looked_at.last().map(|(id, _)| **id).filter(|_| looked_at.len() == window);
        let dead = looked_at.into_iter().filter(|(id, _)| !referenced.contains(id));
        let dead = dead.map(|(id, container)| UnreferencedContainer { id: *id, length: container.length });
        UnreferencedPage { containers: dead.collect(), next }
    }

    pub(super) fn close_containers(&mut self, pass: PassId, ids: &[ContainerId]) {
        let known = ids.iter().filter(|id| self.containers.contains_key(id));
        self.closed.extend(known.map(|id| (*id, pass)));
    }

    pub(super) fn open_containers(&mut self, pass: Option<PassId>) {
        self.closed.retain(|_, by| pass.is_some_and(|pass| *by != pass));
    }

    pub(super) fn remove_containers(&mut self, pass: PassId, ids: &[ContainerId]) -> Result<()> {
        let is_open =
            |id: &&ContainerId| self.containers.contains_key(id) && self.closed.get(id) != Some(&pass);
        if let Some(open) = ids.iter().find(is_open).filter(|_| !is_planted(Bug::ReclaimWithoutClosing)) {
            return Err(CatalogError::ContainerOpen { container: *open });
        }
        let mut segments = BTreeSet::new();
        for id in ids {
            self.closed.remove(id);
            let Some(container) = self.containers.remove(id) else { continue };
            segments.insert(container.segment);
            self.totals.containers -= 1;
            self.totals.container_bytes -= u64::from(container.length);
            self.totals.container_raw_bytes -= container.raw_bytes;
        }
        for segment in segments {
            self.doom_if_empty(segment);
        }
        Ok(())
    }

    pub(super) fn doom_if_empty(&mut self, id: SegmentId) {
        let is_empty = self.containers.values().all(|container| container.segment != id);
        if !is_empty && !is_planted(Bug::ReclaimSharedSegment) {
            return;
        }
        let Some(segment) = self.segments.get(&id) else { return };
        let object = DoomedObject {
            segment: id,
            node: segment.node,
            key: segment.key.clone(),
            length_bytes: segment.length_bytes,
        };
        self.totals.segments -= 1;
        self.totals.segment_bytes -= object.length_bytes;
        self.doomed.insert(id, object);
        if is_empty {
            self.segments.remove(&id);
        }
    }

    pub(super) fn doomed_objects(&self, after: Option<SegmentId>, limit: u32) -> Vec<DoomedObject> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.doomed.range((from, Bound::Unbounded)).map(|(_, object)| object.clone());
        objects.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
    }

    pub(super) fn forget_doomed(&mut self, segment: SegmentId) {
        self.doomed.remove(&segment);
    }
}
