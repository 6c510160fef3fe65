//! Measures the index on a real directory.
//!
//! `cargo run --release -p cairn-fingerprints --example index_speed -- DIRECTORY [CONTAINERS]` (an empty directory on the disk to measure;
//! 2,000 containers of 2,000 blocks, a million anchors, take about 120 MB there).
#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on fails where it stands")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
#![expect(clippy::cast_precision_loss, reason = "numbers here are small")]

use cairn_fingerprints::{FingerprintIndex, IndexConfig};
use cairn_model::crypto::SecretKey;
use cairn_model::{
    ContainerFingerprints, ContainerId, DomainId, Entropy, Fingerprint, SeededEntropy, SiteId,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const BLOCKS: usize = 2000;
const BLOCKS_PER_CHUNK: usize = 4;
const FINDS: usize = 200_000;
const DOMAIN: DomainId = DomainId::DEFAULT;

/// Time that this thread was on a processor: a machine that is busy with other things does not count.
fn on_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// What it has been on a processor since `start`.
fn since(start: Duration) -> Duration {
    on_cpu().saturating_sub(start)
}

fn open(path: &Path, containers_max: u64) -> FingerprintIndex {
    let config = IndexConfig { path: path.to_owned(), cache_bytes: 64 << 20, containers_max };
    FingerprintIndex::open(&config, SiteId::from_bytes([1; 16]), &SecretKey::from_bytes([2; 32])).unwrap().0
}

fn prints(entropy: &SeededEntropy, count: usize) -> Vec<Fingerprint> {
    let mut bytes = vec![[0; 16]; count];
    for print in &mut bytes {
        entropy.fill(print);
    }
    bytes.into_iter().map(Fingerprint::from_bytes).collect()
}

fn container(number: u64, entropy: &SeededEntropy) -> ContainerFingerprints {
    let mut id = [0; 16];
    entropy.fill(&mut id);
    id[..8].copy_from_slice(&number.to_be_bytes());
    let chunks = vec![u8::try_from(BLOCKS_PER_CHUNK).unwrap(); BLOCKS / BLOCKS_PER_CHUNK];
    ContainerFingerprints::new(ContainerId::from_bytes(id), chunks, prints(entropy, BLOCKS)).unwrap()
}

fn each(name: &str, count: usize, unit: &str, taken: Duration) {
    let each = taken.as_secs_f64() / count.max(1) as f64;
    let shown = if unit == "ns" { each * 1e9 } else { each * 1e6 };
    println!("{name:<52} {shown:>9.0} {unit}");
}

/// Commits them, waiting while the store is behind; returns the time of the commits alone and the slowest.
fn commit_all(index: &FingerprintIndex, containers: &[ContainerFingerprints]) -> (Duration, Duration) {
    let (mut total, mut longest) = (Duration::ZERO, Duration::ZERO);
    for container in containers {
        while index.is_behind() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let start = on_cpu();
        index.add_in_flight(DOMAIN, Arc::new(container.clone()));
        index.committed(DOMAIN, container);
        total += since(start);
        longest = longest.max(since(start));
    }
    (total, longest)
}

fn find_absent(index: &FingerprintIndex, entropy: &SeededEntropy, name: &str) {
    let absent = prints(entropy, FINDS);
    let start = on_cpu();
    assert!(absent.iter().all(|print| index.find(DOMAIN, print).is_none()));
    each(name, FINDS, "ns", since(start));
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("name an empty directory");
    let path = Path::new(&path);
    let count: u64 = arguments.next().map_or(2000, |count| count.parse().unwrap());
    let entropy = SeededEntropy::new(1);
    let containers: Vec<_> = (0..count).map(|number| container(number, &entropy)).collect();

    let index = open(path, count);
    let (taken, longest) = commit_all(&index, &containers);
    each("commit of a container of 2,000 blocks", containers.len(), "us", taken);
    each("  the slowest", 1, "us", longest);
    find_absent(&index, &entropy, "absent fingerprint, just written");
    index.close();

    let start = on_cpu();
    let index = open(path, count);
    each("opening", 1, "us", since(start));
    let status = index.status();
    println!("containers {}, anchors {}, skipped {}", status.containers, status.anchors, status.skipped);
    println!("on disk {} bytes per container", status.disk_bytes / count);
    println!("filters {} bytes per thousand anchors", status.filter_bytes * 1000 / status.anchors.max(1));
    find_absent(&index, &entropy, "absent fingerprint, after a restart");

    let asked = || containers.iter().step_by(7);
    let start = on_cpu();
    for container in asked() {
        assert!(index.find(DOMAIN, &container.anchors().next().unwrap()).is_some());
    }
    each("anchor of a container on disk: its list is loaded", asked().count(), "us", since(start));
    let loaded: Vec<_> = asked().rev().take(100).flat_map(ContainerFingerprints::blocks).collect();
    let start = on_cpu();
    let found = loaded.iter().filter(|print| index.find(DOMAIN, print).is_some()).count();
    each("block of a loaded container", loaded.len(), "ns", since(start));
    assert_eq!(found, loaded.len());
    let status = index.status();
    println!(
        "memory {} bytes per block",
        status.cache_bytes / (status.containers_cached.max(1) * BLOCKS as u64)
    );

    let more: Vec<_> = (count..count + count / 4).map(|number| container(number, &entropy)).collect();
    let (taken, _) = commit_all(&index, &more);
    each("commit when full: one is forgotten for each", more.len(), "us", taken);
    println!("on disk {} bytes per container", index.status().disk_bytes / count);
    let start = on_cpu();
    for container in more.iter().take(100) {
        index.forget(container.container());
    }
    each("forgetting one by name", 100, "us", since(start));
    let status = index.status();
    println!("evicted {}, skipped {}, errors {}", status.evicted, status.skipped, status.errors);
    index.close();
}
