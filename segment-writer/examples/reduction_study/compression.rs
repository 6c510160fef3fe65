//! Compression by itself: speed and ratio by level, what giving up early saves, and whether a dictionary helps lone blocks.

use crate::images::{Image, is_zero};
use crate::levels::{LEVELS, stored_bytes};
use crate::tally::float;
use bytes::Bytes;
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BatchId, DomainId, Entropy, GatewayId, Generation, Lba, LineageId, Ports, SeededEntropy, SiteId,
    VolumeId, WriteSeq,
};
use cairn_segment_writer::{
    BatchHeader, ChunkShape, Compression, Domain, PackConfig, PackStats, Packer, VolumeHeader, VolumePacking,
};
use std::process::Command;

/// Of each kind of data.
const SAMPLE_BYTES: usize = 64 << 20;

/// Each time is the least of so many.
const ROUNDS: usize = 3;

const DICTIONARY_BYTES: usize = 64 << 10;

struct Kind {
    name: &'static str,
    /// One after another.
    pieces: Vec<Bytes>,
    chunks: Vec<Bytes>,
}

/// Prints the tables.
pub(crate) fn report(images: &[Image], shape: ChunkShape) {
    let (databases, systems): (Vec<_>, Vec<_>) =
        images.iter().partition(|image| image.name.starts_with("pg-"));
    let mut random = vec![0; SAMPLE_BYTES];
    SeededEntropy::new(1).fill(&mut random);
    let kinds: Vec<Kind> = [
        ("system trees", sample(&systems)),
        ("PostgreSQL", sample(&databases)),
        ("incompressible", vec![random.into()]),
    ]
    .into_iter()
    .filter(|(_, pieces)| !pieces.is_empty())
    .map(|(name, pieces)| Kind { name, chunks: chunks(&pieces, shape), pieces })
    .collect();
    println!("\n## Speed by level, chunks of {}/{}, one core\n", shape.target(), shape.max());
    println!(
        "| data | zstd | ratio | compress MB/s | decompress MB/s | pack MB/s |\n|---|---|---|---|---|---|"
    );
    for kind in &kinds {
        for level in LEVELS {
            level_row(kind, level, shape);
        }
        let (seconds, _) = best(|| pack(&kind.pieces, Compression::Off, shape));
        println!("| {} | off | 1.00 | | | {:.0} |", kind.name, rate(&kind.chunks, seconds));
    }
    println!("\n## Giving up early\n");
    println!("| data | ratio, every chunk tried | ratio, as packed |\n|---|---|---|");
    for kind in &kinds {
        let stats = pack(&kind.pieces, Compression::Zstd(1), shape);
        println!(
            "| {} | {:.3} | {:.3} |",
            kind.name,
            ratio(&kind.chunks, &mut zstd::bulk::Compressor::new(1).unwrap()),
            float(stats.reduction.unique_bytes) / float(stats.reduction.stored_bytes)
        );
    }
    println!("\n## Chunks of one block, with and without a dictionary of {} KiB\n", DICTIONARY_BYTES >> 10);
    println!("| data | zstd | ratio | with | compress MB/s | with | decompress MB/s | with |");
    println!("|---|---|---|---|---|---|---|---|");
    for kind in kinds.iter().filter(|kind| kind.name != "incompressible") {
        dictionary_rows(kind);
    }
}

/// Stretches of 1 MiB from all over the images.
fn sample(images: &[&Image]) -> Vec<Bytes> {
    const STRETCH: usize = 1 << 20;
    let all: Vec<(usize, u64)> = images
        .iter()
        .enumerate()
        .flat_map(|(image, _)| images[image].pieces().map(move |(at, _)| (image, at.get())))
        .collect();
    let step = all.len().div_ceil(SAMPLE_BYTES / STRETCH).max(1);
    let mut out = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let chosen =
            |at: Lba| all.binary_search(&(number, at.get())).is_ok_and(|found| found.is_multiple_of(step));
        let pieces = image.pieces().filter(|(at, _)| chosen(*at));
        out.extend(pieces.map(|(_, piece)| piece.slice(..STRETCH.min(piece.len()))));
    }
    out
}

fn level_row(kind: &Kind, level: i32, shape: ChunkShape) {
    let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
    let (compressing, stored) =
        best(|| kind.chunks.iter().map(|chunk| compressor.compress(chunk).unwrap()).collect::<Vec<_>>());
    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
    let mut out = Vec::with_capacity(1 << 16);
    let (decompressing, ()) = best(|| {
        for frame in &stored {
            out.clear();
            decompressor.decompress_to_buffer(frame, &mut out).unwrap();
        }
    });
    let small = Compression::Zstd(i8::try_from(level).unwrap());
    let (packing, _) = best(|| pack(&kind.pieces, small, shape));
    println!(
        "| {} | {level} | {:.2} | {:.0} | {:.0} | {:.0} |",
        kind.name,
        ratio(&kind.chunks, &mut compressor),
        rate(&kind.chunks, compressing),
        rate(&kind.chunks, decompressing),
        rate(&kind.chunks, packing),
    );
}

