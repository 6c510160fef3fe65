//! Clones: what they show of their snapshot, what is their own, and what outlives whom.

use super::{CatalogStore, Held, World, blocks, hole, refusal};
use crate::{
    CatalogError, FoldPlan, LEAF_BLOCKS, LEAVES_MAX, LeafIndex, LeafVersion, MapLeaf, MapPoint, NewVolume,
    VolumeUsage,
};
use cairn_model::{CommitSeq, ErrorKind, Generation, LbaRange, MapDelta, Reduction, VolumeId, WriteSeq};
use std::collections::BTreeMap;

/// The first `length` blocks of a leaf.
fn leaf(number: u64, length: u64) -> LbaRange {
    blocks(number * LEAF_BLOCKS, length)
}

async fn logical(world: &World, held: &Held) -> u64 {
    world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes / 4096
}

/// Commits and folds a discard.
async fn discard(world: &World, held: &mut Held, range: LbaRange) {
    let mut batch = world.batch(&[(held, blocks(0, 4))]);
    batch.volumes[0].delta = hole(range);
    world.commit_batch(held, &batch).await;
    world.fold(held).await;
}

async fn write(world: &World, held: &mut Held, range: LbaRange) {
    world.commit(held, range).await;
    world.fold(held).await;
}

pub async fn a_clone_shows_its_snapshot_and_is_its_own(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    for number in 0..3 {
        write(&world, &mut base, leaf(number, 10)).await;
    }
    let snapshot = world.settled_snapshot(&mut base, leaf(0, 4), "golden").await;
    let golden = world.shown(snapshot.at).await;
    write(&world, &mut base, leaf(1, 50)).await;

    let volume =
        NewVolume { size_bytes: 2 << 40, options: "{\"x\":1}".to_owned(), ..world.new_volume("clone") };
    world.catalog.create_clone(&volume, snapshot.id).await.unwrap();
    let world = world.reopened(store).await;
    let row = world.catalog.volume(volume.id).await.unwrap();
    assert_eq!((row.size_bytes, &row.options, row.lineage), (2 << 40, &volume.options, volume.lineage));
    assert_eq!((row.commit, row.folded_through, row.destaged_through), Default::default());
    assert_eq!((row.generation, row.holder), (Generation::ZERO, None));
    assert_eq!(row.usage, VolumeUsage { logical_bytes: 30 * 4096, reduction: Reduction::default() });
    assert_eq!(world.catalog.snapshot(snapshot.id).await.unwrap().children, 1);
    let mut clone = world.hold(&volume).await;
    assert_eq!(world.shown(clone.head()).await, golden);
    assert_eq!(world.catalog.unfolded_deltas(clone.lineage).await.unwrap(), []);

    // What it writes is its own; what it does not, it shares: the very versions.
    write(&world, &mut clone, leaf(1, 7)).await;
    write(&world, &mut clone, leaf(5, 3)).await;
    assert_eq!(world.versions(clone.lineage, clone.commit).await, [(1, 1), (5, 2)]);
    assert_eq!(world.shown(snapshot.at).await, golden);
    let versions = world.catalog.leaf_versions(clone.head(), blocks(0, 1 << 30), 100).await.unwrap();
    let version = |number, lineage, commit| LeafVersion {
        index: LeafIndex::new(number).unwrap(),
        at: MapPoint { lineage, commit: CommitSeq::new(commit) },
    };
    let shared = |number, commit| version(number, base.lineage, commit);
    let own = |number, commit| version(number, clone.lineage, commit);
    assert_eq!(versions, [shared(0, 4), own(1, 1), shared(2, 3), own(5, 2)]);
    for limit in 0..4 {
        let first = world.catalog.leaf_versions(clone.head(), blocks(0, 1 << 30), limit).await.unwrap();
        assert_eq!(first, versions[..limit as usize]);
    }
    let middle = world.catalog.leaf_versions(clone.head(), blocks(LEAF_BLOCKS + 5, LEAF_BLOCKS), 9).await;
    assert_eq!(middle.unwrap(), versions[1..3]);
    let early = MapPoint { commit: CommitSeq::ZERO, ..clone.head() };
    assert_eq!(world.shown(early).await, golden);
    // And the base goes on without it.
    assert_eq!(world.shown(base.head()).await[&1].blocks(), 50);
    assert_eq!(logical(&world, &base).await, 70);
    assert_eq!(logical(&world, &clone).await, 33);
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, (70 + 33) * 4096);
}

