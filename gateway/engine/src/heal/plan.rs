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
    /// All of it is made anew, as an object of the pool's profile, on these nodes.
    Convert(Vec<NodeId>),
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
        choose(segment, profile, &candidates).nodes
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
        if self.source(place, now, place.placement.shards(), lost).is_none() {
            return Plan::Waits(Wait::Readable);
        }
        let mut nodes = self.chosen(segment, wanted, |node| node.takes && node.has_room);
        if nodes.len() < wanted.shards() {
            nodes = self.chosen(segment, wanted, |node| node.takes);
        }
        if nodes.len() < wanted.shards() {
            return Plan::Waits(Wait::Profile { profile: wanted, nodes: nodes.len() });
        }
        Plan::Convert(nodes)
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
            let free = |has_room: bool| -> Vec<NodeId> {
                let is_wanted = |node: &Node| {
                    (node.takes && (node.has_room || !has_room)) || settled.contains(&node.candidate.id)
                };
                let chosen = self.chosen(segment, profile, is_wanted).into_iter();
                chosen.filter(|node| self.takes(*node) && !settled.contains(node)).collect()
            };
            let mut roomy = free(true);
            if roomy.len() < vacant.len() {
                let others: Vec<_> = free(false).into_iter().filter(|node| !roomy.contains(node)).collect();
                roomy.extend(others);
            }
            let mut free = roomy;
            // A node that lost its shard gets it again, if it is to have one.
            let old = place.placement.shards();
            let mut used = settled.clone();
            for index in &vacant {
                let here = old.get(*index).copied().flatten().map(|shard| shard.node);
                let same =
                    free.iter().position(|node| Some(*node) == here && profile == place.placement.profile());
                let apart = || {
                    let crowded = |node: &NodeId| {
                        self.domain(*node)
                            .is_some_and(|domain| used.iter().any(|used| self.domain(*used) == Some(domain)))
                    };
                    free.iter().position(|node| !crowded(node)).or(if free.is_empty() {
                        None
                    } else {
                        Some(0)
                    })
                };
                let Some(at) = same.or_else(apart) else { break };
                let node = free.remove(at);
                used.push(node);
                made.push((*index, node));
            }
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
        let named = |shards: &[Option<ShardPlace>]| shards.iter().flatten().copied().collect::<Vec<_>>();
        let (before, after) = (named(place.placement.shards()), named(&kept));
        let is_as_it_was = profile == place.placement.profile() && before == after;
        if made.is_empty() && (is_as_it_was || after.len() < profile.needed()) {
            return if unplaced > 0 { Plan::Waits(Wait::Nodes { shards: unplaced }) } else { Plan::Done };
        }
        let Some(source) = source else { return Plan::Waits(Wait::Readable) };
        let drops = lost.is_empty() && before.iter().any(|shard| !after.contains(shard));
        Plan::Shards(ShardPlan { source, kept, made, drops })
    }
}

