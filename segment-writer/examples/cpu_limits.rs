//! What one core can pack and open, as JSON on standard output: the limit that the rest of the system is measured by.
//!
//! `cargo run --release -p cairn-segment-writer --example cpu_limits [FILE OR FOLDER]`
//!
//! Typical data is the content of the file or of the folder's files (`/usr/bin` if none is given), up to 64 MiB. Times are
//! processor time of the thread, so that what else runs on the machine matters little; each figure is the best of
//! five rounds. MB are 10^6 bytes of plaintext.

#![allow(clippy::unwrap_used, reason = "this is a measuring tool: it may stop")]

use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BLOCK_SIZE, BatchId, DomainId, GatewayId, Generation, Lba, LineageId, Ports, SeededEntropy, SiteId,
    VolumeId, WriteSeq,
};
use cairn_segment_writer::{
    BatchHeader, ChunkShape, Compression, ContainerCipher, Dedupe, Domain, PackConfig, PackStats, Packer,
    SealedSegment, SegmentContainer, VolumeHeader, VolumePacking,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const BYTES_MAX: usize = 64 << 20;
const ROUNDS: usize = 5;

fn main() {
    let source = std::env::args().nth(1).map_or_else(|| PathBuf::from("/usr/bin"), PathBuf::from);
    let typical = typical(&source);
    assert!(typical.len() >= 1 << 20, "{} has less than 1 MiB to read", source.display());
    let mut random = vec![0; BYTES_MAX];
    cairn_model::Entropy::fill(&SeededEntropy::new(1), &mut random);
    let random = Bytes::from(random);

    // Without dedupe, in aligned chunks of 32 KiB.
    let aligned = |blocks| VolumePacking {
        shape: ChunkShape::new(1, blocks).unwrap(),
        dedupe: Dedupe::Off,
        ..VolumePacking::new(domain(Encryption::Aes256Gcm))
    };
    let default = aligned(8);
    let off = VolumePacking { compression: Compression::Off, ..default.clone() };
    let levels: Vec<Value> = [3, 1, -1, -5]
        .into_iter()
        .map(|level| {
            let way = |blocks| VolumePacking { compression: Compression::Zstd(level), ..aligned(blocks) };
            json!({
                "level": level,
                "chunks_32_kib": packing(&typical, &way(8)),
                "chunks_4_kib": packing(&typical, &way(1)),
            })
        })
        .collect();
    // With dedupe, where content ends chunks.
    let dedupe = VolumePacking::new(domain(Encryption::Aes256Gcm));
    let dedupe_off = VolumePacking { compression: Compression::Off, ..dedupe.clone() };
    let open = VolumePacking { compression: Compression::Off, ..VolumePacking::new(domain(Encryption::Off)) };
    let report = json!({
        "source": source.display().to_string(),
        "typical_bytes": typical.len(),
        "compress_and_seal": packing(&typical, &default),
        "compress_and_seal_by_level": levels,
        "seal_only": packing(&typical, &off),
        "random_data": packing(&random, &default),
        "open": opening(&typical, &default),
        "open_random_data": opening(&random, &default),
        "fingerprint": fingerprinting(&random),
        "fingerprint_and_seal_random_data": packing(&random, &dedupe_off),
        "fingerprint_random_data": packing(&random, &dedupe),
        "fingerprint_and_checksum_random_data": packing(&random, &open),
        "fingerprint_compress_and_seal": packing(&typical, &dedupe),
        "find_all_shared": sharing(&random, &dedupe),
    });
    println!("{report:#}");
}

fn typical(source: &Path) -> Bytes {
    let mut files: Vec<PathBuf> = if source.is_dir() {
        std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect()
    } else {
        vec![source.to_owned()]
    };
    files.sort();
    let mut bytes = Vec::new();
    for file in files {
        if bytes.len() >= BYTES_MAX {
            break;
        }
        // Broken links and folders are passed over.
        if let Ok(content) = std::fs::read(file) {
            bytes.extend_from_slice(&content);
        }
        // As in a file system: files begin at block boundaries.
        bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE as usize), 0);
    }
    bytes.truncate(BYTES_MAX);
    bytes.into()
}

