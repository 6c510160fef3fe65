//! Blocks that are stored already are not stored again, and never taken for others.

#![allow(clippy::unwrap_used, reason = "this is test code")]

mod common;

use bytes::Bytes;
use cairn_model::{ChunkId, ChunkRef, DomainId, Fingerprint, Lba, LbaRange, MapTarget, Reduction};
use cairn_segment_writer::{
    Check, ChunkShape, ContainerCipher, Dedupe, Domain, PackConfig, Packer, SealedSegment, VolumePacking,
};
use common::*;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What is stored so far: an index of all blocks, and their plaintext.
#[derive(Clone, Default)]
struct Stored(Arc<Mutex<Tables>>);

#[derive(Default)]
struct Tables {
    index: HashMap<(DomainId, Fingerprint), ChunkRef>,
    chunks: HashMap<ChunkId, Bytes>,
    asked: u64,
}

impl Stored {
    /// One that finds what earlier batches stored, and has the plaintext of all.
    fn packer(&self, config: PackConfig) -> Packer<'static> {
        let (finding, checking, keeping) = (self.clone(), self.clone(), self.clone());
        packer(config)
            .with_finder(Box::new(move |domain, print| finding.find(domain, print)))
            .with_checker(Box::new(move |at, block| checking.check(at, block)))
            .with_chunk_sink(Box::new(move |id, bytes| {
                keeping.0.lock().chunks.insert(id, Bytes::copy_from_slice(bytes));
            }))
    }

    fn find(&self, domain: DomainId, print: &Fingerprint) -> Option<ChunkRef> {
        let mut tables = self.0.lock();
        tables.asked += 1;
        tables.index.get(&(domain, *print)).copied()
    }

    fn check(&self, at: ChunkRef, block: &[u8]) -> Check {
        match self.block(at) {
            None => Check::Unknown,
            Some(stored) if stored == block => Check::Same,
            Some(_) => Check::Different,
        }
    }

    fn block(&self, at: ChunkRef) -> Option<Bytes> {
        let start = usize::from(at.block) * BLOCK;
        Some(self.0.lock().chunks.get(&at.chunk)?.slice(start..start + BLOCK))
    }

    /// The batch is committed: later ones find its blocks.
    fn commit(&self, segments: &[SealedSegment]) {
        let mut tables = self.0.lock();
        for container in segments.iter().flat_map(SealedSegment::containers) {
            for (print, at) in container.fingerprints.iter().flat_map(|prints| prints.refs()) {
                tables.index.entry((container.domain, print)).or_insert(at);
            }
        }
    }

    /// Nobody has the plaintext any more.
    fn evict(&self) {
        self.0.lock().chunks.clear();
    }

    fn asked(&self) -> u64 {
        self.0.lock().asked
    }
}

/// Opens what a segment holds, from its bytes.
fn open(domain: &Domain, segments: &[SealedSegment]) -> HashMap<ChunkId, Bytes> {
    let mut chunks = HashMap::new();
    for segment in segments {
        let mut stored: HashMap<_, _> = segment.stored_chunks().collect();
        for container in segment.containers().iter().filter(|container| container.domain == domain.id()) {
            let cipher = ContainerCipher::new(domain, container.id);
            for (index, entry) in container.directory.iter() {
                let id = ChunkId { container: container.id, index };
                let mut bytes = stored.remove(&id).unwrap().to_vec();
                chunks.insert(id, cipher.open_chunk(index, entry, &mut bytes).unwrap());
            }
        }
    }
    chunks
}

fn targets(packed: &Packed, volume: usize) -> Vec<(LbaRange, MapTarget)> {
    packed.batch.deltas[volume].delta.ops.iter().map(|op| (op.range, op.target)).collect()
}

fn range(start: u64, blocks: u64) -> LbaRange {
    LbaRange::new(Lba::new(start), blocks).unwrap()
}

fn reduction(zero: u64, shared: u64, unique: u64, stored_bytes: u64) -> Reduction {
    let block = BLOCK as u64;
    Reduction {
        written_bytes: (zero + shared + unique) * block,
        zero_bytes: zero * block,
        shared_bytes: shared * block,
        unique_bytes: unique * block,
        stored_bytes,
    }
}

/// Chunks of up to 16 blocks that content never ends, or nearly so.
fn whole_chunks() -> ChunkShape {
    ChunkShape::new(16, 16).unwrap()
}

