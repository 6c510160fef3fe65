//! Reverting a volume to one of its snapshots.

use super::{CatalogStore, Held, World, at, blocks, generation, refusal};
use crate::{CatalogError, FoldPlan, HeldLease, LEAF_BLOCKS, NewSnapshot, NewVolume, SnapshotRow};
use cairn_model::{CommitSeq, ErrorKind, LineageId, SnapshotId, WriteSeq};

/// A volume of two leaves with a settled snapshot, written on and folded.
async fn changed(world: &World, name: &str) -> (Held, SnapshotRow) {
    let mut held = world.held_volume(name).await;
    world.commit(&mut held, blocks(0, 10)).await;
    let snapshot = NewSnapshot { size_bytes: 3 << 30, ..world.new_snapshot("good") };
    world.commit_with(&mut held, blocks(LEAF_BLOCKS, 20), std::slice::from_ref(&snapshot)).await;
    world.commit(&mut held, blocks(0, 50)).await;
    world.fold(&held).await;
    (held, world.catalog.snapshot(snapshot.id).await.unwrap())
}

pub async fn a_reverted_volume_shows_its_snapshot_in_a_fresh_lineage(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (held, snapshot) = changed(&world, "a").await;
    let good = world.shown(snapshot.at).await;
    let bad = world.settled_snapshot(&mut held.clone(), blocks(5 * LEAF_BLOCKS, 7), "bad").await;
    let held = Held { commit: CommitSeq::new(4), through: WriteSeq::new(40), ..held };
    let shown_by_bad = world.shown(bad.at).await;
    let old = held.lineage;
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, 77 * 4096);
    let mut held = world.reverted(held, snapshot.id).await;

    let world = world.reopened(store).await;
    let row = world.catalog.volume(held.volume).await.unwrap();
    assert_eq!((row.lineage, row.size_bytes, row.usage.logical_bytes), (held.lineage, 3 << 30, 30 * 4096));
    assert_eq!((row.commit, row.folded_through), (CommitSeq::ZERO, CommitSeq::ZERO));
    assert_eq!(row.destaged_through, WriteSeq::new(40));
    assert_eq!(world.catalog.totals().await.unwrap().logical_bytes, 30 * 4096);
    assert_eq!(world.shown(held.head()).await, good);
    // It goes on from there; its snapshots stay its own, whatever lineage they are of.
    let after = world.settled_snapshot(&mut held, blocks(0, 12), "after").await;
    assert_eq!(after.logical_bytes, Some(32 * 4096));
    let snapshots = world.catalog.snapshots(held.volume).await.unwrap();
    let kept: Vec<_> = snapshots.iter().map(|snapshot| (snapshot.name.as_str(), snapshot.children)).collect();
    assert_eq!(kept, [("good", 1), ("bad", 0), ("after", 0)]);
    world.purge().await;
    assert_eq!((world.shown(snapshot.at).await, world.shown(bad.at).await), (good, shown_by_bad.clone()));
    // Of the old lineage, what its snapshots need; and back again.
    assert_eq!(world.versions(old, CommitSeq::new(4)).await, [(0, 2), (0, 3), (1, 2), (5, 4)]);
    let held = world.reverted(held, bad.id).await;
    assert_eq!(world.shown(held.head()).await, shown_by_bad);
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes, 77 * 4096);
    world.delete_snapshot(snapshot.id).await.unwrap();
    world.purge().await;
    assert_eq!(world.shown(held.head()).await, shown_by_bad);
    let left = world.shown(after.at).await;
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), [0, 1]);

    world.catalog.delete_volume(held.volume, true, super::at(5000)).await.unwrap();
    world.purge().await;
    for lineage in [old, after.at.lineage, held.lineage] {
        assert_eq!(world.versions(lineage, CommitSeq::new(4)).await, []);
        let again = NewVolume { lineage, ..world.new_volume(&lineage.to_string()) };
        world.catalog.create_volume(&again).await.unwrap();
    }
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.snapshots, totals.logical_bytes), (0, 0));
}

pub async fn reverting_again_with_the_same_lineage_changes_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, snapshot) = changed(&world, "a").await;
    let lineage = LineageId::from_bytes(world.identity());
    let before = held.through;
    for _ in 0..3 {
        let revert = world.catalog.revert_volume(world.gateway, held.lease(), before, snapshot.id, lineage);
        revert.await.unwrap();
    }
    (held.lineage, held.commit) = (lineage, CommitSeq::ZERO);
    assert_eq!(world.catalog.snapshot(snapshot.id).await.unwrap().children, 1);
    // Not even when it has been written to since, or the snapshot is gone.
    world.commit(&mut held, blocks(0, 15)).await;
    world.fold(&held).await;
    let row = world.catalog.volume(held.volume).await.unwrap();
    world.delete_snapshot(snapshot.id).await.unwrap();
    world.catalog.revert_volume(world.gateway, held.lease(), before, snapshot.id, lineage).await.unwrap();
    assert_eq!(world.catalog.volume(held.volume).await.unwrap(), row);
    assert_eq!(row.usage.logical_bytes, 35 * 4096);
}

