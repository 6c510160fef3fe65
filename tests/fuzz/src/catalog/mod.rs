//! The blobs of the catalog: deltas and leaves of extent maps.

pub(crate) mod delta;
pub(crate) mod leaf;

use cairn_model::{
    BLOCKS_PER_CHUNK_MAX, ChunkId, ChunkIndex, ChunkRef, ContainerId, Lba, LbaRange, MapOp, MapTarget,
};

use crate::input::Input;

/// `body` with the checksum that the format wants: what decodes it is reached, not only the check of its sum.
fn with_checksum(body: &[u8]) -> Vec<u8> {
    [body, &blake3::hash(body).as_bytes()[..8]].concat()
}

/// Disjoint changes in address order, from block `from` on and below `end`.
fn changes(input: &mut Input<'_>, from: u64, end: u64) -> Vec<MapOp> {
    let mut at = from;
    let mut ops = Vec::new();
    for _ in 0..input.below(64) {
        let start = at + u64::from(input.byte());
        let shape = input.byte();
        let hole = shape & 0x80 != 0;
        let blocks = if hole { 1 + u64::from(input.byte()) * 16 } else { 1 + u64::from(shape & 15) };
        let block = (shape >> 4 & 7) * 2;
        let blocks = if hole { blocks } else { blocks.min(u64::from(BLOCKS_PER_CHUNK_MAX - block)) };
        at = start + blocks;
        if at > end {
            break;
        }
        let target = if hole {
            MapTarget::Hole
        } else {
            let container = ContainerId::from_bytes([input.below(4); 16]);
            let chunk = ChunkId { container, index: ChunkIndex::new(u32::from(input.byte())) };
            MapTarget::Chunk(ChunkRef { chunk, block })
        };
        ops.push(MapOp { range: LbaRange::between(Lba::new(start), Lba::new(at)), target });
    }
    ops
}