#[test]
fn a_copy_within_the_batch_is_stored_once() {
    let mut packer = packer(PackConfig::default());
    let data = random(100, 1);
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, std::slice::from_ref(&data));
    packer.volume(volume(2), packing());
    packer.run(Lba::new(777), &[data, Bytes::from(vec![0; 3 * BLOCK])]);
    let done = finish(packer);

    let first = targets(&done, 0);
    let stored: u64 = done.segments.iter().map(|segment| segment.containers()[0].length_bytes()).sum();
    assert_eq!(done.batch.deltas[0].reduction, reduction(0, 0, 100, stored));
    assert_eq!(done.batch.deltas[1].reduction, reduction(3, 100, 0, 0));
    let mut total = done.batch.deltas[0].reduction;
    total += done.batch.deltas[1].reduction;
    assert_eq!(done.batch.stats.reduction, total);
    let moved: Vec<_> = first
        .into_iter()
        .map(|(at, target)| (range(at.start().get() + 777, at.blocks()), target))
        .chain([(range(877, 3), MapTarget::Hole)])
        .collect();
    assert_eq!(targets(&done, 1), moved, "a chunk is one operation in the copy too");
}

#[test]
fn a_copy_in_a_later_batch_is_found_and_no_segment_holds_it_again() {
    let stored = Stored::default();
    let data = random(200, 1);
    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, std::slice::from_ref(&data));
    let first = finish(packer);
    stored.commit(&first.segments);

    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), packing());
    // Half of it, from the middle of a chunk, in front of something new.
    packer.run(Lba::new(5000), &[data.slice(50 * BLOCK..150 * BLOCK), random(1, 2)]);
    let second = finish(packer);
    assert_eq!(second.batch.deltas[0].reduction, reduction(0, 100, 1, 4096 + 16));
    for op in &second.batch.deltas[0].delta.ops {
        let MapTarget::Chunk(at) = op.target else { panic!("no zeros were written") };
        let source = op.range.start().get() - 5000 + 50;
        let expected = if source < 150 {
            data.slice(usize::try_from(source).unwrap() * BLOCK..).slice(..BLOCK)
        } else {
            random(1, 2)
        };
        assert_eq!(stored.block(at).unwrap(), expected);
    }
}

#[test]
fn equal_blocks_one_behind_the_other_take_one_operation_per_chunk() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking { shape: whole_chunks(), ..packing() });
    let block = Bytes::from(vec![0xff; BLOCK]);
    let print = domain().fingerprints().of(&block);
    assert!(!whole_chunks().ends(&print, &block), "this block would end a chunk");
    packer.run(Lba::ZERO, &vec![block; 1600]);
    let done = finish(packer);
    assert_eq!(done.batch.stats.chunks, 1);
    assert_eq!(done.batch.deltas[0].delta.ops.len(), 100);
    assert_eq!(done.batch.deltas[0].reduction.shared_bytes, 1584 * BLOCK as u64);
}

#[test]
fn the_finder_is_asked_only_for_what_the_batch_has_not() {
    let stored = Stored::default();
    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(64, 1), random(64, 1)]);
    finish(packer);
    assert_eq!(stored.asked(), 64);
}

#[test]
fn without_dedupe_nothing_is_fingerprinted_looked_up_or_shared() {
    let stored = Stored::default();
    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Off, shape: whole_chunks(), ..packing() });
    packer.run(Lba::new(5), &[random(40, 1), random(40, 1)]);
    let done = finish(packer);
    assert_eq!(stored.asked(), 0);
    assert_eq!(done.segments[0].containers()[0].fingerprints, None);
    assert_eq!(done.batch.deltas[0].reduction.shared_bytes, 0);
    let starts: Vec<_> = targets(&done, 0).iter().map(|(at, _)| at.start().get()).collect();
    assert_eq!(starts, [5, 16, 32, 48, 64, 80], "chunks end at multiples of the largest");
}

#[test]
fn fingerprinted_chunks_and_others_are_in_segments_of_their_own() {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(8, 1)]);
    packer.volume(volume(2), VolumePacking { dedupe: Dedupe::Off, ..packing() });
    packer.discard(range(0, 5));
    packer.volume(volume(3), packing());
    packer.run(Lba::ZERO, &[random(8, 2)]);
    packer.volume(volume(4), VolumePacking { dedupe: Dedupe::Off, ..packing() });
    packer.run(Lba::ZERO, &[random(8, 1)]);
    let done = finish(packer);
    let blocks: Vec<_> = done
        .segments
        .iter()
        .map(|segment| segment.containers()[0].fingerprints.as_ref().map(|prints| prints.blocks().len()))
        .collect();
    assert_eq!(blocks, [Some(16), None]);
}

