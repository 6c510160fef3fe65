//! Bytes on the device that are not what was written: each is counted, none is believed, the service goes on.

use crate::support::{CHUNK, chunk, config, fill, found, open, settle, site, stored};
use cairn_flash::{FlashCache, FlashConfig, FlashStatus, SealedCache, Source};
use cairn_model::{Ports, SiteId};
use std::path::{Path, PathBuf};

const COUNT: u64 = 200;

/// A closed cache with so many chunks in its first regions.
async fn filled(folder: &Path) -> PathBuf {
    let cache = open(folder).await;
    fill(&cache, 0..COUNT, Source::Fetch).await;
    cache.close().await;
    config(folder).path.join("chunks")
}

fn flip(file: &Path, byte: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[byte] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}

/// Where the header of this chunk's entry begins.
fn entry_of(file: &Path, number: u64) -> usize {
    let mut identity = chunk(number).container.as_bytes().to_vec();
    identity.extend_from_slice(&chunk(number).index.get().to_le_bytes());
    let bytes = std::fs::read(file).unwrap();
    bytes.windows(identity.len()).position(|window| window == identity).unwrap() - 8
}

/// Reads everything as the engine does: what is wrong is reported. How many were right, and what was counted.
async fn read_all(cache: &FlashCache) -> (u64, FlashStatus) {
    let mut right = 0;
    for number in 0..COUNT {
        match cache.get(chunk(number)).await {
            Some(bytes) if bytes == stored(number) => right += 1,
            Some(_) => cache.damaged(chunk(number)),
            None => {}
        }
    }
    (right, cache.status())
}

#[tokio::test]
async fn a_flipped_bit_of_a_payload_is_for_the_caller_to_find_and_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    flip(&file, entry_of(&file, 5) + 40 + CHUNK / 2);
    let cache = open(folder.path()).await;
    let (right, status) = read_all(&cache).await;
    assert_eq!((right, status.damaged), (COUNT - 1, 1));
    assert_eq!(cache.get(chunk(5)).await, None, "it is forgotten");
    cache.insert(chunk(5), stored(5), Source::Fetch);
    settle(&cache).await;
    assert_eq!(cache.get(chunk(5)).await, Some(stored(5)), "and may come again");
    cache.close().await;
}

#[tokio::test]
async fn a_damaged_chunk_of_the_oldest_quarter_is_not_kept_and_the_good_one_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    // The ring has gone round.
    fill(&cache, 0..1500, Source::Destage).await;
    // In the third of four regions, which is not overwritten meanwhile.
    let first = 1500 - cache.status().chunks + 130;
    let spoiled = first..first + 20;
    let file = config(folder.path()).path.join("chunks");
    for number in spoiled.clone() {
        flip(&file, entry_of(&file, number) + 40 + CHUNK / 2);
    }
    for number in spoiled.clone() {
        let bytes = cache.get(chunk(number)).await.unwrap();
        assert_ne!(bytes, stored(number));
        if number % 2 == 0 {
            // The copy is written already.
            settle(&cache).await;
        }
        cache.damaged(chunk(number));
        // As from another reader of the same bytes.
        cache.damaged(chunk(number));
        assert_eq!(cache.get(chunk(number)).await, None, "it is forgotten");
        // The engine asked for it twice, so it is wanted.
        cache.insert(chunk(number), stored(number), Source::Fetch);
    }
    settle(&cache).await;
    assert_eq!(cache.status().damaged, 20);
    assert!(cache.status().kept > 0);
    assert_eq!(found(&cache, spoiled.clone()).await, 20);
    cache.close().await;
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache, spoiled.clone()).await, 20, "the good ones are the newest");
    cache.close().await;
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_an_entry_is_counted() {
    for at in [0, 7, 8, 23, 24, 28, 31, 32, 39, 40, 40 + CHUNK - 1] {
        let folder = tempfile::tempdir().unwrap();
        let file = filled(folder.path()).await;
        flip(&file, entry_of(&file, 9) + at);
        let cache = open(folder.path()).await;
        let (right, status) = read_all(&cache).await;
        assert_eq!((right, status.damaged), (COUNT - 1, 1), "byte {at}");
        cache.close().await;
    }
}

