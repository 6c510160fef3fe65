//! What a restart finds.

use crate::support::{MIB, Site};
use bytes::Bytes;
use cairn_engine::EngineError;
use cairn_model::{BlockDevice, WriteFlags};
use std::time::Duration;

const FUA: WriteFlags = WriteFlags { fua: true };

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_that_held_writes_is_refused_unless_the_operator_accepts_it() {
    let mut site = Site::with_volume(MIB).await;
    site.config.batch_age = Duration::from_hours(1);
    let engine = site.start().await;
    engine.volume("disk").unwrap().write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    engine.abandon().await;
    std::fs::remove_dir_all(site.wal_directory()).unwrap();
    assert!(matches!(site.try_start().await, Err(EngineError::LostWal(_))));
    site.config.accept_lost_wal = true;
    let engine = site.start().await;
    assert_eq!(engine.volume("disk").unwrap().read(0, 4096).await.unwrap().to_vec(), vec![0; 4096]);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_resize_cut_off_stays_away_without_the_log() {
    let mut site = Site::with_volume(MIB).await;
    site.config.batch_age = Duration::from_hours(1);
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 1 << 20]), FUA).await.unwrap();
    engine.destage().await.unwrap();
    engine.resize_volume("disk", 8192).await.unwrap();
    // So that the log is missed.
    volume.write(0, Bytes::from(vec![2; 4096]), FUA).await.unwrap();
    engine.abandon().await;
    drop((volume, engine));
    std::fs::remove_dir_all(site.wal_directory()).unwrap();
    site.config.accept_lost_wal = true;
    let engine = site.start().await;
    engine.resize_volume("disk", MIB).await.unwrap();
    let content = engine.volume("disk").unwrap().read(0, 1 << 20).await.unwrap().to_vec();
    assert_eq!(content[..8192], [1; 8192]);
    assert!(content[8192..].iter().all(|byte| *byte == 0), "the old bytes are back");
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_that_was_destaged_is_no_loss() {
    let site = Site::with_volume(MIB).await;
    let engine = site.start().await;
    engine.volume("disk").unwrap().write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    engine.destage().await.unwrap();
    engine.abandon().await;
    std::fs::remove_dir_all(site.wal_directory()).unwrap();
    let engine = site.start().await;
    assert_eq!(engine.volume("disk").unwrap().read(0, 4096).await.unwrap().to_vec(), vec![1; 4096]);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_term_that_another_gateway_followed_are_not_replayed() {
    let mut site = Site::with_volume(MIB).await;
    site.config.batch_age = Duration::from_hours(1);
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    let id = volume.id();
    engine.abandon().await;
    drop((volume, engine));
    // Another gateway takes the volume and gives it back.
    let (other, lease) = crate::support::seize(&site, id, "other").await;
    let catalog = site.catalog().await;
    catalog.release_lease(id, other, lease.generation).await.unwrap();
    catalog.close().await;
    let engine = site.start().await;
    assert_eq!(engine.volume("disk").unwrap().read(0, 4096).await.unwrap().to_vec(), vec![0; 4096]);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_another_gateway_took_stops_being_served_and_the_others_go_on() {
    let mut site = Site::with_volume(MIB).await;
    site.add_volume("mine", MIB).await;
    site.config.lease_ttl = Duration::from_millis(600);
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    crate::support::seize(&site, volume.id(), "other").await;
    let mut refused = None;
    for _ in 0..40 {
        refused = volume.write(0, Bytes::from(vec![2; 4096]), FUA).await.err();
        if refused.is_some() {
            break;
        }
        tokio_sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(refused, Some(EngineError::Fenced(_))), "{refused:?}");
    let mine = engine.volume("mine").unwrap();
    mine.write(0, Bytes::from(vec![3; 4096]), FUA).await.unwrap();
    engine.destage().await.unwrap();
    assert_eq!(mine.read(0, 4096).await.unwrap().to_vec(), vec![3; 4096]);
    engine.shutdown().await.unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a test waits for real time")]
async fn tokio_sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}
