//! The flash cache: warm after restarts, harmless when the flash lies.

use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use system_tests::checks::fio;
use system_tests::gateway::Gateway;
use system_tests::random::Random;

const MIB: u64 = 1 << 20;
const SET_BYTES: u64 = 96 * MIB;
const READS: u64 = SET_BYTES / 4096;
/// What a miss reads and keeps.
const REGION_BYTES: u64 = 128 << 10;

/// A gateway with little RAM and enough flash, and a volume that fio filled and that was brought to the pool.
fn filled(config: &str) -> Result<Gateway> {
    filled_with(config, SET_BYTES, &[])
}

/// The same with a volume of that size, and settings of its own.
fn filled_with(config: &str, size: u64, settings: &[&str]) -> Result<Gateway> {
    let mut gateway = Gateway::new()?;
    let memory = "[memory]\nblock_cache = \"16MiB\"\n";
    gateway.init_with_config(&format!("{memory}{config}"))?;
    gateway.start()?;
    gateway.command(["volume", "create", "vol", &size.to_string()]).args(settings).run()?;
    fio::fills_4k(&gateway.export("vol"), size)?;
    gateway.destage()?;
    Ok(gateway)
}

fn number(gateway: &Gateway, path: &str) -> Result<u64> {
    let status = gateway.status()?;
    status.pointer(path).and_then(serde_json::Value::as_u64).with_context(|| format!("no {path} in {status}"))
}

/// How many reads of a pass over the whole volume, in random order, went to the pool.
fn reads_that_reach_the_pool(gateway: &Gateway) -> Result<u64> {
    let before = number(gateway, "/pool/gets")?;
    fio::verifies_random_reads(&gateway.export("vol"), SET_BYTES)?;
    Ok(number(gateway, "/pool/gets")? - before)
}

/// Reads until nothing new comes from the pool: a fast destage offers more than the cache takes in a second.
fn warm_up(gateway: &Gateway) -> Result<()> {
    for _ in 0..8 {
        if reads_that_reach_the_pool(gateway)? == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("after so many reads something still comes from the pool: {}", gateway.status()?)
}

#[test]
fn after_a_restart_and_after_sigkill_reads_come_from_flash() -> Result<()> {
    let mut gateway = filled("")?;
    for orderly in [true, false] {
        warm_up(&gateway)?;
        if orderly {
            gateway.stop()?;
        } else {
            gateway.kill()?;
        }
        gateway.start()?;
        let reached = reads_that_reach_the_pool(&gateway)?;
        assert!(reached * 50 <= READS, "{reached} of {READS} reads reached the pool (in order: {orderly})");
        let regions = SET_BYTES / REGION_BYTES;
        assert!(
            reached * 10 <= regions,
            "{reached} of {regions} regions were not there (in order: {orderly})"
        );
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

/// The payload of an entry of the cache.
struct Payload {
    /// Of the chunk in its container.
    index: u32,
    start: usize,
    length: usize,
}

/// As the format says (`format` of the flash cache).
fn payloads(cache: &[u8]) -> Vec<Payload> {
    const REGION_MAGIC: &[u8] = b"CAIRNFR1";
    const ENTRY_HEADER: usize = 40;
    let number = |at: usize| u64::from_le_bytes(cache[at..at + 8].try_into().expect("eight bytes"));
    let mut payloads = Vec::new();
    let mut region = 0;
    while cache[region..].starts_with(REGION_MAGIC) {
        let (sequence, end) =
            (number(region + 8), region + usize::try_from(number(region + 32)).expect("small"));
        let mut at = region + 4096;
        // Behind the last entry is what is older, or nothing, or the footer.
        while at + ENTRY_HEADER < end && number(at) == sequence {
            let short = |at: usize| u32::from_le_bytes(cache[at..at + 4].try_into().expect("four bytes"));
            let (index, length) = (short(at + 24), short(at + 28) as usize);
            payloads.push(Payload { index, start: at + ENTRY_HEADER, length });
            at += (ENTRY_HEADER + length).next_multiple_of(8);
        }
        region = end;
    }
    payloads
}

/// Flips a bit in one in a hundred of the cached chunks of each container; in how many. No two are in one region, which comes from the pool as
/// a whole when one of its chunks is found to be damaged.
fn damage_one_chunk_in_a_hundred(gateway: &Gateway) -> Result<u64> {
    let mut random = Random::seeded(5);
    let file = cache_files(gateway)?.into_iter().next().context("the cache has no file")?;
    let cache = fs::read(&file)?;
    let payloads = payloads(&cache);
    let file = fs::OpenOptions::new().write(true).open(file)?;
    let which = u32::try_from(random.index(100)).expect("less than a hundred");
    let mut damaged = 0;
    for Payload { start, length, .. } in payloads.iter().filter(|payload| payload.index % 100 == which) {
        let at = start + random.index(*length);
        file.write_all_at(&[cache[at] ^ 1 << random.index(8)], at as u64)?;
        damaged += 1;
    }
    Ok(damaged)
}

#[test]
fn damage_on_flash_is_noticed_counted_and_never_returned() -> Result<()> {
    // One in a hundred of so many chunks is well below what retires the cache.
    const CHUNKS: u64 = 5000;
    let size = CHUNKS * 4096;
    let mut gateway = filled_with("", size, &["--chunk-target", "1", "--chunk-max", "1"])?;
    // What destage offered too fast comes when it is read, which is not from RAM after a restart.
    for _ in 0..4 {
        if number(&gateway, "/flash/chunks")? == CHUNKS {
            break;
        }
        gateway.stop()?;
        gateway.start()?;
        fio::verifies_random_reads(&gateway.export("vol"), size)?;
    }
    gateway.stop()?;
    let damaged = damage_one_chunk_in_a_hundred(&gateway)?;
    assert!(
        (CHUNKS / 100 - 3..=CHUNKS / 100 + 3).contains(&damaged),
        "each block is a chunk, and each chunk is cached: {damaged}"
    );
    gateway.start()?;
    fio::verifies_random_reads(&gateway.export("vol"), size)?;
    let status = gateway.status()?["flash"].clone();
    assert_eq!(number(&gateway, "/flash/damaged")?, damaged, "{status}");
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
    fio::verifies_random_reads(&gateway.export("vol"), SET_BYTES)?;
    gateway.stop()?;
    fs::remove_dir_all(&flash)?;
    gateway.start()?;
    fio::verifies_random_reads(&gateway.export("vol"), SET_BYTES)?;
    gateway.stop()?;
    fs::remove_dir_all(&flash)?;
    fs::create_dir(&flash)?;
    fs::write(flash.join("precious"), "not a cache")?;
    gateway.start()?;
    fio::verifies_random_reads(&gateway.export("vol"), SET_BYTES)?;
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
    fio::verifies_random_reads(&gateway.export("vol"), SET_BYTES)?;
    assert!(!gateway.dir().join("flash").exists(), "nothing is made for it");
    Ok(())
}
