//! The flash cache: warm after restarts, harmless when the flash lies.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use system_tests::gateway::Gateway;
use system_tests::random::Random;

const MIB: u64 = 1 << 20;
const SET_BYTES: u64 = 96 * MIB;
const BLOCK: usize = 4096;
const READS: u64 = 4000;
const PAGE: u64 = 4096;

/// A gateway with little RAM and enough flash, and a volume of known blocks that were written and brought to the pool.
fn filled(config: &str) -> Result<Gateway> {
    let mut gateway = Gateway::new()?;
    let memory = "[memory]\nblock_cache = \"16MiB\"\n";
    gateway.init_with_config(&format!("{memory}{config}"))?;
    gateway.start()?;
    gateway.create_volume("vol", SET_BYTES)?;
    let mut client = gateway.export("vol").connect()?;
    for offset in (0..SET_BYTES).step_by(1 << 20) {
        let blocks: Vec<u8> = (offset..offset + MIB).step_by(BLOCK).flat_map(block).collect();
        client.write(offset, &blocks)?;
    }
    client.flush()?;
    gateway.destage()?;
    Ok(gateway)
}

/// What the block at an offset holds: half noise, half text, unlike any other.
fn block(offset: u64) -> Vec<u8> {
    let mut block = vec![b'.'; BLOCK];
    Random::seeded(offset).fill(&mut block[..BLOCK / 2]);
    block
}

/// Reads blocks at random and compares each.
fn read_at_random(gateway: &Gateway, seed: u64, reads: u64) -> Result<()> {
    let mut client = gateway.export("vol").connect()?;
    let mut random = Random::seeded(seed);
    for _ in 0..reads {
        let offset = random.below(SET_BYTES / BLOCK as u64) * BLOCK as u64;
        assert_eq!(client.read(offset, BLOCK)?, block(offset), "the block at {offset}");
    }
    client.disconnect()
}

fn number(gateway: &Gateway, path: &str) -> Result<u64> {
    let status = gateway.status()?;
    status.pointer(path).and_then(serde_json::Value::as_u64).with_context(|| format!("no {path} in {status}"))
}

#[test]
fn after_a_restart_and_after_sigkill_reads_come_from_flash() -> Result<()> {
    let mut gateway = filled("")?;
    for (round, orderly) in [(1, true), (2, false)] {
        if orderly {
            gateway.stop()?;
        } else {
            gateway.kill()?;
        }
        gateway.start()?;
        let before = number(&gateway, "/pool/gets")?;
        read_at_random(&gateway, round, READS)?;
        let reached = number(&gateway, "/pool/gets")? - before;
        assert!(reached * 50 <= READS, "{reached} of {READS} reads reached the pool (in order: {orderly})");
    }
    Ok(())
}

/// The cache's files, the largest first.
fn cache_files(gateway: &Gateway) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![gateway.dir().join("flash")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort_by_key(|file| std::cmp::Reverse(fs::metadata(file).map_or(0, |metadata| metadata.len())));
    Ok(files)
}

/// Flips a bit in about one in a hundred of the pages that hold something; how many.
fn damage_one_page_in_a_hundred(gateway: &Gateway) -> Result<u64> {
    let mut random = Random::seeded(5);
    let mut damaged = 0;
    for file in cache_files(gateway)? {
        let length = fs::metadata(&file)?.len();
        let file = fs::OpenOptions::new().read(true).write(true).open(file)?;
        let mut page = vec![0; BLOCK];
        // What comes first in a file describes it.
        for at in (16 * PAGE..length.saturating_sub(PAGE)).step_by(BLOCK) {
            if !random.chance(100) {
                continue;
            }
            file.read_exact_at(&mut page, at)?;
            if page.iter().any(|byte| *byte != 0) {
                page[random.index(BLOCK)] ^= 1;
                file.write_all_at(&page, at)?;
                damaged += 1;
            }
        }
    }
    Ok(damaged)
}

#[test]
fn damage_on_flash_is_noticed_counted_and_never_returned() -> Result<()> {
    let mut gateway = filled("")?;
    gateway.stop()?;
    let damaged = damage_one_page_in_a_hundred(&gateway)?;
    assert!(damaged > 100, "only {damaged} pages were found to damage");
    gateway.start()?;
    let mut client = gateway.export("vol").connect()?;
    for offset in (0..SET_BYTES).step_by(BLOCK) {
        assert_eq!(client.read(offset, BLOCK)?, block(offset), "the block at {offset}");
    }
    let counted = number(&gateway, "/flash/damaged")?;
    let status = gateway.status()?["flash"].clone();
    // A damaged page may be padding, or hold what is not read because another copy or neighbour was.
    assert!(counted > 0 && counted <= 2 * damaged, "{counted} counted of {damaged} damaged pages: {status}");
    Ok(())
}

#[test]
fn flash_that_is_gone_truncated_or_not_ours_costs_nothing_but_speed() -> Result<()> {
    let mut gateway = filled("[flash]\nsize = \"256MiB\"\n")?;
    let flash = gateway.dir().join("flash");
    gateway.stop()?;
    for file in cache_files(&gateway)? {
        let file = fs::OpenOptions::new().write(true).open(file)?;
        let length = file.metadata()?.len();
        file.set_len(length / 2)?;
    }
    gateway.start()?;
    read_at_random(&gateway, 1, 500)?;
    gateway.stop()?;
    fs::remove_dir_all(&flash)?;
    gateway.start()?;
    read_at_random(&gateway, 2, 500)?;
    gateway.stop()?;
    fs::remove_dir_all(&flash)?;
    fs::create_dir(&flash)?;
    fs::write(flash.join("precious"), "not a cache")?;
    gateway.start()?;
    read_at_random(&gateway, 3, 500)?;
    assert_eq!(fs::read(flash.join("precious"))?, b"not a cache");
    let status = gateway.status()?;
    assert!(status["health"] == "attention" && status["attention"].to_string().contains("flash"), "{status}");
    Ok(())
}

#[test]
fn without_a_flash_cache_everything_works() -> Result<()> {
    let mut gateway = filled("[flash]\nsize = \"0\"\n")?;
    gateway.stop()?;
    gateway.start()?;
    read_at_random(&gateway, 1, 500)?;
    assert!(!gateway.dir().join("flash").exists(), "nothing is made for it");
    Ok(())
}
