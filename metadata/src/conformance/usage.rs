//! What volumes map, and what became of what was written.

use super::{CatalogStore, Held, World, blocks, hole, outcomes, packed, refusal, written};
use crate::{FoldPlan, LeafIndex, MapLeaf, Totals, VolumeOutcome, VolumeUsage};
use cairn_model::{CommitSeq, ContainerId, ErrorKind, Lba, LbaRange, Reduction, WriteSeq};
use std::sync::Arc;

fn index(number: u32) -> LeafIndex {
    LeafIndex::new(number).unwrap()
}

/// A leaf that maps its first `mapped` blocks.
fn leaf(number: u32, container: ContainerId, mapped: u64) -> (LeafIndex, Arc<MapLeaf>) {
    let ops = written(blocks(index(number).range().start().get(), mapped), container).ops;
    (index(number), Arc::new(MapLeaf::from_ops(index(number), ops)))
}

/// What the volume maps by its row and by the totals, which it must have alone, in blocks.
async fn mapped(world: &World, held: &Held) -> u64 {
    let bytes = world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes;
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, bytes);
    assert_eq!(bytes % 4096, 0);
    bytes / 4096
}

async fn reduction(world: &World, held: &Held) -> Reduction {
    world.catalog.volume(held.volume).await.unwrap().usage.reduction
}

pub async fn commits_add_what_packing_did(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut a, b) = (world.held_volume("a").await, world.held_volume("b").await);
    assert_eq!(reduction(&world, &a).await, Reduction::default());
    world.commit(&mut a, blocks(0, 30)).await;
    let both = world.batch(&[(&a, blocks(0, 5)), (&b, blocks(0, 7))]);
    world.catalog.commit_batch(&both).await.unwrap();

    let world = world.reopened(store).await;
    let mut expected = packed(30);
    expected += packed(5);
    // Nothing is folded yet.
    let usage = VolumeUsage { logical_bytes: 0, reduction: expected };
    assert_eq!(world.catalog.volume(a.volume).await.unwrap().usage, usage);
    assert_eq!(reduction(&world, &b).await, packed(7));
    let shown: Vec<_> =
        world.catalog.volumes().await.unwrap().iter().map(|row| row.usage.reduction).collect();
    assert_eq!(shown, [expected, packed(7)]);
}

pub async fn the_same_batch_again_counts_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let batch = world.batch(&[(&held, blocks(0, 30))]);
    for _ in 0..3 {
        world.catalog.commit_batch(&batch).await.unwrap();
    }
    assert_eq!(reduction(&world, &held).await, packed(30));
    assert_eq!(world.catalog.totals().await.unwrap().container_bytes, 4000);
}

pub async fn a_refused_batch_counts_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (a, b) = (world.held_volume("a").await, world.held_volume("b").await);
    let mut batch = world.batch(&[(&a, blocks(0, 4)), (&b, blocks(0, 4))]);
    batch.volumes[1].delta = written(blocks(0, 4), ContainerId::from_bytes([0xee; 16]));
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await).0, ErrorKind::Conflict);
    assert_eq!(reduction(&world, &a).await, Reduction::default());
    assert_eq!(world.catalog.totals().await.unwrap(), Totals { volumes: 2, ..Totals::default() });
}

pub async fn the_part_of_a_deleted_volume_counts_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (kept, gone) = (world.held_volume("kept").await, world.held_volume("gone").await);
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();
    let batch = world.batch(&[(&gone, blocks(0, 9)), (&kept, blocks(0, 4))]);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt)[0], VolumeOutcome::Deleted);
    assert_eq!(reduction(&world, &kept).await, packed(4));
}

pub async fn containers_count_as_stored_and_as_plaintext(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    for _ in 0..3 {
        world.commit(&mut held, blocks(0, 4)).await;
    }
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();
    while world.catalog.purge_deleted(100).await.unwrap() {}
    // The containers stay: nobody has reclaimed them.
    let totals = world.catalog.totals().await.unwrap();
    let sums = (totals.containers, totals.container_bytes, totals.container_raw_bytes);
    assert_eq!(sums, (3, 3 * 4000, 3 * 8192));
}