/// Trains on one half of the blocks, every other stretch of 1 MiB, and tries the other.
fn dictionary_rows(kind: &Kind) {
    let blocks_of = |rest: usize| -> Vec<&[u8]> {
        let pieces = kind.pieces.iter().skip(rest).step_by(2);
        pieces.flat_map(|piece| piece.chunks(4096)).filter(|block| !is_zero(block)).collect()
    };
    let Some(dictionary) = train(&blocks_of(0)) else { return };
    let blocks: Vec<Bytes> = blocks_of(1).into_iter().map(Bytes::copy_from_slice).collect();
    for level in [-1, 1, 3] {
        let encoder = zstd::dict::EncoderDictionary::copy(&dictionary, level);
        let decoder = zstd::dict::DecoderDictionary::copy(&dictionary);
        let plain = (zstd::bulk::Compressor::new(level).unwrap(), zstd::bulk::Decompressor::new().unwrap());
        let with = (
            zstd::bulk::Compressor::with_prepared_dictionary(&encoder).unwrap(),
            zstd::bulk::Decompressor::with_prepared_dictionary(&decoder).unwrap(),
        );
        let [plain, with] = [lone_blocks(&blocks, plain.0, plain.1), lone_blocks(&blocks, with.0, with.1)];
        println!(
            "| {} | {level} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:.0} |",
            kind.name, plain[0], with[0], plain[1], with[1], plain[2], with[2]
        );
    }
}

/// Ratio, and speed of both directions.
fn lone_blocks(
    blocks: &[Bytes],
    mut compressor: zstd::bulk::Compressor<'_>,
    mut decompressor: zstd::bulk::Decompressor<'_>,
) -> [f64; 3] {
    let mut out = Vec::with_capacity(1 << 16);
    let (compressing, stored) =
        best(|| blocks.iter().map(|block| compressor.compress(block).unwrap()).collect::<Vec<_>>());
    let (decompressing, ()) = best(|| {
        for frame in &stored {
            out.clear();
            decompressor.decompress_to_buffer(frame, &mut out).unwrap();
        }
    });
    let kept =
        stored.iter().map(|frame| if frame.len() <= 4096 - 4096 / 20 { frame.len() } else { 4096 } + 16);
    let ratio = float(4096 * blocks.len() as u64) / float(kept.sum::<usize>() as u64);
    [ratio, rate(blocks, compressing), rate(blocks, decompressing)]
}

/// By the program `zstd`: the library's trainer is a build option that nothing else here needs.
fn train(blocks: &[&[u8]]) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let (samples, dictionary) = (folder.path().join("samples"), folder.path().join("dictionary"));
    std::fs::write(&samples, blocks.concat()).unwrap();
    let size = format!("--maxdict={DICTIONARY_BYTES}");
    let trained = Command::new("zstd")
        .args(["--train", "-q", "-f", "-B4096", &size, "-o"])
        .args([&dictionary, &samples])
        .status();
    match trained {
        Ok(status) if status.success() => Some(std::fs::read(dictionary).unwrap()),
        _ => {
            eprintln!("no dictionary: the program `zstd` is missing or failed");
            None
        }
    }
}

/// The chunks that the packer makes of the pieces.
fn chunks(pieces: &[Bytes], shape: ChunkShape) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    let packer = packer().with_chunk_sink(Box::new(|_, chunk| chunks.push(Bytes::copy_from_slice(chunk))));
    run(packer, pieces, Compression::Off, shape);
    chunks
}

fn pack(pieces: &[Bytes], compression: Compression, shape: ChunkShape) -> PackStats {
    run(packer(), pieces, compression, shape)
}

fn packer<'a>() -> Packer<'a> {
    let header = BatchHeader {
        site: SiteId::from_bytes([1; 16]),
        gateway: GatewayId::from_bytes([2; 16]),
        batch: BatchId::from_bytes([3; 16]),
        attempt: 1,
        previous: None,
    };
    Packer::new(PackConfig::default(), header, Ports::system())
}

fn run(mut packer: Packer<'_>, pieces: &[Bytes], compression: Compression, shape: ChunkShape) -> PackStats {
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm);
    let header = VolumeHeader {
        volume: VolumeId::from_bytes([4; 16]),
        lineage: LineageId::from_bytes([5; 16]),
        generation: Generation::new(1),
        base: WriteSeq::ZERO,
        through: WriteSeq::new(1),
    };
    packer.volume(header, VolumePacking { shape, compression, ..VolumePacking::new(domain) });
    let mut at = Lba::ZERO;
    for piece in pieces {
        packer.run(at, std::slice::from_ref(piece));
        at = at.plus((piece.len() / 4096) as u64);
        while packer.next_segment().is_some() {}
    }
    packer.finish().stats
}

fn ratio(chunks: &[Bytes], compressor: &mut zstd::bulk::Compressor<'static>) -> f64 {
    float(bytes(chunks)) / float(chunks.iter().map(|chunk| stored_bytes(compressor, chunk)).sum())
}

fn bytes(chunks: &[Bytes]) -> u64 {
    chunks.iter().map(|chunk| chunk.len() as u64).sum()
}

/// Of plaintext, in 10^6 bytes a second.
fn rate(chunks: &[Bytes], seconds: f64) -> f64 {
    float(bytes(chunks)) / 1e6 / seconds
}

/// The least processor time of a few rounds, in seconds, and the last round's value.
fn best<T>(mut work: impl FnMut() -> T) -> (f64, T) {
    let mut least = f64::INFINITY;
    let mut value = None;
    for _ in 0..ROUNDS {
        let begun = processor_seconds();
        value = Some(work());
        least = least.min(processor_seconds() - begun);
    }
    (least, value.unwrap())
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a short run")]
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
