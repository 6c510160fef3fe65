//! How fast erasure coding is: encoding and decoding on one core, and healthy against degraded reads of a pool of local directories.
//!
//! `cargo run --release -p cairn-segment-writer --example coding -- [PROFILE] [DIRECTORY]`, by default `ec:4+2` below the system's temporary directory.

#![allow(clippy::unwrap_used, reason = "this is a tool: it may stop")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]
#![allow(clippy::cast_precision_loss, reason = "these are measurements")]

#[path = "../tests/common/mod.rs"]
mod common;

use cairn_model::{Entropy, Lba, ObjectPlace, Ports, Profile, SeededEntropy};
use cairn_segment_writer::fuzzing::Decoders;
use cairn_segment_writer::{
    DataNode, Dedupe, EncodedSegment, Member, NodeAccess, NodeUrl, PackConfig, Pool, PoolSettings,
    SealedSegment, VolumePacking,
};
use common::{finish, packer, packing, random, site, volume};
use std::time::{Duration, Instant};

const READ_BYTES: u64 = 32 << 10;

fn segment() -> SealedSegment {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, ..packing() });
    packer.run(Lba::ZERO, &[random(2040, 1)]);
    finish(packer).segments.remove(0)
}

/// Bytes per second of `work`, which moves `bytes`: the median of several runs.
fn rate(bytes: u64, mut work: impl FnMut()) -> f64 {
    let mut took: Vec<_> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    bytes as f64 / took[took.len() / 2].as_secs_f64()
}

/// Reads a second, one at a time, of random ranges.
async fn reads(pool: &Pool, place: &ObjectPlace, for_long: Duration) -> f64 {
    let entropy = SeededEntropy::new(7);
    let begun = Instant::now();
    let mut count = 0u32;
    while begun.elapsed() < for_long {
        let mut random = [0; 8];
        entropy.fill(&mut random);
        let start = u64::from_le_bytes(random) % (place.length_bytes - READ_BYTES);
        let read = pool.get_range(place, start..start + READ_BYTES).await.unwrap();
        assert_eq!(read.len() as u64, READ_BYTES);
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let profile: Profile = arguments.next().as_deref().unwrap_or("ec:4+2").parse().unwrap();
    let folder = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let segment = segment();
    let length = segment.length_bytes();
    let encode = rate(length, || drop(EncodedSegment::new(&segment, profile)));
    println!("{profile}: encodes with checksums {:.0} MB/s", encode / 1e6);

    if let Profile::Ec { data, parity } = profile {
        let decoders = Decoders::default();
        for length in [64, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20] {
            let shard = vec![7; length];
            let sources: Vec<_> = (1..=usize::from(data)).map(|index| (index, &shard[..])).collect();
            let bytes = length as u64;
            let recipe = rate(bytes, || drop(decoders.by_recipe(data, parity, 0, &sources).unwrap()));
            let library = rate(bytes, || drop(decoders.by_library(data, parity, 0, &sources).unwrap()));
            println!(
                "{profile}: decodes {length} bytes of a shard by recipe in {:.1} us, by the library in {:.1} us",
                1e6 * bytes as f64 / recipe,
                1e6 * bytes as f64 / library
            );
        }
    }

    let ports = Ports::system();
    let mut members = Vec::new();
    for number in 0..profile.shards() {
        let access = NodeAccess::new(NodeUrl::Directory(folder.path().join(number.to_string())));
        members.push(Member::new(DataNode::attach(&access, site(), ports.clone()).await.unwrap()));
    }
    let healthy = members.clone();
    let pool = Pool::new(members, PoolSettings { profile, ..PoolSettings::default() }, ports);
    let receipt = pool.put(&segment).await.unwrap();
    let place = receipt.place().clone();
    let put: u64 = pool.nodes().iter().map(|node| node.health().snapshot().put_bytes).sum();
    println!("{profile}: {:.4} bytes put per byte of a segment", put as f64 / length as f64);
    let lost: Vec<_> =
        place.placement.present().take(profile.tolerates()).map(|(_, shard)| shard.node).collect();
    let degraded: Vec<_> =
        healthy.iter().filter(|member| !lost.contains(&member.node.id())).cloned().collect();
    for round in 1..=3 {
        pool.set_nodes(healthy.clone());
        let well = reads(&pool, &place, Duration::from_secs(2)).await;
        pool.set_nodes(degraded.clone());
        let ill = reads(&pool, &place, Duration::from_secs(2)).await;
        println!(
            "round {round}: {READ_BYTES} bytes at random, one at a time: {well:.0} reads/s healthy, {ill:.0} with {} nodes gone ({:.2})",
            lost.len(),
            ill / well
        );
    }
    pool.set_nodes(degraded);
    let begun = Instant::now();
    let whole = pool.get_range(&place, 0..length).await.unwrap();
    println!("all of it, degraded: {:.0} MB/s", whole.len() as f64 / begun.elapsed().as_secs_f64() / 1e6);
}