pub async fn a_clone_that_cannot_be_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    let snapshot = world.settled_snapshot(&mut base, leaf(0, 10), "golden").await;
    let unsettled = world.new_snapshot("fresh");
    world.commit_with(&mut base, leaf(0, 10), std::slice::from_ref(&unsettled)).await;
    let clone = |volume: NewVolume, from| {
        let catalog = &world.catalog;
        async move { refusal(catalog.create_clone(&volume, from).await) }
    };
    let new = || world.new_volume("clone");
    let taken = "volume base exists already: choose another name".to_owned();
    assert_eq!(clone(world.new_volume("base"), snapshot.id).await, (ErrorKind::Conflict, taken));
    let message = "snapshot fresh is not in the map's leaves yet: try again in a moment".to_owned();
    assert_eq!(clone(new(), unsettled.id).await, (ErrorKind::Conflict, message));
    let tenant = world.domain("tenant").await;
    let elsewhere = clone(NewVolume { domain: tenant, ..new() }, snapshot.id).await;
    assert_eq!(elsewhere.0, ErrorKind::Internal, "{}", elsewhere.1);
    let nowhere = cairn_model::DomainId::from_bytes([0xee; 16]);
    assert_eq!(clone(NewVolume { domain: nowhere, ..new() }, snapshot.id).await.0, ErrorKind::NotFound);
    let same_lineage = NewVolume { lineage: base.lineage, ..new() };
    assert_eq!(clone(same_lineage, snapshot.id).await.0, ErrorKind::Conflict);
    assert_eq!(clone(NewVolume { id: base.volume, ..new() }, snapshot.id).await.0, ErrorKind::Conflict);

    assert_eq!(world.catalog.volumes().await.unwrap().len(), 1);
    assert_eq!(world.catalog.snapshot(snapshot.id).await.unwrap().children, 0);
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, 10 * 4096);
    // In a domain of its own a clone is as good as anywhere.
    let mut theirs = world.held_volume_of(tenant, "theirs").await;
    let snapshot = world.settled_snapshot(&mut theirs, leaf(0, 4), "golden").await;
    world.catalog.create_clone(&NewVolume { domain: tenant, ..new() }, snapshot.id).await.unwrap();
}

pub async fn what_a_clone_empties_is_hidden_from_it_alone(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    for number in [0, 1, 2, 700] {
        write(&world, &mut base, leaf(number, 10)).await;
    }
    let snapshot = world.settled_snapshot(&mut base, leaf(0, 4), "golden").await;
    let golden = world.shown(snapshot.at).await;
    let mut clone = world.held_clone(snapshot.id, "clone").await;
    // A part of a leaf, one whole leaf, one of its own, and one that it does not have.
    write(&world, &mut clone, leaf(5, 3)).await;
    discard(&world, &mut clone, leaf(0, 6)).await;
    discard(&world, &mut clone, leaf(1, LEAF_BLOCKS)).await;
    discard(&world, &mut clone, leaf(5, LEAF_BLOCKS)).await;
    discard(&world, &mut clone, leaf(6, LEAF_BLOCKS)).await;
    let shown = world.shown(clone.head()).await;
    assert_eq!(shown.keys().copied().collect::<Vec<_>>(), [0, 2, 700]);
    assert_eq!((shown[&0].blocks(), logical(&world, &clone).await), (4, 24));
    // Holes are kept only over what is there.
    assert_eq!(world.versions(clone.lineage, clone.commit).await, [(0, 2), (1, 3)]);
    // A snapshot of the clone shows the holes, and so does a clone of that.
    let hollow = world.settled_snapshot(&mut clone, leaf(9, 1), "hollow").await;
    let grandchild = world.held_clone(hollow.id, "grandchild").await;
    write(&world, &mut clone, leaf(1, 8)).await;
    assert_eq!(world.shown(clone.head()).await[&1].blocks(), 8);
    assert_eq!(world.shown(grandchild.head()).await, world.shown(hollow.at).await);
    assert!(!world.shown(grandchild.head()).await.contains_key(&1));
    assert_eq!((logical(&world, &clone).await, logical(&world, &grandchild).await), (33, 25));
    assert_eq!(world.shown(snapshot.at).await, golden);
    assert_eq!(world.shown(base.head()).await, golden);
}

