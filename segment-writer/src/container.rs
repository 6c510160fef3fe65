//! The directory of a container: where each chunk is, and how it is stored.
//!
//! Byte form, kept by the catalog as it is and repeated in the segment's footer:
//!
//! ```text
//! version      u8: 1, or 2 when reclaim has left chunks out
//! chunks       varint, at most 16384, with those that are left out
//! per chunk    shape  u8: low 4 bits raw blocks - 1, high 4 bits codec (0 raw, 1 zstd)
//!              stored varint, bytes with the tag; absent for codec raw, where it is raw bytes + 16
//! in version 2 also, for a run of chunks that are left out
//!              shape  u8: 0xf0
//!              chunks varint, from 1; two such runs do not follow each other
//! ```
//!
//! A chunk keeps its index when others are left out: the index is its name in maps, and the nonce that it is sealed with. The chunks
//! that are there lie one behind the other, so an offset is the sum of the lengths before it. Nothing authenticates the
//! directory in the catalog: a wrong entry makes the chunk's own tag fail, which covers length and codec. In a
//! footer it is sealed with the rest.

use crate::compress::Codec;
use crate::error::Damaged;
use bytes::Bytes;
use cairn_model::crypto::TAG_BYTES;
use cairn_model::{BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX, CHUNKS_PER_CONTAINER_MAX, ChunkIndex, ChunkSet, varint};
use std::ops::Range;

const VERSION: u8 = 1;

/// With chunks left out.
const VERSION_THIN: u8 = 2;

