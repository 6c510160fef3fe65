//! What is found again after the process ended, one way or another.

use crate::support::{CAPACITY, chunk, config, fill, found, open, open_to_read, site, stored};
use cairn_flash::{FlashCache, FlashConfig, SealedCache, Source};
use cairn_model::{Ports, SiteId};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

const CHILD_FOLDER: &str = "CAIRN_FLASH_TEST_FOLDER";

#[tokio::test]
async fn a_cache_that_was_closed_is_warm() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..300, Source::Fetch).await;
    let before = cache.status();
    cache.close().await;
    let cache = open(folder.path()).await;
    let after = cache.status();
    assert_eq!((after.chunks, after.used_bytes), (before.chunks, before.used_bytes));
    assert_eq!(found(&cache, 0..300).await, 300);
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn restarts_waste_no_space() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let cache = open(folder.path()).await;
        fill(&cache, round * 10..round * 10 + 10, Source::Fetch).await;
        cache.close().await;
    }
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache, 0..200).await, 200);
    assert!(cache.status().used_bytes < 200 * 8300 + 4 * 4096 + 8192, "{:?}", cache.status());
    cache.close().await;
}

#[tokio::test]
async fn dropped_without_an_end_it_is_no_worse_than_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..300, Source::Fetch).await;
    drop(cache);
    for _ in 0..1000 {
        let cache = FlashCache::open(config(folder.path()), site(), Ports::system()).await;
        if cache.status().retired.is_none() {
            assert_eq!(found(&cache, 0..300).await, 300);
            cache.close().await;
            return;
        }
        Ports::system().clock.sleep(Duration::from_millis(5)).await;
    }
    panic!("the writer does not end");
}

/// The other process of the next test.
#[tokio::test]
#[ignore = "runs only in a process of its own, started by the test that kills it"]
async fn child_fills_a_cache_and_waits() {
    let Ok(folder) = std::env::var(CHILD_FOLDER) else { return };
    let cache = open(folder.as_ref()).await;
    // More than the capacity: the ring has gone round.
    fill(&cache, 0..1500, Source::Destage).await;
    println!("\nfilled {}", cache.status().chunks);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_cache_whose_process_was_killed_is_warm() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "restart::child_fills_a_cache_and_waits", "--ignored", "--nocapture"])
        .env(CHILD_FOLDER, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let filled = lines.find_map(|line| line.strip_prefix("filled ").map(str::to_owned));
    child.kill().unwrap();
    child.wait().unwrap();
    let chunks: u64 = filled.unwrap().parse().unwrap();
    let cache = open_to_read(folder.path()).await;
    assert_eq!(cache.status().chunks, chunks);
    assert_eq!(found(&cache, 0..1500).await, chunks);
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn another_capacity_keeps_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let open_with = |capacity_bytes| {
        let config = FlashConfig { capacity_bytes, ..config(folder.path()) };
        FlashCache::open(config, site(), Ports::system())
    };
    let cache = open_with(CAPACITY).await;
    fill(&cache, 0..900, Source::Fetch).await;
    cache.close().await;
    // Nothing is kept: that would overwrite what is not read yet.
    let half =
        FlashConfig { capacity_bytes: CAPACITY / 2, write_bytes_per_second: 1, ..config(folder.path()) };
    let cache = FlashCache::open(half, site(), Ports::system()).await;
    let left = found(&cache, 0..900).await;
    assert!(left > 300 && cache.status().used_bytes <= CAPACITY / 2, "{:?}", cache.status());
    cache.close().await;
    let cache = open_with(2 * CAPACITY).await;
    assert_eq!(found(&cache, 0..900).await, left);
    fill(&cache, 1000..1900, Source::Fetch).await;
    assert_eq!(found(&cache, 1000..1900).await, 900);
    assert_eq!(cache.status().damaged, 0);
    cache.close().await;
}

#[tokio::test]
async fn a_far_larger_capacity_begins_again_with_larger_regions() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..100, Source::Fetch).await;
    cache.close().await;
    // 2048 of the regions that the smaller one had.
    for expected in [0, 100] {
        let larger = FlashConfig { capacity_bytes: 1 << 30, ..config(folder.path()) };
        let cache = FlashCache::open(larger, site(), Ports::system()).await;
        assert_eq!(cache.status().retired, None);
        assert_eq!(found(&cache, 0..100).await, expected);
        fill(&cache, 0..100, Source::Fetch).await;
        assert_eq!(found(&cache, 0..100).await, 100);
        assert_eq!(cache.status().damaged, 0);
        cache.close().await;
    }
}

#[tokio::test]
async fn the_cache_of_another_site_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path()).await;
    fill(&cache, 0..10, Source::Fetch).await;
    cache.close().await;
    let other = SiteId::from_bytes([8; 16]);
    let cache = FlashCache::open(config(folder.path()), other, Ports::system()).await;
    let reason = cache.status().retired.unwrap();
    assert!(reason.contains(&site().to_string()) && reason.contains(&other.to_string()), "{reason}");
    cache.insert(chunk(1), stored(1), Source::Fetch);
    assert_eq!(cache.get(chunk(1)).await, None);
    cache.close().await;
    let cache = open(folder.path()).await;
    assert_eq!(found(&cache, 0..10).await, 10);
    cache.close().await;
}

#[tokio::test]
async fn two_processes_cannot_have_one_cache() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path()).await;
    let second = FlashCache::open(config(folder.path()), site(), Ports::system()).await;
    assert!(second.status().retired.unwrap().contains("in use"));
    fill(&first, 0..10, Source::Fetch).await;
    assert_eq!(found(&first, 0..10).await, 10);
    first.close().await;
}
