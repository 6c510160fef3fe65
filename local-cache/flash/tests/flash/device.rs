//! A device that fails, hangs or has no space: misses, counted, and an end in time.

use crate::support::{CAPACITY, chunk, config, fill, found, settle, site, stored};
use cairn_flash::testing::{DeviceFaults, open_faulty};
use cairn_flash::{FlashCache, FlashConfig, SealedCache, Source};
use cairn_model::Ports;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

async fn faulty(config: FlashConfig) -> (FlashCache, Arc<DeviceFaults>) {
    let faults = Arc::<DeviceFaults>::default();
    let cache = open_faulty(config, site(), Ports::system(), faults.clone()).await;
    assert_eq!(cache.status().retired, None);
    (cache, faults)
}

fn retires_after(folder: &Path, damage_max: usize) -> FlashConfig {
    FlashConfig { damage_max, ..config(folder) }
}

/// The cache says why it is not used, takes nothing, and ends.
async fn is_retired(cache: &FlashCache, why: &str) {
    let reason = cache.status().retired.unwrap();
    assert!(reason.contains(why), "{reason}");
    cache.insert(chunk(1), stored(1), Source::Fetch);
    assert_eq!(cache.get(chunk(1)).await, None);
    cache.damaged(chunk(1));
    cache.close().await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_or_used_is_a_retired_cache() {
    let folder = tempfile::tempdir().unwrap();
    let missing = FlashConfig::new(folder.path().join("a/b"), CAPACITY);
    is_retired(&FlashCache::open(missing, site(), Ports::system()).await, "cannot create").await;
    let file = folder.path().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    is_retired(&FlashCache::open(FlashConfig::new(&file, CAPACITY), site(), Ports::system()).await, "file")
        .await;
    // Nobody, not even root, makes files there.
    let forbidden = FlashConfig::new("/proc/self", CAPACITY);
    is_retired(&FlashCache::open(forbidden, site(), Ports::system()).await, "/proc/self").await;
}

#[tokio::test]
async fn settings_that_make_no_sense_are_a_retired_cache() {
    let folder = tempfile::tempdir().unwrap();
    let config = FlashConfig { capacity_bytes: 1, ..config(folder.path()) };
    is_retired(&FlashCache::open(config, site(), Ports::system()).await, "capacity").await;
}

#[tokio::test]
async fn failing_reads_are_misses_and_retire_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(retires_after(folder.path(), 5)).await;
    fill(&cache, 0..20, Source::Fetch).await;
    faults.fail_reads(EIO);
    assert_eq!(found(&cache, 0..4).await, 0);
    assert_eq!((cache.status().io_errors, cache.status().retired), (4, None));
    faults.fail_reads(0);
    assert_eq!(found(&cache, 4..20).await, 16, "the device works again");
    faults.fail_reads(EIO);
    assert_eq!(found(&cache, 4..20).await, 0);
    is_retired(&cache, "5 damaged chunks or failed operations").await;
}

#[tokio::test]
async fn failing_writes_lose_what_was_offered_and_retire_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(retires_after(folder.path(), 5)).await;
    fill(&cache, 0..20, Source::Fetch).await;
    faults.fail_writes(EIO);
    fill(&cache, 20..21, Source::Fetch).await;
    assert_eq!(found(&cache, 0..21).await, 20);
    faults.fail_writes(0);
    fill(&cache, 30..50, Source::Fetch).await;
    assert_eq!(found(&cache, 30..50).await, 20, "the device works again");
    faults.fail_writes(EIO);
    for number in 100..110 {
        fill(&cache, number..=number, Source::Fetch).await;
    }
    is_retired(&cache, "failed operations").await;
}

#[tokio::test]
async fn a_writer_that_ends_unasked_retires_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(config(folder.path())).await;
    fill(&cache, 0..20, Source::Fetch).await;
    faults.panic_in_writes();
    cache.insert(chunk(20), stored(20), Source::Fetch);
    for _ in 0..5000 {
        if cache.status().retired.is_some() {
            break;
        }
        Ports::system().clock.sleep(Duration::from_millis(1)).await;
    }
    is_retired(&cache, "ended unasked").await;
}

