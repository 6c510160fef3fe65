//! Names of content: by them equal blocks are found without being compared.

use crate::{BLOCKS_PER_CHUNK_MAX, ChunkId, ChunkIndex, ChunkRef, ChunkSet, ContainerId};
use std::fmt;

/// Keyed BLAKE3 of one block's plaintext, the first 128 bits.
///
/// The key belongs to a dedupe domain and never leaves the process, so nobody else can look for two blocks of one fingerprint; by chance a
/// pool of 1 PiB of distinct blocks (2^38) has such a pair with a probability of 2^-53.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; Self::BYTES]);

impl Fingerprint {
    pub const BYTES: usize = 16;

    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fingerprint:{}", hex::encode(self.0))
    }
}

/// The fingerprints of every block of a container, chunk by chunk in the order of their index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerFingerprints {
    container: ContainerId,
    chunk_blocks: Box<[u8]>,
    blocks: Box<[Fingerprint]>,
}

impl ContainerFingerprints {
    /// `chunk_blocks` has the number of blocks of each chunk, 0 for one that is not there any more, `blocks` a fingerprint for each block.
    /// `None` when they do not fit together, or a chunk has more blocks than [`BLOCKS_PER_CHUNK_MAX`].
    pub fn new(container: ContainerId, chunk_blocks: Vec<u8>, blocks: Vec<Fingerprint>) -> Option<Self> {
        let possible = |count: &u8| *count <= BLOCKS_PER_CHUNK_MAX;
        let total: usize = chunk_blocks.iter().map(|count| usize::from(*count)).sum();
        let fits = chunk_blocks.iter().all(possible)
            && total == blocks.len()
            && u32::try_from(chunk_blocks.len()).is_ok();
        fits.then(|| Self { container, chunk_blocks: chunk_blocks.into(), blocks: blocks.into() })
    }

    /// Of the same container with only `kept` of its chunks.
    #[must_use]
    pub fn thinned(&self, kept: &ChunkSet) -> Self {
        let (mut chunk_blocks, mut blocks, mut at) =
            (Vec::with_capacity(self.chunk_blocks.len()), Vec::new(), 0);
        for (index, count) in (0u32..).map(ChunkIndex::new).zip(&self.chunk_blocks) {
            let end = at + usize::from(*count);
            if kept.contains(index) {
                blocks.extend_from_slice(&self.blocks[at..end]);
                chunk_blocks.push(*count);
            } else {
                chunk_blocks.push(0);
            }
            at = end;
        }
        chunk_blocks.truncate(chunk_blocks.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1));
        Self { container: self.container, chunk_blocks: chunk_blocks.into(), blocks: blocks.into() }
    }

    pub const fn container(&self) -> ContainerId {
        self.container
    }

    /// Blocks of each chunk.
    pub const fn chunk_blocks(&self) -> &[u8] {
        &self.chunk_blocks
    }

    /// One fingerprint per block.
    pub const fn blocks(&self) -> &[Fingerprint] {
        &self.blocks
    }

    /// Every block and where it is.
    pub fn refs(&self) -> impl Iterator<Item = (Fingerprint, ChunkRef)> {
        let places = (0u32..).map(ChunkIndex::new).zip(&self.chunk_blocks).flat_map(|(index, count)| {
            let chunk = ChunkId { container: self.container, index };
            (0..*count).map(move |block| ChunkRef { chunk, block })
        });
        self.blocks.iter().copied().zip(places)
    }

    /// The last block of each chunk: what an index keeps of the container. Where content decides the boundaries, the same content has the
    /// same last blocks wherever it appears.
    pub fn anchors(&self) -> impl Iterator<Item = Fingerprint> {
        let ends = self.chunk_blocks.iter().filter(|count| **count > 0).scan(0, |end, count| {
            *end += usize::from(*count);
            Some(*end)
        });
        ends.map(|end| self.blocks[end - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(byte: u8) -> Fingerprint {
        Fingerprint::from_bytes([byte; Fingerprint::BYTES])
    }

    #[test]
    fn every_block_has_its_place_and_every_chunk_its_anchor() {
        let container = ContainerId::from_bytes([7; 16]);
        let prints =
            ContainerFingerprints::new(container, vec![2, 1, 0, 3], (1..=6).map(print).collect()).unwrap();
        let places: Vec<_> =
            prints.refs().map(|(print, at)| (print, at.chunk.index.get(), at.block)).collect();
        let expected = [(1, 0, 0), (2, 0, 1), (3, 1, 0), (4, 3, 0), (5, 3, 1), (6, 3, 2)];
        assert_eq!(places, expected.map(|(byte, index, block)| (print(byte), index, block)));
        assert_eq!(prints.anchors().collect::<Vec<_>>(), [print(2), print(3), print(6)]);
    }

    #[test]
    fn a_thinned_container_keeps_the_places_of_its_blocks() {
        let container = ContainerId::from_bytes([7; 16]);
        let all =
            ContainerFingerprints::new(container, vec![2, 1, 3, 1], (1..=7).map(print).collect()).unwrap();
        let kept = [0, 2].into_iter().map(ChunkIndex::new).collect();
        let thin = all.thinned(&kept);
        let expected: Vec<_> = all.refs().filter(|(_, at)| kept.contains(at.chunk.index)).collect();
        assert_eq!(thin.refs().collect::<Vec<_>>(), expected);
        assert_eq!(thin.chunk_blocks(), [2, 0, 3]);
        assert_eq!(thin.anchors().collect::<Vec<_>>(), [print(2), print(6)]);
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let container = ContainerId::from_bytes([7; 16]);
        for (chunks, blocks) in
            [(vec![1], 0u8), (vec![], 1), (vec![0, 1], 2), (vec![17], 17), (vec![2, 2], 3)]
        {
            let blocks = (0..blocks).map(print).collect();
            assert_eq!(ContainerFingerprints::new(container, chunks, blocks), None);
        }
    }
}
