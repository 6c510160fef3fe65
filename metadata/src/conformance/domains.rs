//! Dedupe domains, and that they do not share.

use super::{CatalogStore, World, at, blocks, key_row, outcomes, refusal, written};
use crate::{
    BatchCommit, Catalog, DomainName, DomainRow, FORMAT_VERSION, KeyRow, NewVolume, SiteRow, VolumeOutcome,
};
use cairn_model::crypto::{Encryption, KeyId};
use cairn_model::{BatchId, CommitSeq, ContainerId, DomainId, ErrorKind, SiteId, WriteSeq};

const fn committed(number: u64) -> VolumeOutcome {
    VolumeOutcome::Committed(CommitSeq::new(number))
}

async fn names(catalog: &dyn Catalog) -> Vec<String> {
    catalog.domains().await.unwrap().into_iter().map(|domain| domain.name.to_string()).collect()
}

pub async fn the_default_domain_is_always_there(store: &dyn CatalogStore) {
    let catalog = store.open().await;
    let default = DomainRow {
        id: DomainId::DEFAULT,
        name: DomainName::default_domain(),
        encryption: Encryption::Aes256Gcm,
        created_at: at(0),
    };
    assert_eq!(catalog.domains().await.unwrap(), std::slice::from_ref(&default));
    let site = SiteRow {
        id: SiteId::from_bytes([5; 16]),
        name: "home".to_owned(),
        created_at: at(42),
        format_version: FORMAT_VERSION,
    };
    catalog.create_site(&site).await.unwrap();
    let default = DomainRow { created_at: at(42), ..default };
    assert_eq!(catalog.domain_by_name(&default.name).await.unwrap(), default);
    assert_eq!(refusal(catalog.check_domain_unused(DomainId::DEFAULT).await).0, ErrorKind::Conflict);
    let refused = refusal(catalog.delete_domain(DomainId::DEFAULT).await);
    assert_eq!(refused, (ErrorKind::Conflict, "the default domain cannot be deleted".to_owned()));
}

pub async fn a_domain_comes_with_its_key(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (row, key) = world.new_domain("tenant");
    let other_purpose = KeyRow { purpose: "data".to_owned(), ..key.clone() };
    let refused = refusal(world.catalog.create_domain(&row, &other_purpose).await);
    assert_eq!(refused.0, ErrorKind::Internal, "{}", refused.1);
    assert_eq!(world.catalog.keys().await.unwrap(), []);

    world.catalog.create_domain(&row, &key).await.unwrap();
    let world = world.reopened(store).await;
    assert_eq!(world.catalog.domain_by_name(&row.name).await.unwrap(), row);
    assert_eq!(world.catalog.keys().await.unwrap(), std::slice::from_ref(&key));
    assert_eq!(key.purpose, format!("domain:{}", row.id));
    let unknown = DomainName::new("unknown").unwrap();
    let refused = refusal(world.catalog.domain_by_name(&unknown).await);
    assert_eq!(refused, (ErrorKind::NotFound, "there is no domain unknown".to_owned()));
}

pub async fn domains_have_names_and_identities_of_their_own(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (row, key) = world.new_domain("b");
    world.catalog.create_domain(&row, &key).await.unwrap();
    world.domain("a").await;
    assert_eq!(names(&*world.catalog).await, ["a", "b", "default"]);

    for taken in ["a", "default"] {
        let (row, key) = world.new_domain(taken);
        let refused = refusal(world.catalog.create_domain(&row, &key).await);
        let message = format!("domain {taken} exists already: choose another name");
        assert_eq!(refused, (ErrorKind::Conflict, message));
    }
    let same_id = DomainRow { name: DomainName::new("c").unwrap(), ..row };
    let other_key = KeyRow { key_id: KeyId::from_bytes([9; 8]), ..key };
    assert_eq!(refusal(world.catalog.create_domain(&same_id, &other_key).await).0, ErrorKind::Conflict);
    // A domain whose key cannot be stored is not there either.
    let (row, key) = world.new_domain("d");
    world.catalog.put_key(&key).await.unwrap();
    assert_eq!(refusal(world.catalog.create_domain(&row, &key).await).0, ErrorKind::Conflict);
    assert_eq!(names(&*world.catalog).await, ["a", "b", "default"]);
    assert_eq!(world.catalog.keys().await.unwrap().len(), 3);
}

