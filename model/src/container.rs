//! Identities of sealed data.

use crate::ContainerId;
use std::fmt;

/// Blocks in the largest chunk (64 KiB).
pub const BLOCKS_PER_CHUNK_MAX: u8 = 16;

/// Position of a chunk in its container; also the nonce its bytes are sealed with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(u32);

impl ChunkIndex {
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk:{}", self.0)
    }
}

/// A chunk's identity: never reused, never changed, wherever its bytes live today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChunkId {
    pub container: ContainerId,
    pub index: ChunkIndex,
}

/// One block of a chunk: what a map says about a block address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkRef {
    pub chunk: ChunkId,
    /// Block within the chunk, less than [`BLOCKS_PER_CHUNK_MAX`].
    pub block: u8,
}
