//! Volumes, from creation to the last purged row.

use super::{CatalogStore, TTL, World, at, blocks, generation, refusal};
use crate::{
    Catalog, HeldLease, LeafIndex, LeaseHolder, MapLeaf, NewVolume, VolumeName, VolumeRow, VolumeUsage,
};
use cairn_model::{CommitSeq, Durability, ErrorKind, Generation, VolumeId, WriteSeq};
use std::sync::Arc;

fn as_created(volume: &NewVolume) -> VolumeRow {
    let volume = volume.clone();
    VolumeRow {
        id: volume.id,
        name: volume.name,
        size_bytes: volume.size_bytes,
        durability: volume.durability,
        lineage: volume.lineage,
        domain: volume.domain,
        compress: volume.compress,
        dedupe: volume.dedupe,
        read_only: volume.read_only,
        options: volume.options,
        created_at: volume.created_at,
        destaged_through: WriteSeq::ZERO,
        commit: CommitSeq::ZERO,
        folded_through: CommitSeq::ZERO,
        generation: Generation::ZERO,
        holder: None,
        usage: VolumeUsage::default(),
    }
}

pub async fn a_volume_comes_back_with_every_setting(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let plain = world.new_volume("b-plain");
    let special = NewVolume {
        size_bytes: 64 << 40,
        durability: Durability::Always,
        domain: world.domain("tenant").await,
        compress: false,
        dedupe: false,
        read_only: true,
        options: "{\"chunk_blocks\":8}".to_owned(),
        created_at: at(1_800_000_000_000),
        ..world.new_volume("A_special.1")
    };
    world.catalog.create_volume(&plain).await.unwrap();
    world.catalog.create_volume(&special).await.unwrap();

    let world = world.reopened(store).await;
    assert_eq!(world.catalog.volume(special.id).await.unwrap(), as_created(&special));
    assert_eq!(world.catalog.volume_by_name(&plain.name).await.unwrap(), as_created(&plain));
    assert_eq!(world.catalog.volumes().await.unwrap(), [as_created(&special), as_created(&plain)]);
}

pub async fn volumes_have_names_of_their_own(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (a, b) = (world.new_volume("a"), world.new_volume("b"));
    world.catalog.create_volume(&a).await.unwrap();
    world.catalog.create_volume(&b).await.unwrap();

    let taken = (ErrorKind::Conflict, "volume a exists already: choose another name".to_owned());
    assert_eq!(refusal(world.catalog.create_volume(&world.new_volume("a")).await), taken);
    assert_eq!(refusal(world.catalog.rename_volume(b.id, &a.name).await), taken);
    world.catalog.rename_volume(a.id, &a.name).await.unwrap();
    world.catalog.create_volume(&world.new_volume("A")).await.unwrap();
    assert_eq!(world.catalog.volumes().await.unwrap().len(), 3);
}

pub async fn an_identity_is_used_once(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let volume = world.new_volume("a");
    world.catalog.create_volume(&volume).await.unwrap();
    let same_id = NewVolume { id: volume.id, ..world.new_volume("b") };
    assert_eq!(refusal(world.catalog.create_volume(&same_id).await).0, ErrorKind::Conflict);
    let same_lineage = NewVolume { lineage: volume.lineage, ..world.new_volume("b") };
    assert_eq!(refusal(world.catalog.create_volume(&same_lineage).await).0, ErrorKind::Conflict);
    assert_eq!(world.catalog.totals().await.unwrap().volumes, 1);
}

pub async fn a_volume_is_resized_renamed_and_made_read_only(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let volume = world.new_volume("a");
    world.catalog.create_volume(&volume).await.unwrap();
    let name = VolumeName::new("renamed").unwrap();
    world.take(volume.id, world.gateway, 1000).await;
    let held = HeldLease { volume: volume.id, generation: generation(1) };
    world.catalog.resize_volume(world.gateway, held, 5 << 30).await.unwrap();
    world.catalog.rename_volume(volume.id, &name).await.unwrap();
    world.catalog.set_read_only(volume.id, true).await.unwrap();

    let holder = LeaseHolder { gateway: world.gateway, name: "first".to_owned(), expires_at: at(31_000) };
    let expected = VolumeRow {
        name,
        size_bytes: 5 << 30,
        read_only: true,
        generation: generation(1),
        holder: Some(holder),
        ..as_created(&volume)
    };
    assert_eq!(world.catalog.volume(volume.id).await.unwrap(), expected);
    assert_eq!(refusal(world.catalog.volume_by_name(&volume.name).await).0, ErrorKind::NotFound);
    world.catalog.create_volume(&world.new_volume("a")).await.unwrap();
}

