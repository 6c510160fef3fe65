//! The blocks that the batch itself has stored so far, by fingerprint.
//!
//! Of one domain: another domain's blocks are forgotten before the next one's begin. Bounded by the batch: some 60 bytes
//! for each of its blocks.

use cairn_model::{ChunkId, ChunkIndex, ChunkRef, ContainerFingerprints, ContainerId, Fingerprint};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// A fingerprint is a hash already.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    /// The half that says nothing about chunk boundaries.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    /// The length of the array, which is always the same.
    fn write_usize(&mut self, _: usize) {}
}

/// A block among those of the batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// Which of the batch's containers.
    container: u32,
    chunk: u32,
    /// Among all blocks of the container.
    block: u32,
    block_in_chunk: u8,
}

#[derive(Default)]
pub(super) struct OwnBlocks {
    places: HashMap<Fingerprint, Place, BuildHasherDefault<Unhashed>>,
    complete: Vec<Arc<ContainerFingerprints>>,
    open: Option<OpenList>,
    /// The block that was shared last. Equal blocks often come in the same order again, also where a block appears many
    /// times: the one behind the last is preferred, so that one map operation covers both.
    last: Option<Place>,
}

struct OpenList {
    container: ContainerId,
    chunk_blocks: Vec<u8>,
    blocks: Vec<Fingerprint>,
}

impl OwnBlocks {
    /// A block with this fingerprint.
    pub(super) fn find(&self, print: &Fingerprint) -> Option<Place> {
        self.behind_last(print).or_else(|| self.places.get(print).copied())
    }

    fn behind_last(&self, print: &Fingerprint) -> Option<Place> {
        let last = self.last?;
        let (chunk_blocks, blocks) = self.lists(last.container)?;
        let next = Place { block: last.block + 1, block_in_chunk: last.block_in_chunk + 1, ..last };
        let in_chunk = next.block_in_chunk < *chunk_blocks.get(next.chunk as usize)?;
        (in_chunk && blocks.get(next.block as usize) == Some(print)).then_some(next)
    }

    fn lists(&self, container: u32) -> Option<(&[u8], &[Fingerprint])> {
        match self.complete.get(container as usize) {
            Some(complete) => Some((complete.chunk_blocks(), complete.blocks())),
            None => self.open.as_ref().map(|open| (&open.chunk_blocks[..], &open.blocks[..])),
        }
    }

    /// What a map says about the block.
    pub(super) fn reference(&self, place: Place) -> ChunkRef {
        let complete = self.complete.get(place.container as usize).map(|complete| complete.container());
        let container = complete.or_else(|| self.open.as_ref().map(|open| open.container));
        let container = container.expect("places are forgotten together with their containers");
        ChunkRef {
            chunk: ChunkId { container, index: ChunkIndex::new(place.chunk) },
            block: place.block_in_chunk,
        }
    }

    /// The block at `place` was shared.
    pub(super) fn shared(&mut self, place: Place) {
        self.last = Some(place);
    }

    /// The blocks of the next chunk of the open container, which is `container`. They are found instead of others of
    /// the same fingerprint: these were not good enough to be shared.
    pub(super) fn add(&mut self, container: ContainerId, prints: &[Fingerprint]) {
        let open = self.open.get_or_insert_with(|| OpenList {
            container,
            chunk_blocks: Vec::new(),
            blocks: Vec::new(),
        });
        debug_assert_eq!(open.container, container, "one container is open at a time");
        let count = |length: usize| u32::try_from(length).expect("a batch is in memory");
        let (index, chunk, first) =
            (count(self.complete.len()), count(open.chunk_blocks.len()), count(open.blocks.len()));
        let blocks = u8::try_from(prints.len()).expect("a chunk has at most 16 blocks");
        open.chunk_blocks.push(blocks);
        open.blocks.extend_from_slice(prints);
        // Backwards: of equal blocks the first remains, and the ones behind it follow on.
        for (block_in_chunk, print) in (0..blocks).rev().zip(prints.iter().rev()) {
            let block = first + u32::from(block_in_chunk);
            self.places.insert(*print, Place { container: index, chunk, block, block_in_chunk });
        }
    }

    /// The open container is complete: its list, when it has one.
    pub(super) fn complete(&mut self) -> Option<Arc<ContainerFingerprints>> {
        let OpenList { container, chunk_blocks, blocks } = self.open.take()?;
        let list = ContainerFingerprints::new(container, chunk_blocks, blocks)
            .expect("every block was added with its chunk");
        let list = Arc::new(list);
        self.complete.push(Arc::clone(&list));
        Some(list)
    }

    /// Another domain follows.
    pub(super) fn forget(&mut self) {
        debug_assert!(self.open.is_none(), "a container is completed in its domain");
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(number: u8) -> Fingerprint {
        Fingerprint::from_bytes([number; 16])
    }

    fn container(number: u8) -> ContainerId {
        ContainerId::from_bytes([number; 16])
    }

    fn found(own: &mut OwnBlocks, number: u8) -> Option<(u8, u32, u8)> {
        let place = own.find(&print(number))?;
        own.shared(place);
        let at = own.reference(place);
        Some((at.chunk.container.as_bytes()[0], at.chunk.index.get(), at.block))
    }

    #[test]
    fn blocks_of_complete_and_of_open_containers_are_found() {
        let mut own = OwnBlocks::default();
        own.add(container(1), &[print(1), print(2)]);
        own.add(container(1), &[print(3)]);
        let list = own.complete().unwrap();
        assert_eq!((list.chunk_blocks(), list.blocks()), (&[2, 1][..], &[print(1), print(2), print(3)][..]));
        own.add(container(2), &[print(4), print(5)]);
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(|number| found(&mut own, number)),
            [Some((1, 0, 0)), Some((1, 0, 1)), Some((1, 1, 0)), Some((2, 0, 0)), Some((2, 0, 1)), None]
        );
    }

    #[test]
    fn equal_blocks_follow_on_through_their_chunk() {
        let mut own = OwnBlocks::default();
        own.add(container(1), &[print(1); 3]);
        let blocks = [(); 5].map(|()| found(&mut own, 1).unwrap().2);
        assert_eq!(blocks, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_block_stored_again_is_found_in_its_new_place() {
        let mut own = OwnBlocks::default();
        own.add(container(1), &[print(1)]);
        own.add(container(1), &[print(1)]);
        assert_eq!(found(&mut own, 1), Some((1, 1, 0)));
    }

    #[test]
    fn nothing_is_found_across_domains() {
        let mut own = OwnBlocks::default();
        own.add(container(1), &[print(1), print(2)]);
        assert!(found(&mut own, 1).is_some());
        own.complete();
        own.forget();
        assert_eq!(own.find(&print(1)), None);
        assert_eq!(own.find(&print(2)), None, "the place of the last one is forgotten too");
    }
}
