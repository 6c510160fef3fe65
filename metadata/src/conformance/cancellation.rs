//! Futures dropped at every point where they wait.

use super::groups::{ended, event, group, run};
use super::{CatalogStore, World, at, blocks, key_row, written};
use crate::{
    FoldPlan, LeafIndex, MapLeaf, MapPoint, MemberState, NewVolume, PlacementChange, RunOutcome, Totals,
};
use cairn_model::crypto::KeyId;
use cairn_model::{CommitSeq, GatewayId, LineageId, ObjectPlace, Placement, Profile, ShardPlace};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// Polls `future` at most `polls` times, then drops it. `None` when it was not done.
pub(super) async fn for_polls<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

pub async fn a_dropped_commit_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let (mut dropped, mut done) = (0, 0);
    // How often a commit waits varies from run to run: every count several times.
    for polls in (0..30).flat_map(|polls| [polls; 6]) {
        let mut batch = world.batch(&[(&held, blocks(0, 40))]);
        batch.volumes[0].snapshots = vec![world.new_snapshot("snapshot")];
        let result = for_polls(polls, world.catalog.commit_batch(&batch)).await;
        dropped += usize::from(result.is_none());
        done += usize::from(result.is_some());
        // The same batch again settles it, whatever happened to the first try.
        let receipt = world.catalog.commit_batch(&batch).await.unwrap();
        held.through = batch.volumes[0].through;
        held.commit = held.commit.next();
        if let Some(first) = result {
            assert_eq!(first.unwrap(), receipt);
        }
        assert_eq!(world.progress(&held).await, (held.through, held.commit));
        let deltas = world.catalog.unfolded_deltas(held.lineage).await.unwrap();
        assert_eq!(deltas.len(), usize::try_from(held.commit.get()).unwrap());
        let totals = Totals { snapshots: held.commit.get(), ..World::totals(1, held.commit.get()) };
        assert_eq!(world.catalog.totals().await.unwrap(), totals);
    }
    assert!(dropped > 20 && done > 20, "{dropped} dropped, {done} done: the test does not reach its point");
}

pub async fn a_dropped_fold_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut dropped, mut done) = (0, 0);
    for (round, polls) in (0..30).flat_map(|polls| [polls; 4]).enumerate() {
        let mut held = world.held_volume(&format!("volume-{round}")).await;
        let container = world.commit(&mut held, blocks(0, 32)).await.containers[0].id;
        let leaf = |number: u32| {
            let index = LeafIndex::new(number).unwrap();
            let ops = written(blocks(index.range().start().get(), 32), container).ops;
            (index, Arc::new(MapLeaf::from_ops(index, ops)))
        };
        let plan =
            FoldPlan { forget: Some(held.commit), ..world.fold_plan(&held, (0..20).map(leaf).collect()) };
        let result = for_polls(polls, world.catalog.fold(&plan)).await;
        // A change of another volume waits for what is left of the dropped one.
        world.held_volume(&format!("other-{round}")).await;
        let leaves = world.catalog.leaf_versions(held.head(), blocks(0, 1 << 30), 100).await.unwrap().len();
        let deltas = world.catalog.unfolded_deltas(held.lineage).await.unwrap().len();
        let row = world.catalog.volume(held.volume).await.unwrap();
        let state = (leaves, deltas, row.folded_through, row.usage.logical_bytes);
        let full = (20, 0, held.commit, 20 * 32 * 4096);
        if let Some(result) = result {
            result.unwrap();
            done += 1;
            assert_eq!(state, full);
        } else {
            dropped += 1;
            assert!([full, (0, 1, CommitSeq::ZERO, 0)].contains(&state), "{state:?}");
        }
    }
    assert!(dropped > 10 && done > 10, "{dropped} dropped, {done} done: the test does not reach its point");
}

/// What of the snapshots' world there is to see: volumes with what they map, snapshots with their children, what both show.
async fn state(world: &World) -> Vec<String> {
    let mut state = vec![format!("{:?}", world.catalog.totals().await.unwrap())];
    for row in world.catalog.volumes().await.unwrap() {
        let head = MapPoint::head(row.lineage);
        state.push(format!("{} {} {:?}", row.name, row.size_bytes, row.usage.logical_bytes));
        state.push(format!("{:?}", world.shown(head).await));
        for snapshot in world.catalog.snapshots(row.id).await.unwrap() {
            state.push(format!("{snapshot:?} {:?}", world.shown(snapshot.at).await));
        }
    }
    state
}

