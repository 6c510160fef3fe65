//! Addresses inside a volume, in blocks.

use std::fmt;

/// Bytes in a block, the granule of maps (architecture: vocabulary).
pub const BLOCK_SIZE: u32 = 4096;

/// Largest volume: 64 TiB.
pub const VOLUME_BLOCKS_MAX: u64 = (64 << 40) / BLOCK_SIZE as u64;

/// One block of zeros, to answer reads of holes without allocating.
pub static ZERO_BLOCK: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// Logical block address: index of a 4096-byte block in a volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(u64);

impl Lba {
    pub const ZERO: Self = Self(0);

    pub const fn new(block: u64) -> Self {
        Self(block)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// Offset of the block's first byte.
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_SIZE as u64
    }

    pub const fn plus(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }
}

impl fmt::Debug for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lba:{}", self.0)
    }
}

/// A non-wrapping half-open range of blocks `[start, end)`; may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LbaRange {
    start: u64,
    end: u64,
}

impl LbaRange {
    /// `None` when `start + blocks` overflows.
    pub const fn new(start: Lba, blocks: u64) -> Option<Self> {
        match start.0.checked_add(blocks) {
            Some(end) => Some(Self { start: start.0, end }),
            None => None,
        }
    }

    /// The range `[start, end)`; empty when `end <= start`.
    pub const fn between(start: Lba, end: Lba) -> Self {
        let end_block = if end.0 < start.0 { start.0 } else { end.0 };
        Self { start: start.0, end: end_block }
    }

    pub const fn start(self) -> Lba {
        Lba(self.start)
    }

    pub const fn end(self) -> Lba {
        Lba(self.end)
    }

    /// Length in blocks.
    pub const fn blocks(self) -> u64 {
        self.end - self.start
    }

    pub const fn bytes(self) -> u64 {
        self.blocks() * BLOCK_SIZE as u64
    }

    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub const fn contains(self, lba: Lba) -> bool {
        self.start <= lba.0 && lba.0 < self.end
    }

    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The common part; `None` when there is none.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }
}

impl fmt::Debug for LbaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lba:{}..{}", self.start, self.end)
    }
}