pub async fn emptied_ranges_of_a_clone_hide_what_it_inherited(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    // More than are taken at once, and the very last one.
    let numbers: Vec<u64> = (0..1500).map(|number| number * 3).chain([u64::from(LEAVES_MAX) - 1]).collect();
    let mut batch = world.batch(&[(&base, blocks(0, 4))]);
    let container = batch.containers[0].id;
    let ops = numbers.iter().flat_map(|number| super::written(leaf(*number, 4), container).ops);
    batch.volumes[0].delta = MapDelta { ops: ops.collect() };
    world.commit_batch(&mut base, &batch).await;
    let snapshot = world.settled_snapshot(&mut base, leaf(0, 4), "golden").await;
    let golden = world.shown(snapshot.at).await;
    assert_eq!(golden.len(), 1501);
    let mut clone = world.held_clone(snapshot.id, "clone").await;
    write(&world, &mut clone, leaf(3, 9)).await;
    write(&world, &mut clone, leaf(4, 9)).await;

    world.commit(&mut clone, leaf(0, 1)).await;
    let everything = LbaRange::between(leaf(1, 1).start(), leaf(u64::from(LEAVES_MAX), 1).start());
    let emptied = FoldPlan {
        emptied: vec![everything],
        forget: Some(clone.commit),
        ..world.fold_plan(&clone, vec![world.leaf_at(&clone, 0, clone.commit.get()).await])
    };
    for _ in 0..2 {
        world.catalog.fold(&emptied).await.unwrap();
        assert_eq!(world.shown(clone.head()).await.keys().copied().collect::<Vec<_>>(), [0]);
        assert_eq!(logical(&world, &clone).await, 4);
    }
    // One version for each that is hidden, none for the others.
    let own = world.versions(clone.lineage, clone.commit).await;
    let hiding = numbers.iter().map(|number| (u32::try_from(*number).unwrap(), 3)).collect::<Vec<_>>();
    assert_eq!(own, hiding);
    assert_eq!(world.shown(snapshot.at).await, golden);
    assert_eq!(world.shown(base.head()).await, golden);
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, (4 + 1501 * 4) * 4096);
}

/// Deletes with everything that goes with it.
async fn delete(world: &World, volume: VolumeId) {
    world.catalog.delete_volume(volume, true, super::at(5000)).await.unwrap();
}

