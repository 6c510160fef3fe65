//! What nothing points at any more is deleted from the pool, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests spawn what they join")]

#[allow(dead_code, reason = "each test file uses a part of it")]
mod support;

use cairn_engine::{Engine, ReclaimReport};
use cairn_metadata::SnapshotName;
use cairn_model::{Entropy, SeededEntropy};
use futures::TryStreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Checked, Dice, MIB, Site};

/// Bytes that do not compress and are like no others.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

fn named(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// Bytes of segments in the pool that hold blocks. Those of batches that only discarded are all footer, and stay.
async fn pool_bytes(site: &Site) -> u64 {
    let objects: Vec<_> = site.store.list(None).try_collect().await.unwrap();
    objects.iter().map(|object| object.size).filter(|size| *size > 4096).sum()
}

async fn restarted(site: &Site, engine: Arc<Engine>) -> Arc<Engine> {
    engine.shutdown().await.unwrap();
    drop(engine);
    site.start().await
}

fn site_config(site: &mut Site) {
    site.config.reclaim_interval = None;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_overwritten_and_deleted_comes_back_and_the_rest_stays() {
    let mut site = Site::with_volume(32 * MIB).await;
    site_config(&mut site);
    site.add_volume("other", 32 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let mut other = Checked::fresh(engine.volume("other").unwrap());
    let empty = pool_bytes(&site).await;
    disk.write(0, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    // Shares all of it.
    other.write(3 * MIB, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    disk.write(16 * MIB, noise(2, 8 * MIB)).await;
    engine.destage().await.unwrap();
    let full = pool_bytes(&site).await;
    assert!(full - empty >= 16 * MIB, "{full} {empty}");
    assert_eq!(engine.reclaim(false).await.unwrap(), ReclaimReport::default(), "all of it is in use");

    disk.zero(0, 32 * MIB).await;
    engine.destage().await.unwrap();
    let expected = [disk.into_expected(), other.into_expected()];
    let engine = restarted(&site, engine).await;
    let volumes = ["disk", "other"].map(|name| engine.volume(name).unwrap());
    let [disk, mut other] = {
        let [first, second] = expected;
        let [disk, other] = volumes;
        [Checked { volume: disk, expected: first }, Checked { volume: other, expected: second }]
    };
    let planned = engine.reclaim(true).await.unwrap();
    assert!(planned.container_bytes >= 8 * MIB && planned.objects == 0, "{planned:?}");
    assert_eq!(pool_bytes(&site).await, full, "a dry run changes nothing");
    let done = engine.reclaim(false).await.unwrap();
    assert_eq!((done.containers, done.container_bytes), (planned.containers, planned.container_bytes));
    assert!(done.objects > 0 && full - pool_bytes(&site).await == done.object_bytes, "{done:?}");
    disk.check_all().await;
    other.check_all().await;
    assert_eq!(engine.status().reclaim.total, done);
    assert_eq!(engine.reclaim(false).await.unwrap(), ReclaimReport::default());

    // The same again is stored again, and not shared with what is gone.
    let mut disk = disk;
    disk.write(0, noise(2, 8 * MIB)).await;
    other.zero(0, 32 * MIB).await;
    engine.destage().await.unwrap();
    disk.check_all().await;
    drop((disk, other));
    let engine = restarted(&site, engine).await;
    engine.delete_volume("disk", false).await.unwrap();
    let engine = restarted(&site, engine).await;
    engine.reclaim(false).await.unwrap();
    assert_eq!(pool_bytes(&site).await, empty);
    let totals = site.catalog().await.totals().await.unwrap();
    assert_eq!((totals.containers, totals.container_bytes, totals.container_raw_bytes), (0, 0, 0));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_snapshot_or_a_clone_shows_stays_until_they_go() {
    let mut site = Site::with_volume(16 * MIB).await;
    site_config(&mut site);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let empty = pool_bytes(&site).await;
    disk.write(0, noise(1, 4 * MIB)).await;
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    let moment = disk.expected.clone();
    disk.zero(0, 16 * MIB).await;
    engine.destage().await.unwrap();
    drop(disk);
    let engine = restarted(&site, engine).await;
    assert_eq!(engine.reclaim(false).await.unwrap(), ReclaimReport::default());
    let clone = engine.clone_snapshot("disk", &named("s"), &"clone".parse().unwrap()).await.unwrap();
    engine.delete_volume("disk", true).await.unwrap();
    let clone = Checked { volume: clone, expected: moment };
    let engine = {
        let expected = clone.into_expected();
        let engine = restarted(&site, engine).await;
        assert_eq!(engine.reclaim(false).await.unwrap(), ReclaimReport::default());
        Checked { volume: engine.volume("clone").unwrap(), expected }.check_all().await;
        engine
    };
    engine.delete_volume("clone", false).await.unwrap();
    let engine = restarted(&site, engine).await;
    let done = engine.reclaim(false).await.unwrap();
    assert!(done.object_bytes >= 4 * MIB, "{done:?}");
    assert_eq!(pool_bytes(&site).await, empty);
    engine.shutdown().await.unwrap();
}

/// The same few contents are written and thrown away again and again while passes follow each other: every batch may hit what is about to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_and_reads_go_on_while_it_runs() {
    let mut site = Site::with_volume(16 * MIB).await;
    site_config(&mut site);
    site.config.batch_age = std::time::Duration::from_millis(5);
    // So that reads come from the pool.
    site.config.block_cache_bytes = MIB;
    let engine = site.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let passes = {
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut total = 0;
            while !stop.load(Ordering::Relaxed) {
                total += engine.reclaim(false).await.unwrap().containers;
            }
            total
        })
    };
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let dice = Dice::new(5);
    for round in 0..60 {
        let at = dice.below(12) * MIB;
        disk.write(at, noise(dice.below(4), 2 * MIB)).await;
        if dice.below(3) == 0 {
            engine.destage().await.unwrap();
        }
        if dice.below(3) == 0 {
            disk.zero(0, 14 * MIB).await;
        }
        if round % 5 == 0 {
            disk.check_all().await;
        } else {
            disk.check(at, 2 * MIB).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let removed = passes.await.unwrap();
    disk.check_all().await;
    let expected = disk.into_expected();
    let engine = restarted(&site, engine).await;
    Checked { volume: engine.volume("disk").unwrap(), expected }.check_all().await;
    let more = engine.reclaim(false).await.unwrap().containers;
    assert!(removed + more > 0, "something was removed");
    engine.shutdown().await.unwrap();
}
