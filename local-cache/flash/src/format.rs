//! Bytes on the device: one file of regions, each overwritten as a whole when its turn comes.
//!
//! ```text
//! file     | region 0 | region 1 | ...                       each of the size that the marker says (`directory`)
//!
//! region   0       magic "CAIRNFR1"
//!          8       sequence: 1 for the first region ever begun in this file, and so on; no two regions have the same
//!          16      site, 16 bytes
//!          32      region size
//!          40      sequence of the region begun before it; zero when that is not known, all ones
//!                  when nothing in this region is to be believed
//!          48      check: first 8 bytes of BLAKE3 over the above
//!          56      zeros
//!          4096    entries, each at a multiple of 8
//!          ...     footer, ends with the region; there once the region is full and synced, or the cache was closed
//!
//! entry    0       sequence of its region
//!          8       container, 16 bytes
//!          24      chunk index, 4 bytes
//!          28      length of the payload, 4 bytes
//!          32      check: first 8 bytes of BLAKE3 over the above
//!          40      payload: the chunk as it is stored
//!
//! footer   0       count times: container 16, chunk index 4, offset of the entry in the region 4, length 4
//!          28 * n  magic "CAIRNFF1"
//!          + 8     sequence of its region
//!          + 16    count, 4 bytes
//!          + 20    end of the entries it lists, 4 bytes
//!          + 24    check: first 8 bytes of BLAKE3 over the footer up to here
//! ```
//!
//! Numbers are little-endian. Checks find damage, they authenticate nothing: payloads are authenticated by whoever opens them, with
//! their identity, so a forged header can cost a miss and no more. This is version 1; another one has other magics.

use crate::config::PAYLOAD_BYTES_MAX;
use cairn_model::{ChunkId, ChunkIndex, ContainerId, SiteId};

pub(crate) const PAGE_BYTES: u64 = 4096;
pub(crate) const ENTRY_HEADER_BYTES: usize = 40;
pub(crate) const REGION_HEADER_BYTES: usize = 56;
pub(crate) const TRAILER_BYTES: usize = 32;
const LISTED_BYTES: usize = 28;
const REGION_MAGIC: &[u8; 8] = b"CAIRNFR1";
const FOOTER_MAGIC: &[u8; 8] = b"CAIRNFF1";

/// Bytes of a footer that lists so many entries.
pub(crate) const fn footer_bytes(entries: u64) -> u64 {
    entries * LISTED_BYTES as u64 + TRAILER_BYTES as u64
}

/// Bytes of an entry with such a payload, up to the next one.
pub(crate) fn entry_bytes(payload: usize) -> u64 {
    (ENTRY_HEADER_BYTES + payload).next_multiple_of(8) as u64
}

fn check(bytes: &[u8]) -> [u8; 8] {
    let hash = blake3::hash(bytes);
    hash.as_bytes()[..8].try_into().expect("eight of 32 bytes")
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn chunk_at(bytes: &[u8], at: usize) -> ChunkId {
    ChunkId {
        container: ContainerId::from_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes")),
        index: ChunkIndex::new(u32_at(bytes, at + 16)),
    }
}

/// What bytes turn out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parsed<T> {
    Good(T),
    /// Nothing was ever written there, or nothing of this kind.
    Blank,
    Damaged,
}

/// The header of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RegionHeader {
    pub(crate) sequence: u64,
    /// Of the region begun before it; zero when that is not known, or [`VOID`].
    pub(crate) after: u64,
}

/// In place of the region before: nothing in this one is to be believed. Its sequence stays known, so that no other gets it:
/// entries with it are still there.
pub(crate) const VOID: u64 = u64::MAX;

/// The highest that is believed. Counting on from there for a lifetime does not overflow.
pub(crate) const SEQUENCE_MAX: u64 = u64::MAX >> 1;

/// The first page of a region.
pub(crate) fn region_header(header: RegionHeader, site: SiteId, region_bytes: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(usize::try_from(PAGE_BYTES).expect("a page"));
    page.extend_from_slice(REGION_MAGIC);
    page.extend_from_slice(&header.sequence.to_le_bytes());
    page.extend_from_slice(site.as_bytes());
    page.extend_from_slice(&region_bytes.to_le_bytes());
    page.extend_from_slice(&header.after.to_le_bytes());
    page.extend_from_slice(&check(&page));
    debug_assert_eq!(page.len(), REGION_HEADER_BYTES);
    page.resize(page.capacity(), 0);
    page
}

