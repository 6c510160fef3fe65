//! Who may write a volume.

use super::{CatalogStore, TTL, World, at, blocks, generation, refusal, terms};
use crate::{CatalogError, FoldPlan, HeldLease, LeaseHolder, LeaseStamp};
use cairn_model::{CommitSeq, ErrorKind, GatewayId, VolumeId};

pub async fn the_first_lease_is_term_one(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let lease = world.held_volume("a").await.lease;
    assert_eq!(terms(&lease), (1, 1));
    assert_eq!((lease.previous, lease.expires_at), (None, at(31_000)));
}

pub async fn a_gateway_takes_its_own_again_at_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let again = world.catalog.acquire_lease(held.volume, world.gateway, at(1001), TTL, None).await.unwrap();
    assert_eq!(terms(&again), (2, 1));
    assert_eq!(again.previous, Some((world.gateway, generation(1))));
    let renewal = world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(1002), TTL).await;
    assert_eq!(refusal(renewal).0, ErrorKind::Fenced);
}

pub async fn a_lease_of_another_is_refused_and_its_holder_named(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    // However late it is by the wall clock of whoever asks.
    for now in [0, 1000, 31_000, 1 << 40] {
        let refused =
            refusal(world.catalog.acquire_lease(held.volume, world.other, at(now), TTL, None).await);
        assert_eq!(refused.0, ErrorKind::Conflict);
        assert!(refused.1.starts_with("volume a is held by gateway first: "), "{}", refused.1);
        assert!(refused.1.ends_with("not been renewed for 30 seconds"), "{}", refused.1);
    }
    assert!(
        world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(1000), TTL).await.is_ok()
    );
}

/// What the catalog says of a lease to another gateway.
async fn stamp_of(world: &World, volume: VolumeId) -> LeaseStamp {
    match world.catalog.acquire_lease(volume, world.other, at(0), TTL, None).await {
        Err(CatalogError::LeaseHeld { stamp, term, .. }) => {
            assert_eq!(term, TTL);
            stamp
        }
        other => panic!("the volume is held: {other:?}"),
    }
}

pub async fn a_lease_in_another_state_than_the_one_watched_is_refused(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let watched = stamp_of(&world, held.volume).await;
    let take = |stamp| world.catalog.acquire_lease(held.volume, world.other, at(99_000), TTL, Some(stamp));
    // Renewed by an owner whose wall clock has jumped back: another state all the same.
    world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(0), TTL).await.unwrap();
    assert_eq!(refusal(take(watched).await).0, ErrorKind::Conflict);
    let renewed = stamp_of(&world, held.volume).await;
    assert_ne!(watched, renewed);
    // A new term that ends at the same moment: another state.
    let again = world.catalog.acquire_lease(held.volume, world.gateway, at(1001), TTL, None).await.unwrap();
    assert_eq!(again.expires_at, renewed.expires_at);
    assert_eq!(refusal(take(renewed).await).0, ErrorKind::Conflict);
    let last = stamp_of(&world, held.volume).await;
    assert_eq!(terms(&take(last).await.unwrap()), (3, 3));
    // Used up.
    let back = world.catalog.acquire_lease(held.volume, world.gateway, at(99_000), TTL, Some(last)).await;
    assert_eq!(refusal(back).0, ErrorKind::Conflict);
}

pub async fn a_lease_that_was_watched_can_be_taken_and_its_owner_is_fenced(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    world.commit(&mut held, blocks(0, 4)).await;
    let taken = world.take(held.volume, world.other, 31_000).await;
    assert_eq!(terms(&taken), (2, 2));
    assert_eq!(taken.previous, Some((world.gateway, generation(1))));

    let catalog = &world.catalog;
    let renewal = catalog.renew_lease(held.volume, world.gateway, generation(1), at(31_001), TTL).await;
    assert_eq!(refusal(renewal).0, ErrorKind::Fenced);
    // Not in the new owner's term either: it is not this gateway's.
    let renewal = catalog.renew_lease(held.volume, world.gateway, generation(2), at(31_001), TTL).await;
    assert_eq!(refusal(renewal).0, ErrorKind::Fenced);
    let release = catalog.release_lease(held.volume, world.gateway, generation(1)).await;
    assert_eq!(refusal(release).0, ErrorKind::Fenced);
    let commit = catalog.commit_batch(&world.batch(&[(&held, blocks(0, 4))])).await;
    assert_eq!(refusal(commit).0, ErrorKind::Fenced);
    let fold = FoldPlan {
        lineage: held.lineage,
        gateway: world.gateway,
        generation: generation(1),
        through: CommitSeq::new(1),
        leaves: Vec::new(),
        emptied: Vec::new(),
        forget: Some(CommitSeq::new(1)),
    };
    assert_eq!(refusal(catalog.fold(&fold).await).0, ErrorKind::Fenced);
    assert_eq!(catalog.unfolded_deltas(held.lineage).await.unwrap().len(), 1);
}

