//! Taking back what nothing points at.

use super::{CatalogStore, Held, World, blocks, hole, refusal};
use crate::{
    BatchCommit, CatalogError, ContainerMove, ContainerRow, ContainerUse, MovedContainer, NodeRow, Totals,
};
use bytes::Bytes;
use cairn_model::{
    ChunkId, ChunkIndex, ChunkRef, ChunkSet, ContainerId, ErrorKind, Kinded, LbaRange, MapDelta, MapOp,
    MapTarget, PassId,
};

fn pass(number: u8) -> PassId {
    PassId::from_bytes([number; 16])
}

/// Every container's use, the same whichever way the catalog is asked.
async fn uses(world: &World) -> Vec<ContainerUse> {
    let all = world.catalog.segment_uses(None, u32::MAX).await.unwrap();
    assert_eq!(all.next, None);
    assert!(all.segments.is_sorted_by_key(|segment| segment.id));
    for containers_max in 1..4 {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = world.catalog.segment_uses(after, containers_max).await.unwrap();
            paged.extend(page.segments);
            after = match page.next {
                Some(next) => Some(next),
                None => break,
            };
        }
        assert_eq!(paged, all.segments, "in pages of {containers_max}");
    }
    let mut uses: Vec<_> = all.segments.into_iter().flat_map(|segment| segment.containers).collect();
    uses.sort_by_key(|container| container.id);
    let ids: Vec<_> = uses.iter().rev().map(|container| container.id).collect();
    let unknown = ContainerId::from_bytes([0xee; 16]);
    let asked = world.catalog.container_uses(&[&ids[..], &ids[..], &[unknown]].concat()).await.unwrap();
    assert_eq!(asked, uses);
    uses
}

async fn unreferenced(world: &World) -> Vec<ContainerId> {
    let dead = uses(world).await.into_iter().filter(|container| container.live.is_empty());
    dead.map(|container| container.id).collect()
}

/// The batch that discards `range`, and stores nothing.
fn discard(world: &World, held: &Held, range: LbaRange) -> BatchCommit {
    let mut batch = world.batch(&[(held, range)]);
    batch.volumes[0].delta = hole(range);
    (batch.segments, batch.containers) = (Vec::new(), Vec::new());
    batch
}

/// Writes a container, which is wholly overwritten again. Everything is folded.
async fn dead_container(world: &World, held: &mut Held) -> ContainerId {
    let container = world.commit(held, blocks(0, 8)).await.containers[0].id;
    let batch = discard(world, held, blocks(0, 8));
    world.commit_batch(held, &batch).await;
    world.fold(held).await;
    container
}

/// A batch that points at a container that is there already.
fn sharing(world: &World, held: &Held, range: LbaRange, container: ContainerId) -> BatchCommit {
    let mut batch = world.batch(&[(held, range)]);
    batch.volumes[0].delta = super::written(range, container);
    (batch.segments, batch.containers) = (Vec::new(), Vec::new());
    batch
}

pub async fn what_a_delta_or_a_leaf_points_at_is_referenced(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let first = world.commit(&mut held, blocks(0, 8)).await.containers[0].id;
    let second = world.commit(&mut held, blocks(0, 4)).await.containers[0].id;
    // By a delta.
    assert_eq!(unreferenced(&world).await, []);
    world.fold(&held).await;
    // By a leaf, the first for its second half alone.
    assert_eq!(unreferenced(&world).await, []);
    let third = world.commit(&mut held, blocks(0, 8)).await.containers[0].id;
    // Overwritten, and the leaf does not know yet.
    assert_eq!(unreferenced(&world).await, []);
    world.fold(&held).await;
    assert_eq!(unreferenced(&world).await, [first, second]);
    let batch = discard(&world, &held, blocks(0, 1 << 20));
    world.commit_batch(&mut held, &batch).await;
    world.fold(&held).await;
    assert_eq!(unreferenced(&world).await, [first, second, third]);
}

