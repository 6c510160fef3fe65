//! Snapshots: taken, settled, read, deleted; and the versions of leaves that they need.

use super::{CatalogStore, Held, World, at, blocks, hole, outcomes, refusal};
use crate::{
    CatalogError, FoldPlan, LEAF_BLOCKS, MapPoint, NewSnapshot, SnapshotName, SnapshotRow, VolumeOutcome,
};
use cairn_model::{CommitSeq, ErrorKind, MapDelta, SnapshotId, VolumeId, WriteSeq};

fn name(name: &str) -> SnapshotName {
    SnapshotName::new(name).unwrap()
}

async fn names(world: &World, volume: VolumeId) -> Vec<String> {
    let snapshots = world.catalog.snapshots(volume).await.unwrap();
    assert_eq!(world.catalog.totals().await.unwrap().snapshots, snapshots.len() as u64);
    snapshots.into_iter().map(|snapshot| snapshot.name.to_string()).collect()
}

fn as_taken(held: &Held, commit: u64, snapshot: &NewSnapshot) -> SnapshotRow {
    SnapshotRow {
        id: snapshot.id,
        volume: held.volume,
        name: snapshot.name.clone(),
        at: MapPoint { lineage: held.lineage, commit: CommitSeq::new(commit) },
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at,
        logical_bytes: None,
        children: 0,
        locked_until: None,
    }
}

pub async fn a_snapshot_is_of_the_commit_that_it_came_with(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 4)).await;
    let small = NewSnapshot { size_bytes: 5 << 30, ..world.new_snapshot("first") };
    world.commit_with(&mut held, blocks(4, 4), std::slice::from_ref(&small)).await;
    world.commit(&mut held, blocks(8, 4)).await;
    // Two at once, of a batch that changes nothing.
    let (second, third) = (world.new_snapshot("second"), world.new_snapshot("third"));
    let mut still = world.batch(&[(&held, blocks(0, 4))]);
    still.volumes[0].delta = MapDelta::default();
    still.volumes[0].through = held.through;
    still.volumes[0].snapshots = vec![second.clone(), third.clone()];
    world.commit_batch(&mut held, &still).await;

    let world = world.reopened(store).await;
    let expected = [as_taken(&held, 2, &small), as_taken(&held, 4, &second), as_taken(&held, 4, &third)];
    assert_eq!(world.catalog.snapshots(held.volume).await.unwrap(), expected);
    for snapshot in expected {
        assert_eq!(world.catalog.snapshot(snapshot.id).await.unwrap(), snapshot);
        let found = world.catalog.snapshot_by_name(held.volume, &snapshot.name).await;
        assert_eq!(found.unwrap(), snapshot);
    }
    assert_eq!(world.catalog.totals().await.unwrap().snapshots, 3);
}

pub async fn only_the_owner_of_its_volume_deletes_a_snapshot(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, other) = (world.held_volume("a").await, world.held_volume("b").await);
    let snapshot = world.settled_snapshot(&mut held, blocks(0, 4), "s").await;
    let delete = |gateway, lease| world.catalog.delete_snapshot(gateway, lease, snapshot.id, at(5000));
    assert_eq!(refusal(delete(world.other, held.lease()).await).0, ErrorKind::Fenced);
    assert_eq!(refusal(delete(world.gateway, other.lease()).await).0, ErrorKind::NotFound);
    world.take(held.volume, world.other, 100_000).await;
    assert_eq!(refusal(delete(world.gateway, held.lease()).await).0, ErrorKind::Fenced);
    assert_eq!(names(&world, held.volume).await, ["s"]);
    world.delete_snapshot(snapshot.id).await.unwrap();
    assert_eq!(names(&world, held.volume).await, Vec::<String>::new());
}

pub async fn an_unknown_snapshot_is_not_found(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, other) = (world.held_volume("a").await, world.held_volume("b").await);
    world.settled_snapshot(&mut held, blocks(0, 4), "there").await;
    let unknown = SnapshotId::from_bytes([0xee; 16]);
    let message = format!("there is no snapshot {unknown}");
    for refused in [
        refusal(world.catalog.snapshot(unknown).await),
        refusal(world.catalog.delete_snapshot(world.gateway, held.lease(), unknown, at(5000)).await),
        refusal(world.catalog.create_clone(&world.new_volume("clone"), unknown).await),
    ] {
        assert_eq!(refused, (ErrorKind::NotFound, message.clone()));
    }
    let refused = refusal(world.catalog.snapshot_by_name(other.volume, &name("there")).await);
    assert_eq!(refused, (ErrorKind::NotFound, "there is no snapshot there".to_owned()));
    assert_eq!(world.catalog.snapshots(other.volume).await.unwrap(), []);
    assert_eq!(world.catalog.snapshots(VolumeId::from_bytes([0xee; 16])).await.unwrap(), []);
    assert_eq!(world.catalog.totals().await.unwrap().snapshots, 1);
}

