//! What is in use, what is moved and removed, and objects that are to be deleted.

use super::{Result, Tables};
use crate::{
    CatalogError, ContainerMove, ContainerRow, ContainerUse, DoomedObject, MovedContainer, SegmentUse,
    UsePage,
};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ChunkId, ChunkSet, ContainerId, MapTarget, NodeId, PassId, SegmentId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

impl Tables {
    /// Every pointer of every map.
    fn pointers(&self) -> impl Iterator<Item = ChunkId> {
        let lineages = || self.lineages.values();
        let of_leaves = lineages().flat_map(|lineage| lineage.leaves.values()).flat_map(|leaf| {
            leaf.chunks().map(|(container, index)| ChunkId { container: leaf.containers()[container], index })
        });
        let ops = lineages().flat_map(|lineage| lineage.deltas.values()).flat_map(|delta| &delta.ops);
        let of_deltas = ops.filter_map(|op| match &op.target {
            MapTarget::Chunk(target) => Some(target.chunk),
            MapTarget::Hole => None,
        });
        of_leaves.chain(of_deltas.filter(|_| !is_planted(Bug::ReclaimOverlooksDeltas)))
    }

    fn live_chunks(&self) -> BTreeMap<ContainerId, ChunkSet> {
        let mut live: BTreeMap<ContainerId, ChunkSet> = BTreeMap::new();
        for chunk in self.pointers() {
            assert!(live.entry(chunk.container).or_default().insert(chunk.index), "a chunk of a container");
        }
        live
    }

    fn used(container: &ContainerRow, live: &BTreeMap<ContainerId, ChunkSet>) -> ContainerUse {
        let live = live.get(&container.id).cloned().unwrap_or_default();
        ContainerUse { id: container.id, length: container.length, live }
    }

    pub(super) fn segment_uses(&self, after: Option<SegmentId>, containers_max: u32) -> UsePage {
        let live = self.live_chunks();
        let mut of_segment: BTreeMap<SegmentId, Vec<ContainerUse>> = BTreeMap::new();
        for container in self.containers.values() {
            of_segment.entry(container.segment).or_default().push(Self::used(container, &live));
        }
        let mut page = UsePage::default();
        let mut left = usize::try_from(containers_max).unwrap_or(usize::MAX);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (id, segment) in self.segments.range((from, Bound::Unbounded)) {
            if left == 0 {
                break;
            }
            let containers = of_segment.remove(id).unwrap_or_default();
            left = left.saturating_sub(containers.len().max(1));
            page.segments.push(SegmentUse { id: *id, length_bytes: segment.length_bytes, containers });
            page.next = Some(*id);
        }
        page.next = page.next.filter(|_| left == 0);
        page
    }

    pub(super) fn container_uses(&self, ids: &[ContainerId]) -> Vec<ContainerUse> {
        let live = self.live_chunks();
        let ids: BTreeSet<_> = ids.iter().collect();
        let known = ids.into_iter().filter_map(|id| self.containers.get(id));
        known.map(|container| Self::used(container, &live)).collect()
    }

    pub(super) fn move_containers(&mut self, moved: &ContainerMove) -> Result<()> {
        let receipt = &moved.segment.receipt;
        // Done before, by an attempt whose answer was lost.
        if self.segments.contains_key(&receipt.segment()) {
            return Ok(());
        }
        self.check_nodes(receipt.place())?;
        let there: Vec<_> = moved
            .containers
            .iter()
            .filter(|container| self.containers.contains_key(&container.row.id))
            .collect();
        for MovedContainer { row, .. } in &there {
            if self.closed.get(&row.id) != Some(&moved.pass) && !is_planted(Bug::ReclaimWithoutClosing) {
                return Err(CatalogError::ContainerOpen { container: row.id });
            }
            if self.containers[&row.id].domain != row.domain {
                return Err(CatalogError::Invalid(format!("container {} moved to another domain", row.id)));
            }
        }
        self.segments.insert(receipt.segment(), receipt.place().clone());
        self.totals.segments += 1;
        self.totals.segment_bytes += receipt.length_bytes();
        let mut left = BTreeSet::from([receipt.segment()]);
        for MovedContainer { row, present } in there {
            let old = self.containers.insert(row.id, row.clone()).expect("looked at");
            self.thinned.insert(row.id, present.clone());
            self.totals.container_bytes -= u64::from(old.length) - u64::from(row.length);
            self.totals.container_raw_bytes -= old.raw_bytes - row.raw_bytes;
            left.insert(old.segment);
        }
        for segment in left {
            self.doom_if_empty(segment);
        }
        Ok(())
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
            self.thinned.remove(id);
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
        let Some(place) = self.segments.get(&id).cloned() else { return };
        self.totals.segments -= 1;
        self.totals.segment_bytes -= place.length_bytes;
        self.doom(id, place.objects());
        if is_empty {
            self.segments.remove(&id);
        }
    }

    /// Writes down objects that are to be deleted, each once.
    pub(super) fn doom(
        &mut self,
        segment: SegmentId,
        objects: impl IntoIterator<Item = (NodeId, String, u64)>,
    ) {
        for (node, key, length_bytes) in objects {
            if !self.is_doomed(node, &key) {
                self.last_doomed += 1;
                let object = DoomedObject { id: self.last_doomed, segment, node, key, length_bytes };
                self.doomed.insert(object.id, object);
            }
        }
    }

    pub(super) fn is_doomed(&self, node: NodeId, key: &str) -> bool {
        self.doomed.values().any(|object| object.node == node && object.key == key)
    }

    pub(super) fn doomed_objects(&self, after: Option<u64>, limit: u32) -> Vec<DoomedObject> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let objects = self.doomed.range((from, Bound::Unbounded)).map(|(_, object)| object.clone());
        objects.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
    }
}