pub async fn what_snapshots_clones_and_deleted_volumes_show_is_referenced(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let snapshot = world.settled_snapshot(&mut held, blocks(0, 8), "s").await;
    let container = world.catalog.containers_before(None, 1).await.unwrap()[0].id;
    world.commit(&mut held, blocks(0, 8)).await;
    world.fold(&held).await;
    assert_eq!(unreferenced(&world).await, []);
    let clone = world.held_clone(snapshot.id, "clone").await;
    world.delete_snapshot(snapshot.id).await.unwrap();
    world.purge().await;
    assert_eq!(unreferenced(&world).await, []);
    world.catalog.delete_volume(clone.volume, false, super::at(5000)).await.unwrap();
    // Not before its rows are gone.
    assert_eq!(unreferenced(&world).await, []);
    world.purge().await;
    assert_eq!(unreferenced(&world).await, [container]);
}

pub async fn a_closed_container_is_shared_no_more(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = dead_container(&world, &mut held).await;
    let unknown = ContainerId::from_bytes([0xee; 16]);
    world.catalog.close_containers(pass(1), &[container, unknown]).await.unwrap();

    let world = world.reopened(store).await;
    let batch = sharing(&world, &held, blocks(8, 4), container);
    let refused = world.catalog.commit_batch(&batch).await.unwrap_err();
    assert!(
        matches!(refused, CatalogError::UnknownContainer { container: named, .. } if named == container),
        "{refused}"
    );
    assert_eq!(world.progress(&held).await, (held.through, held.commit));
    world.catalog.open_containers(Some(pass(1))).await.unwrap();
    world.commit_batch(&mut held, &batch).await;
    assert_eq!(unreferenced(&world).await, []);
}

pub async fn a_batch_done_again_is_recognised_whatever_was_closed_since(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = dead_container(&world, &mut held).await;
    let batch = sharing(&world, &held, blocks(8, 4), container);
    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    world.catalog.close_containers(pass(1), &[container]).await.unwrap();
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
}

pub async fn only_what_the_pass_itself_closed_is_removed(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let one = dead_container(&world, &mut held).await;
    let two = dead_container(&world, &mut held).await;
    let all = [one, two];
    let before = world.catalog.totals().await.unwrap();
    let is_refused = async || {
        let refused = world.catalog.remove_containers(pass(1), &all).await.unwrap_err();
        assert!(matches!(refused, CatalogError::ContainerOpen { .. }), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        assert_eq!(world.catalog.totals().await.unwrap(), before);
        assert_eq!(unreferenced(&world).await, all);
    };
    is_refused().await;
    // One of two.
    world.catalog.close_containers(pass(1), &[one]).await.unwrap();
    is_refused().await;
    // Another pass took it over: it may have been open in between.
    world.catalog.close_containers(pass(1), &all).await.unwrap();
    world.catalog.close_containers(pass(2), &[two]).await.unwrap();
    is_refused().await;
    world.catalog.open_containers(None).await.unwrap();
    is_refused().await;
    world.catalog.close_containers(pass(1), &all).await.unwrap();
    world.catalog.open_containers(Some(pass(1))).await.unwrap();
    is_refused().await;
    world.catalog.close_containers(pass(1), &all).await.unwrap();
    // Another pass opens what it has closed itself: nothing.
    world.catalog.open_containers(Some(pass(2))).await.unwrap();
    world.catalog.remove_containers(pass(1), &all).await.unwrap();
    assert_eq!(unreferenced(&world).await, []);
}

pub async fn what_is_removed_is_counted_no_more_and_its_object_doomed(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = dead_container(&world, &mut held).await;
    let location = world.catalog.containers(&[container]).await.unwrap().remove(0);
    let live = world.commit(&mut held, blocks(0, 8)).await.containers[0].id;
    world.catalog.close_containers(pass(1), &[container]).await.unwrap();
    for _ in 0..2 {
        world.catalog.remove_containers(pass(1), &[container]).await.unwrap();
    }

    let world = world.reopened(store).await;
    assert_eq!(world.catalog.containers(&[container, live]).await.unwrap().len(), 1);
    let totals = world.catalog.totals().await.unwrap();
    let expected = World::totals(1, 1);
    assert_eq!(totals, Totals { logical_bytes: totals.logical_bytes, ..expected });
    let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
    let [object] = &doomed[..] else { panic!("{doomed:?}") };
    let objects: Vec<_> =
        location.place.objects().map(|(node, key, _)| (location.segment, node, key)).collect();
    assert_eq!([(object.segment, object.node, object.key.clone())], objects[..]);
    assert_eq!(object.length_bytes, 4096);
    assert_eq!(world.catalog.doomed_objects(None, 0).await.unwrap(), []);
    assert_eq!(world.catalog.doomed_objects(Some(object.id), 10).await.unwrap(), []);
    for _ in 0..2 {
        world.catalog.forget_doomed(object.id).await.unwrap();
    }
    assert_eq!(world.catalog.doomed_objects(None, 10).await.unwrap(), []);
    // Its identity is not free: nothing points at it, and nothing can.
    let batch = sharing(&world, &held, blocks(0, 4), container);
    assert_eq!(refusal(world.catalog.commit_batch(&batch).await).0, ErrorKind::Conflict);
}

pub async fn a_segment_with_a_live_container_stays(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let mut batch = world.batch(&[(&held, blocks(0, 8))]);
    let (_, mut second) = world.sealed(held.domain);
    second.segment = batch.containers[0].segment;
    second.offset = 4064;
    let (first, second) = (batch.containers[0].id, {
        let id = second.id;
        batch.containers.push(second);
        id
    });
    let more = super::written(blocks(8, 4), second);
    batch.volumes[0].delta.ops.extend(more.ops);
    world.commit_batch(&mut held, &batch).await;
    let gone = discard(&world, &held, blocks(0, 8));
    world.commit_batch(&mut held, &gone).await;
    world.fold(&held).await;
    assert_eq!(unreferenced(&world).await, [first]);
    world.catalog.close_containers(pass(1), &[first]).await.unwrap();
    world.catalog.remove_containers(pass(1), &[first]).await.unwrap();
    assert_eq!(world.catalog.doomed_objects(None, 10).await.unwrap(), []);
    assert_eq!(world.catalog.containers(&[second]).await.unwrap().len(), 1);
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.segments, totals.containers), (1, 1));

    let gone = discard(&world, &held, blocks(8, 4));
    world.commit_batch(&mut held, &gone).await;
    world.fold(&held).await;
    world.catalog.close_containers(pass(2), &[second]).await.unwrap();
    world.catalog.remove_containers(pass(2), &[second]).await.unwrap();
    assert_eq!(world.catalog.doomed_objects(None, 10).await.unwrap().len(), 1);
    assert_eq!(world.catalog.totals().await.unwrap().segments, 0);
}