pub async fn a_snapshot_whose_name_is_taken_is_taken_under_another(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, mut other) = (world.held_volume("a").await, world.held_volume("b").await);
    let with_id = |first: u8, last: u8, name: &str| {
        let mut id = [first; 16];
        id[15] = last;
        NewSnapshot { id: SnapshotId::from_bytes(id), ..world.new_snapshot(name) }
    };
    let long = "x".repeat(255);
    // The names that were there first stay; identities of the same time begin alike.
    for (number, snapshots) in [
        vec![with_id(0xaa, 1, "daily"), with_id(0xbb, 1, "daily")],
        vec![with_id(0xbb, 2, "daily"), with_id(0xcc, 1, &long), with_id(0xcc, 2, &long)],
        vec![with_id(0xdd, 1, "daily-eeeeeeee"), with_id(0xee, 1, "daily")],
    ]
    .into_iter()
    .enumerate()
    {
        world.commit_with(&mut held, blocks(number as u64 * 4, 4), &snapshots).await;
    }
    let of_bb = format!("daily-{}02", "bb".repeat(15));
    let of_ee = format!("daily-{}01", "ee".repeat(15));
    let cut = format!("{}-cccccccc", &long[..246]);
    let expected =
        ["daily", "daily-bbbbbbbb", &of_bb, &long, &cut, "daily-eeeeeeee", &of_ee].map(str::to_owned);
    assert_eq!(names(&world, held.volume).await, expected);
    // Another volume has names of its own; a name that was deleted is free.
    world.commit_with(&mut other, blocks(0, 4), &[with_id(0xab, 1, "daily")]).await;
    let of_other = world.catalog.snapshots(other.volume).await.unwrap();
    assert_eq!(of_other[0].name, name("daily"));
    world.delete_snapshot(of_other[0].id).await.unwrap();
    world.commit_with(&mut other, blocks(0, 4), &[with_id(0xab, 2, "daily")]).await;
    assert_eq!(world.catalog.snapshots(other.volume).await.unwrap()[0].name, name("daily"));
}

pub async fn the_same_batch_again_takes_no_second_snapshot(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let batch = world.commit_with(&mut held, blocks(0, 4), &[world.new_snapshot("once")]).await;
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [VolumeOutcome::Committed(CommitSeq::new(1))]);
    assert_eq!(names(&world, held.volume).await, ["once"]);
    // Nor does it bring one back that was deleted since.
    world.delete_snapshot(batch.volumes[0].snapshots[0].id).await.unwrap();
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    assert_eq!(names(&world, held.volume).await, [""; 0]);
}

pub async fn a_refused_batch_takes_no_snapshot(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, gone) = (world.held_volume("a").await, world.held_volume("gone").await);
    let first = world.new_snapshot("first");
    let mut batch = world.batch(&[(&held, blocks(0, 4))]);
    batch.volumes[0].snapshots = vec![first.clone()];
    batch.volumes[0].base = WriteSeq::new(3);
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await).0, ErrorKind::Conflict);
    batch.volumes[0].base = WriteSeq::ZERO;
    batch.volumes[0].snapshots = vec![first.clone(), NewSnapshot { name: name("twice"), ..first.clone() }];
    let twice = (ErrorKind::Conflict, format!("snapshot {} exists already", first.id));
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await), twice);
    batch.volumes[0].snapshots = vec![NewSnapshot { size_bytes: u64::MAX, ..first.clone() }];
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await).0, ErrorKind::Internal);
    assert_eq!(names(&world, held.volume).await, [""; 0]);
    assert_eq!(world.progress(&held).await, (WriteSeq::ZERO, CommitSeq::ZERO));

    batch.volumes[0].snapshots = vec![first];
    world.commit_batch(&mut held, &batch).await;
    // An identity is used once, also by another batch; a deleted volume's part is left out with its snapshots.
    let mut again = world.batch(&[(&held, blocks(0, 4))]);
    again.volumes[0].snapshots.clone_from(&batch.volumes[0].snapshots);
    assert_eq!(refusal(world.catalog.commit_batch(&again).await), twice);
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();
    let mut left_out = world.batch(&[(&gone, blocks(0, 4))]);
    left_out.volumes[0].snapshots = vec![world.new_snapshot("left-out")];
    let receipt = world.catalog.commit_batch(&left_out).await.unwrap();
    assert_eq!(outcomes(&receipt), [VolumeOutcome::Deleted]);
    assert_eq!(names(&world, held.volume).await, ["first"]);
    assert_eq!(world.catalog.snapshots(gone.volume).await.unwrap(), []);
}