pub async fn a_dropped_clone_revert_or_deletion_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mut dropped, mut done) = (0, 0);
    for (round, polls) in (0..24).flat_map(|polls| [polls; 2]).enumerate() {
        let mut held = world.held_volume("base").await;
        let snapshots = [world.new_snapshot("good"), world.new_snapshot("other")];
        world.commit_with(&mut held, blocks(0, 32), &snapshots).await;
        world.fold(&held).await;
        world.commit(&mut held, blocks(8, 40)).await;
        world.fold(&held).await;
        let clone = world.new_volume("clone");
        let lineage = LineageId::from_bytes(world.identity());
        for change in 0..4 {
            let before = state(&world).await;
            let (catalog, to) = (&world.catalog, snapshots[0].id);
            let attempt = || async {
                match change {
                    0 => catalog.create_clone(&clone, to).await,
                    1 => {
                        let through = held.through;
                        catalog.revert_volume(world.gateway, held.lease(), through, to, lineage).await
                    }
                    2 => catalog.delete_snapshot(world.gateway, held.lease(), to, at(5000)).await,
                    _ => catalog.delete_volume(held.volume, true, super::at(5000)).await,
                }
            };
            let result = for_polls(polls, attempt()).await;
            // A change of something else waits for what is left of the dropped one.
            catalog.register_gateway(world.other, "second", at(1)).await.unwrap();
            let after = state(&world).await;
            done += usize::from(result.is_some());
            dropped += usize::from(result.is_none());
            if let Some(result) = result {
                result.unwrap();
                assert_ne!(after, before);
            } else if after == before {
                attempt().await.unwrap();
            }
            // Whole at once or whole the second time: the state after is the same in every round.
            let finished = state(&world).await;
            assert!(after == before || after == finished, "change {change} of round {round}: {after:?}");
            assert_ne!(finished, before);
        }
        catalog_is_clean(&world, &clone, polls).await;
    }
    assert!(dropped > 20 && done > 20, "{dropped} dropped, {done} done: the test does not reach its point");
}

/// Deletes the last volume and purges, with calls that are dropped too, until nothing is left.
async fn catalog_is_clean(world: &World, last: &NewVolume, polls: usize) {
    assert_eq!(world.shown(MapPoint::head(last.lineage)).await[&0].blocks(), 32);
    for_polls(polls, world.catalog.purge_deleted(2)).await;
    assert_eq!(world.shown(MapPoint::head(last.lineage)).await[&0].blocks(), 32);
    world.catalog.delete_volume(last.id, false, super::at(5000)).await.unwrap();
    for _ in 0..3 {
        for_polls(polls, world.catalog.purge_deleted(2)).await;
    }
    world.purge().await;
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.volumes, totals.snapshots, totals.logical_bytes), (0, 0, 0));
    let again = NewVolume { id: last.id, lineage: last.lineage, ..world.new_volume("again") };
    world.catalog.create_volume(&again).await.unwrap();
    world.catalog.delete_volume(again.id, false, super::at(5000)).await.unwrap();
    world.purge().await;
}

pub async fn a_dropped_replacement_of_keys_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let purposes = ["a", "b", "c"];
    for purpose in purposes {
        catalog.put_key(&key_row(purpose, 0)).await.unwrap();
    }
    let mut wrapped_by = 0;
    for polls in (0..40).flat_map(|polls| [polls; 3]) {
        let (old, new) =
            (purposes.map(|key| key_row(key, wrapped_by)), purposes.map(|key| key_row(key, wrapped_by + 1)));
        let result =
            for_polls(polls, catalog.replace_keys(&new, KeyId::from_bytes([wrapped_by + 1; 8]))).await;
        // A change of something else waits for what is left of the dropped one.
        catalog.register_gateway(GatewayId::from_bytes([1; 16]), "any", at(1)).await.unwrap();
        let keys = catalog.keys().await.unwrap();
        assert!(keys == new || (keys == old && result.is_none()), "{keys:?}");
        wrapped_by += u8::from(keys == new);
    }
    assert!(wrapped_by > 20, "{wrapped_by} replacements: the test does not reach its point");
}

pub async fn a_dropped_change_does_not_hinder_the_next(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    for polls in 0..40 {
        let volume = world.new_volume(&format!("volume-{polls}"));
        let created = for_polls(polls, world.catalog.create_volume(&volume)).await;
        let other = world.new_volume(&format!("other-{polls}"));
        world.catalog.create_volume(&other).await.unwrap();
        let exists = world.catalog.volume(volume.id).await.is_ok();
        assert!(exists || created.is_none());
    }
    let volumes = world.catalog.volumes().await.unwrap().len() as u64;
    assert_eq!(world.catalog.totals().await.unwrap().volumes, volumes);
}