#[test]
fn nothing_is_shared_across_domains() {
    let other = Domain::new(
        DomainId::from_bytes([9; 16]),
        cairn_model::crypto::SecretKey::from_bytes([7; 32]),
        domain().encryption(),
    );
    let stored = Stored::default();
    let data = random(30, 1);
    for round in 0..2 {
        let mut packer = stored.packer(PackConfig::default());
        for (number, domain) in [(1, domain()), (2, other.clone()), (3, open_domain())] {
            packer.volume(volume(number), VolumePacking::new(domain));
            packer.run(Lba::ZERO, std::slice::from_ref(&data));
        }
        let done = finish(packer);
        stored.commit(&done.segments);
        for delta in &done.batch.deltas {
            let shared = if round == 0 { 0 } else { 30 };
            assert_eq!(delta.reduction.shared_bytes, shared * BLOCK as u64, "{delta:?}");
        }
        for (segment, domain) in done.segments.iter().zip([domain(), other.clone(), open_domain()]) {
            assert!(segment.containers().iter().all(|container| container.domain == domain.id()));
        }
        assert_eq!(done.segments.len(), 3);
    }
}

/// An index that takes every block for one that is stored, as if all fingerprints were the same.
fn lying_packer(stored: &Stored, of: ChunkRef) -> Packer<'static> {
    let (checking, keeping) = (stored.clone(), stored.clone());
    packer(PackConfig::default())
        .with_finder(Box::new(move |_, _| Some(of)))
        .with_checker(Box::new(move |at, block| checking.check(at, block)))
        .with_chunk_sink(Box::new(move |id, bytes| {
            keeping.0.lock().chunks.insert(id, Bytes::copy_from_slice(bytes));
        }))
}

#[test]
fn a_block_that_differs_from_the_one_of_its_fingerprint_is_stored_and_never_found_under_it() {
    let stored = Stored::default();
    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(1, 1)]);
    let first = finish(packer);
    let MapTarget::Chunk(original) = first.batch.deltas[0].delta.ops[0].target else { panic!() };

    for dedupe in [Dedupe::On, Dedupe::Verify] {
        let mut packer = lying_packer(&stored, original);
        packer.volume(volume(1), VolumePacking { dedupe, ..packing() });
        let data = [random(20, 2), random(1, 1), random(20, 2)];
        packer.run(Lba::ZERO, &data);
        let done = finish(packer);
        // This index takes names that blocks were given for it, too, when it is asked again.
        assert!(done.batch.stats.collisions >= 40, "{:?}", done.batch.stats);
        assert_eq!(done.batch.deltas[0].reduction.shared_bytes, BLOCK as u64, "the equal block is shared");
        let bytes = data.concat();
        for (at, target) in targets(&done, 0) {
            let MapTarget::Chunk(mut to) = target else { panic!("no zeros were written") };
            for lba in at.start().get()..at.end().get() {
                assert_eq!(
                    stored.block(to).unwrap(),
                    bytes[usize::try_from(lba).unwrap() * BLOCK..][..BLOCK]
                );
                to.block += 1;
            }
        }
        let key = domain().fingerprints();
        let names: Vec<_> = bytes.chunks(BLOCK).map(|block| key.of(block)).collect();
        let listed = done.segments[0].containers()[0].fingerprints.clone().unwrap();
        assert_eq!(listed.blocks().len(), 40);
        assert!(listed.blocks().iter().all(|print| !names.contains(print)), "the first block keeps its name");
    }
}

#[test]
fn a_hit_that_cannot_be_compared_counts_unless_it_must_be() {
    let stored = Stored::default();
    let data = random(10, 1);
    let pack = |dedupe| {
        let mut packer = stored.packer(PackConfig::default());
        packer.volume(volume(1), VolumePacking { dedupe, ..packing() });
        packer.run(Lba::ZERO, std::slice::from_ref(&data));
        let done = finish(packer);
        stored.commit(&done.segments);
        let stats = done.batch.stats;
        (stats.reduction.shared_bytes / BLOCK as u64, stats.unverified, stats.collisions)
    };
    assert_eq!(pack(Dedupe::Verify), (0, 0, 0));
    assert_eq!(pack(Dedupe::Verify), (10, 0, 0));
    stored.evict();
    assert_eq!(pack(Dedupe::On), (10, 0, 0));
    assert_eq!(pack(Dedupe::Verify), (0, 10, 0));
}

