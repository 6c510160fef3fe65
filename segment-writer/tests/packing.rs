//! Packing, storing and reading back, over a directory.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::{ChunkId, Lba, LbaRange, MapOp, MapTarget, VOLUME_BLOCKS_MAX};
use cairn_segment_writer::{ChunkShape, Compression, Dedupe, PackConfig, Packer, VolumePacking};
use common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One write of the generated batches: gap before it, blocks, what they hold, where the pieces end.
#[derive(Clone, Debug)]
struct Run {
    gap: u64,
    blocks: Vec<u8>,
    piece_blocks: usize,
    discard: bool,
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let run = (0u64..20, prop::collection::vec(0u8..5, 1..60), 1usize..20, prop::bool::weighted(0.1))
        .prop_map(|(gap, blocks, piece_blocks, discard)| Run { gap, blocks, piece_blocks, discard });
    prop::collection::vec(run, 0..12)
}

fn content(kind: u8, lba: u64) -> Bytes {
    match kind {
        0 => vec![0; BLOCK].into(),
        1 => random(1, lba),
        2 => text(1, lba),
        // The same in many places, also one behind the other.
        _ => random(1, lba / 3 % 4),
    }
}

fn packings() -> impl Strategy<Value = VolumePacking> {
    let dedupe = prop::sample::select(vec![Dedupe::Off, Dedupe::On, Dedupe::Verify]);
    (1u8..=16, 0u8..16, prop::option::of(-5i8..4), dedupe).prop_map(|(target, more, level, dedupe)| {
        VolumePacking {
            domain: domain(),
            shape: ChunkShape::new(target, (target + more).min(16)).unwrap(),
            compression: level.map_or(Compression::Off, Compression::Zstd),
            dedupe,
        }
    })
}

/// Where each block points.
fn by_block(ops: impl Iterator<Item = MapOp>) -> BTreeMap<Lba, MapTarget> {
    ops.flat_map(|op| {
        let blocks = op.range.start().get()..op.range.end().get();
        blocks.map(Lba::new).map(move |at| {
            let one = op.clipped(LbaRange::new(at, 1).unwrap()).unwrap();
            (at, one.target)
        })
    })
    .collect()
}

/// Gives the runs to the packer; returns what the volume must hold after.
fn pack(packer: &mut Packer<'_>, runs: &[Run]) -> BTreeMap<Lba, Option<Bytes>> {
    let mut expected = BTreeMap::new();
    let mut at = 0;
    for run in runs {
        at += run.gap;
        let start = Lba::new(at);
        let blocks: Vec<_> = (at..).zip(&run.blocks).map(|(lba, &kind)| content(kind, lba)).collect();
        for (lba, block) in (at..).zip(&blocks) {
            let hole = run.discard || block.iter().all(|&byte| byte == 0);
            expected.insert(Lba::new(lba), (!hole).then(|| block.clone()));
        }
        at += blocks.len() as u64;
        if run.discard {
            packer.discard(LbaRange::between(start, Lba::new(at)));
        } else {
            let pieces: Vec<Bytes> =
                blocks.chunks(run.piece_blocks).map(|piece| piece.concat().into()).collect();
            packer.run(start, &pieces);
        }
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_packed_reads_back(
        first in runs(), second in runs(), ways in (packings(), packings()), container_kib in 16u32..512,
    ) {
        let config = PackConfig { container_bytes_max: container_kib << 10 };
        let mut packer = packer(config);
        packer.volume(volume(1), ways.0);
        let first_expected = pack(&mut packer, &first);
        packer.volume(volume(2), ways.1);
        let second_expected = pack(&mut packer, &second);
        let done = finish(packer);
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let pool = directory_pool(folder.path()).await;
            let mut from_footers = vec![BTreeMap::new(), BTreeMap::new()];
            for (number, segment) in done.segments.iter().enumerate() {
                let receipt = pool.put(segment).await.unwrap();
                assert_eq!(receipt.length_bytes(), segment.length_bytes());
                let footer = pool.nodes()[0].read_footer(receipt.key(), &domain()).await.unwrap();
                assert_eq!(footer.index as usize, number);
                assert_eq!(footer.last, number + 1 == done.segments.len());
                assert_eq!(&footer.containers[..], segment.containers());
                for share in footer.volumes {
                    let volume = done.batch.deltas.iter().position(|delta| delta.header == share.header).unwrap();
                    for op in share.delta.ops {
                        from_footers[volume].insert(op.range.start(), op);
                    }
                }
            }
            for ((delta, told), expected) in done.batch.deltas.iter().zip(from_footers).zip([first_expected, second_expected]) {
                assert_eq!(read_back(&pool, &domain(), &done.segments, &delta.delta).await, expected);
                // Operations may be cut where a segment ends; block by block the footers tell what the catalog is told.
                assert_eq!(by_block(told.into_values()), by_block(delta.delta.ops.iter().copied()));
            }
        });
    }
}

