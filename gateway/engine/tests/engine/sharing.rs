//! What is stored already is stored once, whatever becomes of the index and the flash cache.

#![expect(clippy::disallowed_methods, reason = "tests wait on the machine's own clock")]

use crate::support::{Checked, DOMAIN_KEY, MIB, Site};
use bytes::Bytes;
use cairn_engine::{Engine, VolumeOptions};
use cairn_flash::SealedCache;
use cairn_flash::testing::{Fault, MemoryFlash, Outliving};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, Entropy, SeededEntropy};
use cairn_segment_writer::Domain;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that do not compress and are like no others.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

async fn stored(site: &Site) -> u64 {
    site.catalog().await.totals().await.unwrap().container_bytes
}

/// Waits until the index knows so many containers.
async fn until_known(engine: &Engine, containers: u64) {
    for _ in 0..1000 {
        if engine.status().dedupe.index.containers >= containers {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the index knows {} containers", engine.status().dedupe.index.containers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_copy_takes_no_space_on_the_same_volume_and_on_another() {
    let site = Site::with_volume(16 * MIB).await;
    site.add_volume("other", 16 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let mut other = Checked::fresh(engine.volume("other").unwrap());
    disk.write(0, noise(1, 2 * MIB)).await;
    engine.destage().await.unwrap();
    let once = stored(&site).await;
    // Three blocks further on, and with a block of its own in the midst.
    disk.write(4 * MIB + 3 * 4096, noise(1, 2 * MIB)).await;
    other.write(7 * 4096, noise(1, 2 * MIB)).await;
    other.write(MIB, noise(2, 4096)).await;
    engine.destage().await.unwrap();
    assert_eq!(stored(&site).await - once, 4096 + 16, "a block and its tag");
    disk.check_all().await;
    other.check_all().await;
    let status = engine.status();
    assert_eq!(status.destage.reduction.unique_bytes, 2 * MIB + 4096);
    // A batch may have been cut before the one block was overwritten.
    let shared = status.destage.reduction.shared_bytes;
    assert!([4 * MIB - 4096, 4 * MIB].contains(&shared), "{shared}");
    engine.shutdown().await.unwrap();
}

/// What an index has of a container whose blocks these are.
fn prints(site: &Site, container: &Bytes) -> ContainerFingerprints {
    let id = ContainerId::fresh(&*site.ports.clock, &*site.ports.entropy);
    let key = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes(DOMAIN_KEY), Encryption::Aes256Gcm);
    let blocks: Vec<_> = container.chunks(4096).map(|block| key.fingerprints().of(block)).collect();
    ContainerFingerprints::new(id, vec![1; blocks.len()], blocks).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_knows_what_is_not_there_costs_another_packing_and_nothing_else() {
    let site = Site::with_volume(16 * MIB).await;
    let index = Arc::new(site.index("wal"));
    let content = Bytes::from(noise(1, MIB));
    index.committed(DomainId::DEFAULT, &prints(&site, &content));
    let engine = site.try_start_with(site.gateway, "wal", Arc::clone(&index)).await.unwrap();
    // The start compares the index with the catalog, once. What the index hears of afterwards stays until it is used.
    while engine.status().dedupe.index.containers > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    index.committed(DomainId::DEFAULT, &prints(&site, &content));
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(2 * MIB, content.to_vec()).await;
    engine.destage().await.unwrap();
    disk.check_all().await;
    assert!(engine.status().dedupe.refused_batches >= 1);
    let before = stored(&site).await;
    disk.write(8 * MIB, noise(1, MIB)).await;
    engine.destage().await.unwrap();
    disk.check(8 * MIB, MIB).await;
    assert_eq!(stored(&site).await, before, "known again");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_lost_is_made_again_from_the_pool() {
    let site = Site::with_volume(16 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 2 * MIB)).await;
    engine.destage().await.unwrap();
    engine.shutdown().await.unwrap();
    let expected = disk.into_expected();
    drop(engine);
    let once = stored(&site).await;
    std::fs::remove_dir_all(site.directory.path().join("wal-index")).unwrap();
    let engine = site.start().await;
    until_known(&engine, 1).await;
    let mut again = Checked { volume: engine.volume("disk").unwrap(), expected };
    again.write(8 * MIB, noise(1, 2 * MIB)).await;
    engine.destage().await.unwrap();
    assert_eq!(stored(&site).await, once);
    again.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_wants_it_shares_only_what_was_compared() {
    let site = Site::on(Arc::new(object_store::memory::InMemory::new())).await;
    let mut new = site.new_volume("disk", 16 * MIB);
    new.options = VolumeOptions { verify_dedupe: true, ..VolumeOptions::default() }.encode();
    site.catalog().await.create_volume(&new).await.unwrap();
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 2 * MIB)).await;
    engine.destage().await.unwrap();
    let once = stored(&site).await;
    until_known(&engine, 1).await;
    engine.shutdown().await.unwrap();
    let expected = disk.into_expected();
    drop(engine);
    // Nothing is in memory now: what is to be compared comes from the pool.
    let engine = site.start().await;
    let mut again = Checked { volume: engine.volume("disk").unwrap(), expected };
    again.write(8 * MIB, noise(1, 2 * MIB)).await;
    engine.destage().await.unwrap();
    assert_eq!(stored(&site).await, once);
    again.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flash_serves_after_a_restart_and_its_lies_are_counted_and_never_returned() {
    for (lies, fault) in [(false, Fault::None), (true, Fault::FlippedBit(77)), (true, Fault::Truncated(20))] {
        let flash =
            Arc::new(MemoryFlash::new(64 << 20).with_damage_max(u64::MAX).with_faults(move |_| fault));
        let mut site = Site::with_volume(16 * MIB).await;
        site.flash = Some(Arc::new(Outliving(Arc::clone(&flash))));
        let engine = site.start().await;
        let mut disk = Checked::fresh(engine.volume("disk").unwrap());
        disk.write(0, noise(1, 4 * MIB)).await;
        engine.destage().await.unwrap();
        assert!(flash.status().chunks > 0, "destage fills it");
        engine.abandon().await;
        let expected = disk.into_expected();
        drop(engine);
        let engine = site.start().await;
        let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
        disk.check_all().await;
        let status = flash.status();
        assert!(status.hits > 0, "{status:?}");
        assert_eq!(status.damaged > 0, lies, "{status:?}");
        engine.shutdown().await.unwrap();
    }
}