pub async fn a_volume_is_of_a_domain_that_exists(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let nowhere = DomainId::from_bytes([0xdd; 16]);
    let volume = NewVolume { domain: nowhere, ..world.new_volume("a") };
    let refused = refusal(world.catalog.create_volume(&volume).await);
    assert_eq!(refused, (ErrorKind::NotFound, format!("there is no domain {nowhere}")));
    assert_eq!(world.catalog.totals().await.unwrap().volumes, 0);
    let domain = world.domain("tenant").await;
    world.catalog.create_volume(&NewVolume { domain, ..volume.clone() }).await.unwrap();
    assert_eq!(world.catalog.volume(volume.id).await.unwrap().domain, domain);
}

pub async fn a_domain_that_is_used_stays(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let domain = world.domain("tenant").await;
    let message = "domain tenant still has volumes or stored data: it can be deleted when both are gone";
    let in_use = (ErrorKind::Conflict, message.to_owned());
    let mut held = world.held_volume_of(domain, "a").await;
    assert_eq!(refusal(world.catalog.check_domain_unused(domain).await), in_use);
    assert_eq!(refusal(world.catalog.delete_domain(domain).await), in_use);
    world.commit(&mut held, blocks(0, 4)).await;
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();
    while world.catalog.purge_deleted(10).await.unwrap() {}
    // Its container is there still.
    assert_eq!(refusal(world.catalog.check_domain_unused(domain).await), in_use);
    assert_eq!(refusal(world.catalog.delete_domain(domain).await), in_use);
    assert_eq!(names(&*world.catalog).await, ["default", "tenant"]);
    assert_eq!(world.catalog.keys().await.unwrap().len(), 1);
}

pub async fn a_deleted_domain_is_gone_with_its_keys(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let (row, key) = world.new_domain("tenant");
    world.catalog.create_domain(&row, &key).await.unwrap();
    world.catalog.put_key(&KeyRow { wrapped_by: KeyId::from_bytes([6; 8]), ..key.clone() }).await.unwrap();
    world.catalog.put_key(&key_row("data", 5)).await.unwrap();
    let held = world.held_volume_of(row.id, "a").await;
    // Deleted, and not purged yet.
    world.catalog.delete_volume(held.volume, false, super::at(5000)).await.unwrap();

    world.catalog.check_domain_unused(row.id).await.unwrap();
    world.catalog.delete_domain(row.id).await.unwrap();
    assert_eq!(refusal(world.catalog.check_domain_unused(row.id).await).0, ErrorKind::NotFound);
    assert_eq!(names(&*world.catalog).await, ["default"]);
    assert_eq!(world.catalog.keys().await.unwrap(), [key_row("data", 5)]);
    assert_eq!(refusal(world.catalog.delete_domain(row.id).await).0, ErrorKind::NotFound);
    while world.catalog.purge_deleted(10).await.unwrap() {}
    world.catalog.create_domain(&row, &key).await.unwrap();
}

pub async fn a_pointer_into_another_domain_commits_nothing(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let domain = world.domain("tenant").await;
    let mut tenant = world.held_volume_of(domain, "tenant").await;
    let theirs = world.commit(&mut tenant, blocks(0, 4)).await.containers[0].id;
    let mut held = world.held_volume("a").await;
    let ours = world.commit(&mut held, blocks(0, 4)).await.containers[0].id;
    let before = world.catalog.totals().await.unwrap();

    for (held, foreign) in [(&held, theirs), (&tenant, ours)] {
        let mut batch = world.batch(&[(held, blocks(0, 4))]);
        batch.volumes[0].delta.ops.extend(written(blocks(50, 4), foreign).ops);
        let refused = refusal(world.catalog.commit_batch(&batch).await);
        let message = format!(
            "a batch of volume {} points at container {foreign}, which is neither in the batch nor in the catalog as \
             one of the volume's domain",
            held.volume
        );
        assert_eq!(refused, (ErrorKind::Conflict, message));
        assert_eq!(world.catalog.containers(&[batch.containers[0].id]).await.unwrap(), []);
        assert_eq!(world.progress(held).await, (held.through, held.commit));
    }
    assert_eq!(world.catalog.totals().await.unwrap(), before);
}