pub async fn a_dropped_run_of_a_group_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let group = group(&world, "g").await;
    let (mut dropped, mut done) = (0, 0);
    for (round, polls) in (0..30).flat_map(|polls| [polls; 2]).enumerate() {
        let snapshots = [world.new_snapshot("one"), world.new_snapshot("other")];
        let begun =
            run(&world, &group, &round.to_string(), &snapshots.each_ref().map(|snapshot| (&held, snapshot)));
        let handled = at(round as u64 + 1000);
        let attempt = || world.catalog.begin_group_run(&begun, Some(at(1 << 40)), handled);
        let result = for_polls(polls, attempt()).await;
        // A change of something else waits for what is left of the dropped one.
        world.catalog.register_gateway(world.other, "second", at(1)).await.unwrap();
        let locks = world.catalog.snapshot_locks(held.volume).await.unwrap().len();
        let unfinished = world.catalog.unfinished_group_runs().await.unwrap();
        let through = world.catalog.group_by_name(&group.name).await.unwrap().handled_through;
        let whole = locks == 2 && unfinished == std::slice::from_ref(&begun) && through == handled;
        let nothing = locks == 0 && unfinished.is_empty() && through != handled;
        assert!(whole || (nothing && result.is_none()), "{round}: {locks} locks, {unfinished:?}");
        dropped += usize::from(result.is_none());
        attempt().await.unwrap();

        let end = ended(&begun, RunOutcome::Failed, MemberState::Failed);
        let event = event(&round.to_string());
        let finish = || world.catalog.end_group_run(&end, &event);
        let result = for_polls(polls, finish()).await;
        world.catalog.register_gateway(world.other, "second", at(1)).await.unwrap();
        let locks = world.catalog.snapshot_locks(held.volume).await.unwrap().len();
        let is_ended = world.catalog.unfinished_group_runs().await.unwrap().is_empty();
        let is_told = world.catalog.events(1).await.unwrap() == std::slice::from_ref(&event);
        let (whole, nothing) = (locks == 0 && is_ended && is_told, locks == 2 && !is_ended && !is_told);
        assert!(
            whole || (nothing && result.is_none()),
            "{round}: {locks} locks, ended {is_ended}, told {is_told}"
        );
        dropped += usize::from(result.is_none());
        done += usize::from(result.is_some());
        finish().await.unwrap();
    }
    assert!(dropped > 10 && done > 10, "{dropped} dropped, {done} done: the test does not reach its point");
}

pub async fn a_dropped_change_of_a_place_leaves_nothing_or_everything(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nodes = world.more_nodes(4).await;
    let mut held = world.held_volume("a").await;
    let shard = |node: usize, tag: u32| Some(ShardPlace { node: nodes[node], tag });
    let replica =
        |shards: [Option<ShardPlace>; 2]| Placement::new(Profile::replica(2).unwrap(), shards.to_vec());
    let first = replica([shard(0, 0), shard(1, 0)]).unwrap();
    let batch = world.commit_at(&mut held, blocks(0, 8), first).await;
    let receipt = &batch.segments[0].receipt;
    let (segment, mut from) = (receipt.segment(), receipt.place().clone());
    let (mut dropped, mut done, mut doomed) = (0, 0, 0);
    for (polls, tag) in (0..30).flat_map(|polls| [polls; 4]).zip(1..) {
        // One copy is missing in between.
        let other = if from.placement.missing() == 0 { None } else { shard(1 + tag as usize % 3, tag) };
        let to = ObjectPlace { placement: replica([shard(0, 0), other]).unwrap(), ..from.clone() };
        let change = PlacementChange { segment, from: from.clone(), to: to.clone() };
        let result = for_polls(polls, world.catalog.place_shards(&change)).await;
        // A change of something else waits for what is left of the dropped one.
        world.catalog.register_gateway(world.other, "second", at(1)).await.unwrap();
        let state = async || {
            let place = world.catalog.segment_places(None, 2).await.unwrap().remove(0).place;
            let totals = world.catalog.totals().await.unwrap();
            let usage = world.catalog.node_usage().await.unwrap();
            let shards: u64 = usage.iter().map(|node| node.shards).sum();
            let doomed = world.catalog.doomed_objects(None, u32::MAX).await.unwrap().len();
            (place, totals.degraded_segments, totals.at_risk_segments, shards, doomed)
        };
        let missing = u64::from(other.is_none());
        let nothing = (from, 1 - missing, 1 - missing, 1 + missing, doomed);
        doomed += usize::from(other.is_none());
        let whole = (to.clone(), missing, missing, 2 - missing, doomed);
        let after = state().await;
        assert!(after == whole || (after == nothing && result.is_none()), "{after:?}");
        done += usize::from(result.is_some());
        dropped += usize::from(result.is_none());
        world.catalog.place_shards(&change).await.unwrap();
        assert_eq!(state().await, whole);
        from = to;
    }
    assert!(dropped > 10 && done > 10, "{dropped} dropped, {done} done: the test does not reach its point");
}
