//! Leaves: any bytes as one, and one that changes are laid over, beside an array of blocks.
//!
//! What must hold: what decodes is written back as the same, whole; after any changes a look-up of any range gives what the array has,
//! and so it does after encoding and decoding; changes outside the leaf change nothing; nothing allocates more than its
//! length justifies.

use super::{changes, with_checksum};
use crate::input::Input;
use crate::{Seeds, lie, memory};
use cairn_metadata::{LEAF_BLOCKS, LEAVES_MAX, LeafIndex, MapLeaf};
use cairn_model::{Lba, LbaRange, MapTarget, RangeValue};

/// What each block of a leaf points at.
type Blocks = Vec<MapTarget>;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let setup = input.byte();
    let index = LeafIndex::new(u32::from(setup >> 4) % LEAVES_MAX).unwrap();
    let mut leaf = MapLeaf::default();
    if setup & 1 != 0 {
        let body = input.number::<u16>();
        let body = input.bytes(usize::from(body));
        let raw = setup & 2 != 0;
        let bytes = if raw { body.to_vec() } else { with_checksum(&sealed_body(index, body)) };
        match memory::bounded(64 * bytes.len() + 4096, || MapLeaf::decode(index, &bytes)) {
            Ok(decoded) => leaf = decoded,
            Err(_) => return,
        }
        check_bytes(index, &leaf);
    }
    let mut blocks = vec![MapTarget::Hole; usize::try_from(LEAF_BLOCKS).unwrap()];
    leaf.lookup(index.range(), |range, target| lay(&mut blocks, index, range, target));
    let from = index.range().start().get().saturating_sub(64);
    for _ in 0..4 {
        if input.is_empty() {
            break;
        }
        let ops = changes(&mut input, from, u64::MAX);
        for op in &ops {
            if let Some(op) = op.clipped(index.range()) {
                lay(&mut blocks, index, op.range, op.target);
            }
        }
        leaf.apply(index, ops);
        if lie::told() {
            blocks.rotate_right(1);
        }
        check_bytes(index, &leaf);
        check_lookup(&leaf, index, &blocks, index.range());
    }
    let start = index.range().start().get() + u64::from(input.number::<u16>()) % LEAF_BLOCKS;
    let end = (start + u64::from(input.number::<u16>())).min(index.range().end().get());
    check_lookup(&leaf, index, &blocks, LbaRange::between(Lba::new(start), Lba::new(end)));
}

/// Kind, version and index as they must be, so that what follows is read.
fn sealed_body(index: LeafIndex, rest: &[u8]) -> Vec<u8> {
    let mut body = b"l\x01".to_vec();
    cairn_model::varint::put(&mut body, u64::from(index.get()));
    body.extend_from_slice(rest);
    body
}

fn lay(blocks: &mut Blocks, index: LeafIndex, range: LbaRange, target: MapTarget) {
    let origin = index.range().start().get();
    for block in range.start().get()..range.end().get() {
        blocks[usize::try_from(block - origin).unwrap()] = target.advanced(block - range.start().get());
    }
}

fn check_bytes(index: LeafIndex, leaf: &MapLeaf) {
    let bytes = leaf.encode(index);
    assert_eq!(MapLeaf::decode(index, &bytes).as_ref(), Ok(leaf), "a leaf reads back as it was written");
    let other = LeafIndex::new((index.get() + 1) % LEAVES_MAX).unwrap();
    assert!(MapLeaf::decode(other, &bytes).is_err(), "a leaf is taken for another");
}

fn check_lookup(leaf: &MapLeaf, index: LeafIndex, blocks: &Blocks, range: LbaRange) {
    let mut next = range.start();
    leaf.lookup(range, |piece, target| {
        assert_eq!(piece.start(), next, "the pieces of a look-up follow one another");
        assert!(!piece.is_empty());
        next = piece.end();
        for block in piece.start().get()..piece.end().get() {
            let expected = blocks[usize::try_from(block - index.range().start().get()).unwrap()];
            assert_eq!(target.advanced(block - piece.start().get()), expected, "block {block}");
        }
    });
    assert!(range.is_empty() || next == range.end(), "the pieces of a look-up cover it");
}

pub(crate) fn seeds() -> Seeds {
    let made: &[u8] = &[
        0, 4, 70, 0x0f, 1, 1, 0, 0x0f, 1, 2, 9, 0x13, 2, 200, 1, 0x80, 3, 2, 70, 0x07, 1, 9, 100, 0x07, 3, 1,
    ];
    let leaf =
        MapLeaf::from_ops(LeafIndex::new(0).unwrap(), changes(&mut Input::new(&made[1..]), 0, LEAF_BLOCKS));
    let written = leaf.encode(LeafIndex::new(0).unwrap());
    let body = &written[3..written.len() - 8];
    let length = u16::try_from(body.len()).unwrap().to_le_bytes();
    let whole = u16::try_from(written.len()).unwrap().to_le_bytes();
    vec![
        ("made".to_owned(), made.to_vec()),
        ("made-further-on".to_owned(), [&[0x30], &made[1..]].concat()),
        ("decoded".to_owned(), [&[1], &length[..], body, &made[1..]].concat()),
        ("written".to_owned(), [&[3], &whole[..], &written].concat()),
    ]
}
