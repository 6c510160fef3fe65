//! Taking back what nothing points at.

use super::{CatalogStore, Held, World, blocks, hole, refusal};
use crate::{BatchCommit, CatalogError, NodeRow, Totals};
use cairn_model::{ContainerId, ErrorKind, Kinded, LbaRange, PassId};

fn pass(number: u8) -> PassId {
    PassId::from_bytes([number; 16])
}

async fn unreferenced(world: &World) -> Vec<ContainerId> {
    let all = world.catalog.unreferenced_containers(None, u32::MAX).await.unwrap();
    assert_eq!(all.next, None);
    assert!(all.containers.iter().all(|container| container.length == 4000));
    let ids: Vec<_> = all.containers.iter().map(|container| container.id).collect();
    assert!(ids.is_sorted());
    for window in 1..4 {
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = world.catalog.unreferenced_containers(after, window).await.unwrap();
            assert!(page.containers.len() <= usize::try_from(window).unwrap());
            paged.extend(page.containers);
            after = match page.next {
                Some(next) => Some(next),
                None => break,
            };
        }
        assert_eq!(paged, all.containers, "in windows of {window}");
    }
    ids
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
    assert_eq!((object.segment, object.node, &object.key), (location.segment, location.node, &location.key));
    assert_eq!(object.length_bytes, 4096);
    assert_eq!(world.catalog.doomed_objects(None, 0).await.unwrap(), []);
    assert_eq!(world.catalog.doomed_objects(Some(object.segment), 10).await.unwrap(), []);
    for _ in 0..2 {
        world.catalog.forget_doomed(object.segment).await.unwrap();
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
    assert_eq!(refusal(world.catalog.remove_node(world.node).await).0, ErrorKind::Conflict);
    let object = world.catalog.doomed_objects(None, 1).await.unwrap().remove(0);
    world.catalog.forget_doomed(object.segment).await.unwrap();
    world.catalog.remove_node(world.node).await.unwrap();
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
