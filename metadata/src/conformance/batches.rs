//! Committing batches.

use super::{CatalogStore, TTL, World, at, blocks, outcomes, refusal, segment_row, written};
use crate::{BatchCommit, ContainerLocation, Totals, VolumeOutcome};
use cairn_model::{
    BatchId, CommitSeq, ContainerId, DomainId, ErrorKind, GatewayId, Lba, LbaRange, LineageId, MapDelta,
    MapOp, MapTarget, NodeId, SegmentId, WriteSeq,
};
use std::sync::Arc;

const fn committed(number: u64) -> VolumeOutcome {
    VolumeOutcome::Committed(CommitSeq::new(number))
}

/// Nothing of a refused batch is there.
async fn assert_nothing_of(world: &World, batch: &BatchCommit) {
    let ids: Vec<ContainerId> = batch.containers.iter().map(|container| container.id).collect();
    assert_eq!(world.catalog.containers(&ids).await.unwrap(), []);
    for part in &batch.volumes {
        assert_eq!(world.catalog.unfolded_deltas(part.lineage).await.unwrap(), []);
    }
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!(totals, Totals { volumes: totals.volumes, ..Totals::default() });
}

pub async fn a_batch_publishes_everything_at_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let batch = world.batch(&[(&held, blocks(100, 30))]);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!((receipt.batch, outcomes(&receipt)), (batch.batch, vec![committed(1)]));

    let world = world.reopened(store).await;
    assert_eq!(world.progress(&held).await, (WriteSeq::new(10), CommitSeq::new(1)));
    let deltas = world.catalog.unfolded_deltas(held.lineage).await.unwrap();
    assert_eq!(deltas, [(CommitSeq::new(1), batch.volumes[0].delta.clone())]);
    let container = &batch.containers[0];
    let expected = ContainerLocation {
        id: container.id,
        segment: container.segment,
        place: batch.segments[0].receipt.place().clone(),
        offset: container.offset,
        length: container.length,
        raw_bytes: container.raw_bytes,
        domain: container.domain,
        directory: container.directory.clone(),
    };
    assert_eq!(world.catalog.containers(&[container.id]).await.unwrap(), [expected]);
}

pub async fn a_batch_of_many_volumes_answers_for_each(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut first = world.held_volume("a").await;
    let second = world.held_volume("b").await;
    world.commit(&mut first, blocks(0, 4)).await;
    let batch = world.batch(&[(&second, blocks(0, 4)), (&first, blocks(0, 4))]);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [committed(1), committed(2)]);
    let volumes: Vec<_> = receipt.volumes.iter().map(|part| part.volume).collect();
    assert_eq!(volumes, [second.volume, first.volume]);
    assert_eq!(world.progress(&first).await, (WriteSeq::new(20), CommitSeq::new(2)));
    assert_eq!(world.progress(&second).await, (WriteSeq::new(10), CommitSeq::new(1)));
}

pub async fn the_same_batch_again_gets_the_first_receipt(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let batch = world.batch(&[(&held, blocks(0, 4))]);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    (held.through, held.commit) = (WriteSeq::new(10), CommitSeq::new(1));
    for _ in 0..20 {
        world.commit(&mut held, blocks(4, 4)).await;
    }
    let world = world.reopened(store).await;
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    assert_eq!(world.progress(&held).await, (held.through, held.commit));
    assert_eq!(world.catalog.totals().await.unwrap().segments, 21);
}

pub async fn a_batch_is_recognised_after_its_lease_moved_on(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let gone = world.held_volume("b").await;
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();
    let batch = world.batch(&[(&held, blocks(0, 4)), (&gone, blocks(0, 4))]);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    world.take(held.volume, world.other, 31_000).await;

    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    assert_eq!(outcomes(&receipt), [committed(1), VolumeOutcome::Deleted]);
    let stolen = BatchCommit { gateway: world.other, ..batch };
    assert_eq!(refusal(world.catalog.commit_batch(&stolen).await).0, ErrorKind::Internal);
}

pub async fn a_batch_too_old_to_be_remembered_is_refused_by_its_base(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let oldest = world.commit(&mut held, blocks(0, 4)).await;
    for _ in 0..100 {
        world.commit(&mut held, blocks(0, 4)).await;
    }
    assert_eq!(refusal(world.catalog.commit_batch(&oldest).await).0, ErrorKind::Conflict);
    assert_eq!(world.progress(&held).await, (held.through, held.commit));
    assert_eq!(world.catalog.totals().await.unwrap().containers, 101);
}

pub async fn the_same_batch_twice_at_once_is_committed_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let batch = world.batch(&[(&held, blocks(0, 4))]);
    let other = store.open().await;
    let (first, second) = tokio::join!(world.catalog.commit_batch(&batch), other.commit_batch(&batch));
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(world.progress(&held).await, (WriteSeq::new(10), CommitSeq::new(1)));
    assert_eq!(world.catalog.totals().await.unwrap().segments, 1);
}

