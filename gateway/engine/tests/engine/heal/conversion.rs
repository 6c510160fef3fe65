//! Profiles change, and copies are left out.

use super::cluster::*;
use crate::support::{Checked, Dice, MIB};
use cairn_model::{BlockDevice, Profile};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Overwrites a part of every 64 KiB.
async fn scattered(disk: &mut Checked, seed: u64) {
    let dice = Dice::new(seed);
    for piece in 0..128 {
        disk.write(piece * 65536 + dice.below(8) * 4096, noise(1000 + seed * 1000 + piece, 16 << 10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_are_converted_under_reads_writes_and_reclaim() {
    let mut cluster = Cluster::new(6, "single").await;
    cluster.site.config.reclaim_dead_percent_max = 5;
    let (engine, mut disk) = filled(&cluster, 8 * MIB).await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|seed| {
            let (volume, stop) = (Arc::clone(&disk.volume), Arc::clone(&stop));
            tokio::spawn(async move {
                let dice = Dice::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    volume.read(dice.below(2000) * 4096, 32 << 10).await.unwrap();
                }
            })
        })
        .collect();
    for (round, profile) in (0..).zip(["ec:4+2", "replica:3", "single", "replica:2", "ec:2+1", "single"]) {
        cluster.set_profile(profile).await;
        engine.pool_changed();
        scattered(&mut disk, round).await;
        engine.destage().await.unwrap();
        disk.check_all().await;
        engine.reclaim(false).await.unwrap();
        disk.check_all().await;
        cluster.until_whole(&engine).await;
        disk.check_all().await;
        let profile: Profile = profile.parse().unwrap();
        assert!(cluster.places().await.iter().all(|segment| segment.place.placement.profile() == profile));
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(cluster.garbage().await, 0);
    let (engine, disk) = cluster.restarted(engine, disk).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_stay_are_verified_before_others_go() {
    let cluster = Cluster::new(3, "replica:2").await;
    let (engine, disk) = filled(&cluster, 2 * MIB).await;
    // One copy of each is damaged, on whichever node.
    for (number, segment) in cluster.places().await.into_iter().enumerate() {
        let (node, key, _) = segment.place.objects().nth(number % 2).unwrap();
        let store = &cluster.nodes[cluster.number_of(node)].inner;
        let mut bytes = store.get(&Path::from(key.as_str())).await.unwrap().bytes().await.unwrap().to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        store.put(&Path::from(key), bytes.into()).await.unwrap();
    }
    cluster.set_profile("single").await;
    engine.pool_changed();
    cluster.until_whole(&engine).await;
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
