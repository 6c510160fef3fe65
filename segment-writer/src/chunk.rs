//! Where consecutive blocks are cut into chunks.
//!
//! By content (Muthitacharoen, Chen, Mazières, SOSP 2001, with whole blocks for bytes): what was written at another
//! address, or behind other data, falls on the same chunks from the first boundary on. A chunk holds blocks that follow
//! each other, and ends behind the block that says so, when it is full, and before a hole, a shared block or the end of a run.
//! The cut decides nothing about formats: chunks of 1 to 16 blocks in any order are valid everywhere.

use cairn_model::{BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX, Fingerprint, ZERO_BLOCK};

/// How large chunks are: how often content ends one, and the most blocks of one.
///
/// A chunk ends behind a block whose fingerprint is a multiple of the target, or that ends in zeros as the last block of a
/// file does: behind the same content it ends at the same places, whatever lies before and wherever it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkShape {
    target: u8,
    max: u8,
}

/// A block that ends in so many zeros ends a chunk: file systems fill the last block of a file with zeros.
const TAIL_ZEROS: usize = 64;

impl ChunkShape {
    /// A boundary at one block in 8, at most 8 blocks: measured on disk images, see `docs/decisions/0008-chunking.md`.
    pub const DEFAULT: Self = Self { target: 8, max: 8 };

    /// `None` unless `1 <= target_blocks <= max_blocks <= 16`.
    pub const fn new(target_blocks: u8, max_blocks: u8) -> Option<Self> {
        if 1 <= target_blocks && target_blocks <= max_blocks && max_blocks <= BLOCKS_PER_CHUNK_MAX {
            Some(Self { target: target_blocks, max: max_blocks })
        } else {
            None
        }
    }

    /// Content ends a chunk behind one block in so many, on average.
    pub const fn target(self) -> u8 {
        self.target
    }

    /// Blocks of the largest chunk.
    pub const fn max(self) -> u8 {
        self.max
    }

    /// Whether a chunk ends behind `block`, which has this fingerprint, by its content alone.
    pub fn ends(self, fingerprint: &Fingerprint, block: &[u8]) -> bool {
        let value =
            u64::from_le_bytes(*fingerprint.as_bytes().first_chunk().expect("a fingerprint has 16 bytes"));
        value.is_multiple_of(u64::from(self.target))
            || block.last_chunk::<TAIL_ZEROS>().is_some_and(|tail| *tail == [0; TAIL_ZEROS])
    }
}

impl Default for ChunkShape {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Whether a block is all zeros.
pub(crate) fn is_zero_block(block: &[u8]) -> bool {
    debug_assert_eq!(block.len(), BLOCK_SIZE as usize);
    block == ZERO_BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_outside_the_limits_are_refused() {
        for (target, max) in [(0, 1), (0, 0), (2, 1), (1, 17), (17, 17)] {
            assert_eq!(ChunkShape::new(target, max), None);
        }
        let shape = ChunkShape::new(4, 16).unwrap();
        assert_eq!((shape.target(), shape.max()), (4, 16));
    }

    #[test]
    fn the_fingerprint_or_a_tail_of_zeros_ends_a_chunk() {
        let shape = ChunkShape::new(4, 16).unwrap();
        let print =
            |low: u8| Fingerprint::from_bytes([low, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let mut block = vec![1; BLOCK_SIZE as usize];
        let ends: Vec<_> = (0..8).filter(|low| shape.ends(&print(*low), &block)).collect();
        assert_eq!(ends, [0, 4]);
        let at = block.len() - TAIL_ZEROS;
        block[at..].fill(0);
        assert!(shape.ends(&print(1), &block));
        block[at] = 1;
        assert!(!shape.ends(&print(1), &block));
    }

    #[test]
    fn a_target_of_one_makes_chunks_of_one_block() {
        let block = vec![1; BLOCK_SIZE as usize];
        assert!((0..=255).all(|byte| {
            ChunkShape::new(1, 16).unwrap().ends(&Fingerprint::from_bytes([byte; 16]), &block)
        }));
    }
}