pub async fn a_node_with_a_doomed_object_stays(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let container = dead_container(&world, &mut held).await;
    world.catalog.close_containers(pass(1), &[container]).await.unwrap();
    world.catalog.remove_containers(pass(1), &[container]).await.unwrap();
    assert_eq!(world.catalog.totals().await.unwrap().segments, 0);
    assert_eq!(refusal(world.catalog.remove_node(world.node, false).await).0, ErrorKind::Conflict);
    let object = world.catalog.doomed_objects(None, 1).await.unwrap().remove(0);
    world.catalog.forget_doomed(object.id).await.unwrap();
    world.catalog.remove_node(world.node, false).await.unwrap();
    assert_eq!(world.catalog.nodes().await.unwrap(), Vec::<NodeRow>::new());
}

pub async fn the_part_of_a_deleted_volume_is_unreferenced_from_the_start(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (held, kept) = (world.held_volume("a").await, world.held_volume("b").await);
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();
    let batch = world.batch(&[(&held, blocks(0, 8)), (&kept, blocks(0, 0))]);
    world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(unreferenced(&world).await, [batch.containers[0].id]);
}

pub async fn a_segment_of_a_deleted_domain_is_doomed_from_the_start(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let domain = world.domain("tenant").await;
    let held = world.held_volume_of(domain, "a").await;
    let batch = world.batch(&[(&held, blocks(0, 8))]);
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();
    world.purge().await;
    world.catalog.delete_domain(domain).await.unwrap();
    world.catalog.commit_batch(&batch).await.unwrap();
    let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
    assert_eq!(doomed.len(), 1);
    assert_eq!(doomed[0].segment, batch.containers[0].segment);
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.segments, totals.segment_bytes, totals.containers), (0, 0, 0));
}

fn chunks(indexes: impl IntoIterator<Item = u32>) -> ChunkSet {
    indexes.into_iter().map(ChunkIndex::new).collect()
}