#[test]
fn a_block_that_is_stored_again_because_it_could_not_be_compared_can_be_compared_from_then_on() {
    let stored = Stored::default();
    let mut packer = stored.packer(PackConfig::default());
    packer.volume(volume(1), VolumePacking { dedupe: Dedupe::Verify, ..packing() });
    let data = random(10, 1);
    packer.run(Lba::ZERO, std::slice::from_ref(&data));
    packer.run(Lba::new(100), &[]);
    stored.evict();
    packer.run(Lba::new(200), std::slice::from_ref(&data));
    packer.run(Lba::new(300), &[data]);
    let done = finish(packer);
    assert_eq!(done.batch.stats.unverified, 10);
    assert_eq!(done.batch.deltas[0].reduction.shared_bytes, 10 * BLOCK as u64);
}

#[test]
fn blocks_before_a_hit_are_found_once_the_hit_has_brought_their_neighbours() {
    let stored = Stored::default();
    let data = random(12, 1);
    let way = VolumePacking { shape: whole_chunks(), ..packing() };
    let mut first = stored.packer(PackConfig::default());
    first.volume(volume(1), way.clone());
    first.run(Lba::ZERO, std::slice::from_ref(&data));
    stored.commit(&finish(first).segments);

    // This index has the last of these blocks in reach, and the others after it was asked for that one.
    let anchor = domain().fingerprints().of(&data[11 * BLOCK..]);
    let (index, mut loaded, asked) = (stored.clone(), false, Arc::new(Mutex::new(0)));
    let counter = Arc::clone(&asked);
    let mut packer = packer(PackConfig::default()).with_finder(Box::new(move |domain, print| {
        *counter.lock() += 1;
        loaded |= *print == anchor;
        index.find(domain, print).filter(|_| loaded)
    }));
    packer.volume(volume(1), way);
    let new = random(1, 2);
    packer.run(Lba::new(50), &[data.slice(3 * BLOCK..7 * BLOCK), new, data.slice(8 * BLOCK..)]);
    let done = finish(packer);
    let blocks = |volume| targets(&done, volume).iter().map(|(at, _)| at.blocks()).sum::<u64>();
    assert_eq!(blocks(0), 9);
    assert_eq!(done.batch.deltas[0].reduction, reduction(0, 8, 1, 4096 + 16));
    assert_eq!(*asked.lock(), 9 + 8, "each block twice at most");
}

#[test]
fn what_an_index_says_beyond_any_chunk_is_no_hit() {
    let nowhere = ChunkRef {
        chunk: ChunkId {
            container: cairn_model::ContainerId::from_bytes([1; 16]),
            index: cairn_model::ChunkIndex::new(0),
        },
        block: 16,
    };
    let mut packer = packer(PackConfig::default()).with_finder(Box::new(move |_, _| Some(nowhere)));
    packer.volume(volume(1), packing());
    packer.run(Lba::ZERO, &[random(3, 1)]);
    assert_eq!(finish(packer).batch.deltas[0].reduction.unique_bytes, 3 * BLOCK as u64);
}

/// Which source blocks each chunk holds, of a run that begins with source block `skip`.
fn cuts(data: &Bytes, skip: usize, slices: usize) -> Vec<(usize, usize)> {
    let mut packer = packer(PackConfig::default());
    packer.volume(volume(1), packing());
    let mut at = Lba::new(7);
    let mut rest = data.slice(skip * BLOCK..);
    while !rest.is_empty() {
        let run = rest.split_to(rest.len().min(slices * BLOCK));
        let blocks = (run.len() / BLOCK) as u64;
        packer.run(at, &[run]);
        at = at.plus(blocks);
    }
    targets(&finish(packer), 0)
        .into_iter()
        .map(|(at, _)| {
            let first = usize::try_from(at.start().get()).unwrap() - 7 + skip;
            (first, usize::try_from(at.blocks()).unwrap())
        })
        .collect()
}

#[test]
fn shifted_content_falls_on_the_same_chunks_from_the_first_boundary_on() {
    let data = random(400, 1);
    let whole = cuts(&data, 0, 1000);
    for skip in 1..20 {
        let shifted = cuts(&data, skip, 1000);
        let same = shifted.iter().position(|cut| whole.contains(cut)).unwrap();
        assert!(same <= 1, "the first boundary of a run that begins with block {skip} is new");
        let there = whole.iter().position(|cut| *cut == shifted[same]).unwrap();
        assert_eq!(shifted[same..], whole[there..]);
    }
}

#[test]
fn how_runs_are_sliced_changes_no_chunk() {
    let data = random(400, 1);
    let whole = cuts(&data, 0, 1000);
    for slices in [1, 2, 7, 16, 64] {
        assert_eq!(cuts(&data, 0, slices), whole);
    }
}