pub async fn snapshots_are_listed_oldest_first(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    // The clock jumps back in between: what was taken later stays later.
    for (label, created_at) in [("a", 50), ("b", 70), ("c", 60), ("d", 70), ("e", 80)] {
        let snapshot = NewSnapshot { created_at: at(created_at), ..world.new_snapshot(label) };
        world.commit_with(&mut held, blocks(0, 4), &[snapshot]).await;
    }
    assert_eq!(names(&world, held.volume).await, ["a", "b", "c", "d", "e"]);
    // In a fresh lineage commits begin anew.
    world.fold(&held).await;
    let to = world.catalog.snapshots(held.volume).await.unwrap()[0].id;
    let held = world.reverted(held, to).await;
    let mut held = held;
    for (label, created_at) in [("f", 90), ("g", 85)] {
        let snapshot = NewSnapshot { created_at: at(created_at), ..world.new_snapshot(label) };
        world.commit_with(&mut held, blocks(0, 4), &[snapshot]).await;
    }
    assert_eq!(names(&world, held.volume).await, ["a", "b", "c", "d", "e", "f", "g"]);
}

pub async fn a_snapshot_is_settled_when_all_of_it_is_folded(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 10)).await;
    let snapshots = [world.new_snapshot("one"), world.new_snapshot("other")];
    world.commit_with(&mut held, blocks(LEAF_BLOCKS, 20), &snapshots).await;
    world.commit_with(&mut held, blocks(5, 10), &[world.new_snapshot("later")]).await;
    let logical = || async {
        let snapshots = world.catalog.snapshots(held.volume).await.unwrap();
        let blocks = |snapshot: SnapshotRow| snapshot.logical_bytes.map(|bytes| bytes / 4096);
        snapshots.into_iter().map(blocks).collect::<Vec<_>>()
    };
    let step = |through: u64, forget: Option<u64>| FoldPlan {
        through: CommitSeq::new(through),
        forget: forget.map(CommitSeq::new),
        ..world.fold_plan(&held, Vec::new())
    };
    assert_eq!(logical().await, [None; 3]);
    let first_leaf = world.leaf_at(&held, 0, 2).await;
    world.catalog.fold(&FoldPlan { leaves: vec![first_leaf], ..step(2, Some(1)) }).await.unwrap();
    assert_eq!(logical().await, [None; 3]);
    // The step that forgets through the snapshot's commit is the one that settles it.
    let second_leaf = world.leaf_at(&held, 1, 2).await;
    world.catalog.fold(&FoldPlan { leaves: vec![second_leaf], ..step(2, None) }).await.unwrap();
    assert_eq!(logical().await, [None; 3]);
    world.catalog.fold(&step(2, Some(2))).await.unwrap();
    assert_eq!(logical().await, [Some(30), Some(30), None]);
    world.fold(&held).await;
    assert_eq!(logical().await, [Some(30), Some(30), Some(35)]);
    // Nothing later changes it.
    let mut held = held.clone();
    let mut trim = world.batch(&[(&held, blocks(0, 4))]);
    trim.volumes[0].delta = hole(blocks(0, 2 * LEAF_BLOCKS));
    world.commit_batch(&mut held, &trim).await;
    world.fold(&held).await;
    assert_eq!(logical().await, [Some(30), Some(30), Some(35)]);
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes, 0);
}

