//! What the tests share.

use bytes::Bytes;
use cairn_flash::{FlashCache, FlashConfig, SealedCache, Source};
use cairn_model::{ChunkId, ChunkIndex, ContainerId, Ports, SiteId};
use std::path::Path;
use std::time::Duration;

pub(crate) const CAPACITY: u64 = 8 << 20;
pub(crate) const CHUNK: usize = 8 << 10;

pub(crate) fn site() -> SiteId {
    SiteId::from_bytes([7; 16])
}

/// 64 chunks to a container.
pub(crate) fn chunk(number: u64) -> ChunkId {
    let mut container = [0xc0; 16];
    container[..8].copy_from_slice(&(number / 64).to_be_bytes());
    let index = ChunkIndex::new(u32::try_from(number % 64).unwrap());
    ChunkId { container: ContainerId::from_bytes(container), index }
}

/// Bytes that only this chunk has.
pub(crate) fn stored_of(number: u64, bytes: usize) -> Bytes {
    let mut stored = vec![0; bytes];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut stored);
    stored.into()
}

pub(crate) fn stored(number: u64) -> Bytes {
    stored_of(number, CHUNK)
}

/// Small, and with no limits on writing but the queue.
pub(crate) fn config(path: &Path) -> FlashConfig {
    FlashConfig {
        write_bytes_per_second: u64::MAX,
        destage_bytes_per_second: u64::MAX,
        ..FlashConfig::new(path.join("flash"), CAPACITY)
    }
}

pub(crate) async fn open(path: &Path) -> FlashCache {
    let cache = FlashCache::open(config(path), site(), Ports::system()).await;
    assert_eq!(cache.status().retired, None);
    cache
}

/// Opens it so that nothing is written, and so nothing kept: that would overwrite what a test has not read yet.
pub(crate) async fn open_to_read(path: &Path) -> FlashCache {
    let slow = FlashConfig { write_bytes_per_second: 1, ..config(path) };
    let cache = FlashCache::open(slow, site(), Ports::system()).await;
    assert_eq!(cache.status().retired, None);
    cache
}

/// Waits until everything is written.
pub(crate) async fn settle(cache: &FlashCache) {
    for _ in 0..10_000 {
        if cache.status().queued_bytes == 0 {
            return;
        }
        Ports::system().clock.sleep(Duration::from_millis(1)).await;
    }
    panic!("the cache does not write: {:?}", cache.status());
}

/// Offers chunks, none of which is dropped for want of room.
pub(crate) async fn fill(cache: &FlashCache, numbers: impl Iterator<Item = u64>, source: Source) {
    for number in numbers {
        cache.insert(chunk(number), stored(number), source);
        if number % 256 == 255 {
            settle(cache).await;
        }
    }
    settle(cache).await;
}

/// How many of these are found; what is found must be right.
pub(crate) async fn found(cache: &FlashCache, numbers: impl Iterator<Item = u64>) -> u64 {
    let mut count = 0;
    for number in numbers {
        if let Some(bytes) = cache.get(chunk(number)).await {
            assert_eq!(bytes, stored(number), "chunk {number}");
            count += 1;
        }
    }
    count
}
