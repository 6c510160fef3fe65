//! Taking away what nothing shows any more, step by step.

use super::{CatalogStore, Held, World, blocks, hole, written};
use crate::{CountedLeaves, LEAF_BLOCKS, MapLeaf, SnapshotRow, SpaceOf};
use cairn_model::{CommitSeq, MapDelta};
use std::collections::BTreeMap;

const LEAVES: u64 = 30;

/// Writes the first `length` blocks of every leaf, and takes a snapshot of it.
async fn write_all(world: &World, held: &mut Held, length: u64, name: &str) -> SnapshotRow {
    let mut batch = world.batch(&[(held, blocks(0, 4))]);
    let container = batch.containers[0].id;
    let ops = (0..LEAVES).flat_map(|leaf| written(blocks(leaf * LEAF_BLOCKS, length), container).ops);
    batch.volumes[0].delta = MapDelta { ops: ops.collect() };
    batch.volumes[0].snapshots = vec![world.new_snapshot(name)];
    world.commit_batch(held, &batch).await;
    world.fold(held).await;
    world.catalog.snapshot(batch.volumes[0].snapshots[0].id).await.unwrap()
}

/// How many versions there are of each commit.
async fn versions(world: &World, held: &Held) -> BTreeMap<u64, u64> {
    let mut versions = BTreeMap::new();
    for (_, commit) in world.versions(held.lineage, held.commit).await {
        *versions.entry(commit).or_default() += 1;
    }
    versions
}

/// Steps of `rows_max` until there is nothing to do; before each, the head shows the same.
async fn purge(world: &World, held: &Held, rows_max: u32) -> u64 {
    let shown: BTreeMap<u32, MapLeaf> = world.shown(held.head()).await;
    let mut steps = 1;
    while world.catalog.purge_deleted(rows_max).await.unwrap() {
        assert_eq!(world.shown(held.head()).await, shown);
        steps += 1;
    }
    assert_eq!(world.shown(held.head()).await, shown);
    steps
}

pub async fn a_pass_goes_on_where_it_stopped(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut snapshots = Vec::new();
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        snapshots.push(write_all(&world, &mut held, 4 + number as u64, name).await);
    }
    assert!(!world.catalog.purge_deleted(1).await.unwrap());
    world.delete_snapshot(snapshots[1].id).await.unwrap();
    // In whichever process: the catalog knows how far it is.
    assert!(world.catalog.purge_deleted(40).await.unwrap());
    let left = versions(&world, &held).await;
    assert!((10..20).contains(&left[&2]), "{left:?}");
    let world = world.reopened(store).await;
    let steps = purge(&world, &held, 5).await;
    assert_eq!(versions(&world, &held).await, [(1, LEAVES), (3, LEAVES)].into());
    assert!((10..=12).contains(&steps), "{steps} steps for 50 rows");
    // Most of what is looked at stays: that takes no more steps.
    world.delete_snapshot(snapshots[2].id).await.unwrap();
    let steps = purge(&world, &held, 5).await;
    assert!((12..=14).contains(&steps), "{steps} steps for 60 rows");
    assert_eq!(versions(&world, &held).await, [(1, LEAVES), (3, LEAVES)].into());
    world.catalog.delete_volume(held.volume, true, super::at(5000)).await.unwrap();
    let mut steps = 1;
    while world.catalog.purge_deleted(5).await.unwrap() {
        steps += 1;
    }
    assert!((12..=15).contains(&steps), "{steps} steps for 62 rows");
    assert_eq!(versions(&world, &held).await, [].into());
}

pub async fn what_is_let_go_of_during_a_pass_goes_too(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut snapshots = Vec::new();
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        snapshots.push(write_all(&world, &mut held, 4 + number as u64, name).await);
    }
    world.delete_snapshot(snapshots[0].id).await.unwrap();
    assert!(world.catalog.purge_deleted(45).await.unwrap());
    // Half of its versions are behind the pass.
    world.delete_snapshot(snapshots[1].id).await.unwrap();
    let three = world.shown(snapshots[2].at).await;
    purge(&world, &held, 7).await;
    assert_eq!(versions(&world, &held).await, [(3, LEAVES)].into());
    assert_eq!(world.shown(snapshots[2].at).await, three);

    // The other way round: what is needed again by the time that the pass comes there stays. Here a clone of the newest snapshot, when the
    // head moves on and the snapshot goes.
    let clone = world.held_clone(snapshots[2].id, "clone").await;
    write_all(&world, &mut held, 20, "four").await;
    world.delete_snapshot(snapshots[2].id).await.unwrap();
    assert!(world.catalog.purge_deleted(10).await.unwrap());
    purge(&world, &held, 7).await;
    assert_eq!(world.shown(clone.head()).await, three);
    // And the clone goes in the middle of a pass.
    world.delete_snapshot(world.catalog.snapshots(held.volume).await.unwrap()[0].id).await.unwrap();
    assert!(world.catalog.purge_deleted(31).await.unwrap());
    world.catalog.delete_volume(clone.volume, false, super::at(5000)).await.unwrap();
    purge(&world, &held, 7).await;
    assert_eq!(versions(&world, &held).await, [(4, LEAVES)].into());
}

