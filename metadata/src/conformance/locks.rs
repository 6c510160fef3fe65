//! Locked snapshots: nobody deletes them before their time, in any way there is.

use super::groups::{ended, event, group, run};
use super::{CatalogStore, Held, World, at, blocks, refusal};
use crate::{MemberState, NewSnapshot, RunOutcome};
use cairn_model::{ErrorKind, SnapshotId};

const LOCKED: u64 = 1_795_879_800_000;

/// Takes a snapshot in a run that locks it.
async fn locked(world: &World, held: &mut Held, name: &str) -> NewSnapshot {
    let group = group(world, &format!("g-{name}")).await;
    let snapshot = world.new_snapshot(name);
    let begun = run(world, &group, "one", &[(held, &snapshot)]);
    world.catalog.begin_group_run(&begun, Some(at(LOCKED)), at(100)).await.unwrap();
    world.commit_with(held, blocks(0, 4), std::slice::from_ref(&snapshot)).await;
    let end = ended(&begun, RunOutcome::Complete, MemberState::Taken);
    world.catalog.end_group_run(&end, &event("ran")).await.unwrap();
    snapshot
}

async fn locks(world: &World, held: &Held) -> Vec<SnapshotId> {
    let locks = world.catalog.snapshot_locks(held.volume).await.unwrap();
    locks.into_iter().map(|(snapshot, _)| snapshot).collect()
}

pub async fn a_locked_snapshot_is_not_deleted_before_its_time(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let snapshot = locked(&world, &mut held, "s").await;
    let free = world.settled_snapshot(&mut held, blocks(0, 4), "free").await;
    let world = world.reopened(store).await;
    let row = world.catalog.snapshot(snapshot.id).await.unwrap();
    assert_eq!((row.locked_until, free.locked_until), (Some(at(LOCKED)), None));
    let message = "snapshot a@s is locked until 2026-11-28 15:30:00Z: neither it nor its volume can be deleted before, also \
                   not with --force";
    for now in [0, 5000, LOCKED - 1] {
        let delete = world.catalog.delete_snapshot(world.gateway, held.lease(), snapshot.id, at(now)).await;
        assert_eq!(refusal(delete), (ErrorKind::Conflict, message.to_owned()));
        let with_volume = world.catalog.delete_volume(held.volume, true, at(now)).await;
        assert_eq!(refusal(with_volume), (ErrorKind::Conflict, message.to_owned()));
    }
    // Nothing of the volume went.
    assert_eq!(world.catalog.snapshots(held.volume).await.unwrap().len(), 2);
    assert_eq!(world.catalog.totals().await.unwrap().snapshots, 2);
    // What is not locked is as free as ever, and so is the locked one in time.
    world.catalog.delete_snapshot(world.gateway, held.lease(), free.id, at(5000)).await.unwrap();
    world.catalog.delete_snapshot(world.gateway, held.lease(), snapshot.id, at(LOCKED)).await.unwrap();
    assert_eq!(locks(&world, &held).await, []);
    world.catalog.delete_volume(held.volume, true, at(5000)).await.unwrap();
}

pub async fn a_lock_outlives_its_group_and_goes_with_the_volume(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, mut other) = (world.held_volume("a").await, world.held_volume("b").await);
    let snapshot = locked(&world, &mut held, "s").await;
    let of_other = locked(&world, &mut other, "t").await;
    for group in world.catalog.groups().await.unwrap() {
        world.catalog.delete_group(group.id).await.unwrap();
    }
    let delete = world.catalog.delete_snapshot(world.gateway, held.lease(), snapshot.id, at(5000)).await;
    assert!(refusal(delete).1.contains("a@s is locked until"));
    assert_eq!(locks(&world, &held).await, [snapshot.id]);
    world.catalog.delete_volume(held.volume, true, at(LOCKED)).await.unwrap();
    assert_eq!((locks(&world, &held).await, locks(&world, &other).await), (vec![], vec![of_other.id]));
}

pub async fn a_snapshot_in_the_log_alone_is_locked_too(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut held, group) = (world.held_volume("a").await, group(&world, "g").await);
    let (coming, lost) = (world.new_snapshot("coming"), world.new_snapshot("lost"));
    let begun = run(&world, &group, "one", &[(&held, &coming), (&held, &lost)]);
    world.catalog.begin_group_run(&begun, Some(at(LOCKED)), at(100)).await.unwrap();
    // From the intent on, whatever the run comes to.
    let refused = refusal(world.catalog.delete_volume(held.volume, true, at(5000)).await);
    assert!(refused.1.contains("is locked until") && refused.1.contains("snapshot a@"), "{}", refused.1);
    let mut end = ended(&begun, RunOutcome::Partial, MemberState::Taken);
    end.members[1] = (lost.id, MemberState::Failed, Some("it was fenced".to_owned()));
    world.catalog.end_group_run(&end, &event("ran")).await.unwrap();
    // The lock of what never came is gone.
    assert_eq!(locks(&world, &held).await, [coming.id]);
    let refused = refusal(world.catalog.delete_volume(held.volume, true, at(5000)).await);
    assert!(refused.1.contains("snapshot a@coming is locked"), "{}", refused.1);
    // It comes, and there is no moment without its lock.
    world.commit_with(&mut held, blocks(0, 4), std::slice::from_ref(&coming)).await;
    assert_eq!(world.catalog.snapshot(coming.id).await.unwrap().locked_until, Some(at(LOCKED)));
    // Nor does forgetting it free it.
    world.catalog.forget_group_snapshot(coming.id).await.unwrap();
    assert_eq!(refusal(world.delete_snapshot(coming.id).await).0, ErrorKind::Conflict);
}

pub async fn a_revert_keeps_locked_snapshots(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let first = world.settled_snapshot(&mut held, blocks(0, 4), "first").await;
    let snapshot = locked(&world, &mut held, "s").await;
    world.fold(&held).await;
    let held = world.reverted(held, first.id).await;
    let row = world.catalog.snapshot(snapshot.id).await.unwrap();
    assert_eq!(row.locked_until, Some(at(LOCKED)));
    let delete = world.catalog.delete_snapshot(world.gateway, held.lease(), snapshot.id, at(5000)).await;
    assert_eq!(refusal(delete).0, ErrorKind::Conflict);
}
