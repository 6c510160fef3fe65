//! Identities of sealed data.

use crate::ContainerId;
use std::fmt;

/// Blocks in the largest chunk (64 KiB).
pub const BLOCKS_PER_CHUNK_MAX: u8 = 16;

/// Chunks in the largest container.
pub const CHUNKS_PER_CONTAINER_MAX: usize = 16384;

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

/// Some of the chunks of one container: a bit for each, up to the last.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChunkSet {
    /// The last is not zero.
    words: Vec<u64>,
}

impl ChunkSet {
    /// `false`, and nothing is added, beyond the largest container.
    #[must_use]
    pub fn insert(&mut self, index: ChunkIndex) -> bool {
        let at = index.get() as usize;
        if at >= CHUNKS_PER_CONTAINER_MAX {
            return false;
        }
        if self.words.len() <= at / 64 {
            self.words.resize(at / 64 + 1, 0);
        }
        self.words[at / 64] |= 1 << (at % 64);
        true
    }

    pub fn contains(&self, index: ChunkIndex) -> bool {
        let at = index.get() as usize;
        self.words.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    pub const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> {
        (0u32..).zip(&self.words).flat_map(|(number, word)| {
            let set = move |bit: &u32| word & (1 << bit) != 0;
            (0..64).filter(set).map(move |bit| ChunkIndex::new(number * 64 + bit))
        })
    }

    /// A bit for each chunk, the lowest first, without zeros at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) made. `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > CHUNKS_PER_CONTAINER_MAX / 8 || bytes.last() == Some(&0) {
            return None;
        }
        let word = |part: &[u8]| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(word)
        };
        Some(Self { words: bytes.chunks(8).map(word).collect() })
    }
}

impl FromIterator<ChunkIndex> for ChunkSet {
    /// Panics beyond the largest container.
    fn from_iter<I: IntoIterator<Item = ChunkIndex>>(indexes: I) -> Self {
        let mut set = Self::default();
        for index in indexes {
            assert!(set.insert(index), "a container has at most {CHUNKS_PER_CONTAINER_MAX} chunks");
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_of_chunks_is_a_set(indexes in prop::collection::btree_set(0u32..16384, 0..100), other in 0u32..20000) {
            let set: ChunkSet = indexes.iter().copied().map(ChunkIndex::new).collect();
            prop_assert_eq!(set.iter().map(ChunkIndex::get).collect::<BTreeSet<_>>(), indexes.clone());
            prop_assert_eq!(set.len(), indexes.len());
            prop_assert_eq!(set.is_empty(), indexes.is_empty());
            prop_assert_eq!(set.contains(ChunkIndex::new(other)), indexes.contains(&other));
            prop_assert_eq!(ChunkSet::from_bytes(&set.to_bytes()), Some(set));
        }

        #[test]
        fn any_bytes_are_a_set_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2100)) {
            if let Some(set) = ChunkSet::from_bytes(&bytes) {
                prop_assert_eq!(set.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn nothing_is_added_beyond_the_largest_container() {
        let mut set = ChunkSet::default();
        assert!(!set.insert(ChunkIndex::new(16384)) && !set.insert(ChunkIndex::new(u32::MAX)));
        assert!(set.is_empty() && set.insert(ChunkIndex::new(16383)));
        assert_eq!(set.to_bytes().len(), 2048);
    }
}
