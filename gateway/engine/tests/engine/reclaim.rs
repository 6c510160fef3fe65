//! What nothing points at any more is deleted from the pool, and nothing else.

#![expect(clippy::disallowed_methods, reason = "tests spawn what they join")]

use crate::support::{Checked, Dice, MIB, Site};
use cairn_engine::{Engine, ReclaimReport};
use cairn_metadata::SnapshotName;
use cairn_model::{BlockDevice, Entropy, SeededEntropy};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that do not compress and are like no others.
fn noise(seed: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    SeededEntropy::new(seed).fill(&mut bytes);
    bytes
}

fn named(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// Bytes of segments in the pool that hold blocks. Those of batches that only discarded or shared are all footer, and stay.
async fn pool_bytes(site: &Site) -> u64 {
    let objects: Vec<_> = site.store.list(Some(&"segments".into())).try_collect().await.unwrap();
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

/// Overwrites of pieces all over what was written before: they leave something dead in every container. Pieces are longer than chunks.
async fn scattered(disk: &mut Checked, seed: u64, of_ten: u64) {
    const PIECE: u64 = 192 << 10;
    let dice = Dice::new(seed);
    for piece in 0..16 * MIB / PIECE {
        if dice.below(10) < of_ten {
            disk.write(piece * PIECE, noise(1000 + dice.below(1 << 40), PIECE)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn survivors_of_sparse_segments_move_together() {
    let mut site = Site::with_volume(32 * MIB).await;
    site_config(&mut site);
    site.add_volume("other", 16 * MIB).await;
    site.config.pack.container_bytes_max = 1 << 20;
    site.config.reclaim_dead_percent_max = 5;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 16 * MIB)).await;
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    engine.destage().await.unwrap();
    let moment = disk.expected.clone();
    for seed in 0..4 {
        scattered(&mut disk, seed, 4).await;
        engine.destage().await.unwrap();
    }
    let before = pool_bytes(&site).await;
    let planned = engine.reclaim(true).await.unwrap();
    assert!(planned.moved_containers > 0 && planned.moved_bytes > 0 && planned.objects == 0, "{planned:?}");
    assert_eq!(pool_bytes(&site).await, before, "a dry run changes nothing");
    let done = engine.reclaim(false).await.unwrap();
    assert!(done.moved_containers > 0 && done.objects > done.moved_containers / 8, "{done:?}");
    assert_eq!(done.container_bytes, planned.container_bytes);
    let after = pool_bytes(&site).await;
    // The snapshot's 16 MiB, and what the volume has that differs from it.
    let differing =
        disk.expected.chunks(4096).zip(moment.chunks(4096)).filter(|(one, other)| one != other).count();
    let live = 16 * MIB + differing as u64 * 4096;
    assert!(before > live * 5 / 4 && after < live * 5 / 4, "{before} {after} {live}");
    let totals = site.catalog().await.totals().await.unwrap();
    assert!(totals.container_bytes < live * 5 / 4 && totals.segment_bytes < live * 5 / 4 + MIB, "{totals:?}");
    disk.check_all().await;

    // From where it is now, without anything in memory; also by the snapshot, and again after another pass.
    let expected = disk.into_expected();
    let engine = restarted(&site, engine).await;
    let mut disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    disk.check_all().await;
    let clone = engine.clone_snapshot("disk", &named("s"), &"clone".parse().unwrap()).await.unwrap();
    Checked { volume: clone, expected: moment }.check_all().await;
    engine.delete_volume("clone", false).await.unwrap();
    engine.delete_snapshot("disk", &named("s")).await.unwrap();
    scattered(&mut disk, 9, 3).await;
    engine.destage().await.unwrap();
    let again = engine.reclaim(false).await.unwrap();
    assert!(again.moved_containers > 0, "{again:?}");
    disk.check_all().await;

    // What survived is shared as before, and what did not is stored again.
    let stored = |engine: &Arc<Engine>| engine.status().destage.reduction;
    let mut other = Checked::fresh(engine.volume("other").unwrap());
    let at_first = stored(&engine);
    other.write(0, disk.expected[..usize::try_from(8 * MIB).unwrap()].to_vec()).await;
    engine.destage().await.unwrap();
    let shared = stored(&engine).shared_bytes - at_first.shared_bytes;
    assert!(shared > 6 * MIB, "{shared}");
    other.write(8 * MIB, noise(1, 8 * MIB)).await;
    engine.destage().await.unwrap();
    other.check_all().await;
    engine.reclaim(false).await.unwrap();
    let expected = other.into_expected();
    let kept = disk.into_expected();
    let engine = restarted(&site, engine).await;
    Checked { volume: engine.volume("other").unwrap(), expected }.check_all().await;
    Checked { volume: engine.volume("disk").unwrap(), expected: kept }.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_finds_what_moved_since_it_looked() {
    let mut site = Site::with_volume(16 * MIB).await;
    site_config(&mut site);
    // Chunks are not kept, the places of containers are.
    site.config.block_cache_bytes = 1;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 16 * MIB)).await;
    engine.destage().await.unwrap();
    disk.check_all().await;
    // Readers that are on their way from the look at the map to the pool at any time.
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|seed| {
            let (volume, stop) = (Arc::clone(&disk.volume), Arc::clone(&stop));
            tokio::spawn(async move {
                let dice = Dice::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    volume.read(dice.below(4000) * 4096, 32 << 10).await.unwrap();
                }
            })
        })
        .collect();
    for round in 0..6 {
        scattered(&mut disk, round, 5).await;
        engine.destage().await.unwrap();
        disk.check_all().await;
        let done = engine.reclaim(false).await.unwrap();
        assert!(done.moved_containers > 0, "{done:?}");
        disk.check_all().await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_verified_stays_where_it_is() {
    let mut site = Site::with_volume(16 * MIB).await;
    site_config(&mut site);
    site.config.pack.container_bytes_max = 1 << 20;
    site.config.block_cache_bytes = 1;
    site.config.reclaim_dead_percent_max = 1;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, noise(1, 16 * MIB)).await;
    engine.destage().await.unwrap();
    scattered(&mut disk, 1, 7).await;
    engine.destage().await.unwrap();
    let objects: Vec<_> = site.store.list(Some(&"segments".into())).try_collect().await.unwrap();
    let mut sound = Vec::new();
    for path in objects.into_iter().map(|object| object.location) {
        let whole = site.store.get(&path).await.unwrap().bytes().await.unwrap();
        // A byte in every 4 KiB of its chunks; the footer, which begins where the trailer says, is whole.
        let mut damaged = whole.to_vec();
        let trailer = u64::from_le_bytes(whole[whole.len() - 32..][..8].try_into().unwrap());
        let chunks = usize::try_from(trailer).unwrap();
        damaged[64..chunks].iter_mut().step_by(4096).for_each(|byte| *byte ^= 1);
        site.store.put(&path, damaged.into()).await.unwrap();
        sound.push((path, whole));
    }
    let done = engine.reclaim(false).await.unwrap();
    assert_eq!(done.moved_containers, 0, "{done:?}");
    // Once it is whole again nothing is lost: the only copy of what lives is there. It is tried again after a start.
    let mut left = 0;
    for (path, whole) in sound {
        if site.store.head(&path).await.is_ok() {
            site.store.put(&path, whole.into()).await.unwrap();
            left += 1;
        }
    }
    assert!(left > 1, "{left}");
    disk.check_all().await;
    let expected = disk.into_expected();
    let engine = restarted(&site, engine).await;
    let disk = Checked { volume: engine.volume("disk").unwrap(), expected };
    let done = engine.reclaim(false).await.unwrap();
    assert!(done.moved_containers > 0 && done.objects > 0, "{done:?}");
    disk.check_all().await;
    engine.shutdown().await.unwrap();
}
