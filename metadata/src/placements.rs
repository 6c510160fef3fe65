//! The pool as the catalog knows it: its settings, where segments are, and how that changes.

use crate::{CatalogError, NodeState};
use cairn_model::{NodeId, ObjectPlace, Placement, Profile, SegmentId};
use std::collections::BTreeSet;

/// What holds for the pool as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolSettings {
    /// How new segments are protected.
    pub profile: Profile,
}

/// What is to change in a node: what is `Some`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeChange {
    pub url: Option<String>,
    pub domain: Option<Option<String>>,
    pub state: Option<NodeState>,
    pub options: Option<String>,
    pub capacity_bytes: Option<Option<u64>>,
}

/// What a node holds of segments that the catalog has. What is doomed is not in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeUsage {
    pub node: NodeId,
    pub shards: u64,
    /// Sum of [`Profile::shard_bytes`].
    pub bytes: u64,
}

/// A segment and where it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentPlace {
    pub id: SegmentId,
    pub place: ObjectPlace,
}

/// A segment gets other shards: repaired, moved to other nodes, or converted to another profile. Key and length stay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlacementChange {
    pub segment: SegmentId,
    /// Where it must be, exactly.
    pub from: ObjectPlace,
    /// Where it is then. Objects that are not in `from` are in the pool by now, under keys that were never used before.
    pub to: ObjectPlace,
}

impl PlacementChange {
    /// The change that a shard is not there. `LastShards` when too few would be left.
    pub(crate) fn without(segment: SegmentId, from: ObjectPlace, shard: usize) -> Result<Self, CatalogError> {
        let placement = &from.placement;
        let mut shards = placement.shards().to_vec();
        if shards.get_mut(shard).and_then(Option::take).is_none() {
            return Err(CatalogError::Invalid(format!(
                "segment {segment} without shard {shard}, which it has not"
            )));
        }
        let left = Placement::new(placement.profile(), shards);
        let placement = left.ok_or(CatalogError::LastShards { segment, shard })?;
        let to = ObjectPlace { key: from.key.clone(), length_bytes: from.length_bytes, placement };
        Ok(Self { segment, from, to })
    }

    /// What can be said against the change without looking at the catalog.
    pub(crate) fn check(&self) -> Result<(), CatalogError> {
        let same = |place: &ObjectPlace| (place.key.clone(), place.length_bytes);
        if same(&self.from) == same(&self.to) {
            return Ok(());
        }
        Err(CatalogError::Invalid(format!("segment {} with another key or length than before", self.segment)))
    }

    /// Objects that are in one place and not in the other. A shard may have another number there: copies are all alike.
    fn only_in(one: &ObjectPlace, other: &ObjectPlace) -> Vec<(NodeId, String, u64)> {
        let others: BTreeSet<_> = other.objects().map(|(node, key, _)| (node, key)).collect();
        one.objects().filter(|(node, key, _)| !others.contains(&(*node, key.clone()))).collect()
    }

    /// Objects that the segment does not need any more.
    pub(crate) fn left(&self) -> Vec<(NodeId, String, u64)> {
        Self::only_in(&self.from, &self.to)
    }

    /// Objects that the segment did not have before.
    pub(crate) fn added(&self) -> Vec<(NodeId, String, u64)> {
        Self::only_in(&self.to, &self.from)
    }
}

/// Shards that are there beyond those that it takes to read.
pub(crate) fn spare(placement: &Placement) -> usize {
    placement.profile().tolerates() - placement.missing()
}

/// Whether one more loss loses data although the profile tolerates some. A `single` segment is never at risk in this sense: it is as protected as
/// it is meant to be.
pub(crate) fn is_at_risk(placement: &Placement) -> bool {
    placement.missing() > 0 && spare(placement) == 0
}

pub(crate) fn object_is_doomed(node: NodeId, key: &str) -> CatalogError {
    CatalogError::Invalid(format!("object {key} on node {node} is to be deleted: a key is never used again"))
}
