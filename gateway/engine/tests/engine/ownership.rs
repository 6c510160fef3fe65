//! A volume and two gateways.

use crate::support::{MIB, Site, seize};
use bytes::Bytes;
use cairn_engine::{Engine, EngineError, Volume};
use cairn_metadata::VolumeName;
use cairn_model::{BlockDevice, WriteFlags, timeout};
use std::sync::Arc;
use std::time::Duration;

const FUA: WriteFlags = WriteFlags { fua: true };
const TERM: Duration = Duration::from_millis(900);

/// The first gateway serves the volume; the second serves nothing.
async fn two_gateways() -> (Site, Arc<Engine>, Arc<Engine>) {
    let mut site = Site::with_volume(MIB).await;
    site.config.lease_ttl = TERM;
    site.config.batch_age = Duration::from_hours(1);
    let first = site.start().await;
    let other = site.another_gateway("second").await;
    let second = site.try_start_as(other, "wal-2").await.unwrap();
    let refused: Vec<_> = second.not_served().collect();
    assert!(refused[0].reason.contains("is held by gateway test"), "{refused:?}");
    (site, first, second)
}

fn disk() -> VolumeName {
    "disk".parse().unwrap()
}

async fn first_byte(volume: &Volume) -> u8 {
    volume.read(0, 4096).await.unwrap().to_vec()[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_not_taken_while_its_owner_renews() {
    let (site, first, second) = two_gateways().await;
    let taken = timeout(&*site.ports.clock, TERM * 4, second.take_volume(&disk())).await;
    assert!(taken.is_err(), "{taken:?}");
    first.volume("disk").unwrap().write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_volume_is_taken_with_everything_in_it() {
    let (_site, first, second) = two_gateways().await;
    first.volume("disk").unwrap().write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    first.shutdown().await.unwrap();
    let volume = second.take_volume(&disk()).await.unwrap();
    assert_eq!(first_byte(&volume).await, 1);
    assert_eq!(second.not_served().count(), 0);
    assert!(Arc::ptr_eq(&volume, &second.take_volume(&disk()).await.unwrap()), "it is served already");
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_volume_of_an_owner_that_is_gone_is_taken_after_a_term_and_given_back() {
    let (site, first, second) = two_gateways().await;
    let volume = first.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 4096]), FUA).await.unwrap();
    first.destage().await.unwrap();
    // In the log of the first gateway alone.
    volume.write(0, Bytes::from(vec![2; 4096]), FUA).await.unwrap();
    first.abandon().await;
    drop((volume, first));
    let began = site.ports.clock.now();
    let volume = second.take_volume(&disk()).await.unwrap();
    assert!(site.ports.clock.now().since(began) >= TERM);
    assert_eq!(first_byte(&volume).await, 1, "the state that was destaged");
    volume.write(0, Bytes::from(vec![3; 4096]), FUA).await.unwrap();

    let first = site.start().await;
    assert_eq!(first.not_served().count(), 1);
    second.shutdown().await.unwrap();
    let volume = first.take_volume(&disk()).await.unwrap();
    assert_eq!(first_byte(&volume).await, 3, "the first gateway's old log says nothing any more");
    first.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_taking_of_a_volume_that_is_not_there() {
    let (_site, first, second) = two_gateways().await;
    let refused = second.take_volume(&"nothing".parse().unwrap()).await.err();
    assert!(matches!(refused, Some(EngineError::Catalog(_))), "{refused:?}");
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

/// The block's first byte after each of so many destaged writes of it.
async fn overwrite(engine: &Engine, volume: &Volume, bytes: std::ops::Range<u8>) {
    for byte in bytes {
        volume.write(0, Bytes::from(vec![byte; 4096]), WriteFlags::default()).await.unwrap();
        engine.destage().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_comes_back_shows_what_the_other_gateway_folded() {
    let (site, first, second) = two_gateways().await;
    let volume = first.volume("disk").unwrap();
    // Folded, so that the first gateway has the leaf in memory.
    overwrite(&first, &volume, 0..70).await;
    assert_eq!(first_byte(&volume).await, 69);
    // As if the first gateway had slept.
    let (other, lease) = seize(&site, volume.id(), "third").await;
    let catalog = site.catalog().await;
    catalog.release_lease(volume.id(), other, lease.generation).await.unwrap();
    catalog.close().await;
    let taken = second.take_volume(&disk()).await.unwrap();
    overwrite(&second, &taken, 100..170).await;
    second.shutdown().await.unwrap();
    let mut back = first.take_volume(&disk()).await.unwrap();
    while Arc::ptr_eq(&back, &volume) {
        // It does not know yet that it has lost the volume.
        site.ports.clock.sleep(TERM / 10).await;
        back = first.take_volume(&disk()).await.unwrap();
    }
    assert_eq!(first_byte(&back).await, 169);
    overwrite(&first, &back, 200..201).await;
    assert_eq!(first_byte(&back).await, 200);
    first.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn block_status_is_not_answered_for_a_volume_that_is_anothers() {
    let (site, first, second) = two_gateways().await;
    let volume = first.volume("disk").unwrap();
    assert!(volume.allocation(0, MIB, 8).await.is_ok());
    seize(&site, volume.id(), "third").await;
    site.ports.clock.sleep(TERM * 2).await;
    assert!(volume.allocation(0, MIB, 8).await.is_err());
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}
