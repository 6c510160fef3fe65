//! Where segments are, what nodes hold, and what is to be deleted.

use super::cancellation::for_polls;
use super::{CatalogStore, Held, World, blocks, placed_segment, refusal};
use crate::{
    CatalogError, ContainerMove, MovedContainer, NodeChange, NodeState, NodeUsage, PlacementChange,
    PoolSettings, SegmentPlace,
};
use cairn_model::{
    ChunkIndex, ErrorKind, NodeId, ObjectPlace, PassId, Placement, Profile, SegmentId, ShardPlace,
};
use std::collections::{BTreeMap, BTreeSet};

const PASS: PassId = PassId::from_bytes([1; 16]);

fn ec() -> Profile {
    Profile::ec(2, 2).unwrap()
}

/// A shard on each of `nodes`, put with the segment; none where there is no node.
fn on(profile: Profile, nodes: &[Option<NodeId>]) -> Placement {
    let shards = nodes.iter().map(|node| node.map(|node| ShardPlace { node, tag: 0 })).collect();
    Placement::new(profile, shards).unwrap()
}

fn on_all(profile: Profile, nodes: &[NodeId]) -> Placement {
    on(profile, &nodes.iter().copied().map(Some).collect::<Vec<_>>())
}

/// The place with a shard elsewhere, or nowhere.
fn with_shard(place: &ObjectPlace, shard: usize, to: Option<ShardPlace>) -> ObjectPlace {
    let mut shards = place.placement.shards().to_vec();
    shards[shard] = to;
    ObjectPlace { placement: Placement::new(place.placement.profile(), shards).unwrap(), ..place.clone() }
}

type Objects = BTreeSet<(NodeId, String, u64)>;

fn objects<'a>(places: impl IntoIterator<Item = &'a ObjectPlace>) -> Objects {
    places.into_iter().flat_map(ObjectPlace::objects).collect()
}

async fn doomed(world: &World) -> Objects {
    let doomed = world.catalog.doomed_objects(None, u32::MAX).await.unwrap();
    let count = doomed.len();
    let objects: Objects =
        doomed.into_iter().map(|object| (object.node, object.key, object.length_bytes)).collect();
    assert_eq!(objects.len(), count, "each once");
    objects
}

/// Where the segment is, the same whichever way the catalog is asked; `None` when it is gone.
async fn place(world: &World, segment: SegmentId) -> Option<ObjectPlace> {
    let all = world.catalog.segment_places(None, u32::MAX).await.unwrap();
    let found = all.into_iter().find(|found| found.id == segment)?.place;
    for container in world.catalog.containers_before(None, u32::MAX).await.unwrap() {
        if container.segment == segment {
            assert_eq!(container.place, found);
            assert_eq!(world.catalog.containers(&[container.id]).await.unwrap(), [container]);
        }
    }
    Some(found)
}

/// Compares every sum and every page with what all segments together say.
async fn check_sums(world: &World) {
    let catalog = &world.catalog;
    let all = catalog.segment_places(None, u32::MAX).await.unwrap();
    assert!(all.is_sorted_by(|one, next| one.id < next.id));
    assert_eq!(catalog.last_segment().await.unwrap(), all.last().map(|last| last.id));
    let mut expected: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
    for (node, _, bytes) in all.iter().flat_map(|segment| segment.place.objects()) {
        let (shards, sum) = expected.entry(node).or_default();
        (*shards, *sum) = (*shards + 1, *sum + bytes);
    }
    let usage = catalog.node_usage().await.unwrap();
    assert_eq!(usage.len(), catalog.nodes().await.unwrap().len());
    for NodeUsage { node, shards, bytes } in usage {
        assert_eq!((shards, bytes), expected.remove(&node).unwrap_or_default(), "{node}");
        let on_node = all.iter().filter(|segment| segment.place.objects().any(|(on, ..)| on == node));
        let on_node: Vec<_> = on_node.cloned().collect();
        assert_eq!(catalog.segments_on(node, None, u32::MAX).await.unwrap(), on_node);
    }
    assert_eq!(expected, BTreeMap::new(), "all on nodes that are there");
    let degraded: Vec<_> =
        all.iter().filter(|segment| segment.place.placement.missing() > 0).cloned().collect();
    assert_eq!(catalog.degraded_segments(None, u32::MAX).await.unwrap(), degraded);
    let at_risk = degraded.iter().filter(|segment| {
        let placement = &segment.place.placement;
        placement.present().count() == placement.profile().needed()
    });
    let totals = catalog.totals().await.unwrap();
    assert_eq!(
        (totals.degraded_segments, totals.at_risk_segments),
        (degraded.len() as u64, at_risk.count() as u64)
    );
    let bytes: u64 = all.iter().map(|segment| segment.place.length_bytes).sum();
    assert_eq!((totals.segments, totals.segment_bytes), (all.len() as u64, bytes));
    let needed = objects(all.iter().map(|segment| &segment.place));
    let doomed = doomed(world).await;
    assert!(doomed.is_disjoint(&needed), "{doomed:?} {needed:?}");
}