pub async fn a_stale_term_commits_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let stale = world.held_volume("a").await;
    let current = world.held_volume("b").await;
    world.catalog.acquire_lease(stale.volume, world.gateway, at(1001), TTL, None).await.unwrap();

    let batch = world.batch(&[(&current, blocks(0, 4)), (&stale, blocks(0, 4))]);
    let refused = refusal(world.catalog.commit_batch(&batch).await);
    let message = format!(
        "volume {} is not held by this gateway at generation 1 any more (the catalog is at 2): stop serving it",
        stale.volume
    );
    assert_eq!(refused, (ErrorKind::Fenced, message));
    assert_nothing_of(&world, &batch).await;
    assert_eq!(world.progress(&current).await, (WriteSeq::ZERO, CommitSeq::ZERO));
}

pub async fn a_batch_that_does_not_follow_commits_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let other = world.held_volume("b").await;
    let mut batch = world.batch(&[(&other, blocks(0, 4)), (&held, blocks(0, 4))]);
    (batch.volumes[1].base, batch.volumes[1].through) = (WriteSeq::new(3), WriteSeq::new(5));
    let refused = refusal(world.catalog.commit_batch(&batch).await);
    assert_eq!(refused.0, ErrorKind::Conflict, "{}", refused.1);
    assert!(refused.1.contains("begins at write 3, but writes are committed through 0"), "{}", refused.1);
    assert_nothing_of(&world, &batch).await;

    // The same batch with the right base goes through: the refusal left no trace of its identity.
    (batch.volumes[1].base, batch.volumes[1].through) = (WriteSeq::ZERO, WriteSeq::new(5));
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [committed(1), committed(1)]);
}

pub async fn a_pointer_to_an_unknown_container_commits_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let unknown = ContainerId::from_bytes([0xee; 16]);
    let mut batch = world.batch(&[(&held, blocks(0, 4))]);
    batch.volumes[0].delta.ops.extend(written(blocks(50, 4), unknown).ops);
    let refused = refusal(world.catalog.commit_batch(&batch).await);
    assert_eq!(refused.0, ErrorKind::Conflict);
    assert!(refused.1.contains(&unknown.to_string()), "{}", refused.1);
    assert_nothing_of(&world, &batch).await;
}

pub async fn a_container_of_an_earlier_batch_may_be_pointed_at(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut known = Vec::new();
    // More than one look-up takes.
    for number in 0..150 {
        known.push(world.commit(&mut held, blocks(number * 4, 4)).await.containers[0].id);
    }
    let mut other = world.held_volume("b").await;
    let mut batch = world.batch(&[(&other, blocks(0, 4))]);
    (batch.segments, batch.containers) = (Vec::new(), Vec::new());
    let copies = known.iter().zip(0..).flat_map(|(id, number)| written(blocks(number * 8, 4), *id).ops);
    batch.volumes[0].delta = MapDelta { ops: copies.collect() };
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [committed(1)]);
    (other.through, other.commit) = (WriteSeq::new(10), CommitSeq::new(1));
    world.commit(&mut other, blocks(0, 4)).await;
}

pub async fn a_deleted_volume_is_left_out(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (kept, gone, purged) =
        (world.held_volume("kept").await, world.held_volume("gone").await, world.held_volume("purged").await);
    world.catalog.delete_volume(purged.volume, false, super::at(5000)).await.unwrap();
    while world.catalog.purge_deleted(100).await.unwrap() {}
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();

    let parts = [(&gone, blocks(0, 4)), (&kept, blocks(0, 4)), (&purged, blocks(0, 4))];
    let batch = world.batch(&parts);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [VolumeOutcome::Deleted, committed(1), VolumeOutcome::Deleted]);
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    for lineage in [gone.lineage, purged.lineage] {
        assert_eq!(world.catalog.unfolded_deltas(lineage).await.unwrap(), []);
    }
}

pub async fn a_nonsensical_batch_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let good = world.batch(&[(&held, blocks(0, 4))]);
    let mut backwards = good.clone();
    (backwards.volumes[0].base, backwards.volumes[0].through) = (WriteSeq::new(4), WriteSeq::new(3));
    let mut wrong_lineage = good.clone();
    wrong_lineage.volumes[0].lineage = LineageId::from_bytes([0xdd; 16]);
    let mut overlapping = good.clone();
    let twice = MapOp { range: LbaRange::between(Lba::ZERO, Lba::new(8)), target: MapTarget::Hole };
    overlapping.volumes[0].delta = MapDelta { ops: vec![twice, twice] };
    let mut huge = good.clone();
    huge.volumes[0].through = WriteSeq::new(u64::MAX);
    let mut endless = good.clone();
    endless.volumes[0].reduction.stored_bytes = u64::MAX;
    let mut boundless = good.clone();
    boundless.containers[0].raw_bytes = u64::MAX;
    for batch in [backwards, wrong_lineage, overlapping, huge, endless, boundless] {
        let refused = refusal(world.catalog.commit_batch(&batch).await);
        assert_eq!(refused.0, ErrorKind::Internal, "{}", refused.1);
    }
    let stranger =
        BatchCommit { gateway: GatewayId::from_bytes([0xcc; 16]), volumes: Vec::new(), ..good.clone() };
    assert_eq!(refusal(world.catalog.commit_batch(&stranger).await).0, ErrorKind::NotFound);
    assert_nothing_of(&world, &good).await;
    world.catalog.commit_batch(&good).await.unwrap();
}

