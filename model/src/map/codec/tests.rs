use super::*;
use proptest::prelude::*;

fn container(number: u8) -> ContainerId {
    ContainerId::from_bytes([number; 16])
}

fn hole(start: u64, blocks: u64) -> MapOp {
    MapOp { range: LbaRange::new(Lba::new(start), blocks).unwrap(), target: MapTarget::Hole }
}

fn data(start: u64, blocks: u64, in_container: u8, chunk: u32, block: u8) -> MapOp {
    let chunk = ChunkId { container: container(in_container), index: ChunkIndex::new(chunk) };
    MapOp { target: MapTarget::Chunk(ChunkRef { chunk, block }), ..hole(start, blocks) }
}

fn any_delta() -> impl Strategy<Value = MapDelta> {
    let run = (0u64..200_000, 0u8..6, prop_oneof![0u32..4, any::<u32>()], 0u8..16, 1u64..17, any::<u16>());
    prop::collection::vec(run, 0..200).prop_map(|runs| {
        let mut at = 0;
        let mut ops = Vec::new();
        for (gap, number, chunk, block, blocks, hole_blocks) in runs {
            let start = at + gap;
            let op = if number == 0 {
                hole(start, u64::from(hole_blocks) + 1)
            } else {
                data(start, blocks.min(u64::from(16 - block)), number, chunk, block)
            };
            at = op.range.end().get();
            ops.push(op);
        }
        MapDelta { ops }
    })
}

/// The bytes with a checksum that agrees: damage that only the structure can show.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - CHECKSUM_BYTES;
    let sum = checksum(&bytes[..body]);
    bytes[body..].copy_from_slice(&sum);
    bytes
}

proptest! {
    #[test]
    fn a_delta_survives_its_bytes(delta in any_delta()) {
        prop_assert_eq!(MapDelta::decode(&delta.encode().unwrap()), Ok(delta));
    }

    #[test]
    fn any_changed_byte_is_noticed(delta in any_delta(), position in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = delta.encode().unwrap();
        let position = position.index(bytes.len());
        bytes[position] ^= flip;
        prop_assert!(MapDelta::decode(&bytes).is_err());
    }

    #[test]
    fn any_cut_is_noticed(delta in any_delta(), length in any::<prop::sample::Index>()) {
        let bytes = delta.encode().unwrap();
        prop_assert!(MapDelta::decode(&bytes[..length.index(bytes.len())]).is_err());
    }

    #[test]
    fn what_a_damaged_body_decodes_to_is_still_a_delta(
        delta in any_delta(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = delta.encode().unwrap();
        let body = bytes.len() - CHECKSUM_BYTES;
        for (position, value) in damage {
            bytes[2 + position.index(body - 2)] = value;
        }
        if let Ok(decoded) = MapDelta::decode(&resealed(bytes)) {
            prop_assert_eq!(decoded.check(), Ok(()));
        }
    }

    #[test]
    fn overlapping_finds_exactly_the_runs_that_touch(delta in any_delta(), start in 0u64..400_000, blocks in 0u64..100_000) {
        let range = LbaRange::new(Lba::new(start), blocks).unwrap();
        let expected: Vec<MapOp> = delta.ops.iter().copied().filter(|op| op.range.overlaps(range)).collect();
        if !range.is_empty() {
            prop_assert_eq!(delta.overlapping(range), &expected[..]);
        }
    }
}

#[test]
fn a_delta_that_is_none_has_no_bytes() {
    for (ops, reason) in [
        (vec![hole(5, 0)], "an empty run"),
        (vec![hole(5, 2), hole(6, 1)], "runs that overlap or are out of order"),
        (vec![hole(9, 1), hole(5, 1)], "runs that overlap or are out of order"),
        (vec![data(0, 9, 1, 1, 8)], "a run longer than its chunk"),
        (vec![hole(VOLUME_BLOCKS_MAX, 1)], "a run beyond the end of the largest volume"),
        ((0..=DELTA_OPS_MAX as u64).map(|start| hole(start, 1)).collect(), "more runs than a delta may have"),
    ] {
        assert_eq!(MapDelta { ops }.encode(), Err(MapCodecError::Invalid(reason)));
    }
}

#[test]
fn the_whole_of_the_largest_volume_is_one_small_run() {
    let delta = MapDelta { ops: vec![hole(0, VOLUME_BLOCKS_MAX)] };
    let bytes = delta.encode().unwrap();
    assert!(bytes.len() < 32, "{} bytes", bytes.len());
    assert_eq!(MapDelta::decode(&bytes), Ok(delta));
}

#[test]
fn a_newer_version_is_named_and_not_taken_for_damage() {
    let mut bytes = MapDelta::default().encode().unwrap();
    bytes[1] = 2;
    assert_eq!(MapDelta::decode(&bytes), Err(MapCodecError::Version { found: 2 }));
    assert_eq!(MapCodecError::Version { found: 2 }.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_count_beyond_the_bytes_is_refused_before_it_allocates() {
    let mut bytes = vec![b'd', VERSION, 0, 0];
    varint::put(&mut bytes, DELTA_OPS_MAX as u64);
    bytes.extend_from_slice(&[0; CHECKSUM_BYTES]);
    assert_eq!(MapDelta::decode(&resealed(bytes)), Err(MapCodecError::Corrupt("cut short")));
}

#[test]
fn a_leaf_is_not_taken_for_a_delta() {
    let bytes = encode(MapKind::Leaf, 0, &[], std::iter::empty());
    assert_eq!(MapDelta::decode(&bytes), Err(MapCodecError::Corrupt("of another kind")));
}

#[test]
fn sequential_chunks_cost_two_bytes_each() {
    let ops: Vec<MapOp> = (0..1000).map(|index| data(u64::from(index) * 8, 8, 1, index, 0)).collect();
    let bytes = MapDelta { ops }.encode().unwrap();
    assert!(bytes.len() < 2000 + 64, "{} bytes", bytes.len());
}