/// A segment at `placement`, held by a fresh volume.
async fn segment_at(world: &World, placement: Placement) -> SegmentPlace {
    let name = format!("volume-{}", world.catalog.totals().await.unwrap().volumes);
    let mut held = world.held_volume(&name).await;
    let batch = world.commit_at(&mut held, blocks(0, 8), placement).await;
    let receipt = &batch.segments[0].receipt;
    SegmentPlace { id: receipt.segment(), place: receipt.place().clone() }
}

fn change(segment: &SegmentPlace, to: ObjectPlace) -> PlacementChange {
    PlacementChange { segment: segment.id, from: segment.place.clone(), to }
}

pub async fn a_segment_is_where_its_receipt_says(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(32).await;
    let mut segments = Vec::new();
    for placement in [
        on(ec(), &[Some(nodes[3]), None, Some(nodes[0]), Some(nodes[1])]),
        on_all(Profile::replica(3).unwrap(), &[nodes[2], nodes[1], nodes[0]]),
        on_all(Profile::ec(28, 4).unwrap(), &nodes),
        Placement::single(nodes[5]),
        Placement::new(Profile::Single, vec![Some(ShardPlace { node: nodes[5], tag: u32::MAX })]).unwrap(),
    ] {
        segments.push(segment_at(&world, placement).await);
    }
    let world = world.reopened(store).await;
    for segment in &segments {
        assert_eq!(place(&world, segment.id).await.as_ref(), Some(&segment.place));
    }
    let ids: Vec<_> =
        world.catalog.containers_before(None, 100).await.unwrap().iter().map(|found| found.id).collect();
    let found = world.catalog.containers(&ids).await.unwrap();
    let found: BTreeMap<_, _> =
        found.into_iter().map(|container| (container.segment, container.place)).collect();
    assert_eq!(found, segments.into_iter().map(|segment| (segment.id, segment.place)).collect());
    check_sums(&world).await;
}

pub async fn a_shard_on_an_unknown_node_commits_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(3).await;
    let held = world.held_volume("a").await;
    let unknown = NodeId::from_bytes([0xee; 16]);
    let mut batch = world.batch(&[(&held, blocks(0, 8))]);
    let placement = on_all(ec(), &[nodes[0], nodes[1], unknown, nodes[2]]);
    batch.segments = vec![placed_segment(batch.containers[0].segment, placement, 4096)];
    let refused = refusal(world.catalog.commit_batch(&batch).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no node {unknown}")));
    assert_eq!(world.progress(&held).await, (held.through, held.commit));
    assert_eq!(world.catalog.segment_places(None, 10).await.unwrap(), []);
    check_sums(&world).await;
}

pub async fn nodes_in_any_state_may_be_named(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(2).await;
    for (node, state) in [(nodes[0], NodeState::Draining), (nodes[1], NodeState::Failed)] {
        let to = NodeChange { state: Some(state), ..NodeChange::default() };
        world.catalog.update_node(node, &to).await.unwrap();
    }
    let segment = segment_at(&world, on_all(Profile::replica(2).unwrap(), &nodes)).await;
    assert_eq!(place(&world, segment.id).await, Some(segment.place));
    check_sums(&world).await;
}