pub async fn clones_survive_their_parents_in_any_order(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    // Whether the base's snapshot goes first or with its volume, whether the steps between are purged, and who goes next.
    for (case, (snapshot_first, purge, middle_first)) in [false, true]
        .into_iter()
        .flat_map(|a| [false, true].map(|b| (a, b)))
        .flat_map(|(a, b)| [(a, b, false), (a, b, true)])
        .enumerate()
    {
        let name = |what: &str| format!("{what}-{case}");
        let mut base = world.held_volume(&name("base")).await;
        write(&world, &mut base, leaf(0, 10)).await;
        write(&world, &mut base, leaf(1, 20)).await;
        let golden = world.settled_snapshot(&mut base, leaf(2, 30), "golden").await;
        let mut middle = world.held_clone(golden.id, &name("middle")).await;
        write(&world, &mut middle, leaf(1, 25)).await;
        let silver = world.settled_snapshot(&mut middle, leaf(3, 40), "silver").await;
        let mut last = world.held_clone(silver.id, &name("last")).await;
        write(&world, &mut last, leaf(3, 45)).await;
        write(&world, &mut base, leaf(0, 11)).await;
        let (of_middle, of_last) = (world.shown(middle.head()).await, world.shown(last.head()).await);
        let blocks_of =
            |shown: &BTreeMap<u32, MapLeaf>| shown.values().map(MapLeaf::blocks).collect::<Vec<_>>();
        assert_eq!(
            (blocks_of(&of_middle), blocks_of(&of_last)),
            (vec![10, 25, 30, 40], vec![10, 25, 30, 45])
        );

        if snapshot_first {
            world.delete_snapshot(golden.id).await.unwrap();
        }
        if purge {
            world.purge().await;
        }
        if middle_first {
            delete(&world, middle.volume).await;
            if purge {
                world.purge().await;
            }
        }
        delete(&world, base.volume).await;
        for _ in 0..2 {
            assert_eq!(world.shown(last.head()).await, of_last);
            if !middle_first {
                assert_eq!(world.shown(middle.head()).await, of_middle);
            }
            world.purge().await;
        }
        // Of the base, what the middle one shows is left: its newest leaf went with it.
        assert_eq!(world.versions(base.lineage, base.commit).await, [(0, 1), (1, 2), (2, 3)]);
        // The last one needs nothing of them when it has leaves of its own.
        if !middle_first {
            delete(&world, middle.volume).await;
        }
        discard(&world, &mut last, blocks(0, 4 * LEAF_BLOCKS)).await;
        delete(&world, last.volume).await;
        world.purge().await;
        for held in [&base, &middle, &last] {
            assert_eq!(world.versions(held.lineage, held.commit).await, []);
            let again = NewVolume { lineage: held.lineage, ..world.new_volume(&name("again")) };
            world.catalog.create_volume(&again).await.unwrap();
            world.catalog.delete_volume(again.id, false, super::at(5000)).await.unwrap();
        }
        world.purge().await;
        assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, 0);
    }
}

pub async fn a_clone_needs_no_more_of_its_parent_than_it_shows(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    write(&world, &mut base, leaf(0, 1)).await;
    let first = world.settled_snapshot(&mut base, leaf(1, 2), "first").await;
    let second = world.settled_snapshot(&mut base, leaf(0, 3), "second").await;
    write(&world, &mut base, leaf(0, 4)).await;
    write(&world, &mut base, leaf(1, 5)).await;
    let of_first = world.held_clone(first.id, "of-first").await;
    let shown = world.shown(of_first.head()).await;
    assert_eq!(world.versions(base.lineage, base.commit).await, [(0, 1), (0, 3), (0, 4), (1, 2), (1, 5)]);
    // The clone needs for itself what its snapshot does: the second one alone lets go.
    delete(&world, base.volume).await;
    world.purge().await;
    assert_eq!(world.versions(base.lineage, base.commit).await, [(0, 1), (1, 2)]);
    assert_eq!(world.shown(of_first.head()).await, shown);
    assert_eq!(refusal(world.catalog.snapshot(second.id).await).0, ErrorKind::NotFound);
}

