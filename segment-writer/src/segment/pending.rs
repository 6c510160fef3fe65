//! The chunk that is being gathered: blocks that follow each other and are not stored yet.
//!
//! It goes on from one call of the packer to the next, so it holds on to the memory that its blocks are in. Nothing is
//! copied until the chunk turns out to span pieces.

use bytes::Bytes;
use cairn_model::{BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX, Fingerprint, Lba, LbaRange};
use std::ops::Range;

const BLOCK: usize = BLOCK_SIZE as usize;

#[derive(Debug, Default)]
pub(super) struct Pending {
    start: Lba,
    blocks: u8,
    /// Memory, and which part of it.
    parts: Vec<(Bytes, Range<usize>)>,
    /// One per block, or none where blocks are not fingerprinted.
    prints: Vec<Fingerprint>,
}

impl Pending {
    pub(super) const fn blocks(&self) -> u8 {
        self.blocks
    }

    /// Where the blocks go.
    pub(super) fn range(&self) -> LbaRange {
        LbaRange::between(self.start, self.start.plus(u64::from(self.blocks)))
    }

    pub(super) fn prints(&self) -> &[Fingerprint] {
        &self.prints
    }

    /// Adds the block at `offset` of `piece`, which goes behind the others, or to `at` when it is the first.
    pub(super) fn push(&mut self, at: Lba, piece: &Bytes, offset: usize, print: Option<Fingerprint>) {
        if self.blocks == 0 {
            self.start = at;
        }
        debug_assert_eq!(self.range().end(), at, "the blocks of a chunk follow each other");
        match self.parts.last_mut() {
            // Memory that is held on to is not used again for something else: the same place is the same piece.
            Some((last, part)) if part.end == offset && same_memory(last, piece) => {
                part.end += BLOCK;
            }
            _ => self.parts.push((piece.clone(), offset..offset + BLOCK)),
        }
        self.prints.extend(print);
        self.blocks += 1;
    }

    /// The blocks: where each is, and its fingerprint.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bytes, usize, Option<Fingerprint>)> {
        let places = self
            .parts
            .iter()
            .flat_map(|(piece, part)| part.clone().step_by(BLOCK).map(move |at| (piece, at)));
        let prints = self.prints.iter().copied().map(Some).chain(std::iter::repeat(None));
        places.zip(prints).map(|((piece, offset), print)| (piece, offset, print))
    }

    /// The bytes of all blocks: where they are when one piece has them, else gathered.
    pub(super) fn bytes<'a>(&'a self, gathered: &'a mut Vec<u8>) -> &'a [u8] {
        if let [(piece, part)] = &self.parts[..] {
            return &piece[part.clone()];
        }
        gathered.clear();
        gathered.reserve_exact(usize::from(BLOCKS_PER_CHUNK_MAX) * BLOCK);
        for (piece, part) in &self.parts {
            gathered.extend_from_slice(&piece[part.clone()]);
        }
        gathered
    }

    /// Lets go of the blocks, and keeps the room for others.
    pub(super) fn clear(&mut self) {
        self.blocks = 0;
        self.parts.clear();
        self.prints.clear();
    }
}

fn same_memory(one: &Bytes, other: &Bytes) -> bool {
    one.as_ptr() == other.as_ptr() && one.len() == other.len()
}