pub async fn the_pool_keeps_its_settings(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    assert_eq!(catalog.pool_settings().await.unwrap(), PoolSettings { profile: Profile::Single });
    for profile in [Profile::replica(3).unwrap(), Profile::ec(4, 2).unwrap(), Profile::Single] {
        let settings = PoolSettings { profile };
        catalog.set_pool_settings(&settings).await.unwrap();
        assert_eq!(store.open().await.pool_settings().await.unwrap(), settings);
    }
}

pub async fn a_changed_place_dooms_what_it_left(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(6).await;
    let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let other = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let there = with_shard(&segment.place, 1, Some(ShardPlace { node: nodes[4], tag: 7 }));
    world.catalog.place_shards(&change(&segment, there.clone())).await.unwrap();

    let world = world.reopened(store).await;
    assert_eq!(place(&world, segment.id).await, Some(there.clone()));
    assert_eq!(place(&world, other.id).await, Some(other.place));
    let left = (nodes[1], format!("{}.ec2-2.1", segment.place.key), 2048);
    assert_eq!(doomed(&world).await, Objects::from([left.clone()]));
    let [object] = &world.catalog.doomed_objects(None, 10).await.unwrap()[..] else { panic!("one") };
    assert_eq!(object.segment, segment.id);
    check_sums(&world).await;
    // The same shard on the same node under another key.
    let moved = SegmentPlace { id: segment.id, place: there.clone() };
    let again = with_shard(&there, 1, Some(ShardPlace { node: nodes[4], tag: 8 }));
    world.catalog.place_shards(&change(&moved, again)).await.unwrap();
    let old = (nodes[4], format!("{}.ec2-2.1.00000007", segment.place.key), 2048);
    assert_eq!(doomed(&world).await, Objects::from([left, old]));
    check_sums(&world).await;
}

pub async fn a_change_from_another_place_changes_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(6).await;
    let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let there = with_shard(&segment.place, 1, Some(ShardPlace { node: nodes[4], tag: 7 }));
    let to = with_shard(&segment.place, 1, Some(ShardPlace { node: nodes[5], tag: 9 }));
    let swapped = on_all(ec(), &[nodes[1], nodes[0], nodes[2], nodes[3]]);
    for from in [
        there.clone(),
        with_shard(&segment.place, 0, None),
        with_shard(&segment.place, 0, Some(ShardPlace { node: nodes[0], tag: 1 })),
        ObjectPlace { placement: swapped, ..segment.place.clone() },
        ObjectPlace { placement: on_all(Profile::ec(3, 1).unwrap(), &nodes[..4]), ..segment.place.clone() },
    ] {
        let elsewhere = PlacementChange { segment: segment.id, from, to: to.clone() };
        let refused = world.catalog.place_shards(&elsewhere).await.unwrap_err();
        assert!(
            matches!(refused, CatalogError::PlacementChanged { segment: named } if named == segment.id),
            "{refused}"
        );
        assert_eq!(place(&world, segment.id).await.as_ref(), Some(&segment.place));
    }
    let gone = PlacementChange { segment: SegmentId::from_bytes([0xee; 16]), ..change(&segment, to) };
    assert_eq!(refusal(world.catalog.place_shards(&gone).await).0, ErrorKind::Conflict);
    assert_eq!(doomed(&world).await, Objects::new());
    check_sums(&world).await;
}

pub async fn a_change_done_again_is_no_error(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(6).await;
    let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let first = change(&segment, with_shard(&segment.place, 1, Some(ShardPlace { node: nodes[4], tag: 7 })));
    for _ in 0..2 {
        world.catalog.place_shards(&first).await.unwrap();
        assert_eq!(place(&world, segment.id).await.as_ref(), Some(&first.to));
        assert_eq!(doomed(&world).await.len(), 1);
        check_sums(&world).await;
    }
    let second = PlacementChange {
        segment: segment.id,
        from: first.to.clone(),
        to: with_shard(&first.to, 1, Some(ShardPlace { node: nodes[5], tag: 8 })),
    };
    world.catalog.place_shards(&second).await.unwrap();
    // Something else changed it since.
    assert_eq!(refusal(world.catalog.place_shards(&first).await).0, ErrorKind::Conflict);
    assert_eq!(place(&world, segment.id).await, Some(second.to));
    check_sums(&world).await;
}