#[test]
fn the_chunk_sink_sees_what_it_is_to_be_shown() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let seen = Arc::clone(&seen);
        Box::new(move |_, bytes: &[u8]| seen.lock().unwrap().push(bytes[0]))
    };
    let mut packer = packer(PackConfig::default()).with_chunk_sink(sink);
    packer.volume(volume(1), packing());
    for (at, shown) in [(1, true), (2, false), (3, false), (4, true)] {
        packer.show_chunks(shown);
        packer.run(Lba::new(u64::from(at) * 100), &[Bytes::from(vec![at; 4096])]);
    }
    assert_eq!(finish(packer).batch.stats.chunks, 4);
    assert_eq!(*seen.lock().unwrap(), [1, 4]);
}

#[test]
fn the_chunk_sink_sees_every_chunk_as_it_reads_back() {
    let seen = Arc::new(Mutex::new(BTreeMap::<ChunkId, Bytes>::new()));
    let sink = {
        let seen = Arc::clone(&seen);
        Box::new(move |chunk, bytes: &[u8]| {
            assert!(seen.lock().unwrap().insert(chunk, Bytes::copy_from_slice(bytes)).is_none());
        })
    };
    let mut packer = packer(PackConfig::default()).with_chunk_sink(sink);
    packer.volume(volume(1), packing());
    let runs: Vec<_> = (1..20)
        .map(|length| Run { gap: 3, blocks: vec![2; length], piece_blocks: 3, discard: false })
        .collect();
    let expected = pack(&mut packer, &runs);
    let done = finish(packer);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, done.batch.stats.chunks);
    for op in &done.batch.deltas[0].delta.ops {
        let MapTarget::Chunk(at) = op.target else { panic!("no zeros were written") };
        let blocks: Vec<_> = (0..op.range.blocks())
            .map(|block| expected[&op.range.start().plus(block)].clone().unwrap())
            .collect();
        assert_eq!(seen[&at.chunk], blocks.concat());
    }
}

#[test]
fn a_batch_without_data_still_makes_a_segment() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.discard(LbaRange::new(Lba::ZERO, VOLUME_BLOCKS_MAX).unwrap());
    packer.volume(volume(2), packing());
    let done = finish(packer);
    assert_eq!(done.segments.len(), 1);
    assert!(done.segments[0].containers().is_empty());
    assert!(done.segments[0].length_bytes() < 1024);
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let pool = directory_pool(folder.path()).await;
        let receipt = pool.put(&done.segments[0]).await.unwrap();
        let footer = pool.nodes()[0].read_footer(receipt.key(), &domain()).await.unwrap();
        assert_eq!(footer.volumes, done.batch.deltas.iter().map(told).collect::<Vec<_>>());
        assert_eq!(
            footer.volumes.len(),
            2,
            "a volume without changes is told too: its writes may have been undone"
        );
        assert!(footer.last);
    });
}

#[test]
fn segments_hold_about_as_much_as_configured() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(8192, 1)]);
    let done = finish(packer);
    assert_eq!(done.segments.len(), 5);
    for segment in &done.segments[..4] {
        let bytes = segment.containers()[0].length_bytes();
        assert!((8 << 20) - (64 << 10) < bytes && bytes <= 8 << 20, "{bytes}");
    }
}

#[test]
fn zeros_are_not_stored() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[Bytes::from(vec![0; 1000 * BLOCK])]);
    packer.run(Lba::new(1000), &[Bytes::from(vec![0; 24 * BLOCK])]);
    let done = finish(packer);
    assert_eq!(done.batch.stats.chunks, 0);
    assert_eq!(done.batch.stats.reduction.zero_bytes, 1024 * BLOCK as u64);
    let whole = LbaRange::new(Lba::ZERO, 1024).unwrap();
    assert_eq!(done.batch.deltas[0].delta.ops, [MapOp { range: whole, target: MapTarget::Hole }]);
}

#[test]
fn very_many_discards_take_several_segments_with_readable_footers() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    for number in 0..150_000 {
        packer.discard(LbaRange::new(Lba::new(number * 2), 1).unwrap());
    }
    let done = finish(packer);
    assert_eq!(done.segments.len(), 3);
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let pool = directory_pool(folder.path()).await;
        let mut ops = Vec::new();
        for segment in &done.segments {
            let receipt = pool.put(segment).await.unwrap();
            let footer = pool.nodes()[0].read_footer(receipt.key(), &domain()).await.unwrap();
            ops.extend(footer.volumes[0].delta.ops.iter().copied());
        }
        assert_eq!(ops, done.batch.deltas[0].delta.ops);
    });
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_input_is_refused() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::new(4), &[text(4, 1)]);
    packer.discard(LbaRange::new(Lba::new(7), 1).unwrap());
    packer.finish();
}
