//! What nodes hold, and where segments are. Everything is counted anew whenever somebody asks: whoever keeps sums is compared with this.

use super::{Result, Tables, countable};
use crate::placements::{is_at_risk, object_is_doomed, spare};
use crate::{CatalogError, NodeChange, NodeState, NodeUsage, PlacementChange, SegmentPlace, Totals};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{NodeId, ObjectPlace, Placement, SegmentId, ShardPlace};
use std::ops::Bound;

impl Tables {
    pub(super) fn update_node(&mut self, id: NodeId, change: &NodeChange) -> Result<()> {
        change.capacity_bytes.flatten().map(countable).transpose()?;
        let node = self.nodes.get_mut(&id).ok_or_else(|| CatalogError::not_found("node", &id))?;
        let change = change.clone();
        node.url = change.url.unwrap_or_else(|| node.url.clone());
        node.domain = change.domain.unwrap_or_else(|| node.domain.clone());
        node.state = change.state.unwrap_or(node.state);
        node.options = change.options.unwrap_or_else(|| node.options.clone());
        node.capacity_bytes = change.capacity_bytes.unwrap_or(node.capacity_bytes);
        Ok(())
    }

    pub(super) fn node_usage(&self) -> Vec<NodeUsage> {
        let objects = || self.segments.values().flat_map(ObjectPlace::objects);
        let usage = |node: &NodeId| {
            let lengths = objects().filter(|(on, ..)| on == node).map(|(.., bytes)| bytes);
            let (shards, bytes) = lengths.fold((0, 0), |(shards, sum), bytes| (shards + 1, sum + bytes));
            NodeUsage { node: *node, shards, bytes }
        };
        self.nodes.keys().map(usage).collect()
    }

    pub(super) fn remove_node(&mut self, id: NodeId, force: bool) -> Result<()> {
        let name = self.node(id)?.name.clone();
        let is_on = |placement: &Placement| placement.present().any(|(_, shard)| shard.node == id);
        let held = self.segments_where(None, u32::MAX, is_on);
        if !force && (!held.is_empty() || self.doomed.values().any(|object| object.node == id)) {
            return Err(CatalogError::NodeInUse { name });
        }
        let is_failed = |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.state == NodeState::Failed);
        let in_service = !is_failed(&id);
        let is_lost = |held: &&SegmentPlace| {
            let placement = &held.place.placement;
            let on_failed =
                placement.present().filter(|(_, shard)| in_service && is_failed(&shard.node)).count();
            spare(placement) <= on_failed
        };
        let lost = held.iter().filter(is_lost).count();
        if lost > 0 {
            return Err(CatalogError::SegmentsLost { name, segments: lost as u64 });
        }
        for SegmentPlace { id: segment, place } in held {
            let left = |shard: &Option<_>| shard.filter(|shard: &ShardPlace| shard.node != id);
            let shards = place.placement.shards().iter().map(left).collect();
            let placement =
                Placement::new(place.placement.profile(), shards).expect("it has a shard to spare");
            self.segments.get_mut(&segment).expect("it is held").placement = placement;
        }
        self.doomed.retain(|_, object| object.node != id);
        self.nodes.remove(&id);
        Ok(())
    }

    pub(super) fn place_shards(&mut self, change: &PlacementChange) -> Result<()> {
        change.check()?;
        let segment = change.segment;
        match self.segments.get(&segment) {
            Some(place) if *place == change.to => return Ok(()),
            Some(place) if *place == change.from => {}
            Some(_) if is_planted(Bug::PlaceOverChange) => {}
            _ => return Err(CatalogError::PlacementChanged { segment }),
        }
        self.check_nodes(&change.to)?;
        if let Some((node, key, _)) = change.added().iter().find(|(node, key, _)| self.is_doomed(*node, key))
        {
            return Err(object_is_doomed(*node, key));
        }
        self.segments.insert(segment, change.to.clone());
        self.doom(segment, change.left());
        Ok(())
    }

    pub(super) fn segments_where(
        &self,
        after: Option<SegmentId>,
        limit: u32,
        is_wanted: impl Fn(&Placement) -> bool,
    ) -> Vec<SegmentPlace> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted =
            self.segments.range((from, Bound::Unbounded)).filter(|(_, place)| is_wanted(&place.placement));
        let places = wanted.map(|(id, place)| SegmentPlace { id: *id, place: place.clone() });
        places.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect()
    }

    pub(super) fn totals(&self) -> Totals {
        let count = |is_wanted: fn(&Placement) -> bool| {
            self.segments.values().filter(|place| is_wanted(&place.placement)).count() as u64
        };
        Totals {
            degraded_segments: count(|placement| placement.missing() > 0),
            at_risk_segments: count(is_at_risk),
            ..self.totals
        }
    }
}
