//! Desired placement minus actual placement, of one segment.
//!
//! - A shard stays where it is while its node is in service. It is made anew when it is not anywhere, when its node is declared failed or drained, or when what is
//!   there was found damaged; and, where that is asked for, when rendezvous hashing wants it elsewhere by now.
//! - Shards on failed and drained nodes stay named until their successors are there: a node that comes back still has them.
//! - Whole copies are the same object under every profile of copies: between those, copies are added or left out, and none is made twice.
//! - Nothing is planned that would leave fewer shards than it takes to read, or two on one node.

use cairn_metadata::NodeState;
use cairn_model::{NodeId, ObjectPlace, Placement, Profile, SegmentId, ShardPlace};
use cairn_segment_writer::{Candidate, choose};
use std::fmt;

/// A data node as healing sees it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Node {
    pub(super) candidate: Candidate,
    pub(super) state: NodeState,
    pub(super) answers: bool,
    /// It answers and takes what is put.
    pub(super) takes: bool,
    /// It does not hold what it was said to have room for: those that have are given shards first.
    pub(super) has_room: bool,
}

/// What placements are to be like.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct View {
    pub(super) profile: Profile,
    pub(super) nodes: Vec<Node>,
}

/// What is to be done about a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Plan {
    Done,
    /// Something is to be done, and cannot be as things are.
    Waits(Wait),
    Shards(ShardPlan),
    /// All of it is made anew from there, as an object of the pool's profile, on these nodes.
    Convert(ObjectPlace, Vec<NodeId>),
}

/// Shards that are made one by one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ShardPlan {
    /// What they are made from: the segment as an object of the profile that it will have.
    pub(super) source: ObjectPlace,
    /// The shards as they stay, as far as they are not made anew.
    pub(super) kept: Vec<Option<ShardPlace>>,
    pub(super) made: Vec<(usize, NodeId)>,
    /// Copies are left out that may be good: those that stay are to be verified before.
    pub(super) drops: bool,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Wait {
    /// For nodes to put shards on.
    Nodes { shards: usize },
    /// For nodes of another profile.
    Profile { profile: Profile, nodes: usize },
    /// For nodes that have what it takes to read.
    Readable,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes { shards } => {
                write!(f, "{shards} of its shards wait for a data node that has none of them and takes them: add one, or bring one back")
            }
            Self::Profile { profile, nodes } => write!(
                f,
                "profile {profile} needs {} data nodes in service, and {nodes} are: add nodes, or choose another profile",
                profile.shards()
            ),
            Self::Readable => {
                f.write_str("too few of its shards are left to make the others from: bring back the data nodes that have them")
            }
        }
    }
}