pub async fn a_clone_writes_and_commits_as_any_volume(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut base = world.held_volume("base").await;
    let snapshot = world.settled_snapshot(&mut base, leaf(0, 10), "golden").await;
    let mut clone = world.held_clone(snapshot.id, "clone").await;
    let batch = world.batch(&[(&base, leaf(1, 4)), (&clone, leaf(2, 4))]);
    world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(world.progress(&base).await, (WriteSeq::new(20), CommitSeq::new(2)));
    assert_eq!(world.progress(&clone).await, (WriteSeq::new(10), CommitSeq::new(1)));
    (clone.through, clone.commit) = (WriteSeq::new(10), CommitSeq::new(1));
    // Its deltas are its own as well.
    assert_eq!(world.catalog.unfolded_deltas(clone.lineage).await.unwrap().len(), 1);
    let stranger = FoldPlan { lineage: base.lineage, ..world.fold_plan(&clone, Vec::new()) };
    world.catalog.release_lease(base.volume, world.gateway, base.lease.generation).await.unwrap();
    let refused = world.catalog.fold(&stranger).await;
    assert!(matches!(refused, Err(CatalogError::Fenced { .. })), "{refused:?}");
    world.fold(&clone).await;
    assert_eq!(world.shown(clone.head()).await.len(), 2);
}

pub async fn a_chain_of_a_thousand_clones_shows_all_that_was_written(store: &dyn CatalogStore) {
    const CLONES: u64 = 1000;
    let world = World::new(store).await;
    let mut last = world.held_volume("0").await;
    let mut written = vec![0];
    let mut snapshot = world.settled_snapshot(&mut last, leaf(0, 1), "s").await;
    for number in 1..=CLONES {
        last = world.held_clone(snapshot.id, &number.to_string()).await;
        // Most write a leaf of their own, every tenth the same one.
        let range = match number % 10 {
            0 => leaf(7, number),
            _ => leaf(number, 2),
        };
        let snapshots = [world.new_snapshot("s")];
        world.commit_with(&mut last, range, &snapshots).await;
        world.fold(&last).await;
        snapshot = world.catalog.snapshot(snapshots[0].id).await.unwrap();
        written.push(range.start().get() / LEAF_BLOCKS);
    }
    written.sort_unstable();
    written.dedup();
    let shown = || async {
        let versions = world.catalog.leaf_versions(last.head(), blocks(0, 1 << 30), u32::MAX).await.unwrap();
        let indices: Vec<LeafIndex> = versions.iter().map(|version| version.index).collect();
        let leaves = world.catalog.leaves(last.head(), &indices).await.unwrap();
        assert!(leaves.iter().map(|(index, _)| index).eq(&indices));
        for (index, leaf) in [&leaves[0], &leaves[7], &leaves[leaves.len() - 1]] {
            assert_eq!(world.catalog.leaf(last.head(), *index).await.unwrap().as_ref(), Some(leaf));
        }
        leaves.into_iter().map(|(index, leaf)| (index.get(), leaf)).collect::<BTreeMap<_, _>>()
    };
    let before = shown().await;
    assert_eq!(before.keys().map(|number| u64::from(*number)).collect::<Vec<_>>(), written);
    assert_eq!((before[&0].blocks(), before[&7].blocks(), before[&999].blocks()), (1, CLONES, 2));
    let mapped: u64 = before.values().map(MapLeaf::blocks).sum();
    assert_eq!(snapshot.logical_bytes, Some(mapped * 4096));
    assert_eq!(logical(&world, &last).await, mapped);

    // All go but the last one, the oldest first; then that goes, and with it everything.
    let volumes = world.catalog.volumes().await.unwrap();
    for volume in volumes.iter().filter(|volume| volume.id != last.volume) {
        delete(&world, volume.id).await;
    }
    while world.catalog.purge_deleted(500).await.unwrap() {}
    assert_eq!(shown().await, before);
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.volumes, totals.snapshots, totals.logical_bytes), (1, 1, mapped * 4096));
    delete(&world, last.volume).await;
    while world.catalog.purge_deleted(500).await.unwrap() {}
    for volume in volumes {
        assert_eq!(world.versions(volume.lineage, CommitSeq::new(1)).await, []);
    }
}