pub async fn holes_stay_over_what_was_inherited_whatever_became_of_the_parent(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    let golden = write_all(&world, &mut base, 4, "golden").await;
    let mut clone = world.held_clone(golden.id, "clone").await;
    for held in [&mut clone, &mut base] {
        let mut trim = world.batch(&[(held, blocks(0, 4))]);
        trim.volumes[0].delta = hole(blocks(0, (LEAVES - 1) * LEAF_BLOCKS));
        trim.volumes[0].snapshots = vec![world.new_snapshot("trimmed")];
        world.commit_batch(held, &trim).await;
        world.fold(held).await;
    }
    let shown = world.shown(clone.head()).await;
    assert_eq!(shown.keys().copied().collect::<Vec<_>>(), [29]);
    for held in [&clone, &base] {
        let snapshots = world.catalog.snapshots(held.volume).await.unwrap();
        world.delete_snapshot(snapshots[snapshots.len() - 1].id).await.unwrap();
    }
    purge(&world, &clone, 7).await;
    assert_eq!(world.shown(golden.at).await.len(), 30);
    // The base is gone, and its newest versions with it: the clone hides what it branched off from.
    world.catalog.delete_volume(base.volume, true, super::at(5000)).await.unwrap();
    purge(&world, &clone, 7).await;
    assert_eq!(versions(&world, &clone).await, [(1, LEAVES - 1)].into());
    assert_eq!(world.shown(clone.head()).await, shown);
}

pub async fn a_volume_that_is_reverted_again_and_again_keeps_what_it_shows(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let snapshot = write_all(&world, &mut held, 4, "good").await;
    let good = world.shown(snapshot.at).await;
    let mut old = Vec::new();
    for round in 0..5 {
        let bad = write_all(&world, &mut held, 5 + round, "bad").await;
        world.delete_snapshot(bad.id).await.unwrap();
        // Some of it goes between, some after the next one.
        world.catalog.purge_deleted(11).await.unwrap();
        old.push((held.lineage, held.commit));
        held = world.reverted(held, snapshot.id).await;
        assert_eq!(world.shown(held.head()).await, good);
    }
    purge(&world, &held, 7).await;
    assert_eq!(world.shown(held.head()).await, good);
    assert_eq!(world.catalog.snapshot(snapshot.id).await.unwrap().children, 1);
    // Of the first lineage the snapshot's versions are left, of those between nothing.
    for (number, (lineage, last)) in old.into_iter().enumerate() {
        let left = world.versions(lineage, last).await;
        let expected = if number == 0 { LEAVES } else { 0 };
        assert_eq!(left.len() as u64, expected);
        assert!(left.iter().all(|(_, commit)| CommitSeq::new(*commit) == snapshot.at.commit));
    }
}

/// Leaves are folded again and their older versions purged between the pages: each counts once all the same, and none is left out.
pub async fn a_leaf_that_moves_between_pages_counts_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("disk").await;
    let write = async |held: &mut Held| {
        let mut batch = world.batch(&[(held, blocks(0, 4))]);
        let container = batch.containers[0].id;
        let ops = (0..LEAVES).flat_map(|leaf| written(blocks(leaf * LEAF_BLOCKS, 8), container).ops);
        batch.volumes[0].delta = MapDelta { ops: ops.collect() };
        world.commit_batch(held, &batch).await;
        world.fold(held).await;
        world.purge().await;
    };
    write(&mut held).await;
    let (mut next, mut counted, mut pages, mut unique_blocks) = (None, CountedLeaves::new(), 0, 0);
    loop {
        let page = world.catalog.space_page(SpaceOf::Head(held.volume), next, &counted, 4).await.unwrap();
        assert!(counted.is_disjoint(&page.leaves), "a leaf counts twice");
        counted.extend(page.leaves);
        unique_blocks += page.unique_blocks;
        pages += 1;
        if pages <= 3 {
            write(&mut held).await;
        }
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!((counted.len() as u64, unique_blocks), (LEAVES, LEAVES * 8));
    assert!(pages > 3);
}
