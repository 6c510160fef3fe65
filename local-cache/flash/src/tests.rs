//! A power cut: what only the page cache had is not there any more. Played by another boot in the marker.

use crate::config::REGION_BYTES_MIN;
use crate::device::Device;
use crate::directory::{Directory, Marker, boot};
use crate::format::{
    ENTRY_HEADER_BYTES, PAGE_BYTES, Parsed, REGION_HEADER_BYTES, RegionHeader, entry_bytes, footer_bytes,
    parse_region_header, region_header,
};
use crate::{FlashCache, FlashConfig, SealedCache, Source};
use bytes::Bytes;
use cairn_model::{ChunkId, ChunkIndex, ContainerId, Ports, SiteId};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CHUNKS: u32 = 200;

fn site() -> SiteId {
    SiteId::from_bytes([3; 16])
}

fn chunk(index: u32) -> ChunkId {
    ChunkId { container: ContainerId::from_bytes([4; 16]), index: ChunkIndex::new(index) }
}

async fn pause() {
    Ports::system().clock.sleep(Duration::from_millis(2)).await;
}

async fn open(folder: &Path) -> FlashCache {
    let config = FlashConfig::new(folder.join("flash"), 8 << 20);
    for _ in 0..1000 {
        let cache = FlashCache::open(config.clone(), site(), Ports::system()).await;
        match cache.status().retired {
            None => return cache,
            // The writer of the cache that crashed is still ending.
            Some(reason) => assert!(reason.contains("in use"), "{reason}"),
        }
        pause().await;
    }
    panic!("the writer does not end");
}

async fn fill(cache: &FlashCache, chunks: std::ops::Range<u32>) {
    chunks.for_each(|index| cache.insert(chunk(index), Bytes::from(vec![7; 8192]), Source::Fetch));
    while cache.status().queued_bytes > 0 {
        pause().await;
    }
}

/// Ends the writer where it stands, with nothing sealed.
async fn crash(cache: FlashCache) {
    cache.live.as_ref().unwrap().ring.queue.close();
    drop(cache);
    pause().await;
}

/// Which chunks are found.
async fn found(cache: &FlashCache) -> Vec<u32> {
    let mut found = Vec::new();
    for index in 0..2 * CHUNKS {
        if cache.get(chunk(index)).await.is_some() {
            found.push(index);
        }
    }
    found
}

/// Lets the marker say that the machine was started since.
async fn start_the_machine_again(folder: &Path) {
    for _ in 0..1000 {
        if let Ok((directory, Some(marker))) = Directory::open(&folder.join("flash"), site()) {
            assert_eq!(Some(&marker.boot), boot().as_ref());
            directory.mark(&Marker { boot: "another".to_owned(), ..marker }).unwrap();
            return;
        }
        pause().await;
    }
    panic!("the writer does not end");
}

#[tokio::test]
async fn after_a_power_cut_only_synced_regions_are_believed_and_the_rest_never_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..CHUNKS).await;
    crash(cache).await;
    start_the_machine_again(folder.path()).await;

    let cache = open(folder.path()).await;
    let synced = found(&cache).await;
    // Regions of half a mebibyte: the last one was not full.
    assert!(synced.len() > 150 && synced.len() < 200, "{}", synced.len());
    assert_eq!(synced, (0..u32::try_from(synced.len()).unwrap()).collect::<Vec<_>>());
    assert_eq!(cache.status().damaged, 0);
    crash(cache).await;

    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await, synced);
    fill(&cache, CHUNKS..CHUNKS + 1).await;
    crash(cache).await;

    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await.len(), synced.len() + 1);
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn after_a_clean_end_and_a_start_of_the_machine_everything_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..CHUNKS).await;
    cache.close().await;
    drop(cache);
    start_the_machine_again(folder.path()).await;
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await.len(), 200);
    fill(&cache, CHUNKS..2 * CHUNKS).await;
    crash(cache).await;
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await.len(), 400);
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_footer_beside_the_last_entry_stays_when_the_region_is_cut_off_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    // Eight entries and their footer fill a region to the last byte.
    let room = REGION_BYTES_MIN - PAGE_BYTES - footer_bytes(8);
    let payload = usize::try_from(room / 8).unwrap() - ENTRY_HEADER_BYTES;
    assert_eq!(8 * entry_bytes(payload), room);
    for index in 0..8 {
        cache.insert(chunk(index), Bytes::from(vec![7; payload]), Source::Fetch);
    }
    while cache.status().queued_bytes > 0 {
        pause().await;
    }
    cache.close().await;
    drop(cache);
    for _ in 0..2 {
        start_the_machine_again(folder.path()).await;
        let cache = open(folder.path()).await;
        assert_eq!(found(&cache).await, (0..8).collect::<Vec<_>>());
        assert_eq!(cache.status().damaged, 0);
        crash(cache).await;
    }
}