pub async fn segments_and_containers_are_new_and_stand_on_something(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let other = world.held_volume("b").await;
    let first = world.batch(&[(&held, blocks(0, 4))]);
    world.catalog.commit_batch(&first).await.unwrap();

    let fresh = || world.batch(&[(&other, blocks(0, 4))]);
    let same_segment = BatchCommit { segments: first.segments.clone(), ..fresh() };
    assert_eq!(refusal(world.catalog.commit_batch(&same_segment).await).0, ErrorKind::Conflict);
    let mut same_container = fresh();
    same_container.containers[0].id = first.containers[0].id;
    same_container.volumes[0].delta = written(blocks(0, 4), first.containers[0].id);
    assert_eq!(refusal(world.catalog.commit_batch(&same_container).await).0, ErrorKind::Conflict);

    let nowhere = NodeId::from_bytes([0xbb; 16]);
    let mut unknown_node = fresh();
    unknown_node.segments = vec![segment_row(SegmentId::from_bytes(world.identity()), nowhere, 1)];
    let refused = refusal(world.catalog.commit_batch(&unknown_node).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no node {nowhere}")));
    let unknown_segment = BatchCommit { segments: Vec::new(), ..fresh() };
    assert_eq!(refusal(world.catalog.commit_batch(&unknown_segment).await).0, ErrorKind::NotFound);
    assert_eq!(world.catalog.totals().await.unwrap().containers, 1);
}

pub async fn containers_are_located_in_any_number(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut ids = Vec::new();
    let mut batch = world.batch(&[]);
    (batch.segments, batch.containers) = (0..200).map(|_| world.sealed(DomainId::DEFAULT)).unzip();
    world.catalog.commit_batch(&batch).await.unwrap();
    for container in &batch.containers {
        ids.push(container.id);
    }
    let unknown = ContainerId::from_bytes([0xaa; 16]);
    for count in [0, 1, 2, 64, 65, 200] {
        let mut asked = ids[..count].to_vec();
        asked.extend_from_slice(&ids[..count.min(3)]);
        asked.push(unknown);
        let mut found: Vec<_> =
            world.catalog.containers(&asked).await.unwrap().iter().map(|location| location.id).collect();
        found.sort_unstable();
        assert_eq!(found, ids[..count]);
    }
}

pub async fn containers_are_listed_page_by_page(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    assert_eq!(world.catalog.containers_before(None, 10).await.unwrap(), []);
    let mut batch = world.batch(&[]);
    (batch.segments, batch.containers) = (0..25).map(|_| world.sealed(DomainId::DEFAULT)).unzip();
    world.catalog.commit_batch(&batch).await.unwrap();
    let mut ids: Vec<ContainerId> = batch.containers.iter().map(|container| container.id).collect();
    ids.sort_unstable();
    let mut expected = world.catalog.containers(&ids).await.unwrap();
    expected.sort_unstable_by_key(|location| std::cmp::Reverse(location.id));

    let mut listed = Vec::new();
    let mut pages = Vec::new();
    loop {
        let before = listed.last().map(|location: &ContainerLocation| location.id);
        let page = world.catalog.containers_before(before, 10).await.unwrap();
        pages.push(page.len());
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(pages, [10, 10, 5, 0]);
    assert_eq!(listed, expected);
    let beyond = Some(ContainerId::from_bytes([0; 16]));
    assert_eq!(world.catalog.containers_before(beyond, 10).await.unwrap(), []);
    assert_eq!(world.catalog.containers_before(None, 0).await.unwrap(), []);
}

pub async fn two_handles_commit_side_by_side(store: &dyn CatalogStore) {
    let world = Arc::new(World::new(store).await);
    let (mut a, mut b) = (world.held_volume("a").await, world.held_volume("b").await);
    let other = store.open().await;
    let first = async {
        for number in 0..30 {
            world.commit(&mut a, blocks(number, 4)).await;
        }
    };
    let second = async {
        for number in 0..30 {
            let mut batch = world.batch(&[(&b, blocks(number, 4))]);
            batch.batch = BatchId::from_bytes(world.identity());
            other.commit_batch(&batch).await.unwrap();
            b.through = batch.volumes[0].through;
        }
    };
    tokio::join!(first, second);
    assert_eq!(world.progress(&a).await, (WriteSeq::new(300), CommitSeq::new(30)));
    assert_eq!(world.progress(&b).await, (WriteSeq::new(300), CommitSeq::new(30)));
    assert_eq!(world.catalog.totals().await.unwrap().segments, 60);
}