impl View {
    /// Whether what is to be done is the same. Which nodes take puts, and have room, comes and goes with what is done.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let is_like = |(one, other): (&Node, &Node)| {
            (&one.candidate, one.state, one.answers) == (&other.candidate, other.state, other.answers)
        };
        self.profile == other.profile
            && self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(is_like)
    }

    /// With only those nodes taking puts, and having room, that do so in both.
    pub(super) fn weaken(&mut self, other: &Self) {
        for node in &mut self.nodes {
            let same = other.nodes.iter().find(|same| same.candidate.id == node.candidate.id);
            node.takes &= same.is_some_and(|same| same.takes);
            node.has_room &= same.is_some_and(|same| same.has_room);
        }
    }

    /// Whether what was in its place as this says is so as `other` says: no node takes puts there, or has room, that did not here.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let covers =
            |(one, other): (&Node, &Node)| (one.takes || !other.takes) && (one.has_room || !other.has_room);
        self.is_like(other) && self.nodes.iter().zip(&other.nodes).all(covers)
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.candidate.id == id)
    }

    /// Whether a node answers; `None` where it is not known.
    pub(super) fn answers(&self, id: NodeId) -> Option<bool> {
        self.node(id).map(|node| node.answers)
    }

    fn state(&self, id: NodeId) -> NodeState {
        self.node(id).map_or(NodeState::Failed, |node| node.state)
    }

    fn takes(&self, id: NodeId) -> bool {
        self.node(id).is_some_and(|node| node.state == NodeState::Active && node.takes)
    }

    /// Active nodes of which `wanted` is true, best first for the segment.
    fn chosen(&self, segment: SegmentId, profile: Profile, wanted: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        let active = self.nodes.iter().filter(|node| node.state == NodeState::Active && wanted(node));
        let candidates: Vec<Candidate> = active.map(|node| node.candidate.clone()).collect();
        choose(segment, profile, &candidates)
    }

    fn domain(&self, id: NodeId) -> Option<&str> {
        self.node(id)?.candidate.domain.as_deref()
    }

    /// Shards that may still be lost before the segment is: those on failed nodes and on silent ones that are drained, and `lost` ones, do not count.
    pub(super) fn spare(&self, place: &ObjectPlace, lost: &[usize]) -> usize {
        let is_there = |id: NodeId| {
            self.node(id).is_some_and(|node| match node.state {
                NodeState::Active => true,
                // Nobody declares it failed: it is on its way out.
                NodeState::Draining => node.answers,
                NodeState::Failed => false,
            })
        };
        let there =
            place.placement.present().filter(|(index, shard)| !lost.contains(index) && is_there(shard.node));
        there.count().saturating_sub(place.placement.profile().needed())
    }

    /// Whether the next loss may be one too many, where there could be more shards.
    pub(super) fn is_at_risk(&self, place: &ObjectPlace, lost: &[usize]) -> bool {
        place.placement.profile().tolerates() > 0 && self.spare(place, lost) == 0
    }

    /// The plan for a segment. `lost` are shards that were found missing or damaged where the catalog says they are. With `rebalance`, shards go where they would be put
    /// today.
    pub(super) fn plan(
        &self,
        segment: SegmentId,
        place: &ObjectPlace,
        lost: &[usize],
        rebalance: bool,
    ) -> Plan {
        let (now, wanted) = (place.placement.profile(), self.profile);
        let in_service = self.nodes.iter().filter(|node| self.takes(node.candidate.id)).count();
        if now == wanted {
            return self.plan_shards(
                segment,
                place,
                wanted,
                place.placement.shards().to_vec(),
                lost,
                rebalance,
            );
        }
        if in_service < wanted.shards() {
            // As good as it can be meanwhile.
            return match self.plan_shards(segment, place, now, place.placement.shards().to_vec(), lost, false)
            {
                Plan::Done => Plan::Waits(Wait::Profile { profile: wanted, nodes: in_service }),
                plan => plan,
            };
        }
        if is_whole(now) && is_whole(wanted) {
            let slots = self.best_copies(segment, place, lost, wanted);
            return self.plan_shards(segment, place, wanted, slots, &[], rebalance);
        }
        let Some(source) = self.source(place, now, place.placement.shards(), lost) else {
            return Plan::Waits(Wait::Readable);
        };
        let mut nodes = self.chosen(segment, wanted, |node| node.takes && node.has_room);
        if nodes.len() < wanted.shards() {
            nodes = self.chosen(segment, wanted, |node| node.takes);
        }
        if nodes.len() < wanted.shards() {
            return Plan::Waits(Wait::Profile { profile: wanted, nodes: nodes.len() });
        }
        Plan::Convert(source, nodes)
    }

    /// As many copies as the profile has, the best ones: those that need not be made anew, and of these the ones that are where they belong.
    fn best_copies(
        &self,
        segment: SegmentId,
        place: &ObjectPlace,
        lost: &[usize],
        profile: Profile,
    ) -> Vec<Option<ShardPlace>> {
        let ideal = self.chosen(segment, profile, |_| true);
        let there = place.placement.present().filter(|(index, _)| !lost.contains(index));
        let mut copies: Vec<ShardPlace> = there.map(|(_, shard)| shard).collect();
        copies.sort_by_key(|copy| {
            let state = match self.state(copy.node) {
                NodeState::Active if self.takes(copy.node) => 0,
                NodeState::Active => 1,
                NodeState::Draining => 2,
                NodeState::Failed => 3,
            };
            (state, !ideal.contains(&copy.node))
        });
        let mut slots: Vec<_> = copies.into_iter().map(Some).collect();
        slots.resize(profile.shards(), None);
        slots
    }

    /// What shards can be made from: what is on nodes that answer. Failed ones only if it takes them.
    fn source(
        &self,
        place: &ObjectPlace,
        profile: Profile,
        shards: &[Option<ShardPlace>],
        lost: &[usize],
    ) -> Option<ObjectPlace> {
        let of = |takes_failed: bool| {
            let shards = shards.iter().enumerate().map(|(index, shard)| {
                shard.filter(|shard| {
                    let node = self.node(shard.node).filter(|node| node.answers);
                    let is_good = node.is_some_and(|node| takes_failed || node.state != NodeState::Failed);
                    is_good && !lost.contains(&index)
                })
            });
            let placement = Placement::new(profile, shards.collect())?;
            Some(ObjectPlace { key: place.key.clone(), length_bytes: place.length_bytes, placement })
        };
        of(false).or_else(|| of(true))
    }

    fn plan_shards(
        &self,
        segment: SegmentId,
        place: &ObjectPlace,
        profile: Profile,
        shards: Vec<Option<ShardPlace>>,
        lost: &[usize],
        rebalance: bool,
    ) -> Plan {
        let source = self.source(place, profile, &shards, lost);
        let mut kept = shards;
        for index in lost {
            if let Some(shard) = kept.get_mut(*index) {
                *shard = None;
            }
        }
        let is_settled = |shard: &Option<ShardPlace>| {
            shard.is_some_and(|shard| self.state(shard.node) == NodeState::Active)
        };
        let settled: Vec<NodeId> =
            kept.iter().filter(|shard| is_settled(shard)).flatten().map(|shard| shard.node).collect();
        let mut vacant: Vec<usize> = (0..kept.len()).filter(|index| !is_settled(&kept[*index])).collect();
        // Where nodes are few: first what is nowhere, then what may be on a failed node, then what is only to leave.
        vacant.sort_by_key(|index| kept[*index].map(|shard| self.state(shard.node) == NodeState::Draining));
        let mut made = Vec::new();
        if !vacant.is_empty() {
            let is_old = profile == place.placement.profile();
            let old = if is_old { place.placement.shards() } else { &[] };
            made = self.nodes_for(&vacant, segment, profile, (old, lost), &settled);
        } else if rebalance {
            let here: Vec<NodeId> = kept.iter().flatten().map(|shard| shard.node).collect();
            let ideal =
                self.chosen(segment, profile, |node| node.has_room || here.contains(&node.candidate.id));
            let misplaced = (0..kept.len())
                .filter(|index| kept[*index].is_some_and(|shard| !ideal.contains(&shard.node)));
            let free = ideal.iter().copied().filter(|node| self.takes(*node) && !settled.contains(node));
            made.extend(misplaced.zip(free));
        }
        let unplaced = vacant.len().saturating_sub(made.len());
        let is_made = |index: usize| made.iter().any(|(made, _)| *made == index);
        // What is found lost and gets no successor stays: its node may only be slow.
        if profile == place.placement.profile() {
            for index in lost.iter().copied().filter(|index| !is_made(*index)) {
                if let Some(slot) = kept.get_mut(index) {
                    *slot = place.placement.shards().get(index).copied().flatten();
                }
            }
        }
        let named = |shards: &[Option<ShardPlace>]| shards.iter().flatten().copied().collect::<Vec<_>>();
        let (before, after) = (named(place.placement.shards()), named(&kept));
        let is_as_it_was = profile == place.placement.profile() && before == after;
        if made.is_empty() && (is_as_it_was || after.len() < profile.needed()) {
            return if unplaced > 0 { Plan::Waits(Wait::Nodes { shards: unplaced }) } else { Plan::Done };
        }
        let Some(source) = source else { return Plan::Waits(Wait::Readable) };
        let drops = lost.is_empty() && before.iter().any(|shard| !after.contains(shard));
        let is_unseen = |index: usize| {
            kept[index].is_some() && !is_made(index) && source.placement.shards()[index].is_none()
        };
        if drops && (0..kept.len()).any(is_unseen) {
            // A copy that would stay is on a node that does not answer: nobody can say whether it is good.
            return Plan::Waits(Wait::Readable);
        }
        Plan::Shards(ShardPlan { source, kept, made, drops })
    }
    /// Nodes for those `vacant` shards that there are nodes for, none of which has a shard that is `settled`. `old` are the shards of the same profile as they are named,
    /// and those with the indices `lost` cannot be read.
    fn nodes_for(
        &self,
        vacant: &[usize],
        segment: SegmentId,
        profile: Profile,
        (old, lost): (&[Option<ShardPlace>], &[usize]),
        settled: &[NodeId],
    ) -> Vec<(usize, NodeId)> {
        let chosen = |has_room: bool| -> Vec<NodeId> {
            let is_wanted = |node: &Node| {
                (node.takes && (node.has_room || !has_room)) || settled.contains(&node.candidate.id)
            };
            let chosen = self.chosen(segment, profile, is_wanted).into_iter();
            chosen.filter(|node| self.takes(*node) && !settled.contains(node)).collect()
        };
        let mut free = chosen(true);
        if free.len() < vacant.len() {
            let full: Vec<_> = chosen(false).into_iter().filter(|node| !free.contains(node)).collect();
            free.extend(full);
        }
        let node_of = |index: &usize| old.get(*index).copied().flatten().map(|shard| shard.node);
        // What cannot be read on a node may be there all the same: no other shard goes to it.
        let is_reserved = |node: &NodeId| lost.iter().any(|index| node_of(index) == Some(*node));
        let mut used = settled.to_vec();
        let mut made = Vec::new();
        for index in vacant {
            // A node that lost its shard gets it again, if it is to have one.
            let same = free.iter().position(|node| Some(*node) == node_of(index));
            let apart = || {
                let is_crowded = |node: &NodeId| {
                    self.domain(*node)
                        .is_some_and(|domain| used.iter().any(|used| self.domain(*used) == Some(domain)))
                };
                let is_free = |node: &NodeId| !is_reserved(node);
                free.iter()
                    .position(|node| is_free(node) && !is_crowded(node))
                    .or_else(|| free.iter().position(is_free))
            };
            // Another one may have a node that this one must not have.
            let Some(at) = same.or_else(apart) else { continue };
            let node = free.remove(at);
            used.push(node);
            made.push((*index, node));
        }
        made
    }
}

const fn is_whole(profile: Profile) -> bool {
    matches!(profile, Profile::Single | Profile::Replica { .. })
}

#[cfg(test)]
mod tests;
