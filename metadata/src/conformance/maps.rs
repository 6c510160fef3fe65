//! Deltas, leaves, folding.

use super::{CatalogStore, Held, World, blocks, generation, hole, refusal, written};
use crate::{FoldPlan, LEAF_BLOCKS, LEAVES_MAX, LeafIndex, MapLeaf, MapPoint};
use cairn_model::{CommitSeq, ContainerId, ErrorKind, LbaRange, LineageId, MapDelta, VOLUME_BLOCKS_MAX};
use std::sync::Arc;

fn index(number: u32) -> LeafIndex {
    LeafIndex::new(number).unwrap()
}

/// The whole leaf, from `container`.
fn full_leaf(number: u32, container: ContainerId) -> (LeafIndex, Arc<MapLeaf>) {
    let index = index(number);
    let ops = written(blocks(index.range().start().get(), 32), container).ops;
    (index, Arc::new(MapLeaf::from_ops(index, ops)))
}

fn plan(world: &World, held: &Held, leaves: Vec<(LeafIndex, Arc<MapLeaf>)>) -> FoldPlan {
    world.fold_plan(held, leaves)
}

async fn present(world: &World, lineage: LineageId) -> Vec<u32> {
    let everything = blocks(0, VOLUME_BLOCKS_MAX);
    let leaves = world.catalog.leaf_versions(MapPoint::head(lineage), everything, u32::MAX).await.unwrap();
    leaves.into_iter().map(|version| version.index.get()).collect()
}

pub async fn deltas_come_back_in_commit_order(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap(), []);
    let mut expected: Vec<(CommitSeq, MapDelta)> = Vec::new();
    for number in 0..300 {
        let batch = world.commit(&mut held, blocks(1000 - number, 5)).await;
        expected.push((held.commit, batch.volumes[0].delta.clone()));
    }
    assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap(), expected);
}

pub async fn folding_moves_deltas_into_leaves(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let batch = world.commit(&mut held, blocks(0, 32)).await;
    let second = world.commit(&mut held, blocks(LEAF_BLOCKS, 32)).await;
    let leaf = full_leaf(0, batch.containers[0].id);
    let fold = FoldPlan {
        through: CommitSeq::new(1),
        forget: Some(CommitSeq::new(1)),
        ..plan(&world, &held, vec![leaf.clone()])
    };
    world.catalog.fold(&fold).await.unwrap();

    let world = world.reopened(store).await;
    assert_eq!(world.catalog.leaf(held.head(), index(0)).await.unwrap(), Some((*leaf.1).clone()));
    assert_eq!(world.catalog.leaf(held.head(), index(1)).await.unwrap(), None);
    let deltas = world.catalog.unfolded_deltas(held.lineage).await.unwrap();
    assert_eq!(deltas, [(CommitSeq::new(2), second.volumes[0].delta.clone())]);
    let row = world.catalog.volume(held.volume).await.unwrap();
    assert_eq!((row.folded_through, row.commit), (CommitSeq::new(1), CommitSeq::new(2)));
}

pub async fn between_the_steps_of_a_fold_the_deltas_stay(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    for step in 0..3 {
        let fold = plan(&world, &held, vec![full_leaf(step, container)]);
        world.catalog.fold(&fold).await.unwrap();
        assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap().len(), 1);
        assert_eq!(world.catalog.volume(held.volume).await.unwrap().folded_through, CommitSeq::ZERO);
    }
    let last = FoldPlan { forget: Some(held.commit), ..plan(&world, &held, Vec::new()) };
    world.catalog.fold(&last).await.unwrap();
    assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap(), []);
    assert_eq!(present(&world, held.lineage).await, [0, 1, 2]);
}

pub async fn a_step_done_again_changes_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let first = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    world.commit(&mut held, blocks(0, 32)).await;
    let early = FoldPlan { through: CommitSeq::new(1), ..plan(&world, &held, vec![full_leaf(0, first)]) };
    let full = FoldPlan { forget: Some(held.commit), ..plan(&world, &held, vec![full_leaf(0, first)]) };
    for fold in [&early, &early, &full, &full] {
        world.catalog.fold(fold).await.unwrap();
    }
    // A step back does not unfold.
    let back = FoldPlan { forget: Some(CommitSeq::new(1)), ..early };
    world.catalog.fold(&FoldPlan { leaves: Vec::new(), ..back }).await.unwrap();
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().folded_through, CommitSeq::new(2));
    assert_eq!(world.catalog.leaf(held.head(), index(0)).await.unwrap(), Some((*full.leaves[0].1).clone()));
}

pub async fn emptied_ranges_go_whatever_their_length(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let leaves = [0, 1, 2, 3, 500, LEAVES_MAX - 1].map(|number| full_leaf(number, container));
    world.catalog.fold(&plan(&world, &held, leaves.to_vec())).await.unwrap();

    world.commit(&mut held, blocks(0, 32)).await;
    let range =
        |from: u32, to: u32| LbaRange::between(index(from).range().start(), index(to).range().start());
    let emptied = FoldPlan { emptied: vec![range(1, 3), range(400, 401)], ..plan(&world, &held, vec![]) };
    world.catalog.fold(&emptied).await.unwrap();
    assert_eq!(present(&world, held.lineage).await, [0, 3, 500, LEAVES_MAX - 1]);

    let everything = LbaRange::between(index(1).range().start(), index(LEAVES_MAX - 1).range().end());
    let emptied = FoldPlan {
        emptied: vec![everything],
        forget: Some(held.commit),
        ..plan(&world, &held, vec![full_leaf(0, container)])
    };
    world.catalog.fold(&emptied).await.unwrap();
    assert_eq!(present(&world, held.lineage).await, [0]);
    assert_eq!(world.catalog.leaf(held.head(), index(500)).await.unwrap(), None);
}