pub async fn only_the_owner_of_a_volume_resizes_it(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let resize = |gateway, term| {
        let held = HeldLease { volume: held.volume, generation: generation(term) };
        world.catalog.resize_volume(gateway, held, 1 << 20)
    };
    assert_eq!(refusal(resize(world.other, 1).await).0, ErrorKind::Fenced);
    assert_eq!(refusal(resize(world.gateway, 2).await).0, ErrorKind::Fenced);
    world.take(held.volume, world.other, 31_000).await;
    assert_eq!(refusal(resize(world.gateway, 1).await).0, ErrorKind::Fenced);
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().size_bytes, 1 << 40);
    resize(world.other, 2).await.unwrap();
    world.catalog.release_lease(held.volume, world.other, generation(2)).await.unwrap();
    assert_eq!(refusal(resize(world.other, 2).await).0, ErrorKind::Fenced);
    assert_eq!(world.catalog.volume(held.volume).await.unwrap().size_bytes, 1 << 20);
}

/// Every way to name a volume says that it does not exist.
async fn assert_absent(catalog: &dyn Catalog, world: &World, id: VolumeId, name: &VolumeName) {
    let held = HeldLease { volume: id, generation: generation(1) };
    let refusals = [
        refusal(catalog.volume(id).await),
        refusal(catalog.volume_by_name(name).await),
        refusal(catalog.resize_volume(world.gateway, held, 1 << 30).await),
        refusal(catalog.rename_volume(id, &VolumeName::new("z").unwrap()).await),
        refusal(catalog.set_read_only(id, true).await),
        refusal(catalog.delete_volume(id, false, super::at(5000)).await),
        refusal(catalog.acquire_lease(id, world.gateway, at(0), TTL, None).await),
        refusal(catalog.renew_lease(id, world.gateway, Generation::new(1), at(0), TTL).await),
        refusal(catalog.release_lease(id, world.gateway, Generation::new(1)).await),
    ];
    for (kind, message) in refusals {
        assert_eq!(kind, ErrorKind::NotFound, "{message}");
        assert!(message.starts_with("there is no volume "), "{message}");
    }
}

pub async fn an_unknown_volume_is_not_found(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let unknown = world.new_volume("unknown");
    assert_absent(&*world.catalog, &world, unknown.id, &unknown.name).await;
}

pub async fn a_deleted_volume_is_gone_at_once_and_its_name_free(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let held = world.held_volume("a").await;
    let name = VolumeName::new("a").unwrap();
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();

    assert_absent(&*world.catalog, &world, held.volume, &name).await;
    assert_eq!(world.catalog.volumes().await.unwrap(), []);
    let successor = world.held_volume("a").await;
    world.catalog.delete_volume(successor.volume, false, super::at(5000)).await.unwrap();
    while world.catalog.purge_deleted(10).await.unwrap() {}
    assert_absent(&*world.catalog, &world, held.volume, &name).await;
}

pub async fn purging_takes_bounded_steps_and_nothing_of_others(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    assert!(!world.catalog.purge_deleted(1).await.unwrap());
    let mut kept = world.held_volume("kept").await;
    let mut gone = world.held_volume("gone").await;
    let index = |number: u32| LeafIndex::new(number).unwrap();
    for held in [&mut kept, &mut gone] {
        for _ in 0..3 {
            let batch = world.commit(held, blocks(0, 4)).await;
            let leaves = (0..5).map(|number| {
                let ops = super::written(index(number).range(), batch.containers[0].id).ops;
                (index(number), Arc::new(MapLeaf::from_ops(index(number), ops)))
            });
            world.catalog.fold(&world.fold_plan(held, leaves.collect())).await.unwrap();
        }
    }
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();

    // The volume and its lease, three deltas and five leaves, two rows a step; the lineage goes when a step finds no more of them.
    let mut steps = 1;
    while world.catalog.purge_deleted(2).await.unwrap() {
        steps += 1;
    }
    assert!((5..=6).contains(&steps), "{steps} steps");
    let left = (
        world.catalog.unfolded_deltas(gone.lineage).await.unwrap().len(),
        world.catalog.leaf_versions(gone.head(), blocks(0, 1 << 20), 100).await.unwrap().len(),
    );
    assert_eq!(left, (0, 0));
    let kept_rows = (
        world.catalog.unfolded_deltas(kept.lineage).await.unwrap().len(),
        world.catalog.leaf_versions(kept.head(), blocks(0, 1 << 20), 100).await.unwrap().len(),
    );
    assert_eq!(kept_rows, (3, 5));
    // The identities of the purged volume are free again.
    let again = NewVolume { id: gone.volume, lineage: gone.lineage, ..world.new_volume("gone") };
    world.catalog.create_volume(&again).await.unwrap();
}
