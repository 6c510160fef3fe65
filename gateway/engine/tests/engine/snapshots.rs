//! Snapshots, clones and reverts show what they must, whatever is written, destaged, folded, deleted and started again meanwhile.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait on the machine's own clock and spawn what they join"
)]

use crate::support::{Checked, Dice, MIB, Site};
use bytes::Bytes;
use cairn_engine::{Engine, EngineError, SnapshotPhase};
use cairn_metadata::{CatalogError, SnapshotName, VolumeName};
use cairn_model::{BlockDevice, ErrorKind, Exports, Kinded, Lba, WriteFlags};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn named(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

async fn view(engine: &Engine, snapshot: &str, expected: &[u8]) -> Checked {
    let (volume, name) = snapshot.split_once('@').unwrap();
    let volume = engine.open_snapshot(volume, &named(name)).await.unwrap();
    Checked { volume, expected: expected.to_vec() }
}

async fn purged(site: &Site) {
    let catalog = site.catalog().await;
    while catalog.purge_deleted(1000).await.unwrap() {}
    catalog.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_its_moment_for_ever() {
    let site = Site::with_volume(8 * MIB).await;
    let dice = Dice::new(3);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    let mut moments: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for round in 0..12 {
        for _ in 0..10 {
            let offset = dice.below(8 * MIB - 40_000);
            let length = usize::try_from(1 + dice.below(40_000)).unwrap();
            disk.write(offset, dice.bytes(length)).await;
        }
        if round == 6 {
            disk.zero(0, 4 * MIB).await;
        }
        let name = format!("s{round}");
        engine.create_snapshot("disk", &named(&name)).await.unwrap();
        moments.insert(name, disk.expected.clone());
        if round % 4 == 1 {
            engine.destage().await.unwrap();
        }
    }
    disk.write(0, dice.bytes(100_000)).await;
    for (name, expected) in &moments {
        view(&engine, &format!("disk@{name}"), expected).await.check_all().await;
    }
    disk.check_all().await;
    let listed = engine.snapshots("disk").await.unwrap();
    assert_eq!(listed.len(), moments.len());
    for snapshot in &listed {
        assert_eq!(engine.snapshot("disk", &snapshot.name).await.unwrap(), *snapshot);
    }
    let absent = engine.snapshot("disk", &SnapshotName::new("never").unwrap()).await.unwrap_err();
    assert!(matches!(absent, EngineError::NoSuchSnapshot(_)), "{absent}");
    assert!(listed.is_sorted_by_key(|snapshot| snapshot.created_at));
    assert!(
        listed
            .iter()
            .all(|snapshot| snapshot.phase == SnapshotPhase::Settled && snapshot.size_bytes == 8 * MIB)
    );
    let expected = disk.into_expected();
    engine.shutdown().await.unwrap();
    drop(engine);

    let engine = site.start().await;
    // Every second one goes; the others still show their moment.
    for (name, expected) in moments.iter().step_by(2) {
        view(&engine, &format!("disk@{name}"), expected).await.check_all().await;
        engine.delete_snapshot("disk", &named(name)).await.unwrap();
        let gone = engine.open_snapshot("disk", &named(name)).await.unwrap_err();
        assert!(matches!(gone, EngineError::NoSuchSnapshot(_)), "{gone}");
    }
    purged(&site).await;
    for (name, expected) in moments.iter().skip(1).step_by(2) {
        view(&engine, &format!("disk@{name}"), expected).await.check_all().await;
    }
    Checked { volume: engine.volume("disk").unwrap(), expected }.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_taken_survives_the_end_of_the_process_with_the_log_alone() {
    let mut site = Site::with_volume(4 * MIB).await;
    site.config.batch_age = Duration::from_hours(1);
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, vec![1; 8192]).await;
    let id = engine.create_snapshot("disk", &named("s")).await.unwrap();
    let moment = disk.expected.clone();
    disk.write(4096, vec![2; 8192]).await;
    let now = disk.into_expected();
    engine.abandon().await;
    drop(engine);

    let engine = site.start().await;
    let listed = engine.snapshots("disk").await.unwrap();
    assert_eq!(listed.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [id]);
    view(&engine, "disk@s", &moment).await.check_all().await;
    let disk = Checked { volume: engine.volume("disk").unwrap(), expected: now };
    disk.check_all().await;
    drop(disk);
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = site.start().await;
    assert_eq!(engine.snapshots("disk").await.unwrap().len(), 1, "it is not taken again");
    view(&engine, "disk@s", &moment).await.check_all().await;
    engine.shutdown().await.unwrap();
}

/// Nobody writes, and somebody destages all the time: the log becomes clean again and again, and a snapshot comes through all the same.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_a_log_that_becomes_clean_all_the_time_are_taken() {
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let (from, until) = (Arc::clone(&engine), Arc::clone(&is_over));
    let destaging = tokio::spawn(async move {
        while !until.load(Ordering::Relaxed) {
            from.destage().await.unwrap();
        }
    });
    for round in 0..30 {
        let name = named(&format!("s{round}"));
        let taken = tokio::time::timeout(Duration::from_secs(20), engine.create_snapshot("disk", &name));
        taken.await.expect("in time").unwrap();
        engine.delete_snapshot("disk", &name).await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    destaging.await.unwrap();
    engine.shutdown().await.unwrap();
}

/// Writers that put growing numbers into blocks of their own, one after the other; what a snapshot shows of each must be one moment:
/// block `n` of a writer is never more than one ahead of block `n + 1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_load_is_one_moment_of_the_write_order() {
    const BLOCKS: u64 = 16;
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let rounds: Vec<Arc<AtomicU64>> = (0..4).map(|_| Arc::default()).collect();
    let writers: Vec<_> = rounds
        .iter()
        .enumerate()
        .map(|(writer, round)| {
            let (volume, stop, round) = (Arc::clone(&volume), Arc::clone(&stop), Arc::clone(round));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = round.load(Ordering::Relaxed) + 1;
                    for block in 0..BLOCKS {
                        let at = (writer as u64 * BLOCKS + block) * 4096;
                        let data = Bytes::from(number.to_le_bytes().repeat(512));
                        volume.write(at, data, WriteFlags::default()).await.unwrap();
                    }
                    round.store(number, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 0..30 {
        let before: Vec<u64> = rounds.iter().map(|round| round.load(Ordering::Relaxed)).collect();
        engine.create_snapshot("disk", &named(&format!("s{number}"))).await.unwrap();
        let snapshot = engine.open_snapshot("disk", &named(&format!("s{number}"))).await.unwrap();
        for (writer, before) in before.into_iter().enumerate() {
            let at = writer as u64 * BLOCKS * 4096;
            let bytes = snapshot.read(at, u32::try_from(BLOCKS * 4096).unwrap()).await.unwrap().to_vec();
            let words: Vec<u64> =
                bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            let seen: Vec<u64> = words.chunks_exact(512).map(|block| block[0]).collect();
            for (block, words) in seen.iter().zip(words.chunks_exact(512)) {
                assert!(words.iter().all(|word| word == block), "a torn block");
            }
            assert!(
                seen.is_sorted_by(|one, next| one >= next),
                "a later write without an earlier one: {seen:?}"
            );
            assert!(seen[0] - seen[seen.len() - 1] <= 1, "{seen:?}");
            assert!(seen[seen.len() - 1] >= before, "what was answered before is in it: {seen:?}, {before}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    drop(volume);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_its_own_and_outlives_what_it_came_from() {
    let site = Site::with_volume(8 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, Dice::new(1).bytes(3 << 20)).await;
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    let moment = disk.expected.clone();
    disk.write(MIB, Dice::new(2).bytes(1 << 20)).await;
    let first = engine.clone_snapshot("disk", &named("s"), &"first".parse().unwrap()).await.unwrap();
    let mut first = Checked { volume: first, expected: moment.clone() };
    first.check_all().await;
    first.write(2 * MIB + 512, Dice::new(3).bytes(70_000)).await;
    first.zero(0, 8192).await;
    engine.create_snapshot("first", &named("t")).await.unwrap();
    let of_first = first.expected.clone();
    first.write(5 * MIB, Dice::new(4).bytes(50_000)).await;
    let second = engine.clone_snapshot("first", &named("t"), &"second".parse().unwrap()).await.unwrap();
    let mut second = Checked { volume: second, expected: of_first.clone() };
    second.check_all().await;
    second.write(0, Dice::new(5).bytes(30_000)).await;
    engine.destage().await.unwrap();
    for checked in [&disk, &first, &second] {
        checked.check_all().await;
    }
    view(&engine, "disk@s", &moment).await.check_all().await;
    view(&engine, "first@t", &of_first).await.check_all().await;

    // A parent with snapshots is not deleted by accident; when it is, its clones stay.
    let refused = engine.delete_volume("disk", false).await.unwrap_err();
    let is_told = matches!(&refused, EngineError::Catalog(error) if matches!(**error, CatalogError::HasSnapshots { snapshots: 1, .. }));
    assert!(is_told, "{refused}");
    engine.delete_volume("disk", true).await.unwrap();
    engine.delete_snapshot("first", &named("t")).await.unwrap();
    purged(&site).await;
    first.check_all().await;
    second.check_all().await;
    let (first, second) = (first.into_expected(), second.into_expected());
    drop(disk);
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = site.start().await;
    Checked { volume: engine.volume("first").unwrap(), expected: first }.check_all().await;
    engine.delete_volume("first", false).await.unwrap();
    purged(&site).await;
    Checked { volume: engine.volume("second").unwrap(), expected: second }.check_all().await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revert_goes_back_and_the_way_forward_stays_open() {
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, Dice::new(1).bytes(1 << 20)).await;
    engine.create_snapshot("disk", &named("good")).await.unwrap();
    let good = disk.expected.clone();
    disk.write(MIB / 2, Dice::new(2).bytes(1 << 20)).await;
    engine.resize_volume("disk", 6 * MIB).await.unwrap();
    disk.expected.resize(6 << 20, 0);
    disk.write(5 * MIB, Dice::new(3).bytes(10_000)).await;
    let before = disk.expected.clone();
    let safety = engine.revert_volume("disk", &named("good"), &named("before")).await.unwrap();
    assert_eq!(safety.name, named("before"));
    assert_eq!(engine.volume("disk").unwrap().size_bytes(), 4 * MIB);
    disk.expected = good.clone();
    disk.check_all().await;
    disk.write(4096, Dice::new(4).bytes(20_000)).await;
    engine.destage().await.unwrap();
    disk.check_all().await;
    view(&engine, "disk@before", &before).await.check_all().await;
    let taken = engine.revert_volume("disk", &named("good"), &named("before")).await.unwrap_err();
    assert!(matches!(taken, EngineError::SnapshotExists(_)), "{taken}");
    disk.write(0, Dice::new(5).bytes(5000)).await;
    disk.check_all().await;
    let after = disk.into_expected();
    engine.abandon().await;
    drop(engine);

    let engine = site.start().await;
    let mut disk = Checked { volume: engine.volume("disk").unwrap(), expected: after.clone() };
    disk.check_all().await;
    // And forward again, to what was before the revert.
    engine.revert_volume("disk", &named("before"), &named("after")).await.unwrap();
    disk.expected = before;
    disk.check_all().await;
    view(&engine, "disk@after", &after).await.check_all().await;
    view(&engine, "disk@good", &good).await.check_all().await;
    for name in ["good", "before", "after"] {
        engine.delete_snapshot("disk", &named(name)).await.unwrap();
    }
    purged(&site).await;
    disk.check_all().await;
    drop(disk);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_during_a_revert_wait_and_are_kept() {
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    volume.write(0, Bytes::from(vec![1; 1 << 20]), WriteFlags::default()).await.unwrap();
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (volume, stop) = (Arc::clone(&volume), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut last = 0u64;
            while !stop.load(Ordering::Relaxed) {
                last += 1;
                let data = Bytes::from(last.to_le_bytes().repeat(512));
                volume.write(2 * MIB, data.clone(), WriteFlags::default()).await.unwrap();
                // Part of a block: read, patched, written.
                volume.write(2 * MIB + 4096 + 8, data.slice(..8), WriteFlags::default()).await.unwrap();
            }
            last
        })
    };
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        engine.revert_volume("disk", &named("s"), &named(&format!("before-{round}"))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    stop.store(true, Ordering::Relaxed);
    let last = writer.await.unwrap();
    let read = volume.read(2 * MIB, 8192).await.unwrap().to_vec();
    assert_eq!(u64::from_le_bytes(read[..8].try_into().unwrap()), last);
    assert_eq!(u64::from_le_bytes(read[4104..4112].try_into().unwrap()), last);
    assert_eq!(volume.read(0, 4096).await.unwrap().to_vec(), vec![1; 4096]);
    drop(volume);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_what_was_written_in_between() {
    let site = Site::with_volume(256 * MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, Dice::new(1).bytes(1 << 20)).await;
    disk.write(128 * MIB, Dice::new(2).bytes(8192)).await;
    engine.create_snapshot("disk", &named("a")).await.unwrap();
    disk.write(40_960, Dice::new(3).bytes(4096)).await;
    disk.write(200 * MIB - 4096, Dice::new(4).bytes(12_288)).await;
    disk.zero(128 * MIB, 4096).await;
    engine.create_snapshot("disk", &named("b")).await.unwrap();
    disk.write(0, Dice::new(5).bytes(4096)).await;
    let (mut found, mut at) = (Vec::new(), Lba::ZERO);
    loop {
        let page = engine.snapshot_differences("disk", &named("a"), &named("b"), at, 1).await.unwrap();
        let ranges = page
            .differences
            .iter()
            .map(|one| (one.range.start().byte_offset(), one.range.bytes(), one.allocated));
        found.extend(ranges);
        match page.next {
            Some(next) => at = next,
            None => break,
        }
    }
    let expected = [
        (40_960, 4096, true),
        (128 * MIB, 4096, false),
        (200 * MIB - 4096, 4096, true),
        (200 * MIB, 8192, true),
    ];
    let merged = |found: &[(u64, u64, bool)]| {
        let mut merged: Vec<(u64, u64, bool)> = Vec::new();
        for &(offset, length, allocated) in found {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == offset && last.2 == allocated => last.1 += length,
                _ => merged.push((offset, length, allocated)),
            }
        }
        merged
    };
    assert_eq!(merged(&found), merged(&expected));
    let same = engine.snapshot_differences("disk", &named("a"), &named("a"), Lba::ZERO, 100).await.unwrap();
    assert_eq!((same.differences.len(), same.next), (0, None));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let site = Site::with_volume(4 * MIB).await;
    site.add_volume("other", MIB).await;
    let engine = site.start().await;
    let mut disk = Checked::fresh(engine.volume("disk").unwrap());
    disk.write(0, vec![1; 4096]).await;
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    // In the log alone, and in the catalog.
    for _ in 0..2 {
        let taken = engine.create_snapshot("disk", &named("s")).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");
        engine.destage().await.unwrap();
    }
    engine.create_snapshot("other", &named("s")).await.unwrap();
    let missing = engine.create_snapshot("none", &named("s")).await.unwrap_err();
    assert!(matches!(missing, EngineError::NoSuchVolume(_)), "{missing}");
    let name: VolumeName = "new".parse().unwrap();
    for error in [
        engine.delete_snapshot("disk", &named("none")).await.unwrap_err(),
        engine.clone_snapshot("disk", &named("none"), &name).await.map(drop).unwrap_err(),
        engine.revert_volume("disk", &named("none"), &named("x")).await.map(drop).unwrap_err(),
        engine.open_snapshot("disk", &named("none")).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, EngineError::NoSuchSnapshot(_)), "{error}");
    }
    let taken =
        engine.clone_snapshot("disk", &named("s"), &"other".parse().unwrap()).await.map(drop).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Conflict, "{taken}");

    let open = Exports::open(&*engine, "disk@s").await.unwrap();
    assert!(open.info().read_only);
    let refused = open.write(0, Bytes::from(vec![2; 4096]), WriteFlags::default()).await.unwrap_err();
    assert!(matches!(refused, EngineError::ReadOnly(_)), "{refused}");
    open.flush().await.unwrap();
    for name in ["disk@", "@s", "disk@none", "none@s", "disk@s@s"] {
        assert!(Exports::open(&*engine, name).await.is_none(), "{name}");
    }
    let used = engine.delete_snapshot("disk", &named("s")).await.unwrap_err();
    assert!(matches!(used, EngineError::SnapshotInUse(_)), "{used}");
    // Deleting the volume with it ends those who read.
    engine.delete_volume("disk", true).await.unwrap();
    let ended = open.read(0, 4096).await.unwrap_err();
    assert!(matches!(ended, EngineError::Deleted(_)), "{ended}");
    drop((open, disk));
    engine.shutdown().await.unwrap();
}

/// A writer that goes from volume to volume: each write begins when the one before was answered. Snapshots of all volumes at one moment
/// never have a later one without an earlier one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_several_volumes_are_of_one_moment() {
    const VOLUMES: u64 = 4;
    let site = Site::with_volume(MIB).await;
    let mut names = vec!["disk".to_owned()];
    for number in 1..VOLUMES {
        names.push(format!("disk{number}"));
        site.add_volume(&names[names.len() - 1], MIB).await;
    }
    let engine = site.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let volumes: Vec<_> = names.iter().map(|name| engine.volume(name).unwrap()).collect();
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                for volume in &volumes {
                    let data = Bytes::from(number.to_le_bytes().repeat(512));
                    volume.write(0, data, WriteFlags::default()).await.unwrap();
                }
            }
        })
    };
    for round in 0..100 {
        let snapshot = named(&format!("s{round}"));
        let wanted: Vec<_> = names.iter().map(|name| (name.clone(), snapshot.clone())).collect();
        let ids = engine.create_snapshots(&wanted).await.unwrap();
        assert_eq!(ids.len(), names.len());
        let mut seen = Vec::new();
        for name in &names {
            let view = engine.open_snapshot(name, &snapshot).await.unwrap();
            let bytes = view.read(0, 8).await.unwrap().to_vec();
            seen.push(u64::from_le_bytes(bytes.try_into().unwrap()));
        }
        assert!(seen.is_sorted_by(|one, next| one >= next), "a later write without an earlier one: {seen:?}");
        assert!(seen[0] - seen[seen.len() - 1] <= 1, "{seen:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    let twice = [("disk".to_owned(), named("x")), ("disk".to_owned(), named("y"))];
    let refused = engine.create_snapshots(&twice).await.unwrap_err();
    assert!(matches!(refused, EngineError::NamedTwice(_)), "{refused}");
    // One that cannot be taken keeps the others from being taken.
    let taken = [("disk".to_owned(), named("new")), ("disk1".to_owned(), named("s0"))];
    engine.create_snapshots(&taken).await.unwrap_err();
    assert!(engine.snapshots("disk").await.unwrap().iter().all(|snapshot| snapshot.name != named("new")));
    engine.shutdown().await.unwrap();
}