pub async fn a_leaf_of_holes_is_no_leaf(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    world.catalog.fold(&plan(&world, &held, vec![full_leaf(0, container)])).await.unwrap();
    let mut leaf = (*full_leaf(0, container).1).clone();
    leaf.apply(index(0), hole(index(0).range()).ops);
    world.catalog.fold(&plan(&world, &held, vec![(index(0), Arc::new(leaf))])).await.unwrap();
    assert_eq!(present(&world, held.lineage).await, []);
    assert_eq!(world.catalog.leaf(held.head(), index(0)).await.unwrap(), None);
}

pub async fn leaves_are_read_in_any_number(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let written: Vec<_> = (0..150).map(|number| full_leaf(number * 3, container)).collect();
    world.catalog.fold(&plan(&world, &held, written.clone())).await.unwrap();

    for count in [0, 1, 2, 64, 65, 150] {
        let mut asked: Vec<LeafIndex> = written[..count].iter().rev().map(|(index, _)| *index).collect();
        asked.extend_from_slice(&[index(1), index(0)]);
        let found = world.catalog.leaves(held.head(), &asked).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|(index, leaf)| (index, Arc::new(leaf))).collect();
        assert_eq!(found, written[..count.max(1)]);
    }
}

pub async fn present_leaves_are_listed_in_order_up_to_a_limit(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let leaves = [7, 2, LEAVES_MAX - 1, 3].map(|number| full_leaf(number, container));
    world.catalog.fold(&plan(&world, &held, leaves.to_vec())).await.unwrap();

    let leaf = LEAF_BLOCKS;
    for (range, limit, expected) in [
        (blocks(0, VOLUME_BLOCKS_MAX), 10, vec![2, 3, 7, LEAVES_MAX - 1]),
        (blocks(0, VOLUME_BLOCKS_MAX), 2, vec![2, 3]),
        (blocks(2 * leaf, leaf), 10, vec![2]),
        (blocks(3 * leaf - 1, 2), 10, vec![2, 3]),
        (blocks(4 * leaf, 3 * leaf), 10, vec![]),
        (blocks(4 * leaf, 3 * leaf + 1), 10, vec![7]),
        (blocks(2 * leaf + 5, 0), 10, vec![]),
    ] {
        let found = world.catalog.leaf_versions(held.head(), range, limit).await.unwrap();
        let found: Vec<u32> = found.into_iter().map(|version| version.index.get()).collect();
        assert_eq!(found, expected, "{range:?} up to {limit}");
    }
}

pub async fn only_the_owner_folds(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let good = FoldPlan { forget: Some(held.commit), ..plan(&world, &held, vec![full_leaf(0, container)]) };
    let other_gateway = FoldPlan { gateway: world.other, ..good.clone() };
    let other_term = FoldPlan { generation: generation(2), ..good.clone() };
    for fold in [&other_gateway, &other_term] {
        assert_eq!(refusal(world.catalog.fold(fold).await).0, ErrorKind::Fenced);
    }
    assert_eq!(present(&world, held.lineage).await, []);
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();
    assert_eq!(refusal(world.catalog.fold(&good).await).0, ErrorKind::NotFound);
    let unknown = FoldPlan { lineage: LineageId::from_bytes([0xdd; 16]), ..good };
    assert_eq!(refusal(world.catalog.fold(&unknown).await).0, ErrorKind::NotFound);
}

pub async fn a_fold_that_does_not_fit_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let good = plan(&world, &held, vec![full_leaf(0, container)]);
    let beyond = FoldPlan { through: CommitSeq::new(2), ..good.clone() };
    let forgets_more = FoldPlan { through: CommitSeq::ZERO, forget: Some(CommitSeq::new(1)), ..good.clone() };
    let part_of_leaf = FoldPlan { emptied: vec![blocks(0, LEAF_BLOCKS - 1)], ..good.clone() };
    let twice = plan(&world, &held, [&good.leaves[..], &good.leaves[..]].concat());
    for fold in [beyond, forgets_more, part_of_leaf, twice] {
        let refused = refusal(world.catalog.fold(&fold).await);
        assert_eq!(refused.0, ErrorKind::Internal, "{}", refused.1);
        assert_eq!(present(&world, held.lineage).await, []);
        assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap().len(), 1);
    }
}

pub async fn lineages_do_not_mix(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut a, mut b) = (world.held_volume("a").await, world.held_volume("b").await);
    let in_a = world.commit(&mut a, blocks(0, 32)).await.containers[0].id;
    let in_b = world.commit(&mut b, blocks(0, 32)).await.containers[0].id;
    world.catalog.fold(&plan(&world, &a, vec![full_leaf(0, in_a), full_leaf(1, in_a)])).await.unwrap();
    world.catalog.fold(&plan(&world, &b, vec![full_leaf(0, in_b)])).await.unwrap();
    let emptied = FoldPlan { emptied: vec![index(0).range()], ..plan(&world, &a, vec![]) };
    world.catalog.fold(&FoldPlan { forget: Some(a.commit), ..emptied }).await.unwrap();

    assert_eq!((present(&world, a.lineage).await, present(&world, b.lineage).await), (vec![1], vec![0]));
    let leaf = world.catalog.leaf(b.head(), index(0)).await.unwrap().unwrap();
    assert_eq!(leaf.containers(), [in_b]);
    assert_eq!(world.catalog.unfolded_deltas(b.lineage).await.unwrap().len(), 1);
}