fn packing(data: &Bytes, way: &VolumePacking) -> Value {
    let (seconds, (_, stats)) = best(|| (), |()| pack(&[data], way));
    json!({
        "mb_per_s": rate(data.len() as u64, seconds),
        "ratio": hundredths(float(stats.reduction.unique_bytes) / float(stats.reduction.stored_bytes)),
        "shared_bytes": stats.reduction.shared_bytes,
        "chunk_bytes": stats.reduction.unique_bytes / stats.chunks.max(1),
    })
}

fn fingerprinting(data: &Bytes) -> Value {
    let key = domain(Encryption::Aes256Gcm).fingerprints();
    let (seconds, ()) = best(
        || (),
        |()| {
            for block in data.chunks(BLOCK_SIZE as usize) {
                std::hint::black_box(key.of(block));
            }
        },
    );
    json!({ "mb_per_s": rate(data.len() as u64, seconds) })
}

/// The second of two equal volumes.
fn sharing(data: &Bytes, way: &VolumePacking) -> Value {
    let (once, _) = best(|| (), |()| pack(&[data], way));
    let (twice, (_, stats)) = best(|| (), |()| pack(&[data, data], way));
    assert_eq!(stats.reduction.shared_bytes, data.len() as u64);
    json!({ "mb_per_s": rate(data.len() as u64, twice - once) })
}

fn opening(data: &Bytes, way: &VolumePacking) -> Value {
    let (segments, stats) = pack(&[data], way);
    // Opening spoils the stored bytes: each round has a copy, made before its time begins.
    let copies = || segments.iter().map(|segment| segment.pieces()[0].to_vec()).collect::<Vec<_>>();
    let (seconds, ()) = best(copies, |objects| {
        for (segment, mut object) in segments.iter().zip(objects) {
            for container in segment.containers() {
                open(container, &mut object);
            }
        }
    });
    json!({ "mb_per_s": rate(stats.reduction.unique_bytes, seconds) })
}

fn open(container: &SegmentContainer, object: &mut [u8]) {
    let cipher = ContainerCipher::new(&domain(Encryption::Aes256Gcm), container.id);
    for (index, entry) in container.directory.iter() {
        let start = usize::try_from(container.offset).unwrap() + entry.offset as usize;
        let stored = &mut object[start..start + entry.stored_bytes as usize];
        std::hint::black_box(cipher.open_chunk(index, entry, stored).unwrap());
    }
}

fn domain(encryption: Encryption) -> Domain {
    Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), encryption)
}

/// Packs a volume with each of `contents`.
fn pack(contents: &[&Bytes], way: &VolumePacking) -> (Vec<SealedSegment>, PackStats) {
    let header = BatchHeader {
        site: SiteId::from_bytes([1; 16]),
        gateway: GatewayId::from_bytes([2; 16]),
        batch: BatchId::from_bytes([3; 16]),
        attempt: 1,
        previous: None,
    };
    let mut packer = Packer::new(PackConfig::default(), header, Ports::system());
    let mut segments = Vec::new();
    for (number, content) in (0u8..).zip(contents) {
        let header = VolumeHeader {
            volume: VolumeId::from_bytes([number; 16]),
            lineage: LineageId::from_bytes([5; 16]),
            generation: Generation::new(1),
            base: WriteSeq::ZERO,
            through: WriteSeq::new(1),
        };
        packer.volume(header, way.clone());
        let mut at = Lba::ZERO;
        let mut rest = Bytes::clone(content);
        while !rest.is_empty() {
            let run = rest.split_to(rest.len().min(1 << 20));
            let blocks = (run.len() / BLOCK_SIZE as usize) as u64;
            packer.run(at, &[run]);
            at = at.plus(blocks);
            segments.extend(std::iter::from_fn(|| packer.next_segment()));
        }
    }
    let done = packer.finish();
    segments.extend(done.segments);
    (segments, done.stats)
}

/// The least processor time of a few rounds, in seconds, and the last round's value.
fn best<I, T>(prepare: impl Fn() -> I, work: impl Fn(I) -> T) -> (f64, T) {
    let mut least = f64::INFINITY;
    let mut value = None;
    for _ in 0..ROUNDS {
        let input = prepare();
        let begun = processor_seconds();
        value = Some(work(input));
        least = least.min(processor_seconds() - begun);
    }
    (least, value.unwrap())
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn float(value: u64) -> f64 {
    value as f64
}

fn rate(bytes: u64, seconds: f64) -> f64 {
    (float(bytes) / 1e6 / seconds).round()
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