pub async fn a_fold_does_not_pass_a_snapshot(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 4)).await;
    world.commit_with(&mut held, blocks(0, 4), &[world.new_snapshot("snapshot")]).await;
    world.commit(&mut held, blocks(4, 4)).await;
    let leaf = world.leaf_at(&held, 0, 3).await;
    let across = FoldPlan { forget: Some(held.commit), ..world.fold_plan(&held, vec![leaf]) };
    let refused = world.catalog.fold(&across).await;
    assert!(
        matches!(&refused, Err(CatalogError::FoldAcross { lineage, through, snapshot })
            if (*lineage, through.get(), snapshot.get()) == (held.lineage, 3, 2)),
        "{refused:?}"
    );
    assert!(world.shown(held.head()).await.is_empty());
    assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap().len(), 3);
    // Not even after a step through exactly that, until one has forgotten it.
    let leaf = world.leaf_at(&held, 0, 2).await;
    let through = CommitSeq::new(2);
    let to = FoldPlan { through, forget: Some(CommitSeq::new(1)), ..world.fold_plan(&held, vec![leaf]) };
    world.catalog.fold(&to).await.unwrap();
    assert_eq!(refusal(world.catalog.fold(&across).await).0, ErrorKind::Internal);
    let forget = FoldPlan { forget: Some(through), leaves: Vec::new(), ..to };
    world.catalog.fold(&forget).await.unwrap();
    world.catalog.fold(&across).await.unwrap();
    assert_eq!(world.shown(held.head()).await[&0].blocks(), 8);
    // A snapshot that is gone stands in nobody's way.
    let batch = world.commit_with(&mut held, blocks(0, 4), &[world.new_snapshot("brief")]).await;
    world.commit(&mut held, blocks(9, 4)).await;
    world.delete_snapshot(batch.volumes[0].snapshots[0].id).await.unwrap();
    let leaf = world.leaf_at(&held, 0, 5).await;
    let fold = FoldPlan { forget: Some(held.commit), ..world.fold_plan(&held, vec![leaf]) };
    world.catalog.fold(&fold).await.unwrap();
    assert_eq!(world.shown(held.head()).await[&0].blocks(), 12);
}

pub async fn versions_stay_for_snapshots_and_go_with_them(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut snapshots = Vec::new();
    let mut shown = Vec::new();
    for number in 1..=4 {
        // The second leaf does not change between the second and the third.
        let range = if number == 3 { blocks(0, 4) } else { blocks(LEAF_BLOCKS - 2 * number, 4 * number) };
        world.commit(&mut held, range).await;
        world.fold(&held).await;
        let snapshot = world.settled_snapshot(&mut held, blocks(0, 1), &format!("s{number}")).await;
        shown.push(world.shown(snapshot.at).await);
        snapshots.push(snapshot);
    }
    let everything = [(0, 2), (0, 4), (0, 6), (0, 8), (1, 1), (1, 3), (1, 7)];
    assert_eq!(world.versions(held.lineage, held.commit).await, everything);
    world.purge().await;
    assert_eq!(world.versions(held.lineage, held.commit).await, everything);

    // The second and the third share a version; the head needs what the fourth does.
    let mut left = everything.to_vec();
    for (gone, unneeded) in
        [(1, vec![(0, 4)]), (3, vec![]), (2, vec![(0, 6), (1, 3)]), (0, vec![(0, 2), (1, 1)])]
    {
        world.delete_snapshot(snapshots[gone].id).await.unwrap();
        for other in world.catalog.snapshots(held.volume).await.unwrap() {
            let number = snapshots.iter().position(|snapshot| snapshot.id == other.id).unwrap();
            assert_eq!(world.shown(other.at).await, shown[number]);
        }
        world.purge().await;
        left.retain(|version| !unneeded.contains(version));
        assert_eq!(world.versions(held.lineage, held.commit).await, left);
        assert_eq!(world.shown(held.head()).await, shown[3]);
        for other in world.catalog.snapshots(held.volume).await.unwrap() {
            let number = snapshots.iter().position(|snapshot| snapshot.id == other.id).unwrap();
            assert_eq!(world.shown(other.at).await, shown[number]);
        }
    }
    assert_eq!(left, [(0, 8), (1, 7)]);
}

pub async fn what_was_emptied_stays_visible_in_snapshots(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(2 * LEAF_BLOCKS, 4)).await;
    let snapshot = world.settled_snapshot(&mut held, blocks(0, 4), "full").await;
    let full = world.shown(snapshot.at).await;
    assert_eq!(full.keys().copied().collect::<Vec<_>>(), [0, 2]);
    // One leaf is written empty, the other one emptied with all that follow; a third comes and goes.
    world.commit(&mut held, blocks(9 * LEAF_BLOCKS, 4)).await;
    world.fold(&held).await;
    let mut trim = world.batch(&[(&held, blocks(0, 4))]);
    trim.volumes[0].delta = hole(blocks(0, 1 << 30));
    world.commit_batch(&mut held, &trim).await;
    let plan = FoldPlan {
        forget: Some(held.commit),
        emptied: vec![blocks(LEAF_BLOCKS, (1 << 30) - LEAF_BLOCKS)],
        ..world.fold_plan(&held, vec![world.leaf_at(&held, 0, held.commit.get()).await])
    };
    // As often as the reply is lost.
    for _ in 0..3 {
        world.catalog.fold(&plan).await.unwrap();
        assert!(world.shown(held.head()).await.is_empty());
        assert_eq!(world.shown(snapshot.at).await, full);
        assert_eq!(world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes, 0);
    }
    assert_eq!(world.versions(held.lineage, held.commit).await, [(0, 2), (0, 4), (2, 2), (2, 4)]);
    // Holes that hide nothing any more go too.
    world.delete_snapshot(snapshot.id).await.unwrap();
    world.purge().await;
    assert_eq!(world.versions(held.lineage, held.commit).await, []);
    world.commit(&mut held, blocks(0, 4)).await;
    world.fold(&held).await;
    assert_eq!(world.shown(held.head()).await[&0].blocks(), 4);
}