pub async fn a_change_that_cannot_be_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let unknown = NodeId::from_bytes([0xee; 16]);
    let away = with_shard(&segment.place, 0, None);
    let there = with_shard(&segment.place, 0, Some(ShardPlace { node: unknown, tag: 1 }));
    let refused = refusal(world.catalog.place_shards(&change(&segment, there)).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no node {unknown}")));
    for to in [
        ObjectPlace { key: "other".to_owned(), ..away.clone() },
        ObjectPlace { length_bytes: 1, ..away.clone() },
    ] {
        assert_eq!(refusal(world.catalog.place_shards(&change(&segment, to)).await).0, ErrorKind::Internal);
    }
    assert_eq!(place(&world, segment.id).await.as_ref(), Some(&segment.place));
    assert_eq!(doomed(&world).await, Objects::new());
    // What is doomed may be deleted at any moment: it cannot be named again.
    world.catalog.place_shards(&change(&segment, away.clone())).await.unwrap();
    let back = PlacementChange { segment: segment.id, from: away.clone(), to: segment.place.clone() };
    assert_eq!(refusal(world.catalog.place_shards(&back).await).0, ErrorKind::Internal);
    assert_eq!(place(&world, segment.id).await, Some(away));
    check_sums(&world).await;
}

pub async fn a_segment_is_converted_to_another_profile(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let mut at = segment_at(&world, Placement::single(nodes[0])).await;
    let mut left = Objects::new();
    let replica = Profile::replica(2).unwrap();
    let copies = [Some(ShardPlace { node: nodes[1], tag: 5 }), Some(ShardPlace { node: nodes[0], tag: 0 })];
    for placement in [
        // The old object is one of the copies, with another number.
        Placement::new(replica, copies.to_vec()).unwrap(),
        on_all(ec(), &nodes),
        on_all(Profile::ec(3, 1).unwrap(), &nodes),
    ] {
        let to = ObjectPlace { placement, ..at.place.clone() };
        world.catalog.place_shards(&change(&at, to.clone())).await.unwrap();
        let now = objects([&to]);
        left.extend(objects([&at.place]).into_iter().filter(|object| !now.contains(object)));
        assert_eq!(doomed(&world).await, left);
        assert_eq!(place(&world, at.id).await.as_ref(), Some(&to));
        check_sums(&world).await;
        at.place = to;
    }
    assert_eq!(left.len(), 6);
}

pub async fn a_lost_shard_is_missing_and_the_last_ones_stay(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let segment = segment_at(&world, on_all(ec(), &nodes)).await;
    let counts = async || {
        let totals = world.catalog.totals().await.unwrap();
        (totals.degraded_segments, totals.at_risk_segments)
    };
    let (mut at, mut left) = (segment.place.clone(), Objects::new());
    for (shard, expected) in [(3, (1, 0)), (0, (1, 1))] {
        let there = with_shard(&at, shard, None);
        // Twice, as after a lost answer.
        for _ in 0..2 {
            world.catalog.lose_shard(segment.id, at.clone(), shard).await.unwrap();
            assert_eq!(place(&world, segment.id).await.as_ref(), Some(&there));
            assert_eq!(counts().await, expected);
        }
        left.extend(objects([&at]).difference(&objects([&there])).cloned());
        assert_eq!(doomed(&world).await, left);
        check_sums(&world).await;
        at = there;
    }
    let refused = world.catalog.lose_shard(segment.id, at.clone(), 1).await.unwrap_err();
    assert!(
        matches!(refused, CatalogError::LastShards { segment: named, shard: 1 } if named == segment.id),
        "{refused}"
    );
    // Not there, not known.
    for shard in [0, 4] {
        assert_eq!(
            refusal(world.catalog.lose_shard(segment.id, at.clone(), shard).await).0,
            ErrorKind::Internal
        );
    }
    assert_eq!(refusal(world.catalog.lose_shard(segment.id, segment.place, 1).await).0, ErrorKind::Conflict);
    assert_eq!(place(&world, segment.id).await.as_ref(), Some(&at));
    assert_eq!(doomed(&world).await, left);
    let single = segment_at(&world, Placement::single(nodes[0])).await;
    assert_eq!(refusal(world.catalog.lose_shard(single.id, single.place, 0).await).0, ErrorKind::Conflict);
    assert_eq!(counts().await, (1, 1));
    // Repaired.
    let whole = [0, 3].into_iter().fold(at.clone(), |place, shard| {
        with_shard(&place, shard, Some(ShardPlace { node: nodes[shard], tag: 9 }))
    });
    world.catalog.place_shards(&PlacementChange { segment: segment.id, from: at, to: whole }).await.unwrap();
    assert_eq!(counts().await, (0, 0));
    check_sums(&world).await;
}

