//! What enters a full cache, and what stays.

use crate::support::{chunk, fill, found, open, settle, stored};
use cairn_flash::{FlashCache, SealedCache, Source};

/// Chunks of 8 KiB that the capacity holds, nearly.
const HELD: u64 = 1000;

/// Reads as the engine does: what is not found is fetched and offered.
async fn read(cache: &FlashCache, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        if cache.get(chunk(number)).await.is_none() {
            cache.insert(chunk(number), stored(number), Source::Fetch);
        }
        if number % 256 == 255 {
            settle(cache).await;
        }
    }
    settle(cache).await;
}

#[tokio::test]
async fn a_scan_of_four_times_the_capacity_leaves_the_working_set_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    let working_set = 0..HELD * 7 / 10;
    read(&cache, working_set.clone()).await;
    read(&cache, working_set.clone()).await;
    read(&cache, 100_000..100_000 + 4 * HELD).await;
    let hits = found(&cache, working_set.clone()).await;
    assert!(hits >= working_set.end * 8 / 10, "{hits} of {} are left", working_set.end);
    assert!(cache.status().rejected > 3 * HELD, "{:?}", cache.status());
    cache.close().await;
}

#[tokio::test]
async fn a_new_working_set_enters_a_full_cache_when_it_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    read(&cache, 0..2 * HELD).await;
    let new = 100_000..100_000 + HELD / 2;
    read(&cache, new.clone()).await;
    assert!(found(&cache, new.clone()).await < HELD / 10);
    read(&cache, new.clone()).await;
    let hits = found(&cache, new.clone()).await;
    assert!(hits >= HELD / 2 * 8 / 10, "{hits} of {}", HELD / 2);
    cache.close().await;
}

#[tokio::test]
async fn what_is_read_stays_while_destage_goes_round_the_ring_many_times() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    let working_set = 0..HELD / 4;
    read(&cache, working_set.clone()).await;
    for round in 0..40 {
        let first = 1_000_000 + round * HELD / 10;
        fill(&cache, first..first + HELD / 10, Source::Destage).await;
        let _ = found(&cache, working_set.clone()).await;
        settle(&cache).await;
    }
    let hits = found(&cache, working_set.clone()).await;
    assert!(hits >= working_set.end * 8 / 10, "{hits} of {} are left", working_set.end);
    let status = cache.status();
    assert!(status.kept > 0 && status.kept < 8 * HELD, "{status:?}");
    cache.close().await;
}

#[tokio::test]
async fn what_does_not_fit_the_queue_is_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    for number in 0..20_000 {
        cache.insert(chunk(number), stored(number % 8), Source::Destage);
        assert!(cache.status().queued_bytes <= 8 << 20, "destage has half of the queue");
    }
    let status = cache.status();
    settle(&cache).await;
    let inserted = cache.status().inserted;
    assert_eq!(inserted + status.dropped, 20_000);
    cache.close().await;
}
