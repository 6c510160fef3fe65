//! The directory of a container: where each chunk is, and how it is stored.
//!
//! Byte form, version 1, kept by the catalog as it is and repeated in the segment's footer:
//!
//! ```text
//! version      u8, 1
//! chunks       varint, at most 16384
//! per chunk    shape  u8: low 4 bits raw blocks - 1, high 4 bits codec (0 raw, 1 zstd)
//!              stored varint, bytes with the tag; absent for codec raw, where it is raw bytes + 16
//! ```
//!
//! Chunks lie one behind the other, so an offset is the sum of the lengths before it. Nothing authenticates the
//! directory in the catalog: a wrong entry makes the chunk's own tag fail, which covers length and codec. In a
//! footer it is sealed with the rest.

use crate::compress::Codec;
use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::crypto::TAG_BYTES;
use cairn_model::{BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX, ChunkIndex, varint};
use std::ops::Range;

const VERSION: u8 = 1;

/// Chunks in the largest container.
pub const CHUNKS_PER_CONTAINER_MAX: usize = 16384;

/// Stored bytes of the largest container.
pub const CONTAINER_BYTES_MAX: u32 = 16 << 20;

#[expect(clippy::cast_possible_truncation, reason = "it is 16")]
const TAG: u32 = TAG_BYTES as u32;

const _: () = assert!(BLOCKS_PER_CHUNK_MAX <= 16, "raw blocks - 1 has four bits in the directory");

/// One chunk of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkEntry {
    /// Of the chunk's first stored byte, in the container.
    pub offset: u32,
    /// Ciphertext and tag.
    pub stored_bytes: u32,
    /// Blocks of plaintext, 1 to 16.
    pub raw_blocks: u8,
    pub codec: Codec,
}

impl ChunkEntry {
    pub const fn raw_bytes(self) -> u32 {
        self.raw_blocks as u32 * BLOCK_SIZE
    }

    /// First byte and end in the container.
    pub const fn range(self) -> Range<u64> {
        self.offset as u64..self.offset as u64 + self.stored_bytes as u64
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    offset: u32,
    raw_blocks: u8,
    codec: Codec,
}

/// The chunks of a container in the order of their index.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ContainerDirectory {
    slots: Vec<Slot>,
    end: u32,
}

impl ContainerDirectory {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Stored bytes of all chunks: the length of the container.
    pub const fn stored_bytes(&self) -> u32 {
        self.end
    }

    /// Plaintext bytes of all chunks.
    pub fn raw_bytes(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.raw_blocks) * u64::from(BLOCK_SIZE)).sum()
    }

    /// Adds the next chunk. Its shape must be one that [`decode`](Self::decode) accepts.
    pub(crate) fn push(&mut self, stored_bytes: u32, raw_blocks: u8, codec: Codec) -> Result<(), Damaged> {
        let raw_bytes = u32::from(raw_blocks) * BLOCK_SIZE;
        if raw_blocks == 0 || raw_blocks > BLOCKS_PER_CHUNK_MAX {
            return Err(Damaged("a chunk has no blocks or too many"));
        }
        let stored_fits = match codec {
            Codec::Raw => stored_bytes == raw_bytes + TAG,
            Codec::Zstd => stored_bytes > TAG && stored_bytes < raw_bytes + TAG,
        };
        if !stored_fits {
            return Err(Damaged("a chunk's stored length does not fit its blocks"));
        }
        if self.slots.len() == CHUNKS_PER_CONTAINER_MAX || self.end + stored_bytes > CONTAINER_BYTES_MAX {
            return Err(Damaged("a container is larger than the format allows"));
        }
        self.slots.push(Slot { offset: self.end, raw_blocks, codec });
        self.end += stored_bytes;
        Ok(())
    }

    /// The chunk of that index.
    pub fn get(&self, index: ChunkIndex) -> Option<ChunkEntry> {
        let position = index.get() as usize;
        let slot = self.slots.get(position)?;
        let end = self.slots.get(position + 1).map_or(self.end, |next| next.offset);
        Some(ChunkEntry {
            offset: slot.offset,
            stored_bytes: end - slot.offset,
            raw_blocks: slot.raw_blocks,
            codec: slot.codec,
        })
    }

    /// All chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = (ChunkIndex, ChunkEntry)> {
        (0u32..).map(ChunkIndex::new).map_while(|index| self.get(index).map(|entry| (index, entry)))
    }

    /// Indexes of the chunks that have bytes in `bytes` of the container.
    pub fn chunks_overlapping(&self, bytes: Range<u64>) -> Range<u32> {
        if bytes.is_empty() || bytes.start >= u64::from(self.end) {
            return 0..0;
        }
        let first = self.slots.partition_point(|slot| u64::from(slot.offset) <= bytes.start) - 1;
        let end = self.slots.partition_point(|slot| u64::from(slot.offset) < bytes.end);
        as_index(first)..as_index(end)
    }

    /// The byte form.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(4 + self.slots.len() * 4);
        out.push(VERSION);
        varint::put(&mut out, self.slots.len() as u64);
        for (_, entry) in self.iter() {
            out.push((entry.raw_blocks - 1) | entry.codec.to_byte() << 4);
            if entry.codec != Codec::Raw {
                varint::put(&mut out, u64::from(entry.stored_bytes));
            }
        }
        out.into()
    }

    /// Reads the byte form, all of it.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Damaged> {
        const SHORT: Damaged = Damaged("a container directory is cut short");
        let (&version, rest) = bytes.split_first().ok_or(SHORT)?;
        if version != VERSION {
            return Err(Damaged("a container directory has a version that this program does not know"));
        }
        bytes = rest;
        let chunks = varint::take(&mut bytes).ok_or(SHORT)?;
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX);
        // Each chunk takes at least one byte: what is allocated is bounded by what was given.
        if chunks > CHUNKS_PER_CONTAINER_MAX || chunks > bytes.len() {
            return Err(Damaged("a container directory claims more chunks than it can have"));
        }
        let mut directory = Self { slots: Vec::with_capacity(chunks), end: 0 };
        for _ in 0..chunks {
            let (&shape, rest) = bytes.split_first().ok_or(SHORT)?;
            bytes = rest;
            let codec = Codec::from_byte(shape >> 4).ok_or(Damaged("a chunk has an unknown codec"))?;
            let raw_blocks = (shape & 0xf) + 1;
            let stored_bytes = match codec {
                Codec::Raw => u32::from(raw_blocks) * BLOCK_SIZE + TAG,
                Codec::Zstd => u32::try_from(varint::take(&mut bytes).ok_or(SHORT)?)
                    .map_err(|_| Damaged("a chunk's stored length does not fit its blocks"))?,
            };
            directory.push(stored_bytes, raw_blocks, codec)?;
        }
        if bytes.is_empty() {
            Ok(directory)
        } else {
            Err(Damaged("a container directory has bytes behind its end"))
        }
    }
}