pub async fn pages_tell_segments_of_each_kind(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let replica = Profile::replica(2).unwrap();
    let placements = [
        Placement::single(nodes[0]),
        on_all(ec(), &nodes),
        on(replica, &[None, Some(nodes[1])]),
        on_all(replica, &nodes[1..3]),
        on(ec(), &[Some(nodes[3]), None, Some(nodes[1]), Some(nodes[2])]),
    ];
    let mut segments = Vec::new();
    for number in 0..20 {
        segments.push(segment_at(&world, placements[number * 7 % 5].clone()).await);
    }
    segments.sort_by_key(|segment| segment.id);
    check_sums(&world).await;
    let catalog = &world.catalog;
    for limit in [1, 3, 100] {
        let pages = async |kind: usize| {
            let (mut all, mut after) = (Vec::new(), None);
            loop {
                let page = match kind {
                    0 => catalog.segment_places(after, limit).await,
                    1 => catalog.segments_on(nodes[1], after, limit).await,
                    2 => catalog.degraded_segments(after, limit).await,
                    3 => catalog.segments_of_other_profile(ec(), after, limit).await,
                    _ => catalog.segments_of_other_profile(Profile::ec(3, 1).unwrap(), after, limit).await,
                };
                let page = page.unwrap();
                assert!(page.len() <= limit as usize);
                let Some(last) = page.last() else { return all };
                after = Some(last.id);
                all.extend(page);
            }
        };
        let kinds: [fn(&Placement, NodeId) -> bool; 5] = [
            |_, _| true,
            |placement, node| placement.present().any(|(_, shard)| shard.node == node),
            |placement, _| placement.missing() > 0,
            |placement, _| placement.profile() != ec(),
            |_, _| true,
        ];
        for (kind, is_wanted) in kinds.into_iter().enumerate() {
            let wanted: Vec<_> = segments
                .iter()
                .filter(|segment| is_wanted(&segment.place.placement, nodes[1]))
                .cloned()
                .collect();
            assert!(wanted.len() > 4);
            assert_eq!(pages(kind).await, wanted, "kind {kind}, pages of {limit}");
        }
    }
    assert_eq!(catalog.segments_on(NodeId::from_bytes([0xee; 16]), None, 10).await.unwrap(), []);
    assert_eq!(catalog.segment_places(None, 0).await.unwrap(), []);
}