#[test]
fn content_ends_a_chunk_of_random_data_at_one_block_in_the_target_unless_it_is_full_before() {
    let shape = ChunkShape::DEFAULT;
    let chunks = f64::from(u32::try_from(cuts(&random(4000, 1), 0, 4000).len()).unwrap());
    let target = f64::from(shape.target());
    let blocks = target * (1.0 - (1.0 - 1.0 / target).powi(i32::from(shape.max())));
    let expected = 4000.0 / blocks;
    assert!((0.9..1.1).contains(&(chunks / expected)), "{chunks} chunks, {expected:.0} expected");
}

#[test]
fn a_chunk_does_not_go_on_across_a_gap_a_discard_or_a_volume() {
    let mut packer = packer(PackConfig::default());
    let way = VolumePacking { shape: whole_chunks(), ..packing() };
    let key = domain().fingerprints();
    let mut blocks = (0..).map(|seed| text(1, seed)).filter(|block| !way.shape.ends(&key.of(block), block));
    let mut next = || blocks.next().unwrap();
    packer.volume(volume(1), way.clone());
    packer.run(Lba::new(0), &[next()]);
    packer.run(Lba::new(1), &[next()]);
    packer.run(Lba::new(3), &[next()]);
    packer.discard(range(100, 1));
    packer.run(Lba::new(4), &[next()]);
    packer.volume(volume(2), way.clone());
    packer.run(Lba::new(5), &[next(), next()]);
    let done = finish(packer);
    let ranges = |volume| targets(&done, volume).into_iter().map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(ranges(0), [range(0, 2), range(3, 1), range(4, 1), range(100, 1)]);
    assert_eq!(ranges(1), [range(5, 2)]);
}

/// One of few blocks, so that many are equal.
fn few() -> impl Strategy<Value = Vec<(u8, Vec<u8>, u64)>> {
    let run = (0u8..3, prop::collection::vec(0u8..24, 1..40), 0u64..30);
    prop::collection::vec(run, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_batches_read_back_whatever_is_shared_or_forgotten(
        batches in prop::collection::vec((few(), any::<bool>()), 1..5), target in 1u8..=16, container_kib in 16u32..200,
    ) {
        let stored = Stored::default();
        let domains = [domain(), open_domain()];
        let mut opened = HashMap::new();
        let mut sums = Reduction::default();
        for (volumes, evict) in batches {
            let mut packer = stored.packer(PackConfig { container_bytes_max: container_kib << 10 });
            let mut expected = Vec::new();
            for (number, (way, blocks, start)) in (0u8..).zip(&volumes) {
                let dedupe = [Dedupe::On, Dedupe::Off, Dedupe::Verify][usize::from(*way)];
                let domain = domains[usize::from(number) / 3 % 2].clone();
                let shape = ChunkShape::new(target, 16).unwrap();
                packer.volume(volume(number), VolumePacking { dedupe, shape, ..VolumePacking::new(domain) });
                let blocks: Vec<_> = blocks.iter().map(|kind| match kind {
                    0 => Bytes::from(vec![0; BLOCK]),
                    kind => random(1, u64::from(*kind)),
                }).collect();
                packer.run(Lba::new(*start), &blocks);
                expected.push((*start..).zip(blocks).collect::<BTreeMap<_, _>>());
            }
            let done = finish(packer);
            for domain in &domains {
                opened.extend(open(domain, &done.segments));
            }
            for (delta, expected) in done.batch.deltas.iter().zip(expected) {
                let mut found = BTreeMap::new();
                for op in &delta.delta.ops {
                    for block in 0..op.range.blocks() {
                        let bytes = match op.clipped(LbaRange::new(op.range.start().plus(block), 1).unwrap()).unwrap().target {
                            MapTarget::Hole => Bytes::from(vec![0; BLOCK]),
                            MapTarget::Chunk(at) => opened[&at.chunk].slice(usize::from(at.block) * BLOCK..).slice(..BLOCK),
                        };
                        found.insert(op.range.start().get() + block, bytes);
                    }
                }
                prop_assert_eq!(found, expected);
                let sum = delta.reduction;
                prop_assert_eq!(sum.written_bytes, sum.zero_bytes + sum.shared_bytes + sum.unique_bytes);
                sums += sum;
            }
            let raw: u64 = done.segments.iter().flat_map(SealedSegment::containers).map(|container| container.directory.raw_bytes()).sum();
            prop_assert_eq!(raw, done.batch.stats.reduction.unique_bytes);
            stored.commit(&done.segments);
            if evict {
                stored.evict();
            }
        }
        prop_assert_eq!(sums.written_bytes % BLOCK as u64, 0);
    }
}
