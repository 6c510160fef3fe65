//! What may have changed since a snapshot: never less than what did, whatever is on its way to the leaves; and of settled states exactly that.

#![expect(
    clippy::disallowed_methods,
    reason = "tests wait on the machine's own clock and spawn what they join"
)]

use crate::support::{Checked, Dice, MIB, Site};
use bytes::Bytes;
use cairn_engine::{Engine, EngineError, Volume};
use cairn_metadata::SnapshotName;
use cairn_model::{BLOCK_SIZE, BlockDevice, Exports, Lba, WriteFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const BLOCK: u64 = BLOCK_SIZE as u64;

fn named(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

/// Whether each block of the device may have changed; asked for in parts of odd sizes.
async fn changed(device: &Volume, since: &Arc<Volume>, dice: &Dice) -> Vec<bool> {
    let size = device.size_bytes();
    let mut blocks = vec![false; usize::try_from(size.div_ceil(BLOCK)).unwrap()];
    let mut at = 0;
    while at < size {
        let length = (1 + dice.below(3 * size / 2)).min(size - at);
        let extents_max = usize::try_from(1 + dice.below(20)).unwrap();
        let extents = device.changes(since, at, length, extents_max).await.unwrap();
        assert!((1..=extents_max).contains(&extents.len()), "{} extents", extents.len());
        let told: u64 = extents.iter().map(|extent| extent.length_bytes).sum();
        assert!(extents.iter().all(|extent| extent.length_bytes > 0) && told <= length);
        for extent in extents {
            if extent.changed {
                let end = (at + extent.length_bytes).div_ceil(BLOCK);
                blocks[usize::try_from(at / BLOCK).unwrap()..usize::try_from(end).unwrap()].fill(true);
            }
            at += extent.length_bytes;
        }
    }
    blocks
}

/// Fails where `told` says "the same" of a block that is not. Bytes beyond the end of one are zeros.
fn assert_covers(told: &[bool], then: &[u8], now: &[u8]) {
    let zeros = [0; BLOCK_SIZE as usize];
    for (block, told) in told.iter().enumerate() {
        let at = block * BLOCK_SIZE as usize;
        let of = |bytes: &[u8]| {
            let part = bytes.get(at..).unwrap_or(&[]);
            let mut whole = zeros;
            let length = part.len().min(zeros.len());
            whole[..length].copy_from_slice(&part[..length]);
            whole
        };
        assert!(*told || of(then) == of(now), "block {block} changed and is called the same");
    }
}

async fn exact(engine: &Engine, from: &str, to: &str, blocks: usize) -> Vec<bool> {
    let mut found = vec![false; blocks];
    let mut at = Lba::ZERO;
    loop {
        let page = engine.snapshot_differences("disk", &named(from), &named(to), at, 1000).await.unwrap();
        for difference in page.differences {
            let range = difference.range.start().get()..difference.range.end().get().min(blocks as u64);
            for block in range {
                found[usize::try_from(block).unwrap()] = true;
            }
        }
        match page.next {
            Some(next) => at = next,
            None => return found,
        }
    }
}

async fn change(disk: &mut Checked, dice: &Dice, size: u64) {
    let offset = dice.below(size - 40_000);
    let length = 1 + dice.below(40_000);
    match dice.below(8) {
        0 => disk.zero(offset, length).await,
        1 => disk.zero(offset / BLOCK * BLOCK, 10 * BLOCK).await,
        _ => disk.write(offset, dice.bytes(usize::try_from(length).unwrap())).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_written_is_called_the_same_wherever_it_is_by_now() {
    // Four leaves and a half; changes go to the ends of them all.
    const SIZE: u64 = 280 * MIB + 512;
    let mut site = Site::with_volume(SIZE).await;
    site.config.batch_bytes = MIB;
    let engine = site.start().await;
    let dice = Dice::new(11);
    let volume = engine.volume("disk").unwrap();
    let mut disk = Checked::fresh(Arc::clone(&volume));
    let mut moments: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..8 {
        for _ in 0..12 {
            change(&mut disk, &dice, SIZE).await;
        }
        let name = format!("s{round}");
        engine.create_snapshot("disk", &named(&name)).await.unwrap();
        moments.push((name, disk.expected.clone()));
        change(&mut disk, &dice, SIZE).await;
        if round % 3 == 2 {
            engine.destage().await.unwrap();
        }
        let names: Vec<String> = moments.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(volume.earlier().await.unwrap(), names);
        let (name, then) = &moments[usize::try_from(dice.below(moments.len() as u64)).unwrap()];
        let since = volume.open_earlier(name).await.unwrap().unwrap();
        let told = changed(&volume, &since, &dice).await;
        assert_covers(&told, then, &disk.expected);
        // Some of it is known to be the same all the same.
        assert!(told.contains(&false));
    }
    // Between two snapshots it is exactly what `snapshot diff` says.
    for (later, (name, now)) in moments.iter().enumerate() {
        let view = Exports::open(&*engine, &format!("disk@{name}")).await.unwrap();
        let earlier: Vec<String> = moments[..later].iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(view.earlier().await.unwrap(), earlier);
        assert!(view.open_earlier(name).await.unwrap().is_none(), "itself");
        assert!(view.open_earlier("s7").await.unwrap().is_none(), "a later one");
        for (earlier, then) in &moments[..later] {
            let since = view.open_earlier(earlier).await.unwrap().unwrap();
            let told = changed(&view, &since, &dice).await;
            assert_covers(&told, then, now);
            assert_eq!(told, exact(&engine, earlier, name, told.len()).await, "{earlier} to {name}");
        }
    }
    drop((volume, disk));
    engine.shutdown().await.unwrap();
}

/// Each block gets a number that grows; whoever asks while batches are destaged and folded must be told of every number that was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_being_written_never_hides_a_write() {
    const BLOCKS: u64 = 2048;
    let mut site = Site::with_volume(BLOCKS * BLOCK).await;
    site.config.batch_bytes = 64 << 10;
    site.config.batch_age = Duration::from_millis(5);
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    let since = volume.open_earlier("s").await.unwrap().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..BLOCKS).map(|_| AtomicU64::new(0)).collect());
    let writer = {
        let (volume, stop, acknowledged) =
            (Arc::clone(&volume), Arc::clone(&stop), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            let dice = Dice::new(5);
            let mut number = 0u64;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                // The first half is written again and again, the second slowly filled.
                let block = if number.is_multiple_of(4) {
                    BLOCKS / 2 + number / 4 % (BLOCKS / 2)
                } else {
                    dice.below(BLOCKS / 2)
                };
                let data = Bytes::from(number.to_le_bytes().repeat(512));
                volume.write(block * BLOCK, data, WriteFlags::default()).await.unwrap();
                acknowledged[usize::try_from(block).unwrap()].store(number, Ordering::SeqCst);
            }
        })
    };
    let mut seen_same = 0;
    for _ in 0..300 {
        let written: Vec<bool> =
            acknowledged.iter().map(|number| number.load(Ordering::SeqCst) > 0).collect();
        let mut told = Vec::new();
        for extent in volume.changes(&since, 0, BLOCKS * BLOCK, usize::MAX >> 8).await.unwrap() {
            told.extend(std::iter::repeat_n(
                extent.changed,
                usize::try_from(extent.length_bytes / BLOCK).unwrap(),
            ));
        }
        assert_eq!(told.len() as u64, BLOCKS);
        for (block, (written, told)) in written.iter().zip(&told).enumerate() {
            assert!(*told || !*written, "block {block} was written and is called the same");
        }
        seen_same += told.iter().filter(|told| !**told).count();
    }
    assert!(seen_same > 0, "calling everything changed proves nothing");
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    drop((volume, since));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_with_more_changes_than_are_held_at_once_is_told_whole_in_parts() {
    // Three leaves of which every other block was touched, and one that was not.
    const BLOCKS: u64 = 4 * 64 * MIB / BLOCK;
    let site = Site::with_volume(BLOCKS * BLOCK).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    engine.create_snapshot("disk", &named("s")).await.unwrap();
    let since = volume.open_earlier("s").await.unwrap().unwrap();
    for block in (0..3 * BLOCKS / 4).step_by(2) {
        volume.write_zeroes(block * BLOCK, BLOCK, WriteFlags::default()).await.unwrap();
    }
    let mut told = Vec::new();
    while (told.len() as u64) < BLOCKS {
        let at = told.len() as u64;
        let length = (BLOCKS - at) * BLOCK;
        let extents = volume.changes(&since, at * BLOCK, length, 1 << 16).await.unwrap();
        for extent in extents {
            let blocks = usize::try_from(extent.length_bytes / BLOCK).unwrap();
            told.extend(std::iter::repeat_n(extent.changed, blocks));
        }
    }
    for (block, told) in told.iter().enumerate() {
        let touched = (block as u64) < 3 * BLOCKS / 4 && block % 2 == 0;
        assert_eq!(*told, touched, "block {block}");
    }
    drop((volume, since));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_moment_is_held_and_reverts_and_deletions_do_not_confuse_it() {
    let site = Site::with_volume(4 * MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    let mut disk = Checked::fresh(Arc::clone(&volume));
    let dice = Dice::new(7);
    disk.write(0, dice.bytes(8192)).await;
    engine.create_snapshot("disk", &named("a")).await.unwrap();
    let a = disk.expected.clone();
    disk.write(BLOCK, dice.bytes(4096)).await;
    engine.create_snapshot("disk", &named("b")).await.unwrap();
    disk.write(MIB, dice.bytes(4096)).await;

    let since = volume.open_earlier("a").await.unwrap().unwrap();
    let used = engine.delete_snapshot("disk", &named("a")).await.unwrap_err();
    assert!(matches!(used, EngineError::SnapshotInUse(_)), "{used}");
    let before = changed(&volume, &since, &dice).await;
    assert_covers(&before, &a, &disk.expected);
    assert!(before[1] && before[256] && !before[2]);

    // The volume becomes what it was: then nothing has changed, until it does.
    engine.revert_volume("disk", &named("a"), &named("safety")).await.unwrap();
    disk.expected.clone_from(&a);
    assert!(!changed(&volume, &since, &dice).await.contains(&true));
    disk.write(3 * MIB, dice.bytes(4096)).await;
    let after = changed(&volume, &since, &dice).await;
    assert_eq!(after.iter().filter(|changed| **changed).count(), 1);
    assert!(after[768]);
    assert_eq!(volume.earlier().await.unwrap(), ["a", "b", "safety"]);

    // A snapshot that takes the name of one that is gone is not the earlier one.
    let view = engine.open_snapshot("disk", &named("b")).await.unwrap();
    drop(since);
    engine.delete_snapshot("disk", &named("a")).await.unwrap();
    engine.create_snapshot("disk", &named("a")).await.unwrap();
    assert!(view.open_earlier("a").await.unwrap().is_none());
    assert_eq!(view.earlier().await.unwrap(), [""; 0]);

    let since = volume.open_earlier("b").await.unwrap().unwrap();
    engine.delete_volume("disk", true).await.unwrap();
    let gone = volume.changes(&since, 0, BLOCK, 1).await.unwrap_err();
    assert!(matches!(gone, EngineError::Deleted(_)), "{gone}");
    drop((view, since, volume, disk));
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grows_and_shrinks_is_compared_with_zeros_beyond_the_end() {
    let site = Site::with_volume(200 * MIB).await;
    let engine = site.start().await;
    let volume = engine.volume("disk").unwrap();
    let dice = Dice::new(9);
    volume.write(150 * MIB, Bytes::from(dice.bytes(4096)), WriteFlags::default()).await.unwrap();
    engine.create_snapshot("disk", &named("large")).await.unwrap();
    engine.resize_volume("disk", 100 * MIB).await.unwrap();
    engine.create_snapshot("disk", &named("small")).await.unwrap();
    engine.resize_volume("disk", 300 * MIB).await.unwrap();
    volume.write(250 * MIB, Bytes::from(dice.bytes(4096)), WriteFlags::default()).await.unwrap();
    engine.destage().await.unwrap();
    let block = |mib: u64| usize::try_from(mib * MIB / BLOCK).unwrap();
    let since = volume.open_earlier("large").await.unwrap().unwrap();
    let told = changed(&volume, &since, &dice).await;
    assert!(told[block(150)] && told[block(250)] && !told[0]);
    let since = volume.open_earlier("small").await.unwrap().unwrap();
    let told = changed(&volume, &since, &dice).await;
    assert!(told[block(250)] && !told[block(99)]);
    let beyond = volume.changes(&since, 300 * MIB - 4096, 8192, 1).await.unwrap_err();
    assert!(matches!(beyond, EngineError::OutOfRange { .. }), "{beyond}");
    drop((volume, since));
    engine.shutdown().await.unwrap();
}