pub async fn a_node_is_removed_by_force_unless_data_would_be_lost(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(5).await;
    let whole = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let risky = segment_at(&world, on(ec(), &[Some(nodes[0]), Some(nodes[1]), None, None])).await;
    let elsewhere = segment_at(&world, on_all(Profile::replica(2).unwrap(), &nodes[2..4])).await;
    let single = segment_at(&world, Placement::single(nodes[0])).await;
    // Something doomed on it and something on another.
    let lost = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    world.catalog.lose_shard(lost.id, lost.place.clone(), 0).await.unwrap();
    let lost_place = with_shard(&lost.place, 0, None);
    world.catalog.lose_shard(lost.id, lost_place.clone(), 1).await.unwrap();
    let doomed_before = doomed(&world).await;
    assert_eq!(doomed_before.len(), 2);

    assert_eq!(refusal(world.catalog.remove_node(nodes[0], false).await).0, ErrorKind::Conflict);
    let refused = world.catalog.remove_node(nodes[0], true).await.unwrap_err();
    assert!(matches!(refused, CatalogError::SegmentsLost { segments: 2, .. }), "{refused}");
    assert_eq!(place(&world, whole.id).await.as_ref(), Some(&whole.place));
    assert_eq!(doomed(&world).await, doomed_before);
    check_sums(&world).await;

    // What it alone is needed for goes elsewhere.
    let to = with_shard(&risky.place, 2, Some(ShardPlace { node: nodes[4], tag: 3 }));
    world.catalog.place_shards(&change(&risky, to.clone())).await.unwrap();
    let there = ShardPlace { node: nodes[4], tag: 3 };
    world.catalog.place_shards(&change(&single, with_shard(&single.place, 0, Some(there)))).await.unwrap();
    // Two to spare, and as many on failed nodes, which may not have them any more.
    let doubtful = segment_at(&world, on_all(ec(), &nodes[..4])).await;
    let set = async |node: NodeId, state| {
        let change = NodeChange { state: Some(state), ..NodeChange::default() };
        world.catalog.update_node(node, &change).await.unwrap();
    };
    for node in &nodes[2..4] {
        set(*node, NodeState::Failed).await;
    }
    let refused = world.catalog.remove_node(nodes[0], true).await.unwrap_err();
    assert!(matches!(refused, CatalogError::SegmentsLost { segments: 2, .. }), "{refused}");
    set(nodes[3], NodeState::Active).await;
    // One of those that are given up is not needed for the others to be read.
    set(nodes[0], NodeState::Failed).await;
    world.catalog.remove_node(nodes[0], true).await.unwrap();
    set(nodes[2], NodeState::Active).await;
    assert_eq!(place(&world, doubtful.id).await, Some(with_shard(&doubtful.place, 0, None)));

    let world = world.reopened(store).await;
    assert_eq!(refusal(world.catalog.node(nodes[0]).await).0, ErrorKind::NotFound);
    assert_eq!(place(&world, whole.id).await, Some(with_shard(&whole.place, 0, None)));
    assert_eq!(place(&world, risky.id).await, Some(with_shard(&to, 0, None)));
    assert_eq!(place(&world, elsewhere.id).await, Some(elsewhere.place));
    assert_eq!(place(&world, lost.id).await, Some(with_shard(&lost_place, 1, None)));
    assert!(doomed(&world).await.iter().all(|(node, ..)| *node == nodes[1]));
    assert_eq!(doomed(&world).await.len(), 1);
    check_sums(&world).await;
}

/// Removes the containers of a segment, which nothing points at.
async fn remove_containers(world: &World, segment: SegmentId) {
    let all = world.catalog.containers_before(None, u32::MAX).await.unwrap();
    let ids: Vec<_> =
        all.iter().filter(|container| container.segment == segment).map(|container| container.id).collect();
    world.catalog.close_containers(PASS, &ids).await.unwrap();
    world.catalog.remove_containers(PASS, &ids).await.unwrap();
}

pub async fn every_object_of_a_removed_segment_is_doomed(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let segment = segment_at(&world, on(ec(), &[Some(nodes[0]), None, Some(nodes[2]), Some(nodes[3])])).await;
    let kept = segment_at(&world, on_all(ec(), &nodes)).await;
    remove_containers(&world, segment.id).await;
    assert_eq!(place(&world, segment.id).await, None);
    assert_eq!(place(&world, kept.id).await, Some(kept.place));
    assert_eq!(doomed(&world).await, objects([&segment.place]));
    check_sums(&world).await;
    let to = with_shard(&segment.place, 1, Some(ShardPlace { node: nodes[1], tag: 1 }));
    assert_eq!(refusal(world.catalog.place_shards(&change(&segment, to)).await).0, ErrorKind::Conflict);
}