const fn is_whole(profile: Profile) -> bool {
    matches!(profile, Profile::Single | Profile::Replica { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn id(number: usize) -> NodeId {
        NodeId::from_bytes([u8::try_from(number).unwrap() + 1; 16])
    }

    fn node(number: usize, domain: Option<&str>) -> Node {
        let candidate = Candidate { id: id(number), domain: domain.map(Arc::from), weight: 1 };
        Node { candidate, state: NodeState::Active, answers: true, takes: true, has_room: true }
    }

    fn view(nodes: usize, profile: Profile) -> View {
        View { profile, nodes: (0..nodes).map(|number| node(number, None)).collect() }
    }

    const SEGMENT: SegmentId = SegmentId::from_bytes([7; 16]);

    fn place(profile: Profile, nodes: &[Option<usize>]) -> ObjectPlace {
        let shards = nodes.iter().map(|node| node.map(|node| ShardPlace { node: id(node), tag: 0 }));
        let placement = Placement::new(profile, shards.collect()).unwrap();
        ObjectPlace { key: "segments/a".to_owned(), length_bytes: 1000, placement }
    }

    /// On the nodes where it would be put.
    fn placed(view: &View) -> ObjectPlace {
        let nodes = view.chosen(SEGMENT, view.profile, |_| true);
        let shards = nodes.into_iter().map(|node| Some(ShardPlace { node, tag: 0 }));
        let placement = Placement::new(view.profile, shards.collect()).unwrap();
        ObjectPlace { key: "segments/a".to_owned(), length_bytes: 1000, placement }
    }

    /// Where the segment is when all of the plan was done.
    fn done(view: &View, place: &ObjectPlace, plan: &Plan) -> Option<ObjectPlace> {
        let placement = match plan {
            Plan::Done | Plan::Waits(_) => return None,
            Plan::Shards(plan) => {
                let mut shards = plan.kept.clone();
                for (index, node) in &plan.made {
                    shards[*index] = Some(ShardPlace { node: *node, tag: 1 });
                }
                Placement::new(plan.source.placement.profile(), shards).expect("enough, each on its own node")
            }
            Plan::Convert(nodes) => {
                let shards = nodes.iter().map(|node| Some(ShardPlace { node: *node, tag: 1 }));
                Placement::new(view.profile, shards.collect()).expect("as many as the profile has")
            }
        };
        Some(ObjectPlace { placement, ..place.clone() })
    }

    fn made(plan: &Plan) -> &[(usize, NodeId)] {
        let Plan::Shards(plan) = plan else { panic!("{plan:?}") };
        &plan.made
    }

    #[test]
    fn what_is_in_its_place_stays_there() {
        let view = view(6, Profile::ec(2, 1).unwrap());
        let place = placed(&view);
        for rebalance in [false, true] {
            assert_eq!(view.plan(SEGMENT, &place, &[], rebalance), Plan::Done);
        }
    }

    #[test]
    fn missing_shards_and_those_of_failed_and_drained_nodes_are_made_elsewhere() {
        let profile = Profile::ec(2, 2).unwrap();
        let mut view = view(7, profile);
        view.nodes[1].state = NodeState::Failed;
        view.nodes[2].state = NodeState::Draining;
        let plan = view.plan(SEGMENT, &place(profile, &[Some(0), Some(1), Some(2), None]), &[], false);
        let made = made(&plan);
        assert_eq!(made.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3, 1, 2]);
        assert!(made.iter().all(|(_, node)| ![id(0), id(1), id(2)].contains(node)), "{made:?}");
        let Plan::Shards(plan) = plan else { panic!() };
        assert_eq!(plan.source.placement.shards()[1], None, "nobody counts on a failed node");
        assert!(plan.source.placement.shards()[2].is_some(), "a drained one is read");
    }

    #[test]
    fn the_only_free_node_gets_what_is_nowhere() {
        let profile = Profile::ec(2, 2).unwrap();
        let mut view = view(5, profile);
        view.nodes[0].state = NodeState::Draining;
        view.nodes[1].state = NodeState::Failed;
        let place = place(profile, &[Some(0), Some(1), Some(2), None]);
        assert_eq!(made(&view.plan(SEGMENT, &place, &[], false)), [(3, id(3)), (1, id(4))]);
        view.nodes[4].takes = false;
        assert_eq!(made(&view.plan(SEGMENT, &place, &[], false)), [(3, id(3))]);
        assert_eq!(view.spare(&place, &[]), 0, "what is on the failed node does not count");
        view.nodes[0].answers = false;
        view.nodes[1].state = NodeState::Active;
        assert_eq!(view.spare(&place, &[]), 0, "nor what is on a silent one that is drained");
    }

    #[test]
    fn full_nodes_get_what_no_other_one_takes() {
        let profile = Profile::replica(3).unwrap();
        let mut view = view(4, profile);
        view.nodes[2].has_room = false;
        let one = place(profile, &[Some(0), Some(1), None]);
        assert_eq!(made(&view.plan(SEGMENT, &one, &[], false)), [(2, id(3))]);
        view.nodes[3].has_room = false;
        assert_eq!(made(&view.plan(SEGMENT, &one, &[], false)).len(), 1, "better there than nowhere");
        view.nodes[3].takes = false;
        assert_eq!(made(&view.plan(SEGMENT, &one, &[], false)), [(2, id(2))]);
        // Nothing is moved there.
        view.nodes[3].takes = true;
        view.nodes[2].has_room = true;
        let elsewhere = place(profile, &[Some(0), Some(1), Some(2)]);
        assert_eq!(view.plan(SEGMENT, &elsewhere, &[], true), Plan::Done);
        let all = self::view(4, profile);
        assert!(view.is_like(&all) && all.covers(&view) && !view.covers(&all));
        let mut weak = all.clone();
        weak.weaken(&view);
        assert_eq!(weak, view);
    }

    #[test]
    fn nodes_that_are_silent_keep_what_they_have_and_get_nothing() {
        let profile = Profile::replica(3).unwrap();
        let mut view = view(4, profile);
        view.nodes[0].takes = false;
        view.nodes[3].takes = false;
        let place = place(profile, &[Some(0), Some(1), None]);
        let plan = view.plan(SEGMENT, &place, &[], false);
        assert_eq!(made(&plan), [(2, id(2))]);
        view.nodes[2].takes = false;
        assert_eq!(view.plan(SEGMENT, &place, &[], false), Plan::Waits(Wait::Nodes { shards: 1 }));
    }

    #[test]
    fn what_is_lost_is_made_anew_where_it_was() {
        let view = view(6, Profile::ec(4, 2).unwrap());
        let place = placed(&view);
        let here = place.placement.shards()[2].unwrap().node;
        assert_eq!(made(&view.plan(SEGMENT, &place, &[2], false)), [(2, here)]);
        assert_eq!(view.plan(SEGMENT, &place, &[0, 1, 2], false), Plan::Waits(Wait::Readable));
        let mut away = view.clone();
        let node = away
            .nodes
            .iter_mut()
            .find(|node| Some(node.candidate.id) == place.placement.shards()[0].map(|shard| shard.node));
        let node = node.unwrap();
        (node.answers, node.takes) = (false, false);
        assert_eq!(
            away.plan(SEGMENT, &place, &[1, 2], false),
            Plan::Waits(Wait::Readable),
            "nobody waits for a silent node"
        );
        assert!(view.is_at_risk(&place, &[0, 1]) && !view.is_at_risk(&place, &[0]));
    }

    #[test]
    fn a_shard_goes_where_no_other_one_of_its_domain_is() {
        let profile = Profile::replica(3).unwrap();
        let domains = ["a", "a", "a", "a", "b", "c"];
        let nodes = domains.iter().enumerate().map(|(number, domain)| node(number, Some(domain)));
        let view = View { profile, nodes: nodes.collect() };
        let plan = view.plan(SEGMENT, &place(profile, &[Some(0), Some(4), None]), &[], false);
        assert_eq!(made(&plan), [(2, id(5))]);
    }

    #[test]
    fn copies_are_added_and_left_out_and_not_made_again() {
        let mut view = view(5, Profile::replica(3).unwrap());
        let plan = view.plan(SEGMENT, &place(Profile::Single, &[Some(4)]), &[], false);
        let Plan::Shards(grown) = &plan else { panic!("{plan:?}") };
        assert_eq!(grown.kept[0].unwrap().node, id(4));
        assert_eq!((grown.made.len(), grown.drops), (2, false));
        view.profile = Profile::Single;
        view.nodes[1].takes = false;
        let three = place(Profile::replica(3).unwrap(), &[Some(1), Some(2), Some(3)]);
        let plan = view.plan(SEGMENT, &three, &[], false);
        let Plan::Shards(shrunk) = &plan else { panic!("{plan:?}") };
        assert!(shrunk.made.is_empty() && shrunk.drops);
        assert!([id(2), id(3)].contains(&shrunk.kept[0].unwrap().node), "not the silent one");
    }

    #[test]
    fn other_profiles_are_made_anew_when_there_are_nodes_enough() {
        let ec = Profile::ec(2, 1).unwrap();
        let mut view = view(3, ec);
        let single = place(Profile::Single, &[Some(1)]);
        let Plan::Convert(nodes) = view.plan(SEGMENT, &single, &[], false) else { panic!() };
        assert_eq!(nodes.len(), 3);
        view.nodes[0].state = NodeState::Draining;
        let wait = Plan::Waits(Wait::Profile { profile: ec, nodes: 2 });
        assert_eq!(view.plan(SEGMENT, &single, &[], false), wait);
        // Meanwhile it is repaired as it is.
        view.profile = Profile::ec(4, 2).unwrap();
        let plan = view.plan(SEGMENT, &place(Profile::replica(2).unwrap(), &[Some(1), None]), &[], false);
        assert_eq!(made(&plan), [(1, id(2))]);
    }

    #[test]
    fn a_new_node_gets_what_belongs_to_it_and_nothing_else_moves() {
        let profile = Profile::ec(2, 1).unwrap();
        let (before, after) = (view(5, profile), view(6, profile));
        let mut moved = 0;
        for number in 0..600u32 {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            let segment = SegmentId::from_bytes(bytes);
            let nodes = before.chosen(segment, profile, |_| true);
            let shards = nodes.into_iter().map(|node| Some(ShardPlace { node, tag: 0 }));
            let placement = Placement::new(profile, shards.collect()).unwrap();
            let place = ObjectPlace { key: "k".to_owned(), length_bytes: 1, placement };
            match after.plan(segment, &place, &[], true) {
                Plan::Done => {}
                plan => {
                    assert!(made(&plan).iter().all(|(_, node)| *node == id(5)), "{plan:?}");
                    moved += made(&plan).len();
                }
            }
        }
        assert!((270..=330).contains(&moved), "{moved} of 1800 shards, a sixth is 300");
    }

    fn profile() -> impl Strategy<Value = Profile> {
        prop_oneof![
            Just(Profile::Single),
            (2u8..5).prop_map(|copies| Profile::replica(copies).unwrap()),
            (2u8..5, 1u8..3).prop_map(|(data, parity)| Profile::ec(data, parity).unwrap()),
        ]
    }

    fn some_view() -> impl Strategy<Value = View> {
        let state = prop_oneof![
            4 => Just(NodeState::Active), 1 => Just(NodeState::Draining), 1 => Just(NodeState::Failed),
        ];
        let nodes = prop::collection::vec((state, prop::bool::weighted(0.8), 0usize..4), 1..9);
        (profile(), nodes).prop_map(|(profile, nodes)| {
            let nodes = nodes.into_iter().enumerate().map(|(number, (state, takes, domain))| Node {
                state,
                takes,
                has_room: number % 4 > 0,
                answers: takes || number % 3 > 0,
                ..node(number, ["a", "b", "c"].get(domain).copied())
            });
            View { profile, nodes: nodes.collect() }
        })
    }

    proptest! {
        #[test]
        fn plans_are_sound_and_come_to_an_end(
            view in some_view(), profile in profile(), order in Just((0..10).collect::<Vec<usize>>()).prop_shuffle(),
            missing in prop::collection::vec(prop::bool::weighted(0.2), 10),
            lost in prop::collection::btree_set(0usize..6, 0..3), rebalance: bool,
        ) {
            // Nodes 9 and 10 are not in the catalog any more.
            let nodes = order.iter().take(profile.shards()).zip(&missing).map(|(node, missing)| (!missing).then_some(*node));
            let shards = nodes.map(|node| node.map(|node| ShardPlace { node: id(node), tag: 0 }));
            let Some(placement) = Placement::new(profile, shards.collect()) else { return Ok(()) };
            let mut place = ObjectPlace { key: "k".to_owned(), length_bytes: 1, placement };
            let mut lost: Vec<usize> = lost.into_iter().filter(|index| *index < profile.shards()).collect();
            for round in 0.. {
                prop_assert!(round < 4, "it does not come to an end: {place:?}");
                let plan = view.plan(SEGMENT, &place, &lost, rebalance);
                let Some(to) = done(&view, &place, &plan) else { break };
                prop_assert_ne!(&to, &place);
                if to.placement.profile() == place.placement.profile() {
                    for (index, shard) in place.placement.present() {
                        let is_settled = view.state(shard.node) == NodeState::Active && !lost.contains(&index);
                        prop_assert!(rebalance || !is_settled || to.placement.shards()[index] == Some(shard));
                        let is_there = to.placement.shards()[index].is_some();
                        prop_assert!(is_there || lost.contains(&index), "nothing goes without a successor");
                    }
                }
                for (_, shard) in to.placement.present() {
                    let is_old = place.placement.present().any(|(_, old)| old == shard);
                    prop_assert!(is_old || view.takes(shard.node), "{shard:?} is new");
                }
                if let Plan::Shards(plan) = &plan {
                    let read = plan.source.placement.present().count();
                    prop_assert!(read >= plan.source.placement.profile().needed());
                    if profile == plan.source.placement.profile() {
                        prop_assert!(lost.iter().all(|index| plan.source.placement.shards()[*index].is_none()));
                    }
                }
                place = to;
                lost.clear();
            }
        }
    }
}
