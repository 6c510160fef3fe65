//! What it does when nothing fails.

use crate::support::{
    CAPACITY, chunk, config, fill, found, open, open_to_read, settle, site, stored, stored_of,
};
use cairn_flash::testing::{DeviceFaults, open_faulty};
use cairn_flash::{FlashCache, FlashConfig, PAYLOAD_BYTES_MAX, SealedCache, Source};
use cairn_model::Ports;
use std::sync::Arc;

#[tokio::test]
async fn a_chunk_comes_back_as_it_was_offered_whatever_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    let sizes = [1, 17, 4095, 4096, 4112, 65_536, PAYLOAD_BYTES_MAX];
    for (number, size) in (0..).zip(sizes) {
        cache.insert(chunk(number), stored_of(number, size), Source::Fetch);
    }
    settle(&cache).await;
    for (number, size) in (0..).zip(sizes) {
        assert_eq!(cache.get(chunk(number)).await, Some(stored_of(number, size)));
    }
    let status = cache.status();
    assert_eq!((status.hits, status.misses, status.chunks), (7, 0, 7));
    assert_eq!(status.device_reads, 0, "what was just written is in the page cache");
    cache.close().await;
}

#[tokio::test]
async fn what_was_never_offered_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    assert_eq!(cache.get(chunk(1)).await, None);
    assert_eq!(cache.status().misses, 1);
    cache.close().await;
}

#[tokio::test]
async fn a_chunk_is_found_while_it_waits_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    for number in 0..100 {
        cache.insert(chunk(number), stored(number), Source::Fetch);
        assert_eq!(cache.get(chunk(number)).await, Some(stored(number)));
    }
    cache.close().await;
}

#[tokio::test]
async fn what_is_too_large_or_empty_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    cache.insert(chunk(1), stored_of(1, PAYLOAD_BYTES_MAX + 1), Source::Fetch);
    cache.insert(chunk(2), stored_of(2, 0), Source::Fetch);
    settle(&cache).await;
    assert_eq!(found(&cache, 1..3).await, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_chunk_offered_again_is_not_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    for _ in 0..5 {
        fill(&cache, 0..10, Source::Fetch).await;
    }
    assert_eq!(cache.status().inserted, 10);
    cache.close().await;
}

#[tokio::test]
async fn the_newest_chunks_are_there_and_the_device_holds_no_more_than_its_capacity() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..3000, Source::Destage).await;
    let status = cache.status();
    assert!(status.used_bytes <= CAPACITY);
    assert!(status.used_bytes >= CAPACITY * 8 / 10, "{status:?}");
    cache.close().await;
    let cache = open_to_read(folder.path()).await;
    assert_eq!(cache.status().chunks, status.chunks);
    let oldest = 3000 - status.chunks;
    assert_eq!(found(&cache, 0..oldest).await, 0);
    assert_eq!(found(&cache, oldest..3000).await, status.chunks);
    let on_disk = std::fs::metadata(config(folder.path()).path.join("chunks")).unwrap().len();
    assert_eq!(on_disk, CAPACITY);
    cache.close().await;
}

#[tokio::test]
async fn chunks_take_little_more_than_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    for number in 0..1000 {
        cache.insert(chunk(number), stored_of(number, 4200), Source::Fetch);
    }
    settle(&cache).await;
    let status = cache.status();
    assert_eq!(status.chunks, 1000);
    assert!(status.used_bytes < 1000 * 4200 * 102 / 100, "{status:?}");
    cache.close().await;
}

#[tokio::test]
async fn what_is_not_in_the_page_cache_is_read_from_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Arc::<DeviceFaults>::default();
    let cache = open_faulty(config(folder.path()), site(), Ports::system(), faults.clone()).await;
    fill(&cache, 0..50, Source::Fetch).await;
    faults.forget_the_page_cache();
    assert_eq!(found(&cache, 0..50).await, 50);
    assert_eq!(cache.status().device_reads, 50);
    assert!(faults.device_reads() >= 50);
    cache.close().await;
}

#[tokio::test]
async fn the_index_has_no_more_entries_than_the_memory_allows() {
    let folder = tempfile::tempdir().unwrap();
    let memory = FlashConfig { queue_bytes: 1 << 20, memory_bytes: 2 << 20, ..config(folder.path()) };
    let cache = FlashCache::open(memory, site(), Ports::system()).await;
    let entries_max = (1 << 20) / 42;
    for number in 0..40_000 {
        cache.insert(chunk(number), stored_of(number, 17), Source::Destage);
        if number % 4096 == 0 {
            settle(&cache).await;
        }
    }
    settle(&cache).await;
    let status = cache.status();
    assert!(status.chunks <= entries_max && status.chunks > 1000, "{status:?}");
    assert!(status.capacity_bytes < CAPACITY / 4, "it does not claim room it has no index for: {status:?}");
    assert!(status.used_bytes <= status.capacity_bytes);
    let oldest = 40_000 - status.chunks;
    assert_eq!(cache.get(chunk(oldest)).await, Some(stored_of(oldest, 17)));
    assert_eq!(cache.status().kept, 1, "the next to go is old, though the ring has room");
    assert_eq!(cache.get(chunk(39_999)).await, Some(stored_of(39_999, 17)));
    cache.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_a_writer_that_goes_round_never_see_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Arc::new(open(folder.path()).await);
    let reading = {
        let cache = cache.clone();
        async move {
            let mut hits = 0;
            for round in 0..20 {
                hits += found(&cache, (round * 150)..(round * 150 + 600)).await;
                tokio::task::yield_now().await;
            }
            hits
        }
    };
    let writing = {
        let cache = cache.clone();
        async move { fill(&cache, 0..4000, Source::Destage).await }
    };
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(writing);
    let hits = reading.await;
    tasks.join_all().await;
    assert_eq!(cache.status().damaged, 0, "{hits} hits");
    cache.close().await;
}

#[tokio::test]
async fn after_the_end_nothing_is_found_and_nothing_taken() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..10, Source::Fetch).await;
    cache.close().await;
    cache.insert(chunk(20), stored(20), Source::Fetch);
    assert_eq!(found(&cache, 0..21).await, 0);
    cache.close().await;
}

#[tokio::test]
async fn the_status_can_be_shown_and_says_what_capacity_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    for _ in 0..3 {
        for number in 0..4000 {
            let _ = cache.get(chunk(number)).await;
            cache.insert(chunk(number), stored(number), Source::Fetch);
            if number % 256 == 0 {
                settle(&cache).await;
            }
        }
    }
    let status = cache.status();
    let needed = 4000 * 8192;
    let working_set = status.working_set_bytes.unwrap();
    assert!(working_set.abs_diff(needed) < needed / 5, "{working_set} of {needed}");
    assert_eq!(status.shortfall_bytes, Some(working_set - CAPACITY));
    assert!(serde_json::to_string(&status).unwrap().contains("\"retired\":null"));
    cache.close().await;
}
