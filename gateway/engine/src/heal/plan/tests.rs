//! What is planned, and what never is.

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
        Plan::Convert(_, nodes) => {
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
fn no_copy_is_left_out_for_one_that_nobody_can_see() {
    let mut view = view(4, Profile::replica(2).unwrap());
    view.nodes[2].state = NodeState::Draining;
    let place = place(Profile::replica(3).unwrap(), &[Some(0), Some(1), Some(2)]);
    let Plan::Shards(plan) = view.plan(SEGMENT, &place, &[], false) else { panic!() };
    assert!(plan.drops, "all of them answer");
    (view.nodes[1].answers, view.nodes[1].takes) = (false, false);
    assert_eq!(view.plan(SEGMENT, &place, &[], false), Plan::Waits(Wait::Readable));
}

#[test]
fn what_is_found_lost_stays_until_it_has_a_successor() {
    let profile = Profile::replica(2).unwrap();
    let mut view = view(2, profile);
    let place = place(profile, &[Some(0), Some(1)]);
    assert_eq!(made(&view.plan(SEGMENT, &place, &[1], false)), [(1, id(1))], "in its place");
    view.nodes[1].takes = false;
    assert_eq!(view.plan(SEGMENT, &place, &[1], false), Plan::Waits(Wait::Nodes { shards: 1 }));
}

#[test]
fn what_has_no_node_keeps_no_other_shard_from_its_own() {
    let profile = Profile::replica(3).unwrap();
    let mut view = view(3, profile);
    (view.nodes[2].answers, view.nodes[2].takes) = (false, false);
    let place = place(profile, &[None, Some(0), Some(1)]);
    assert_eq!(made(&view.plan(SEGMENT, &place, &[2], false)), [(2, id(1))]);
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
    let Plan::Convert(_, nodes) = view.plan(SEGMENT, &single, &[], false) else { panic!() };
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
                    prop_assert!(is_there, "nothing goes without a successor");
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