/// The header of the region that begins with these bytes.
pub(crate) fn parse_region_header(
    bytes: &[u8; REGION_HEADER_BYTES],
    site: SiteId,
    region_bytes: u64,
) -> Parsed<RegionHeader> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Parsed::Blank;
    }
    let sound = bytes[..8] == *REGION_MAGIC
        && bytes[16..32] == *site.as_bytes()
        && u64_at(bytes, 32) == region_bytes
        && u64_at(bytes, 8) <= SEQUENCE_MAX
        && bytes[48..56] == check(&bytes[..48]);
    let header = RegionHeader { sequence: u64_at(bytes, 8), after: u64_at(bytes, 40) };
    if sound { Parsed::Good(header) } else { Parsed::Damaged }
}

/// The header of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryHeader {
    pub(crate) sequence: u64,
    pub(crate) chunk: ChunkId,
    pub(crate) length: usize,
}

impl EntryHeader {
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        let at = bytes.len();
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(self.chunk.container.as_bytes());
        bytes.extend_from_slice(&self.chunk.index.get().to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(self.length).expect("a payload's length").to_le_bytes());
        let check = check(&bytes[at..]);
        bytes.extend_from_slice(&check);
    }

    /// None when the bytes are no entry's header, or a damaged one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..ENTRY_HEADER_BYTES)?;
        if bytes[32..40] != check(&bytes[..32]) {
            return None;
        }
        let length = usize::try_from(u32_at(bytes, 28)).ok()?;
        let header = Self { sequence: u64_at(bytes, 0), chunk: chunk_at(bytes, 8), length };
        (1..=PAYLOAD_BYTES_MAX).contains(&length).then_some(header)
    }
}

/// An entry as a footer lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Listed {
    pub(crate) chunk: ChunkId,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// The whole footer, to be written so that it ends with the region.
pub(crate) fn footer(sequence: u64, end: u64, entries: &[Listed]) -> Vec<u8> {
    let count = u32::try_from(entries.len()).expect("a region's entries");
    let mut bytes = Vec::with_capacity(entries.len() * LISTED_BYTES + TRAILER_BYTES);
    for entry in entries {
        bytes.extend_from_slice(entry.chunk.container.as_bytes());
        bytes.extend_from_slice(&entry.chunk.index.get().to_le_bytes());
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.length.to_le_bytes());
    }
    bytes.extend_from_slice(FOOTER_MAGIC);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(end).expect("inside a region").to_le_bytes());
    let check = check(&bytes);
    bytes.extend_from_slice(&check);
    bytes
}

/// Bytes of the footer that ends with this trailer, as far as a region has room for one. Nothing here is checked yet.
pub(crate) fn footer_length(trailer: &[u8; TRAILER_BYTES], region_bytes: u64) -> Parsed<u64> {
    if trailer.iter().all(|&byte| byte == 0) {
        return Parsed::Blank;
    }
    let bytes = footer_bytes(u64::from(u32_at(trailer, 16)));
    let sound = trailer[..8] == *FOOTER_MAGIC && bytes <= region_bytes - PAGE_BYTES;
    if sound { Parsed::Good(bytes) } else { Parsed::Damaged }
}

/// A footer that passed its check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    pub(crate) sequence: u64,
    /// Where the entries it lists end.
    pub(crate) end: u64,
    pub(crate) entries: Vec<Listed>,
}