pub async fn a_volume_with_snapshots_is_deleted_only_with_them(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut other = world.held_volume("b").await;
    world.settled_snapshot(&mut other, blocks(0, 4), "kept").await;
    let first = world.settled_snapshot(&mut held, blocks(0, 4), "first").await;
    let unsettled = world.new_snapshot("second");
    world.commit_with(&mut held, blocks(0, 4), std::slice::from_ref(&unsettled)).await;
    let refused = refusal(world.catalog.delete_volume(held.volume, false, super::at(5000)).await);
    let message = "volume a has snapshots (2): delete them first, or delete everything with --force";
    assert_eq!(refused, (ErrorKind::Conflict, message.to_owned()));
    assert_eq!(world.catalog.totals().await.unwrap().snapshots, 3);

    world.catalog.delete_volume(held.volume, true, super::at(5000)).await.unwrap();
    assert_eq!(world.catalog.snapshots(held.volume).await.unwrap(), []);
    for id in [first.id, unsettled.id] {
        assert_eq!(refusal(world.catalog.snapshot(id).await).0, ErrorKind::NotFound);
        assert_eq!(refusal(world.delete_snapshot(id).await).0, ErrorKind::NotFound);
        let clone = world.new_volume("clone");
        assert_eq!(refusal(world.catalog.create_clone(&clone, id).await).0, ErrorKind::NotFound);
    }
    assert_eq!(
        refusal(world.catalog.snapshot_by_name(held.volume, &first.name).await).0,
        ErrorKind::NotFound
    );
    assert_eq!(names(&world, other.volume).await, ["kept"]);
    world.purge().await;
    assert_eq!(world.versions(held.lineage, held.commit).await, []);
    assert_eq!(world.catalog.unfolded_deltas(held.lineage).await.unwrap(), []);
    assert_eq!(names(&world, other.volume).await, ["kept"]);
    // Without snapshots it takes no force, and force does no harm.
    let plain = world.held_volume("c").await;
    world.catalog.delete_volume(plain.volume, true, super::at(5000)).await.unwrap();
}

pub async fn what_is_folded_is_never_written_again(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 4)).await;
    let snapshot = world.settled_snapshot(&mut held, blocks(LEAF_BLOCKS, 4), "golden").await;
    let golden = world.shown(snapshot.at).await;
    let clone = world.held_clone(snapshot.id, "clone").await;
    world.commit(&mut held, blocks(0, 8)).await;
    world.fold(&held).await;
    let newest = world.shown(held.head()).await;
    // Steps that come late, of commits that are long in the leaves, whatever they say: of the snapshot's own, of one before it, of the last.
    let wrong = world.leaf_at(&held, 0, 3).await;
    for through in [1, 2, 3].map(CommitSeq::new) {
        let leaves = vec![wrong.clone(), (crate::LeafIndex::new(7).unwrap(), wrong.1.clone())];
        let late = FoldPlan { through, forget: Some(through), ..world.fold_plan(&held, leaves) };
        world.catalog.fold(&late).await.unwrap();
        let emptied = vec![blocks(0, 9 * LEAF_BLOCKS)];
        world.catalog.fold(&FoldPlan { emptied, leaves: Vec::new(), ..late }).await.unwrap();
        assert_eq!(world.shown(snapshot.at).await, golden);
        assert_eq!(world.shown(clone.head()).await, golden);
        assert_eq!(world.shown(held.head()).await, newest);
    }
    assert_eq!(world.versions(held.lineage, held.commit).await, [(0, 2), (0, 3), (1, 2)]);
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().usage.logical_bytes, 12 * 4096);
}