pub async fn folds_count_what_the_leaves_map(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    let steps = |leaves| world.fold_plan(&held, leaves);
    let fill = steps(vec![leaf(0, container, 32), leaf(1, container, 100), leaf(9, container, 7)]);
    world.catalog.fold(&fill).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 139);

    // A leaf grows, one shrinks; one turns out to be all holes; then the rest is emptied as a range.
    world.commit(&mut held, blocks(0, 32)).await;
    let steps = |leaves| world.fold_plan(&held, leaves);
    world.catalog.fold(&steps(vec![leaf(0, container, 50), leaf(1, container, 1)])).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 58);
    let mut holes = (*leaf(0, container, 50).1).clone();
    holes.apply(index(0), hole(index(0).range()).ops);
    world.catalog.fold(&steps(vec![(index(0), Arc::new(holes))])).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 8);
    let world = world.reopened(store).await;
    let everything = LbaRange::between(Lba::ZERO, index(1000).range().end());
    let empty = FoldPlan { emptied: vec![everything], ..world.fold_plan(&held, vec![leaf(4, container, 3)]) };
    world.catalog.fold(&empty).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 3);
}

pub async fn a_fold_done_again_counts_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    world.catalog.fold(&world.fold_plan(&held, vec![leaf(5, container, 40)])).await.unwrap();
    world.commit(&mut held, blocks(0, 32)).await;
    let fold = FoldPlan {
        emptied: vec![index(5).range()],
        forget: Some(held.commit),
        ..world.fold_plan(&held, vec![leaf(0, container, 32), leaf(1, container, 8)])
    };
    for _ in 0..3 {
        world.catalog.fold(&fold).await.unwrap();
        assert_eq!(mapped(&world, &held).await, 40);
    }
}

pub async fn a_leaf_behind_a_newer_one_counts_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    world.commit(&mut held, blocks(0, 32)).await;
    world.catalog.fold(&world.fold_plan(&held, vec![leaf(0, container, 32)])).await.unwrap();
    let behind = FoldPlan {
        through: CommitSeq::new(1),
        ..world.fold_plan(&held, vec![leaf(0, container, 500), leaf(1, container, 4)])
    };
    world.catalog.fold(&behind).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 36);
    let emptied = FoldPlan { emptied: vec![index(0).range()], leaves: Vec::new(), ..behind };
    world.catalog.fold(&emptied).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 36);
    let emptied = FoldPlan { through: CommitSeq::new(2), ..emptied };
    world.catalog.fold(&emptied).await.unwrap();
    assert_eq!(mapped(&world, &held).await, 4);
}

pub async fn many_leaves_of_one_step_count(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
    for count in [1, 15, 16, 17, 100] {
        let leaves = (0..count).map(|number| leaf(number, container, u64::from(number) % 7 + 1));
        world.catalog.fold(&world.fold_plan(&held, leaves.collect())).await.unwrap();
        let expected: u32 = (0..count).map(|number| number % 7 + 1).sum();
        assert_eq!(mapped(&world, &held).await, u64::from(expected));
    }
}

pub async fn a_deleted_volume_takes_its_bytes_out_of_the_totals(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut kept, mut gone) = (world.held_volume("kept").await, world.held_volume("gone").await);
    for (held, count) in [(&mut kept, 3), (&mut gone, 40)] {
        let container = world.commit(held, blocks(0, 32)).await.containers[0].id;
        let leaves = (0..5).map(|number| leaf(number, container, count)).collect();
        world.catalog.fold(&world.fold_plan(held, leaves)).await.unwrap();
    }
    let logical = || async { world.catalog.totals().await.unwrap().logical_bytes / 4096 };
    assert_eq!(logical().await, 15 + 200);
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();
    assert_eq!(logical().await, 15);
    while world.catalog.purge_deleted(2).await.unwrap() {
        assert_eq!(logical().await, 15);
    }
    assert_eq!(logical().await, 15);
    assert_eq!(mapped(&world, &kept).await, 15);
    assert_eq!(world.progress(&kept).await, (WriteSeq::new(10), CommitSeq::new(1)));
}