/// What blocks `at` on become: block 0 of each of these chunks.
fn pointing(at: u64, container: ContainerId, indexes: &[u32]) -> MapDelta {
    let ops = (at..).zip(indexes).map(|(at, index)| {
        let chunk = ChunkId { container, index: ChunkIndex::new(*index) };
        MapOp { range: blocks(at, 1), target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
    });
    MapDelta { ops: ops.collect() }
}

/// A container with chunks 0 to 5, one for each of the first blocks.
async fn container_of_six(world: &World, held: &mut Held) -> ContainerRow {
    let mut batch = world.batch(&[(held, blocks(0, 6))]);
    batch.volumes[0].delta = pointing(0, batch.containers[0].id, &[0, 1, 2, 3, 4, 5]);
    world.commit_batch(held, &batch).await;
    world.fold(held).await;
    batch.containers.remove(0)
}

/// A new place for what is left of a container.
fn moved(world: &World, pass: PassId, row: &ContainerRow, present: ChunkSet) -> ContainerMove {
    let (segment, place) = world.sealed(row.domain);
    let (length, raw_bytes) = (row.length / 2, row.raw_bytes / 2);
    let directory = Bytes::from_static(b"thin");
    let row = ContainerRow { segment: place.segment, length, raw_bytes, directory, ..row.clone() };
    ContainerMove { pass, segment, containers: vec![MovedContainer { row, present }] }
}

pub async fn uses_are_told_chunk_by_chunk(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let row = container_of_six(&world, &mut held).await;
    let live = async || uses(&world).await.into_iter().find(|container| container.id == row.id).unwrap().live;
    assert_eq!(live().await, chunks(0..6));
    let batch = discard(&world, &held, blocks(1, 2));
    world.commit_batch(&mut held, &batch).await;
    // The leaf has them yet.
    assert_eq!(live().await, chunks(0..6));
    world.fold(&held).await;
    assert_eq!(live().await, chunks([0, 3, 4, 5]));
    // A delta alone has chunk 2 again.
    let mut batch = discard(&world, &held, blocks(9, 1));
    batch.volumes[0].delta = pointing(9, row.id, &[2]);
    world.commit_batch(&mut held, &batch).await;
    assert_eq!(live().await, chunks([0, 2, 3, 4, 5]));
}

pub async fn a_moved_container_is_in_its_new_place_and_the_old_object_doomed(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let row = container_of_six(&world, &mut held).await;
    let old = world.catalog.containers(&[row.id]).await.unwrap().remove(0);
    let before = world.catalog.totals().await.unwrap();
    let there = moved(&world, pass(1), &row, chunks([0, 3]));
    world.catalog.close_containers(pass(1), &[row.id]).await.unwrap();
    for _ in 0..2 {
        world.catalog.move_containers(&there).await.unwrap();
    }

    let world = world.reopened(store).await;
    let now = world.catalog.containers(&[row.id]).await.unwrap().remove(0);
    let expected = &there.containers[0].row;
    assert_eq!(
        (now.segment, now.offset, now.length, now.raw_bytes, now.domain, &now.directory),
        (
            expected.segment,
            expected.offset,
            expected.length,
            expected.raw_bytes,
            row.domain,
            &expected.directory
        )
    );
    assert_eq!(&now.place, there.segment.receipt.place());
    let totals = world.catalog.totals().await.unwrap();
    let container_bytes = before.container_bytes - u64::from(row.length - expected.length);
    let container_raw_bytes = before.container_raw_bytes - (row.raw_bytes - expected.raw_bytes);
    assert_eq!(totals, Totals { container_bytes, container_raw_bytes, ..before });
    let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
    let [object] = &doomed[..] else { panic!("{doomed:?}") };
    assert_eq!((object.segment, &object.key), (old.segment, &old.place.key));
    // Removed since: the same move again names no container, and leaves the object to be deleted, whether that was begun or not.
    world.catalog.remove_containers(pass(1), &[row.id]).await.unwrap();
    for _ in 0..2 {
        world.catalog.move_containers(&there).await.unwrap();
        assert_eq!(world.catalog.containers(&[row.id]).await.unwrap(), []);
        let doomed = world.catalog.doomed_objects(None, 10).await.unwrap();
        let again = doomed.iter().find(|object| object.key == there.segment.receipt.key());
        let again = again.unwrap_or_else(|| panic!("{doomed:?}")).id;
        assert_eq!(world.catalog.totals().await.unwrap().segments, before.segments - 1);
        world.catalog.forget_doomed(again).await.unwrap();
    }
}

pub async fn only_what_the_pass_itself_closed_is_moved(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let row = container_of_six(&world, &mut held).await;
    let old = world.catalog.containers(&[row.id]).await.unwrap();
    let before = world.catalog.totals().await.unwrap();
    let is_refused = async || {
        let refused =
            world.catalog.move_containers(&moved(&world, pass(1), &row, chunks([0]))).await.unwrap_err();
        assert!(matches!(refused, CatalogError::ContainerOpen { .. }), "{refused}");
        assert_eq!(world.catalog.totals().await.unwrap(), before);
        assert_eq!(world.catalog.containers(&[row.id]).await.unwrap(), old);
    };
    is_refused().await;
    world.catalog.close_containers(pass(1), &[row.id]).await.unwrap();
    world.catalog.close_containers(pass(2), &[row.id]).await.unwrap();
    is_refused().await;
    world.catalog.open_containers(None).await.unwrap();
    is_refused().await;
    let mut elsewhere = moved(&world, pass(1), &row, chunks([0]));
    elsewhere.containers[0].row.domain = world.domain("tenant").await;
    world.catalog.close_containers(pass(1), &[row.id]).await.unwrap();
    let refused = world.catalog.move_containers(&elsewhere).await.unwrap_err();
    assert!(matches!(refused, CatalogError::Invalid(_)), "{refused}");
    // Nothing of it is there.
    let gone = ContainerRow { id: ContainerId::from_bytes([0xee; 16]), ..row.clone() };
    world.catalog.move_containers(&moved(&world, pass(1), &gone, chunks([0]))).await.unwrap();
    assert_eq!(world.catalog.containers(&[gone.id, row.id]).await.unwrap(), old);
    assert_eq!(world.catalog.doomed_objects(None, 10).await.unwrap().len(), 1);
}

pub async fn what_was_left_out_of_a_container_is_shared_no_more(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    let row = container_of_six(&world, &mut held).await;
    world.catalog.close_containers(pass(1), &[row.id]).await.unwrap();
    world.catalog.move_containers(&moved(&world, pass(1), &row, chunks([0, 3, 4]))).await.unwrap();
    let sharing = |held: &Held, indexes: &[u32]| {
        let mut batch = discard(&world, held, blocks(20, 1));
        batch.volumes[0].delta = pointing(20, row.id, indexes);
        batch
    };
    // Closed still, all of it.
    assert_eq!(refusal(world.catalog.commit_batch(&sharing(&held, &[3])).await).0, ErrorKind::Conflict);
    world.catalog.open_containers(Some(pass(1))).await.unwrap();
    let left_out = sharing(&held, &[3, 1]);
    let refused = world.catalog.commit_batch(&left_out).await.unwrap_err();
    assert!(
        matches!(refused, CatalogError::UnknownContainer { container, .. } if container == row.id),
        "{refused}"
    );
    let batch = sharing(&held, &[3, 0, 4]);
    world.commit_batch(&mut held, &batch).await;
    // Moved again, with less.
    world.catalog.close_containers(pass(2), &[row.id]).await.unwrap();
    let thin = ContainerRow { length: row.length / 2, raw_bytes: row.raw_bytes / 2, ..row.clone() };
    world.catalog.move_containers(&moved(&world, pass(2), &thin, chunks([3]))).await.unwrap();
    world.catalog.open_containers(None).await.unwrap();
    assert_eq!(refusal(world.catalog.commit_batch(&sharing(&held, &[4])).await).0, ErrorKind::Conflict);
    let batch = sharing(&held, &[3]);
    world.commit_batch(&mut held, &batch).await;
    // Removed, its mark goes with it.
    world.catalog.close_containers(pass(3), &[row.id]).await.unwrap();
    world.catalog.remove_containers(pass(3), &[row.id]).await.unwrap();
    assert_eq!(world.catalog.containers(&[row.id]).await.unwrap(), []);
}