fn as_index(position: usize) -> u32 {
    u32::try_from(position).expect("a container has at most 16384 chunks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directories() -> impl Strategy<Value = ContainerDirectory> {
        prop::collection::vec((1u8..=16, any::<bool>(), 1u32..4096), 0..200).prop_map(|chunks| {
            let mut directory = ContainerDirectory::new();
            for (blocks, zstd, stored) in chunks {
                let (stored, codec) = if zstd {
                    (TAG + stored, Codec::Zstd)
                } else {
                    (TAG + u32::from(blocks) * BLOCK_SIZE, Codec::Raw)
                };
                directory.push(stored, blocks, codec).unwrap();
            }
            directory
        })
    }

    proptest! {
        #[test]
        fn round_trips(directory in directories()) {
            let bytes = directory.encode();
            prop_assert!(bytes.len() <= 4 + directory.len() * 4);
            prop_assert_eq!(ContainerDirectory::decode(&bytes).unwrap(), directory);
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(directory) = ContainerDirectory::decode(&bytes) {
                prop_assert_eq!(ContainerDirectory::decode(&directory.encode()).unwrap(), directory);
            }
        }

        #[test]
        fn a_directory_cut_short_or_with_a_tail_is_refused(directory in directories(), cut in any::<prop::sample::Index>()) {
            let bytes = directory.encode();
            prop_assert!(ContainerDirectory::decode(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(ContainerDirectory::decode(&[&bytes[..], &[0]].concat()).is_err());
        }

        #[test]
        fn overlapping_chunks_are_those_with_bytes_in_the_range(
            directory in directories(), start in 0u64..200_000, length in 0u64..100_000,
        ) {
            let range = start..start + length;
            let found = directory.chunks_overlapping(range.clone());
            for (index, entry) in directory.iter() {
                let overlaps = entry.range().start < range.end && range.start < entry.range().end && length > 0;
                prop_assert_eq!(found.contains(&index.get()), overlaps);
            }
        }

        #[test]
        fn chunks_lie_one_behind_the_other(directory in directories()) {
            let mut at = 0;
            for (_, entry) in directory.iter() {
                prop_assert_eq!(entry.range().start, at);
                at = entry.range().end;
            }
            prop_assert_eq!(at, u64::from(directory.stored_bytes()));
            prop_assert_eq!(directory.get(ChunkIndex::new(as_index(directory.len()))), None);
        }
    }

    #[test]
    fn an_unknown_version_is_refused() {
        assert!(ContainerDirectory::decode(&[2, 0]).is_err());
    }

    #[test]
    fn a_claim_of_many_chunks_allocates_nothing() {
        let mut bytes = vec![VERSION];
        varint::put(&mut bytes, u64::MAX);
        assert!(ContainerDirectory::decode(&bytes).is_err());
    }
}