pub async fn doomed_objects_have_numbers_of_their_own(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let first = segment_at(&world, on_all(ec(), &nodes)).await;
    let second = segment_at(&world, on_all(ec(), &nodes)).await;
    remove_containers(&world, first.id).await;
    let all = world.catalog.doomed_objects(None, 10).await.unwrap();
    let ids: Vec<_> = all.iter().map(|object| object.id).collect();
    assert!(ids.is_sorted_by(|one, next| one < next));
    for limit in 1..=2 {
        let (mut paged, mut after) = (Vec::new(), None);
        while let Some(last) = {
            paged.extend(world.catalog.doomed_objects(after, limit).await.unwrap());
            paged.last().filter(|object: &&crate::DoomedObject| Some(object.id) != after)
        } {
            after = Some(last.id);
        }
        assert_eq!(paged, all);
    }
    // Also the last: its number is not another's later, so forgetting it again forgets nothing else.
    for id in &ids {
        world.catalog.forget_doomed(*id).await.unwrap();
    }
    assert_eq!(doomed(&world).await, Objects::new());
    let world = world.reopened(store).await;
    remove_containers(&world, second.id).await;
    for id in &ids {
        world.catalog.forget_doomed(*id).await.unwrap();
    }
    assert_eq!(doomed(&world).await, objects([&second.place]));
}

pub async fn a_move_may_have_any_placement(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let old = segment_at(&world, on_all(ec(), &nodes)).await;
    let found = world.catalog.containers_before(None, 1).await.unwrap().remove(0);
    let (_, mut row) = world.sealed(found.domain);
    row.id = found.id;
    let placement = on(ec(), &[None, Some(nodes[2]), Some(nodes[1]), Some(nodes[0])]);
    let segment = placed_segment(row.segment, placement.clone(), 1000);
    let present = (0..2).map(ChunkIndex::new).collect();
    let moved = ContainerMove { pass: PASS, segment, containers: vec![MovedContainer { row, present }] };
    world.catalog.close_containers(PASS, &[found.id]).await.unwrap();
    let mut unknown = moved.clone();
    let other = on(ec(), &[None, Some(nodes[2]), Some(nodes[1]), Some(NodeId::from_bytes([0xee; 16]))]);
    unknown.segment = placed_segment(moved.segment.receipt.segment(), other, 1000);
    assert_eq!(refusal(world.catalog.move_containers(&unknown).await).0, ErrorKind::NotFound);
    for _ in 0..2 {
        world.catalog.move_containers(&moved).await.unwrap();
        let there = place(&world, moved.segment.receipt.segment()).await.unwrap();
        assert_eq!(there.placement, placement);
        assert_eq!(place(&world, old.id).await, None);
        assert_eq!(doomed(&world).await, objects([&old.place]));
        check_sums(&world).await;
    }
}

pub async fn one_of_two_changes_at_once_happens(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let other = store.open().await;
    let nodes = world.more_nodes(6).await;
    for round in 1..=10 {
        let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
        let to =
            |node: usize| with_shard(&segment.place, 0, Some(ShardPlace { node: nodes[node], tag: round }));
        let (one, two) = (change(&segment, to(4)), change(&segment, to(5)));
        let (first, second) = tokio::join!(world.catalog.place_shards(&one), other.place_shards(&two));
        let (happened, refused) = match (first, second) {
            (Ok(()), Err(error)) => (one, error),
            (Err(error), Ok(())) => (two, error),
            both => panic!("{both:?}"),
        };
        assert!(matches!(refused, CatalogError::PlacementChanged { .. }), "{refused}");
        assert_eq!(place(&world, segment.id).await, Some(happened.to));
        assert_eq!(doomed(&world).await.len(), round as usize);
    }
    check_sums(&world).await;
}