fn chunks_file(folder: &Path) -> File {
    File::options().read(true).write(true).open(folder.join("flash/chunks")).unwrap()
}

fn header_at(file: &File, region: u64) -> [u8; REGION_HEADER_BYTES] {
    let mut header = [0; REGION_HEADER_BYTES];
    file.read_exact_at(&mut header, region * REGION_BYTES_MIN).unwrap();
    header
}

fn sequence_at(file: &File, region: u64) -> u64 {
    match parse_region_header(&header_at(file, region), site(), REGION_BYTES_MIN) {
        Parsed::Good(header) => header.sequence,
        parsed => panic!("{parsed:?}"),
    }
}

/// The device of a cache: what it does, in order.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Device>,
    done: Arc<Mutex<Vec<Done>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    Wrote(u64),
    Synced,
}

impl Device for Watched {
    fn read_now(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read_now(offset, into)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(offset, into)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.done.lock().push(Done::Wrote(offset));
        self.inner.write(offset, bytes)
    }

    fn allocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.allocate(offset, length)
    }

    fn start_write_back(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        self.done.lock().push(Done::Synced);
        self.inner.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }
}

#[tokio::test]
async fn a_region_is_overwritten_only_after_its_new_header_was_synced() {
    let folder = tempfile::tempdir().unwrap();
    let done = Arc::<Mutex<Vec<Done>>>::default();
    let watched = done.clone();
    let config = FlashConfig {
        destage_bytes_per_second: u64::MAX,
        ..FlashConfig::new(folder.path().join("flash"), 8 << 20)
    };
    let config = FlashConfig { write_bytes_per_second: u64::MAX, ..config };
    let decorate = Box::new(|inner| Arc::new(Watched { inner, done: watched }) as Arc<dyn Device>);
    let cache = FlashCache::open_on(config, site(), Ports::system(), decorate).await;
    for first in (0..3000).step_by(250) {
        let chunks = first..first + 250;
        chunks.for_each(|index| cache.insert(chunk(index), Bytes::from(vec![7; 8192]), Source::Destage));
        while cache.status().queued_bytes > 0 {
            pause().await;
        }
    }
    cache.close().await;
    let mut header_synced = [false; 16];
    let mut header_written = [false; 16];
    let (mut headers, mut syncs) = (0, 0);
    for done in done.lock().iter() {
        match *done {
            Done::Synced => {
                syncs += 1;
                header_synced = header_written;
            }
            Done::Wrote(offset) => {
                let region = usize::try_from(offset / REGION_BYTES_MIN).unwrap();
                let is_header = offset % REGION_BYTES_MIN == 0;
                if is_header {
                    headers += 1;
                    header_written[region] = true;
                    header_synced[region] = false;
                } else {
                    assert!(header_synced[region], "region {region} at {offset}");
                }
            }
        }
    }
    assert!(headers > 40 && syncs <= headers + 1, "{headers} headers, {syncs} syncs");
}

#[tokio::test]
async fn a_number_is_never_given_twice_after_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..CHUNKS).await;
    cache.close().await;
    drop(cache);
    let before = sequence_at(&chunks_file(folder.path()), 0);
    start_the_machine_again(folder.path()).await;
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await.len(), 200);
    fill(&cache, CHUNKS..CHUNKS + 1).await;
    crash(cache).await;
    let file = chunks_file(folder.path());
    let newest = (0..5).map(|region| sequence_at(&file, region)).max().unwrap();
    assert!(newest > before + (1 << 32), "{newest}");
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache).await.len(), 201);
    assert_eq!(cache.status().damaged, 0, "a gap in the numbers is no region that is missing");
    cache.close().await;
}

#[tokio::test]
async fn the_highest_number_there_is_is_damage_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..CHUNKS).await;
    cache.close().await;
    drop(cache);
    let highest = RegionHeader { sequence: u64::MAX, after: 0 };
    chunks_file(folder.path()).write_all_at(&region_header(highest, site(), REGION_BYTES_MIN), 0).unwrap();
    let cache = open(folder.path()).await;
    assert_eq!(cache.status().damaged, 1);
    // Its footer says what it was.
    assert_eq!(found(&cache).await.len(), 200);
    fill(&cache, CHUNKS..2 * CHUNKS).await;
    assert_eq!(found(&cache).await.len(), 400);
    cache.close().await;
}