pub async fn a_revert_that_would_lose_something_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, snapshot) = changed(&world, "a").await;
    let (other, of_other) = changed(&world, "b").await;
    let fresh = LineageId::from_bytes([0xdd; 16]);
    let revert = |held: HeldLease, through: WriteSeq, to: SnapshotId, lineage: LineageId| {
        let catalog = &world.catalog;
        async move { catalog.revert_volume(world.gateway, held, through, to, lineage).await.unwrap_err() }
    };
    let before = world.catalog.volumes().await.unwrap();
    let through = held.through;
    // Not the owner.
    let stale = HeldLease { generation: generation(7), ..held.lease() };
    assert!(matches!(revert(stale, through, snapshot.id, fresh).await, CatalogError::Fenced { .. }));
    let theirs = world.catalog.revert_volume(world.other, held.lease(), through, snapshot.id, fresh).await;
    assert!(matches!(theirs, Err(CatalogError::Fenced { .. })), "{theirs:?}");
    // Something is not destaged that the caller believes to be, or the other way round.
    for wrong in [WriteSeq::new(29), WriteSeq::new(31)] {
        let refused = revert(held.lease(), wrong, snapshot.id, fresh).await;
        assert!(
            matches!(&refused, CatalogError::NotNext { volume, base, committed }
                if (*volume, *base, *committed) == (held.volume, wrong, through)),
            "{refused:?}"
        );
    }
    // Another volume's snapshot, one that is not there, a lineage that is.
    for to in [of_other.id, SnapshotId::from_bytes([0xee; 16])] {
        let refused = revert(held.lease(), through, to, fresh).await;
        assert!(matches!(&refused, CatalogError::NotFound { what: "snapshot", .. }), "{refused:?}");
    }
    let refused = revert(held.lease(), through, snapshot.id, other.lineage).await;
    assert!(matches!(&refused, CatalogError::AlreadyExists { .. }), "{refused:?}");
    assert_eq!(world.catalog.volumes().await.unwrap(), before);

    // Something is not folded.
    let late = world.new_snapshot("late");
    world.commit_with(&mut held, blocks(0, 4), std::slice::from_ref(&late)).await;
    for to in [&snapshot.id, &late.id] {
        let refused = revert(held.lease(), held.through, *to, fresh).await;
        assert!(matches!(&refused, CatalogError::NotSettled { .. }), "{refused:?}");
    }
    let part = FoldPlan { forget: Some(CommitSeq::new(3)), ..world.fold_plan(&held, Vec::new()) };
    world.catalog.fold(&part).await.unwrap();
    let refused = revert(held.lease(), held.through, snapshot.id, fresh).await;
    assert!(matches!(&refused, CatalogError::NotSettled { name } if *name == snapshot.name), "{refused:?}");
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().lineage, held.lineage);
    world.fold(&held).await;
    world.reverted(held, snapshot.id).await;
    let gone = HeldLease { volume: cairn_model::VolumeId::from_bytes([0xee; 16]), generation: generation(1) };
    let refused =
        refusal(world.catalog.revert_volume(world.gateway, gone, through, snapshot.id, fresh).await);
    assert_eq!(refused.0, ErrorKind::NotFound);
}

pub async fn batches_and_folds_of_the_old_lineage_are_refused_after_a_revert(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (old, snapshot) = changed(&world, "a").await;
    let (batch, fold) = (world.batch(&[(&old, blocks(0, 4))]), world.fold_plan(&old, Vec::new()));
    let held = world.reverted(old.clone(), snapshot.id).await;
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await).0, ErrorKind::Internal);
    assert_eq!(refusal(world.catalog.fold(&fold).await).0, ErrorKind::NotFound);
    assert_eq!(world.catalog.unfolded_deltas(old.lineage).await.unwrap(), []);
    // The lease goes on, and another gateway takes the volume as it is.
    let lease = world.take(held.volume, world.other, 40_000).await;
    assert_eq!(lease.generation, generation(2));
    let renewed = world.catalog.renew_lease(held.volume, world.other, generation(2), at(41_000), super::TTL);
    assert!(renewed.await.is_ok());
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().lineage, held.lineage);
}