/// Parses a whole footer of a region of that size.
pub(crate) fn parse_footer(bytes: &[u8], region_bytes: u64) -> Option<Footer> {
    let (body, expected) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    if expected != check(body) {
        return None;
    }
    let (listed, trailer) = body.split_at_checked(body.len().checked_sub(TRAILER_BYTES - 8)?)?;
    let end = u64::from(u32_at(trailer, 20));
    let mut entries = Vec::with_capacity(listed.len() / LISTED_BYTES);
    for entry in listed.chunks_exact(LISTED_BYTES) {
        let (offset, length) = (u32_at(entry, 20), u32_at(entry, 24));
        let payload = usize::try_from(length).ok()?;
        let inside = (1..=PAYLOAD_BYTES_MAX).contains(&payload)
            && u64::from(offset) >= PAGE_BYTES
            && offset.is_multiple_of(8)
            && u64::from(offset) + entry_bytes(payload) <= end;
        if !inside {
            return None;
        }
        entries.push(Listed { chunk: chunk_at(entry, 0), offset, length });
    }
    let sequence = u64_at(trailer, 8);
    let ends_well = end >= PAGE_BYTES && end.is_multiple_of(8) && end + bytes.len() as u64 <= region_bytes;
    let sound = ends_well && sequence <= SEQUENCE_MAX;
    sound.then_some(Footer { sequence, end, entries })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGION: u64 = 1 << 20;
    const HEADER: RegionHeader = RegionHeader { sequence: 9, after: 8 };

    fn chunk(index: u32) -> ChunkId {
        ChunkId { container: ContainerId::from_bytes([5; 16]), index: ChunkIndex::new(index) }
    }

    fn site() -> SiteId {
        SiteId::from_bytes([1; 16])
    }

    fn header_bytes() -> [u8; REGION_HEADER_BYTES] {
        region_header(HEADER, site(), REGION)[..REGION_HEADER_BYTES].try_into().unwrap()
    }

    #[test]
    fn a_region_header_says_what_it_is_to_its_own_site_only() {
        assert_eq!(parse_region_header(&header_bytes(), site(), REGION), Parsed::Good(HEADER));
        assert_eq!(parse_region_header(&[0; REGION_HEADER_BYTES], site(), REGION), Parsed::Blank);
        let other = SiteId::from_bytes([2; 16]);
        assert_eq!(parse_region_header(&header_bytes(), other, REGION), Parsed::Damaged);
        assert_eq!(parse_region_header(&header_bytes(), site(), 2 * REGION), Parsed::Damaged);
    }

    #[test]
    fn a_footer_survives_its_encoding() {
        let entries: Vec<_> =
            (0..3).map(|i| Listed { chunk: chunk(i), offset: 4096 + 104 * i, length: 60 }).collect();
        let bytes = footer(4, 5000, &entries);
        assert_eq!(bytes.len() as u64, footer_bytes(3));
        let trailer = bytes[bytes.len() - TRAILER_BYTES..].try_into().unwrap();
        assert_eq!(footer_length(&trailer, REGION), Parsed::Good(footer_bytes(3)));
        for end in [0, 4088, 5001] {
            assert_eq!(parse_footer(&footer(4, end, &[]), REGION), None, "no entries end at {end}");
        }
        assert_eq!(parse_footer(&bytes, REGION), Some(Footer { sequence: 4, end: 5000, entries }));
    }

    proptest! {
        #[test]
        fn an_entry_header_survives_its_encoding_and_no_flipped_bit(
            sequence: u64, index: u32, length in 1..=PAYLOAD_BYTES_MAX, bit in 0..ENTRY_HEADER_BYTES * 8
        ) {
            let header = EntryHeader { sequence, chunk: chunk(index), length };
            let mut bytes = Vec::new();
            header.append_to(&mut bytes);
            prop_assert_eq!(bytes.len(), ENTRY_HEADER_BYTES);
            prop_assert_eq!(EntryHeader::parse(&bytes), Some(header));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(EntryHeader::parse(&bytes), None);
        }

        #[test]
        fn no_flipped_bit_of_a_footer_or_region_header_goes_unseen(bit in 0..footer_bytes(2) * 8) {
            let entries = [0, 1].map(|i| Listed { chunk: chunk(i), offset: 4096 + 104 * i, length: 60 });
            let mut bytes = footer(4, 5000, &entries);
            let bit = usize::try_from(bit).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(parse_footer(&bytes, REGION), None);
            let mut header = header_bytes();
            header[bit / 8 % REGION_HEADER_BYTES] ^= 1 << (bit % 8);
            prop_assert_eq!(parse_region_header(&header, site(), REGION), Parsed::Damaged);
        }

        #[test]
        fn bytes_from_anywhere_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = EntryHeader::parse(&bytes);
            let _ = parse_footer(&bytes, REGION);
        }
    }
}