pub async fn domains_of_one_batch_do_not_mix(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let domain = world.domain("tenant").await;
    let mut tenant = world.held_volume_of(domain, "tenant").await;
    let mut held = world.held_volume("a").await;
    let known: Vec<ContainerId> = [
        world.commit(&mut held, blocks(0, 4)).await.containers[0].id,
        world.commit(&mut tenant, blocks(0, 4)).await.containers[0].id,
    ]
    .to_vec();
    let batch = || {
        let (mut ours, theirs) =
            (world.batch(&[(&held, blocks(0, 4))]), world.batch(&[(&tenant, blocks(0, 4))]));
        ours.segments.extend(theirs.segments);
        ours.containers.extend(theirs.containers);
        ours.volumes.extend(theirs.volumes);
        ours
    };
    // One part points at the container that is fresh in the same batch, but for the other domain.
    for (part, foreign) in [(0, 1), (1, 0)] {
        let mut mixed = batch();
        mixed.volumes[part].delta = written(blocks(0, 4), mixed.containers[foreign].id);
        assert_eq!(refusal(world.catalog.commit_batch(&mixed).await).0, ErrorKind::Conflict);
        // Or at a stored one of the other domain, which the other part may point at.
        let mut mixed = batch();
        for volume in &mut mixed.volumes {
            volume.delta = written(blocks(0, 4), known[foreign]);
        }
        assert_eq!(refusal(world.catalog.commit_batch(&mixed).await).0, ErrorKind::Conflict);
    }
    let mut good = batch();
    for (volume, id) in good.volumes.iter_mut().zip(&known) {
        volume.delta.ops.extend(written(blocks(100, 4), *id).ops);
    }
    let receipt = world.catalog.commit_batch(&good).await.unwrap();
    assert_eq!(outcomes(&receipt), [committed(2), committed(2)]);
}

pub async fn containers_of_a_deleted_domain_are_left_out(store: &dyn CatalogStore) {
    let world = World::new(store).await;
    let domain = world.domain("tenant").await;
    let (held, gone) = (world.held_volume("kept").await, world.held_volume_of(domain, "gone").await);
    let (kept, lost) = (world.batch(&[(&held, blocks(0, 4))]), world.batch(&[(&gone, blocks(0, 4))]));
    let mut batch = BatchCommit { batch: BatchId::from_bytes(world.identity()), ..kept.clone() };
    batch.segments.extend(lost.segments);
    batch.containers.extend(lost.containers.clone());
    batch.volumes.extend(lost.volumes);
    // While the batch is on its way.
    world.catalog.delete_volume(gone.volume, false, super::at(5000)).await.unwrap();
    world.catalog.delete_domain(domain).await.unwrap();

    // Nothing that lives may point at what is left out.
    let mut pointing = batch.clone();
    pointing.volumes[0].delta = written(blocks(0, 4), lost.containers[0].id);
    assert_eq!(refusal(world.catalog.commit_batch(&pointing).await).0, ErrorKind::Conflict);

    let receipt = world.catalog.commit_batch(&batch).await.unwrap();
    assert_eq!(outcomes(&receipt), [committed(1), VolumeOutcome::Deleted]);
    assert_eq!(world.catalog.commit_batch(&batch).await.unwrap(), receipt);
    assert_eq!(world.progress(&held).await, (WriteSeq::new(10), CommitSeq::new(1)));
    let listed: Vec<ContainerId> =
        world.catalog.containers_before(None, 10).await.unwrap().iter().map(|found| found.id).collect();
    assert_eq!(listed, [kept.containers[0].id]);
    let totals = world.catalog.totals().await.unwrap();
    assert_eq!((totals.segments, totals.containers, totals.container_bytes), (1, 1, 4000));
}