#[tokio::test]
async fn a_damaged_footer_is_counted_and_its_region_is_read_through() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    let region = FlashConfig::new("", crate::support::CAPACITY).capacity_bytes / 16;
    flip(&file, usize::try_from(region).unwrap() - 20);
    let cache = open(folder.path()).await;
    assert_eq!(cache.status().damaged, 1);
    assert_eq!(found(&cache, 0..COUNT).await, COUNT);
    cache.close().await;
}

#[tokio::test]
async fn a_damaged_region_header_is_counted_and_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    flip(&file, 9);
    let cache = open(folder.path()).await;
    assert_eq!(cache.status().damaged, 1);
    assert_eq!(found(&cache, 0..COUNT).await, COUNT);
    cache.close().await;
    let cache = open(folder.path()).await;
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_file_that_was_cut_short_loses_what_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(length / 2 + 100_000).unwrap();
    let cache = open(folder.path()).await;
    assert!(cache.status().damaged > 0);
    let (right, status) = read_all(&cache).await;
    assert!(right > 0 && right < COUNT && status.retired.is_none(), "{right}: {status:?}");
    fill(&cache, 0..COUNT, Source::Fetch).await;
    assert_eq!(found(&cache, 0..COUNT).await, COUNT);
    cache.close().await;
}

#[tokio::test]
async fn a_file_that_is_cut_short_under_an_open_cache_is_damage_not_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..COUNT, Source::Fetch).await;
    let file = config(folder.path()).path.join("chunks");
    std::fs::File::options().write(true).open(&file).unwrap().set_len(800_000).unwrap();
    let (right, status) = read_all(&cache).await;
    assert!(right > 0 && right < COUNT);
    assert!(status.damaged > 0, "{status:?}");
    cache.close().await;
}

#[tokio::test]
async fn a_file_that_is_gone_is_damage_and_an_empty_cache() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    std::fs::remove_file(&file).unwrap();
    let cache = open(folder.path()).await;
    assert_eq!(cache.status().damaged, 1);
    assert_eq!(found(&cache, 0..COUNT).await, 0);
    fill(&cache, 0..COUNT, Source::Fetch).await;
    assert_eq!(found(&cache, 0..COUNT).await, COUNT);
    cache.close().await;
}

#[tokio::test]
async fn a_file_of_noise_is_an_empty_cache() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, crate::support::stored_of(1, usize::try_from(length).unwrap())).unwrap();
    let cache = FlashCache::open(config(folder.path()), site(), Ports::system()).await;
    assert!(cache.status().damaged > 0);
    assert_eq!(found(&cache, 0..COUNT).await, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_damaged_marker_retires_the_cache_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let file = filled(folder.path()).await;
    let before = std::fs::read(&file).unwrap();
    flip(&config(folder.path()).path.join("marker"), 20);
    let cache = FlashCache::open(config(folder.path()), SiteId::from_bytes([9; 16]), Ports::system()).await;
    assert!(cache.status().retired.unwrap().contains("damaged"));
    cache.close().await;
    assert!(before == std::fs::read(&file).unwrap());
}

#[tokio::test]
async fn too_much_damage_retires_the_device_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let few = FlashConfig { damage_max: 3, ..config(folder.path()) };
    let cache = FlashCache::open(few, site(), Ports::system()).await;
    fill(&cache, 0..10, Source::Fetch).await;
    (0..3).for_each(|number| cache.damaged(chunk(number)));
    let status = cache.status();
    assert_eq!(status.damaged, 3);
    assert!(status.retired.unwrap().contains("3 damaged"));
    assert_eq!(found(&cache, 0..10).await, 0);
    cache.insert(chunk(20), stored(20), Source::Fetch);
    assert_eq!(cache.get(chunk(20)).await, None);
    cache.close().await;
}