/// Shape of a run of chunks that are left out.
const LEFT_OUT: u8 = 0xf0;

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
    /// 0: left out.
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

    /// Number of chunks, with those that are left out.
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

    /// Blocks of each chunk, 0 for those that are left out.
    pub fn chunk_blocks(&self) -> impl Iterator<Item = u8> {
        self.slots.iter().map(|slot| slot.raw_blocks)
    }

    /// Stored bytes of those of `chunks` that are there.
    pub fn stored_bytes_of(&self, chunks: &ChunkSet) -> u64 {
        chunks.iter().filter_map(|index| self.get(index)).map(|entry| u64::from(entry.stored_bytes)).sum()
    }

    /// The chunks that are there.
    pub fn present(&self) -> ChunkSet {
        self.iter().map(|(index, _)| index).collect()
    }

    /// The same container with only `kept` of its chunks.
    pub fn thinned(&self, kept: &ChunkSet) -> Self {
        let mut thin = Self { slots: Vec::with_capacity(self.slots.len()), end: 0 };
        for (index, slot) in (0u32..).map(ChunkIndex::new).zip(&self.slots) {
            let entry = self.get(index).filter(|_| kept.contains(index));
            thin.slots.push(Slot {
                offset: thin.end,
                raw_blocks: entry.map_or(0, |entry| entry.raw_blocks),
                codec: slot.codec,
            });
            thin.end += entry.map_or(0, |entry| entry.stored_bytes);
        }
        // Those at the end need no mention.
        let end = thin.slots.iter().rposition(|slot| slot.raw_blocks > 0).map_or(0, |last| last + 1);
        thin.slots.truncate(end);
        // As it is read back.
        thin.slots.iter_mut().filter(|slot| slot.raw_blocks == 0).for_each(|slot| slot.codec = Codec::Raw);
        thin
    }

    /// Leaves out the next `chunks` chunks.
    fn leave_out(&mut self, chunks: usize) -> Result<(), Damaged> {
        if chunks == 0 || self.slots.last().is_some_and(|slot| slot.raw_blocks == 0) {
            return Err(Damaged("a container directory leaves out nothing, or twice in a row"));
        }
        if chunks > CHUNKS_PER_CONTAINER_MAX - self.slots.len() {
            return Err(Damaged("a container is larger than the format allows"));
        }
        let slot = Slot { offset: self.end, raw_blocks: 0, codec: Codec::Raw };
        self.slots.extend(std::iter::repeat_n(slot, chunks));
        Ok(())
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

    /// The chunk of that index, if it is there.
    pub fn get(&self, index: ChunkIndex) -> Option<ChunkEntry> {
        let position = index.get() as usize;
        let slot = self.slots.get(position).filter(|slot| slot.raw_blocks > 0)?;
        let end = self.slots.get(position + 1).map_or(self.end, |next| next.offset);
        Some(ChunkEntry {
            offset: slot.offset,
            stored_bytes: end - slot.offset,
            raw_blocks: slot.raw_blocks,
            codec: slot.codec,
        })
    }

    /// All chunks that are there, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ChunkIndex, ChunkEntry)> {
        self.iter_within(0..as_index(self.slots.len()))
    }

    /// Those of `chunks` that are there, in order.
    pub fn iter_within(&self, chunks: Range<u32>) -> impl Iterator<Item = (ChunkIndex, ChunkEntry)> {
        chunks.map(ChunkIndex::new).filter_map(|index| self.get(index).map(|entry| (index, entry)))
    }

    /// Indexes of the chunks that have bytes in `bytes` of the container. The first is there; others may be left out.
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
        let is_thin = self.slots.iter().any(|slot| slot.raw_blocks == 0);
        out.push(if is_thin { VERSION_THIN } else { VERSION });
        varint::put(&mut out, self.slots.len() as u64);
        let mut next = 0;
        for (index, entry) in self.iter() {
            let left_out = index.get() - next;
            if left_out > 0 {
                out.push(LEFT_OUT);
                varint::put(&mut out, u64::from(left_out));
            }
            next = index.get() + 1;
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
        if version != VERSION && version != VERSION_THIN {
            return Err(Damaged("a container directory has a version that this program does not know"));
        }
        bytes = rest;
        let chunks = varint::take(&mut bytes).ok_or(SHORT)?;
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX);
        // What is allocated is bounded by the format, and by what was given where every chunk takes a byte.
        if chunks > CHUNKS_PER_CONTAINER_MAX || (version == VERSION && chunks > bytes.len()) {
            return Err(Damaged("a container directory claims more chunks than it can have"));
        }
        let mut directory = Self { slots: Vec::with_capacity(chunks), end: 0 };
        while directory.slots.len() < chunks {
            let (&shape, rest) = bytes.split_first().ok_or(SHORT)?;
            bytes = rest;
            if shape == LEFT_OUT && version == VERSION_THIN {
                let run = varint::take(&mut bytes).ok_or(SHORT)?;
                let left = chunks - directory.slots.len();
                let run = usize::try_from(run).ok().filter(|run| *run <= left);
                directory
                    .leave_out(run.ok_or(Damaged("a container directory leaves out more than it has"))?)?;
                continue;
            }
            let codec = Codec::from_byte(shape >> 4).ok_or(Damaged("a chunk has an unknown codec"))?;
            let raw_blocks = (shape & 0xf) + 1;
            let stored_bytes = match codec {
                Codec::Raw => u32::from(raw_blocks) * BLOCK_SIZE + TAG,
                Codec::Zstd => u32::try_from(varint::take(&mut bytes).ok_or(SHORT)?)
                    .map_err(|_| Damaged("a chunk's stored length does not fit its blocks"))?,
            };
            directory.push(stored_bytes, raw_blocks, codec)?;
        }
        let is_thin = directory.slots.iter().any(|slot| slot.raw_blocks == 0);
        if directory.slots.last().is_some_and(|slot| slot.raw_blocks == 0)
            || is_thin != (version == VERSION_THIN)
        {
            return Err(Damaged("a container directory has a form that no program writes"));
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
        fn a_thinned_directory_keeps_names_and_loses_bytes(
            directory in directories(), kept in prop::collection::btree_set(0u32..200, 0..200),
        ) {
            let kept: ChunkSet = kept.into_iter().map(ChunkIndex::new).collect();
            let thin = directory.thinned(&kept);
            let expected: Vec<_> = directory.iter().filter(|(index, _)| kept.contains(*index)).collect();
            prop_assert_eq!(thin.iter().map(|(index, _)| index).collect::<Vec<_>>(), expected.iter().map(|(index, _)| *index).collect::<Vec<_>>());
            let mut at = 0;
            for ((_, entry), (_, before)) in thin.iter().zip(&expected) {
                prop_assert_eq!(entry, ChunkEntry { offset: at, ..*before });
                at += entry.stored_bytes;
            }
            prop_assert_eq!(at, thin.stored_bytes());
            prop_assert_eq!(u64::from(at), directory.stored_bytes_of(&kept));
            let bytes = thin.encode();
            prop_assert_eq!(ContainerDirectory::decode(&bytes).unwrap(), thin.clone());
            prop_assert!(ContainerDirectory::decode(&[&bytes[..], &[0]].concat()).is_err());
            prop_assert_eq!(thin.thinned(&kept), thin.clone());
            let window = 100u64..3000;
            let found = thin.chunks_overlapping(window.clone());
            prop_assert!(found.is_empty() || thin.get(ChunkIndex::new(found.start)).is_some());
            for (index, entry) in thin.iter() {
                let overlaps = entry.range().start < window.end && window.start < entry.range().end;
                prop_assert_eq!(found.contains(&index.get()), overlaps);
            }
        }

        #[test]
        fn any_bytes_of_a_thin_directory_parse_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 2..200)) {
            bytes[0] = VERSION_THIN;
            bytes[1] &= 0x1f;
            for byte in &mut bytes[2..] {
                if *byte > 0x80 { *byte = LEFT_OUT }
            }
            if let Ok(directory) = ContainerDirectory::decode(&bytes) {
                prop_assert_eq!(ContainerDirectory::decode(&directory.encode()).unwrap(), directory);
            }
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
        assert!(ContainerDirectory::decode(&[3, 0]).is_err());
    }

    #[test]
    fn a_claim_of_many_chunks_allocates_nothing() {
        let mut bytes = vec![VERSION];
        varint::put(&mut bytes, u64::MAX);
        assert!(ContainerDirectory::decode(&bytes).is_err());
    }
}