pub async fn a_released_lease_is_free_at_once_and_void(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    world.catalog.release_lease(held.volume, world.gateway, generation(1)).await.unwrap();
    world.catalog.release_lease(held.volume, world.gateway, generation(1)).await.unwrap();

    let commit = world.catalog.commit_batch(&world.batch(&[(&held, blocks(0, 4))])).await;
    assert_eq!(refusal(commit).0, ErrorKind::Fenced);
    let renewal = world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(1001), TTL).await;
    assert_eq!(refusal(renewal).0, ErrorKind::Fenced);
    let taken = world.catalog.acquire_lease(held.volume, world.other, at(1001), TTL, None).await.unwrap();
    assert_eq!(terms(&taken), (2, 2));
    assert_eq!(taken.previous, Some((world.gateway, generation(1))));
}

pub async fn ownership_is_unbroken_through_a_release_without_another_owner(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    world.catalog.release_lease(held.volume, world.gateway, generation(1)).await.unwrap();
    let again =
        world.catalog.acquire_lease(held.volume, world.gateway, at(1_000_000), TTL, None).await.unwrap();
    assert_eq!(terms(&again), (2, 1));
}

pub async fn ownership_that_came_back_began_anew(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    world.take(held.volume, world.other, 40_000).await;
    world.catalog.release_lease(held.volume, world.other, generation(2)).await.unwrap();
    let back = world.catalog.acquire_lease(held.volume, world.gateway, at(40_001), TTL, None).await.unwrap();
    assert_eq!(terms(&back), (3, 3));
    let again = world.catalog.acquire_lease(held.volume, world.gateway, at(40_002), TTL, None).await.unwrap();
    assert_eq!(terms(&again), (4, 3));
    assert_eq!(again.previous, Some((world.gateway, generation(3))));
}

pub async fn renewing_always_extends(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let renew = |now| world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(now), TTL);
    assert_eq!(renew(20_000).await.unwrap(), at(50_000));
    assert_eq!(renew(10).await.unwrap(), at(50_001));
    assert_eq!(renew(20_002).await.unwrap(), at(50_002));
}

pub async fn an_expired_lease_that_nobody_took_is_renewed(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let mut held = world.held_volume("a").await;
    // A commit is fenced by terms alone, not by clocks.
    world.commit(&mut held, blocks(0, 4)).await;
    let renewed = world.catalog.renew_lease(held.volume, world.gateway, generation(1), at(99_000), TTL).await;
    assert_eq!(renewed.unwrap(), at(129_000));
}

pub async fn renewing_many_answers_for_each(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (mine, lost, gone) =
        (world.held_volume("mine").await, world.held_volume("lost").await, world.held_volume("gone").await);
    world.take(lost.volume, world.other, 31_000).await;
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();

    let held = [&lost, &mine, &gone].map(|held| HeldLease { volume: held.volume, generation: generation(1) });
    let mut renewals = world.catalog.renew_leases(world.gateway, &held, at(31_000), TTL).await.unwrap();
    assert_eq!(renewals.len(), 3);
    assert_eq!(refusal(renewals.pop().unwrap()).0, ErrorKind::NotFound);
    assert_eq!(renewals.pop().unwrap().unwrap(), at(61_000));
    assert_eq!(refusal(renewals.pop().unwrap()).0, ErrorKind::Fenced);
    assert!(world.catalog.renew_leases(world.gateway, &[], at(0), TTL).await.unwrap().is_empty());
}

pub async fn leases_need_a_volume_and_a_gateway(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let volume = world.new_volume("a");
    world.catalog.create_volume(&volume).await.unwrap();
    let stranger = GatewayId::from_bytes([88; 16]);
    let refused = refusal(world.catalog.acquire_lease(volume.id, stranger, at(0), TTL, None).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no gateway {stranger}")));
    let unknown = VolumeId::from_bytes([99; 16]);
    let refused = refusal(world.catalog.acquire_lease(unknown, world.gateway, at(0), TTL, None).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no volume {unknown}")));
    let never = world.catalog.renew_lease(volume.id, world.gateway, generation(1), at(0), TTL).await;
    assert_eq!(refusal(never).0, ErrorKind::Fenced);
}

pub async fn the_holder_is_shown_with_the_volume(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let row = world.catalog.volume(held.volume).await.unwrap();
    let holder = LeaseHolder { gateway: world.gateway, name: "first".to_owned(), expires_at: at(31_000) };
    assert_eq!((row.generation, row.holder), (generation(1), Some(holder)));
    world.catalog.release_lease(held.volume, world.gateway, generation(1)).await.unwrap();
    let row = world.catalog.volume(held.volume).await.unwrap();
    assert_eq!((row.generation, row.holder), (generation(1), None));
}