pub async fn a_change_and_a_removal_at_once_leave_no_object_behind(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let other = store.open().await;
    let nodes = world.more_nodes(5).await;
    let mut expected = Objects::new();
    for round in 1..=10 {
        let segment = segment_at(&world, on_all(ec(), &nodes[..4])).await;
        let found = world.catalog.containers_before(None, 1).await.unwrap().remove(0);
        assert_eq!(found.segment, segment.id);
        world.catalog.close_containers(PASS, &[found.id]).await.unwrap();
        let to = with_shard(&segment.place, 0, Some(ShardPlace { node: nodes[4], tag: round }));
        let asked = change(&segment, to);
        let ids = [found.id];
        let place = async || {
            // Sometimes this one first, sometimes the other.
            let _ = for_polls((round as usize) % 4, world.catalog.site()).await;
            world.catalog.place_shards(&asked).await
        };
        let (placed, removed) = tokio::join!(place(), other.remove_containers(PASS, &ids));
        removed.unwrap();
        expected.extend(objects([&segment.place]));
        match placed {
            Ok(()) => expected.extend(objects([&asked.to])),
            Err(error) => assert!(matches!(error, CatalogError::PlacementChanged { .. }), "{error}"),
        }
        assert_eq!(doomed(&world).await, expected);
    }
    check_sums(&world).await;
}

#[expect(clippy::too_many_lines, reason = "one step of a history, of every kind")]
pub async fn sums_add_up_after_any_history(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut nodes = world.more_nodes(6).await;
    let mut held: Held = world.held_volume("history").await;
    let mut state = 7_u64;
    let mut below = |end: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % end
    };
    let profiles = [
        Profile::Single,
        Profile::replica(2).unwrap(),
        Profile::replica(3).unwrap(),
        ec(),
        Profile::ec(3, 1).unwrap(),
    ];
    let (mut done, mut refused) = (0, 0);
    for step in 1..=150 {
        // So many nodes in some order.
        for at in 0..nodes.len() {
            nodes.swap(at, below(at + 1));
        }
        let profile = profiles[below(profiles.len())];
        let tag = |fresh: bool| if fresh { step } else { 0 };
        let mut shards: Vec<_> = (0..profile.shards())
            .map(|shard| Some(ShardPlace { node: nodes[shard % nodes.len()], tag: 0 }))
            .collect();
        for _ in 0..below(2).min(profile.tolerates()) {
            let shard = below(shards.len());
            shards[shard] = None;
        }
        let all = world.catalog.segment_places(None, u32::MAX).await.unwrap();
        let result = match below(10) {
            0..4 => {
                if let Some(placement) = Placement::new(profile, shards) {
                    world.commit_at(&mut held, blocks(0, 8), placement).await;
                }
                Ok(())
            }
            kind if !all.is_empty() => {
                let SegmentPlace { id, place } = all[below(all.len())].clone();
                match kind {
                    4..6 => {
                        shards.iter_mut().flatten().for_each(|shard| shard.tag = tag(true));
                        match Placement::new(profile, shards) {
                            Some(placement) => {
                                let to = ObjectPlace { placement, ..place.clone() };
                                world
                                    .catalog
                                    .place_shards(&PlacementChange { segment: id, from: place, to })
                                    .await
                            }
                            None => Ok(()),
                        }
                    }
                    6..8 => {
                        let present: Vec<_> = place.placement.present().map(|(shard, _)| shard).collect();
                        let shard = present[below(present.len())];
                        world.catalog.lose_shard(id, place, shard).await
                    }
                    8 => {
                        remove_containers(&world, id).await;
                        Ok(())
                    }
                    _ if nodes.len() > 3 => {
                        let removed = world.catalog.remove_node(nodes[0], true).await;
                        if removed.is_ok() {
                            nodes.remove(0);
                            nodes.extend(world.more_nodes(1).await);
                        }
                        removed
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        };
        match result {
            Ok(()) => done += 1,
            Err(CatalogError::LastShards { .. } | CatalogError::SegmentsLost { .. }) => refused += 1,
            Err(error) => panic!("step {step}: {error}"),
        }
        if step % 5 == 0 {
            check_sums(&world).await;
        }
    }
    assert!(done > 80 && refused > 3, "{done} done, {refused} refused: the test does not reach its point");
}
