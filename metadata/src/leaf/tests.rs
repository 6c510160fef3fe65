use super::*;
use cairn_model::BLOCKS_PER_CHUNK_MAX;
use cairn_model::map::codec::MapCodecError;
use proptest::prelude::*;

const INDEX: LeafIndex = LeafIndex(3);

type Blocks = Vec<Option<ChunkRef>>;

/// Changes near each other in leaf 3, some of them beginning before it or ending after it.
fn any_ops() -> impl Strategy<Value = Vec<MapOp>> {
    let origin = INDEX.range().start().get();
    let begin =
        prop_oneof![Just(origin - 20), Just(origin), Just(origin + 100), Just(origin + LEAF_BLOCKS - 60)];
    let run = (0u64..12, 0u8..5, 0u32..3, 0u8..16, 1u64..17, 1u64..40);
    (begin, prop::collection::vec(run, 0..30)).prop_map(|(mut at, runs)| {
        let mut ops = Vec::new();
        for (gap, number, chunk, block, blocks, hole_blocks) in runs {
            at += gap;
            let (blocks, target) = if number == 0 {
                (hole_blocks, MapTarget::Hole)
            } else {
                let container = ContainerId::from_bytes([number; 16]);
                let chunk = ChunkId { container, index: ChunkIndex::new(chunk) };
                let blocks = blocks.min(u64::from(BLOCKS_PER_CHUNK_MAX - block));
                (blocks, MapTarget::Chunk(ChunkRef { chunk, block }))
            };
            let range = LbaRange::new(Lba::new(at), blocks).unwrap();
            at = range.end().get();
            ops.push(MapOp { range, target });
        }
        ops
    })
}

fn apply_to_blocks(blocks: &mut Blocks, ops: &[MapOp]) {
    for op in ops.iter().filter_map(|op| op.clipped(INDEX.range())) {
        for offset in 0..op.range.blocks() {
            let at = op.range.start().get() - INDEX.range().start().get() + offset;
            blocks[usize::try_from(at).unwrap()] = match op.target.advanced(offset) {
                MapTarget::Hole => None,
                MapTarget::Chunk(chunk) => Some(chunk),
            };
        }
    }
}

fn assert_same(leaf: &MapLeaf, blocks: &Blocks, range: LbaRange) {
    let mut at = range.start();
    leaf.lookup(range, |piece, target| {
        assert_eq!(piece.start(), at);
        assert!(!piece.is_empty());
        at = piece.end();
        for offset in 0..piece.blocks() {
            let block = piece.start().get() + offset - INDEX.range().start().get();
            let expected = blocks[usize::try_from(block).unwrap()].map_or(MapTarget::Hole, MapTarget::Chunk);
            assert_eq!(target.advanced(offset), expected);
        }
    });
    assert_eq!(at, range.end());
}

proptest! {
    #[test]
    fn equals_an_array_of_blocks(
        changes in prop::collection::vec(any_ops(), 1..6),
        start in 0..LEAF_BLOCKS,
        length in 0..LEAF_BLOCKS,
    ) {
        let mut leaf = MapLeaf::default();
        let mut blocks: Blocks = vec![None; usize::try_from(LEAF_BLOCKS).unwrap()];
        for ops in changes {
            leaf.apply(INDEX, ops.iter().copied());
            apply_to_blocks(&mut blocks, &ops);
            assert_same(&leaf, &blocks, INDEX.range());
            let start = INDEX.range().start().plus(start);
            let end = start.plus(length).min(INDEX.range().end());
            assert_same(&leaf, &blocks, LbaRange::between(start, end));
            prop_assert_eq!(leaf.is_empty(), blocks.iter().all(Option::is_none));
            prop_assert_eq!(leaf.blocks(), blocks.iter().flatten().count() as u64);
        }
    }

    #[test]
    fn survives_its_bytes(changes in prop::collection::vec(any_ops(), 1..4)) {
        let mut leaf = MapLeaf::default();
        for ops in changes {
            leaf.apply(INDEX, ops);
        }
        prop_assert_eq!(MapLeaf::decode(INDEX, &leaf.encode(INDEX)), Ok(leaf));
    }

    #[test]
    fn any_changed_byte_is_noticed(ops in any_ops(), position in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = MapLeaf::from_ops(INDEX, ops).encode(INDEX);
        let position = position.index(bytes.len());
        bytes[position] ^= flip;
        prop_assert!(MapLeaf::decode(INDEX, &bytes).is_err());
    }

    #[test]
    fn neighbours_that_continue_a_chunk_are_one_run(ops in any_ops(), cuts in prop::collection::vec(1u64..400, 0..8)) {
        let whole = MapLeaf::from_ops(INDEX, ops.clone());
        let mut pieces = Vec::new();
        for op in ops {
            let mut rest = op.range;
            for cut in &cuts {
                let at = Lba::new(INDEX.range().start().get() + cut);
                if rest.contains(at) {
                    pieces.extend(op.clipped(LbaRange::between(rest.start(), at)));
                    rest = LbaRange::between(at, rest.end());
                }
            }
            pieces.extend(op.clipped(rest));
        }
        prop_assert_eq!(MapLeaf::from_ops(INDEX, pieces), whole);
    }
}

