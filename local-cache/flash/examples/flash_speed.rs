//! What a hit of the flash cache costs, beside foyer's own block engine with its `psync` I/O engine, in one run.
//!
//! ```text
//! cargo run --release -p cairn-flash --example flash_speed -- DIRECTORY [MiB]
//! ```
//!
//! Writes twice so many MiB (1024 unless said) to subdirectories of DIRECTORY and removes them.

use bytes::Bytes;
use cairn_flash::{FlashCache, FlashConfig, SealedCache, Source};
use cairn_model::{ChunkId, ChunkIndex, Clock, ContainerId, Monotonic, Ports, SiteId};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy,
    Load, PsyncIoEngineConfig, RecoverMode,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Sealed chunks of 4 KiB that did not compress; and of the usual size.
const SMALL: usize = 4096 + 16;
const USUAL: usize = 8192;
const SMALL_CHUNKS: u64 = 2000;
const READS: u64 = 20_000;

fn chunk(number: u64) -> ChunkId {
    let mut container = [1; 16];
    container[..8].copy_from_slice(&(number / 512).to_le_bytes());
    let index = ChunkIndex::new(u32::try_from(number % 512).expect("small"));
    ChunkId { container: ContainerId::from_bytes(container), index }
}

/// Times in microseconds, sorted.
struct Times(Vec<f64>);

impl Times {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn add(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1e6);
    }

    fn print(mut self, what: &str) {
        self.0.sort_by(f64::total_cmp);
        let at = |part: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "an index"
            )]
            let index = (self.0.len() as f64 * part) as usize;
            self.0[index.min(self.0.len() - 1)]
        };
        println!("{what:<58} median {:7.1} µs   99 % {:7.1} µs", at(0.5), at(0.99));
    }
}

fn since(clock: &dyn Clock, begin: Monotonic) -> Duration {
    clock.now().since(begin)
}

fn ours(path: &Path, capacity_bytes: u64) -> FlashConfig {
    FlashConfig {
        write_bytes_per_second: u64::MAX,
        destage_bytes_per_second: u64::MAX,
        ..FlashConfig::new(path, capacity_bytes)
    }
}

async fn settle(cache: &FlashCache, clock: &dyn Clock) {
    while cache.status().queued_bytes > 0 {
        clock.sleep(Duration::from_millis(1)).await;
    }
}

async fn ring(folder: &Path, capacity_bytes: u64) -> Result<(), AnyError> {
    let ports = Ports::system();
    let clock = ports.clock.clone();
    let path = folder.join("ring");
    let site = SiteId::from_bytes([1; 16]);
    let cache = FlashCache::open(ours(&path, capacity_bytes), site, ports.clone()).await;
    let (small, usual) = (Bytes::from(vec![7; SMALL]), Bytes::from(vec![9; USUAL]));
    let mut inserts = Times::new();
    for number in 0..SMALL_CHUNKS {
        let begin = clock.now();
        cache.insert(chunk(number), small.clone(), Source::Fetch);
        inserts.add(since(&*clock, begin));
    }
    settle(&cache, &*clock).await;
    inserts.print("ring: insert, 4 KiB");
    measure_ring(&cache, &*clock, "ring: hit, 4 KiB, in the page cache").await?;
    rustix::fs::sync();
    let file = std::fs::File::open(path.join("chunks"))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut cold = Times::new();
    for number in 0..SMALL_CHUNKS {
        let begin = clock.now();
        cache.get(chunk(number)).await.ok_or("lost")?;
        cold.add(since(&*clock, begin));
    }
    println!("{} of {SMALL_CHUNKS} from the device", cache.status().device_reads);
    cold.print("ring: hit, 4 KiB, from the device");
    let used = cache.status().used_bytes;
    println!("ring: {SMALL_CHUNKS} chunks of {SMALL} bytes take {:.3} of their size", ratio(used, SMALL));

    let begin = clock.now();
    let last = 1_000_000 + capacity_bytes * 95 / 100 / USUAL as u64;
    for number in 1_000_000..last {
        cache.insert(chunk(number), usual.clone(), Source::Fetch);
        if number % 512 == 0 {
            settle(&cache, &*clock).await;
        }
    }
    settle(&cache, &*clock).await;
    println!("ring: filled with {} chunks in {:.1?}", cache.status().chunks, since(&*clock, begin));
    cache.close().await;
    drop(cache);
    let begin = clock.now();
    let cache = FlashCache::open(ours(&path, capacity_bytes), site, ports).await;
    println!("ring: opened with {} chunks in {:.1?}", cache.status().chunks, since(&*clock, begin));
    cache.close().await;
    Ok(())
}

