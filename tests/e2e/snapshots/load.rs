//! Snapshots under a writer whose every write is known.

use super::{BLOCK, assert_same, cairn, copy, qemu_io};
use anyhow::{Result, bail};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use system_tests::export::Export;
use system_tests::gateway::Gateway;
use system_tests::random::Random;
use tempfile::TempDir;

const LOAD_BLOCKS: u64 = 1024;

/// The write of that number: where, and what. All blocks of it differ from those of any other write.
fn load(number: u64) -> (usize, Vec<u8>) {
    let mut random = Random::seeded(number);
    let blocks = 1 + random.index(16);
    let block = random.index(usize::try_from(LOAD_BLOCKS).expect("fits") - blocks);
    let mut bytes = vec![0; blocks * BLOCK];
    random.fill(&mut bytes);
    (block, bytes)
}

/// Finds a number of writes from `acknowledged` to `sent` after which the volume was what `held` is.
fn prefix(held: &[u8], acknowledged: u64, sent: u64) -> Option<u64> {
    let mut volume = vec![0; held.len()];
    let differ = |volume: &[u8], block: usize| {
        let range = block * BLOCK..(block + 1) * BLOCK;
        volume[range.clone()] != held[range]
    };
    let mut wrong = (0..held.len() / BLOCK).filter(|block| differ(&volume, *block)).count();
    for number in 0..=sent {
        if number >= acknowledged && wrong == 0 {
            return Some(number);
        }
        let (first, bytes) = load(number);
        let blocks = first..first + bytes.len() / BLOCK;
        wrong -= blocks.clone().filter(|block| differ(&volume, *block)).count();
        volume[first * BLOCK..first * BLOCK + bytes.len()].copy_from_slice(&bytes);
        wrong += blocks.filter(|block| differ(&volume, *block)).count();
    }
    None
}

/// Writes one after the other until told to stop. `sent` and `acknowledged` are how many there were.
fn write_on(export: &Export, stop: &AtomicBool, sent: &AtomicU64, acknowledged: &AtomicU64) -> Result<()> {
    let mut client = export.connect()?;
    for number in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (block, bytes) = load(number);
        sent.store(number + 1, Ordering::SeqCst);
        client.write(block as u64 * BLOCK as u64, &bytes)?;
        acknowledged.store(number + 1, Ordering::SeqCst);
        if number % 50 == 49 {
            client.flush()?;
        }
    }
    client.disconnect()
}

#[test]
fn a_snapshot_under_load_is_one_moment_of_the_write_order() -> Result<()> {
    let folder = TempDir::new()?;
    let mut gateway = Gateway::start_fresh()?;
    gateway.create_volume("vol", LOAD_BLOCKS * BLOCK as u64)?;
    let export = gateway.export("vol");
    let (stop, sent, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let taken: Result<Vec<(String, u64, u64)>> = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&export, &stop, &sent, &acknowledged));
        let take = |number: usize| {
            std::thread::sleep(Duration::from_millis(200));
            let name = format!("vol@s{number}");
            let least = acknowledged.load(Ordering::SeqCst);
            cairn(&gateway, &["snapshot", "create", &name]).run()?;
            Ok((name, least, sent.load(Ordering::SeqCst)))
        };
        let taken = (0..8).map(take).collect();
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("the writer does not panic")?;
        taken
    });
    let taken = taken?;
    qemu_io(&export, &["write -P 0x5a 0 4M", "flush"]).run()?;
    let mut last = 0;
    for (name, least, most) in &taken {
        let file = folder.path().join(name);
        copy(&gateway.export(name), &file)?;
        let Some(number) = prefix(&fs::read(&file)?, *least, *most) else {
            bail!("{name} is the result of no {least} to {most} writes");
        };
        assert!(number >= last, "{name} shows {number} writes, an earlier one {last}");
        last = number;
    }
    assert!(last > 0, "the writer did nothing");
    gateway.stop()?;
    gateway.start()?;
    for (name, ..) in &taken {
        assert_same(&gateway, name, &folder.path().join(name))?;
    }
    Ok(())
}