/// `runs` runs of `blocks` blocks, each of another chunk of one of `containers` containers.
fn filled(runs: u64, blocks: u64, containers: u64) -> MapLeaf {
    let ops = (0..runs).map(|run| {
        let mut container = [7; 16];
        container[..8].copy_from_slice(&(run % containers).to_be_bytes());
        let index = ChunkIndex::new(u32::try_from(run / containers).unwrap());
        let chunk = ChunkId { container: ContainerId::from_bytes(container), index };
        let range = LbaRange::new(INDEX.range().start().plus(run * blocks), blocks).unwrap();
        MapOp { range, target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
    });
    MapLeaf::from_ops(INDEX, ops)
}

#[test]
fn a_sequential_leaf_is_about_a_page() {
    let leaf = filled(LEAF_BLOCKS / 8, 8, 1);
    assert!(leaf.encode(INDEX).len() < 4400, "{} bytes", leaf.encode(INDEX).len());
    assert!(leaf.memory_bytes() < 25_000, "{} bytes", leaf.memory_bytes());
}

#[test]
fn the_most_scattered_leaf_stays_small() {
    let leaf = filled(LEAF_BLOCKS, 1, 64);
    assert!(leaf.encode(INDEX).len() < 100_000, "{} bytes", leaf.encode(INDEX).len());
    assert!(leaf.memory_bytes() < 200_000, "{} bytes", leaf.memory_bytes());
}

#[test]
fn as_many_containers_as_blocks_fit() {
    let leaf = filled(LEAF_BLOCKS, 1, LEAF_BLOCKS);
    assert_eq!(MapLeaf::decode(INDEX, &leaf.encode(INDEX)), Ok(leaf));
}

#[test]
fn a_leaf_is_not_taken_for_another() {
    let bytes = filled(1, 1, 1).encode(INDEX);
    assert_eq!(MapLeaf::decode(LeafIndex(4), &bytes), Err(MapCodecError::Corrupt("of another leaf")));
}

#[test]
fn containers_that_nothing_points_at_any_more_are_forgotten() {
    let mut leaf = filled(64, 1, 64);
    assert_eq!(leaf.containers().len(), 64);
    let range = LbaRange::new(INDEX.range().start(), 63).unwrap();
    leaf.apply(INDEX, [MapOp { range, target: MapTarget::Hole }]);
    assert_eq!((leaf.containers().len(), leaf.runs()), (1, 1));
}

#[test]
fn leaves_tile_the_largest_volume() {
    assert_eq!(LeafIndex::of(Lba::new(LEAF_BLOCKS - 1)), LeafIndex(0));
    assert_eq!(LeafIndex::of(Lba::new(LEAF_BLOCKS)), LeafIndex(1));
    assert_eq!(LeafIndex::of(Lba::new(VOLUME_BLOCKS_MAX - 1)), LeafIndex(LEAVES_MAX - 1));
    assert_eq!(LeafIndex::new(LEAVES_MAX), None);
    assert_eq!(LeafIndex(1).range(), LbaRange::new(Lba::new(LEAF_BLOCKS), LEAF_BLOCKS).unwrap());
}