async fn measure_ring(cache: &FlashCache, clock: &dyn Clock, what: &str) -> Result<(), AnyError> {
    let mut hits = Times::new();
    for read in 0..READS {
        let begin = clock.now();
        cache.get(chunk(read * 7 % SMALL_CHUNKS)).await.ok_or("lost")?;
        hits.add(since(clock, begin));
    }
    hits.print(what);
    Ok(())
}

fn ratio(used: u64, size: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = used as f64 / (SMALL_CHUNKS * size as u64) as f64;
    ratio
}

async fn block_engine(path: &Path, capacity_bytes: u64) -> Result<HybridCache<u64, Bytes>, AnyError> {
    let device = FsDeviceBuilder::new(path).with_capacity(usize::try_from(capacity_bytes)?).build()?;
    let cache = HybridCacheBuilder::new()
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .with_flush_on_close(false)
        .memory(16)
        .with_shards(16)
        .storage()
        .with_io_engine_config(PsyncIoEngineConfig::new())
        .with_engine_config(BlockEngineConfig::new(device).with_block_size(8 << 20))
        .with_recover_mode(RecoverMode::Quiet)
        .build()
        .await?;
    Ok(cache)
}

async fn foyers(folder: &Path, capacity_bytes: u64) -> Result<(), AnyError> {
    let clock = Ports::system().clock;
    let path = folder.join("block");
    let cache = block_engine(&path, capacity_bytes).await?;
    let (small, usual) = (Bytes::from(vec![7; SMALL]), Bytes::from(vec![9; USUAL]));
    let storage = cache.storage();
    for number in 0..SMALL_CHUNKS {
        drop(cache.storage_writer(number).force().insert(small.clone()));
        if number % 500 == 0 {
            storage.wait().await;
        }
    }
    storage.wait().await;
    let mut hits = Times::new();
    for read in 0..READS {
        let begin = clock.now();
        let found = storage.load(&(read * 7 % SMALL_CHUNKS)).await?;
        hits.add(since(&*clock, begin));
        if !matches!(found, Load::Entry { .. }) {
            return Err("lost".into());
        }
    }
    hits.print("foyer's block engine, psync: hit, 4 KiB, in the page cache");
    let mut hybrid = Times::new();
    for read in 0..READS / 4 {
        let begin = clock.now();
        let found = cache.get(&(read * 7 % SMALL_CHUNKS)).await?;
        hybrid.add(since(&*clock, begin));
        drop(found);
    }
    hybrid.print("the same through HybridCache::get");
    let written = storage.statistics().disk_write_bytes() as u64;
    println!(
        "foyer: {SMALL_CHUNKS} chunks of {SMALL} bytes: {:.3} of their size written",
        ratio(written, SMALL)
    );
    let begin = clock.now();
    let last = 1_000_000 + capacity_bytes * 60 / 100 / USUAL as u64;
    for number in 1_000_000..last {
        drop(cache.storage_writer(number).force().insert(usual.clone()));
        if number % 512 == 0 {
            storage.wait().await;
        }
    }
    storage.wait().await;
    println!("foyer: filled in {:.1?}", since(&*clock, begin));
    cache.close().await?;
    drop(cache);
    let begin = clock.now();
    let cache = block_engine(&path, capacity_bytes).await?;
    println!("foyer: opened in {:.1?}", since(&*clock, begin));
    let there = (1_000_000..last).filter(|number| cache.storage().may_contains(number));
    println!("foyer: {} of {} chunks are there", there.count(), last - 1_000_000);
    cache.close().await?;
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: flash_speed DIRECTORY [MiB]")?;
    let mib: u64 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let folder = Arc::new(tempfile::tempdir_in(folder)?);
    // As in the gateway: on a worker of the runtime, not beside it.
    let mut tasks = tokio::task::JoinSet::new();
    for round in 1..=2 {
        println!("round {round}");
        for engine in ["ring", "block"] {
            let folder = folder.clone();
            tasks.spawn(async move {
                let path = folder.path().join(format!("{engine}{round}"));
                std::fs::create_dir(&path)?;
                // The second round is for the hits alone.
                let capacity_bytes = if round == 1 { mib << 20 } else { 64 << 20 };
                let done = match engine {
                    "ring" => ring(&path, capacity_bytes).await,
                    _ => foyers(&path, capacity_bytes).await,
                };
                std::fs::remove_dir_all(&path)?;
                done
            });
            while let Some(done) = tasks.join_next().await {
                done??;
            }
        }
    }
    Ok(())
}