#[tokio::test]
async fn on_a_full_disk_the_cache_stays_as_large_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(config(folder.path())).await;
    fill(&cache, 0..400, Source::Fetch).await;
    faults.fail_allocations(ENOSPC);
    fill(&cache, 400..2000, Source::Destage).await;
    let status = cache.status();
    assert_eq!((status.retired, status.io_errors), (None, 1));
    assert!(status.capacity_bytes < CAPACITY && status.used_bytes <= status.capacity_bytes);
    assert_eq!(cache.get(chunk(1999)).await, Some(stored(1999)));
    cache.close().await;
}

#[tokio::test]
async fn a_disk_with_no_space_at_all_retires_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(retires_after(folder.path(), 5)).await;
    faults.fail_allocations(ENOSPC);
    fill(&cache, 0..1, Source::Fetch).await;
    is_retired(&cache, "is full").await;
}

#[tokio::test]
async fn writes_for_which_there_is_no_space_do_not_speak_against_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, faults) = faulty(retires_after(folder.path(), 5)).await;
    fill(&cache, 0..20, Source::Fetch).await;
    faults.fail_writes(ENOSPC);
    for number in 20..40 {
        fill(&cache, number..=number, Source::Fetch).await;
    }
    assert_eq!(cache.status().retired, None);
    assert!(cache.status().io_errors >= 20);
    faults.fail_writes(0);
    fill(&cache, 40..50, Source::Fetch).await;
    assert_eq!(found(&cache, 0..50).await, 30);
    cache.close().await;
}

#[tokio::test]
async fn a_start_that_changes_nothing_writes_no_marker() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let inode = || std::fs::metadata(folder.path().join("flash/marker")).unwrap().ino();
    let (cache, _) = faulty(config(folder.path())).await;
    let before = inode();
    // Nor would there be space for one.
    std::fs::create_dir(folder.path().join("flash/marker.new")).unwrap();
    cache.close().await;
    let (cache, _) = faulty(config(folder.path())).await;
    cache.close().await;
    assert_eq!(inode(), before);
}

#[tokio::test]
async fn a_device_that_hangs_costs_a_miss_and_keeps_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let read_timeout = Duration::from_millis(20);
    let (cache, faults) = faulty(FlashConfig { read_timeout, ..config(folder.path()) }).await;
    fill(&cache, 0..20, Source::Fetch).await;
    faults.forget_the_page_cache();
    faults.hang_reads(true);
    assert_eq!(cache.get(chunk(1)).await, None);
    assert_eq!(cache.status().io_errors, 1);
    faults.hang_reads(false);
    assert_eq!(found(&cache, 1..20).await, 19, "what could not be read is still there");
    settle(&cache).await;
    cache.close().await;
}

#[tokio::test]
async fn a_stall_that_holds_up_many_reads_is_one_error_and_ends_with_the_stall() {
    let folder = tempfile::tempdir().unwrap();
    let patient = FlashConfig { read_timeout: Duration::from_millis(100), ..config(folder.path()) };
    let (cache, faults) = faulty(FlashConfig { damage_max: 3, ..patient }).await;
    fill(&cache, 0..200, Source::Fetch).await;
    faults.forget_the_page_cache();
    faults.hang_reads(true);
    let reads = futures::future::join_all((0..200).map(|number| cache.get(chunk(number)))).await;
    assert!(reads.iter().all(Option::is_none));
    assert_eq!((cache.status().io_errors, cache.status().retired), (1, None));
    // While every thread hangs nobody waits for one.
    let clock = Ports::system().clock;
    let before = clock.now();
    assert_eq!(found(&cache, 0..200).await, 0);
    assert!(clock.now().since(before) < Duration::from_secs(2));
    faults.hang_reads(false);
    clock.sleep(Duration::from_millis(20)).await;
    assert_eq!(found(&cache, 0..200).await, 200);
    assert_eq!(cache.status().retired, None);
    cache.close().await;
}
