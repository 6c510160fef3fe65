//! The object that a shard of an erasure-coded segment is.
//!
//! Version 1. Integers are little-endian.
//!
//! ```text
//! shard bytes          S of them (see `erasure`): of a data shard, the segment's bytes from shard number * S on
//! trailer
//!    0   2  version, 1
//!    2   1  data shards
//!    3   1  parity shards
//!    4   1  number of this shard: data shards first
//!    5   3  zeros
//!    8   4  bytes of a region, 65536
//!   12   4  zeros
//!   16  16  site id
//!   32  16  segment id
//!   48   8  bytes of the segment
//!   56   8  checksum of each region: the first 8 bytes of BLAKE3(the region's bytes | segment id | shard number (u32) | region number (u32))
//! end, 32 bytes
//!    0   4  bytes of the trailer
//!    4   4  zeros
//!    8   8  S
//!   16   8  the first 8 bytes of BLAKE3(trailer | end bytes 0..16)
//!   24   8  magic "CAIRNSHD"
//! ```
//!
//! A later version may change what is in the trailer, but neither its size nor the end and its checksum: what fails that is damaged, and what passes it and has
//! a version that is not known is of a newer program, and not to be made anew by this one.
//!
//! The shard's bytes come first: a range of a data shard is the same range of the object. The end has a fixed size and the trailer one that
//! follows from S, so one read of the object's tail has both.
//!
//! The checksums notice damage, and bytes of another shard or segment or place in it; they do not resist malice: what is sealed is authenticated by its
//! own tags (see `segment`) once it is put together. Copies (`single`, `replica`) are the segment itself, without a trailer.

use super::erasure::{Pieces, STRIPE_BYTES, encode};
use crate::error::Damaged;
use crate::segment::{HEADER_BYTES, Header, HeaderError};
use bytes::Bytes;
use cairn_model::{Profile, SegmentId, SiteId};
use std::ops::Range;

const MAGIC: [u8; 8] = *b"CAIRNSHD";
pub(super) const VERSION: u16 = 1;
const FIXED_BYTES: usize = 56;
const END_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 8;

/// Bytes that one checksum is of.
pub(crate) const REGION_BYTES: u64 = STRIPE_BYTES as u64;

/// As it is written.
const REGION_BYTES_FIELD: [u8; 4] = 65536u32.to_le_bytes();

const _: () = assert!(REGION_BYTES == 65536, "the trailer says so");

/// More than the shard of any segment has.
const REGIONS_MAX: u64 = 1 << 16;

type Checksum = [u8; CHECKSUM_BYTES];

/// Which shard it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ShardIdentity {
    pub(crate) site: SiteId,
    pub(crate) segment: SegmentId,
    pub(crate) segment_bytes: u64,
    pub(crate) data: u8,
    pub(crate) parity: u8,
    pub(crate) index: u8,
}

impl ShardIdentity {
    pub(crate) fn shard_bytes(&self) -> u64 {
        Profile::Ec { data: self.data, parity: self.parity }.shard_bytes(self.segment_bytes)
    }

    fn checksum(&self, region: u32, bytes: &[u8]) -> Checksum {
        region_checksum(self.segment, self.index, region, bytes)
    }
}

/// The segment comes last: hashing is fastest from an even beginning.
fn region_checksum(segment: SegmentId, index: u8, region: u32, bytes: &[u8]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    hasher.update(bytes).update(segment.as_bytes());
    hasher.update(&u32::from(index).to_le_bytes()).update(&region.to_le_bytes());
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn regions(shard_bytes: u64) -> u64 {
    shard_bytes.div_ceil(REGION_BYTES)
}

/// Trailer and end of a shard of so many bytes.
pub(crate) fn trailer_bytes(shard_bytes: u64) -> u64 {
    (FIXED_BYTES + END_BYTES) as u64 + CHECKSUM_BYTES as u64 * regions(shard_bytes)
}

/// The whole regions that cover `range`, as bytes of a shard.
pub(crate) fn regions_of(range: &Range<u64>, shard_bytes: u64) -> Range<u64> {
    range.start / REGION_BYTES * REGION_BYTES..range.end.next_multiple_of(REGION_BYTES).min(shard_bytes)
}

/// What a shard says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ShardTrailer {
    pub(crate) identity: ShardIdentity,
    checksums: Vec<Checksum>,
}

impl ShardTrailer {
    /// Of a shard whose bytes are at hand.
    pub(crate) fn of(identity: ShardIdentity, bytes: &[u8]) -> Self {
        let checksum = |(region, bytes)| identity.checksum(region, bytes);
        Self { identity, checksums: (0..).zip(bytes.chunks(STRIPE_BYTES)).map(checksum).collect() }
    }

    /// Trailer and end.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let ShardIdentity { site, segment, segment_bytes, data, parity, index } = &self.identity;
        let length = FIXED_BYTES + CHECKSUM_BYTES * self.checksums.len();
        let mut out = Vec::with_capacity(length + END_BYTES);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[*data, *parity, *index, 0, 0, 0]);
        out.extend_from_slice(&REGION_BYTES_FIELD);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(site.as_bytes());
        out.extend_from_slice(segment.as_bytes());
        out.extend_from_slice(&segment_bytes.to_le_bytes());
        self.checksums.iter().for_each(|checksum| out.extend_from_slice(checksum));
        debug_assert_eq!(out.len(), length);
        out.extend_from_slice(&u32::try_from(length).expect("a shard has few regions").to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.identity.shard_bytes().to_le_bytes());
        let sum = blake3::hash(&out);
        out.extend_from_slice(&sum.as_bytes()[..8]);
        out.extend_from_slice(&MAGIC);
        out
    }

    /// Reads trailer and end of a shard object of `object_bytes`: `tail` is its end, from behind the shard's bytes on.
    pub(crate) fn decode(tail: &[u8], object_bytes: u64) -> Result<Self, HeaderError> {
        let damaged = |reason| Err(HeaderError::Damaged(Damaged(reason)));
        let Some((rest, end)) = tail.split_last_chunk::<END_BYTES>() else {
            return damaged("it is too short for a shard");
        };
        if end[24..] != MAGIC {
            return damaged("it does not end as a shard does: it is cut short or no shard");
        }
        let sum = blake3::hash(&tail[..tail.len() - 16]);
        if sum.as_bytes()[..8] != end[16..24] {
            return damaged("its trailer fails its checksum");
        }
        let shard_bytes = u64::from_le_bytes(array(&end[8..16]));
        if rest.len() < FIXED_BYTES
            || u32::from_le_bytes(array(&end[..4])) as usize != rest.len()
            || end[4..8] != [0; 4]
            || regions(shard_bytes) > REGIONS_MAX
            || tail.len() as u64 != trailer_bytes(shard_bytes)
            || shard_bytes + tail.len() as u64 != object_bytes
        {
            return damaged("its trailer does not fit its size: it is cut short or damaged");
        }
        match u16::from_le_bytes(array(&rest[..2])) {
            VERSION => {}
            version if version > VERSION => return Err(HeaderError::Newer(version)),
            _ => return damaged("its trailer has values that no version writes"),
        }
        let identity = ShardIdentity {
            data: rest[2],
            parity: rest[3],
            index: rest[4],
            site: SiteId::from_bytes(array(&rest[16..32])),
            segment: SegmentId::from_bytes(array(&rest[32..48])),
            segment_bytes: u64::from_le_bytes(array(&rest[48..56])),
        };
        let is_written = rest[5..8] == [0; 3]
            && rest[8..12] == REGION_BYTES_FIELD
            && rest[12..16] == [0; 4]
            && identity.segment_bytes <= REGIONS_MAX * REGION_BYTES
            && Profile::ec(identity.data, identity.parity)
                .is_some_and(|profile| usize::from(identity.index) < profile.shards())
            && identity.shard_bytes() == shard_bytes;
        if !is_written {
            return damaged("its trailer has values that no version writes");
        }
        let checksums = rest[FIXED_BYTES..].chunks_exact(CHECKSUM_BYTES).map(array).collect();
        Ok(Self { identity, checksums })
    }

    /// Trailer and end of a shard object of `object_bytes` of which `tail` has at least as much. `None`: it is none.
    pub(crate) fn find(tail: &[u8], object_bytes: u64) -> Option<Self> {
        let end = tail.last_chunk::<END_BYTES>()?;
        let shard_bytes = u64::from_le_bytes(array(&end[8..16]));
        if shard_bytes > object_bytes {
            return None;
        }
        let start = tail.len().checked_sub(usize::try_from(trailer_bytes(shard_bytes)).ok()?)?;
        Self::decode(&tail[start..], object_bytes).ok()
    }

    /// Whether `bytes` are those of whole regions that begin at `start` of the shard.
    pub(crate) fn verify(&self, start: u64, bytes: &[u8]) -> bool {
        let first = start / REGION_BYTES;
        let ends = start + bytes.len() as u64;
        let is_whole = start.is_multiple_of(REGION_BYTES)
            && (ends.is_multiple_of(REGION_BYTES) || ends == self.identity.shard_bytes());
        is_whole
            && (first..).zip(bytes.chunks(STRIPE_BYTES)).all(|(region, bytes)| {
                let (Ok(at), Ok(number)) = (usize::try_from(region), u32::try_from(region)) else {
                    return false;
                };
                self.checksums.get(at) == Some(&self.identity.checksum(number, bytes))
            })
    }
}

/// The shard objects of a segment, ready to be put. CPU work: a few milliseconds.
pub(crate) fn encode_segment(segment: &[Bytes], data: u8, parity: u8) -> Result<Vec<Pieces>, Damaged> {
    let header = segment.first().and_then(|piece| piece.first_chunk::<HEADER_BYTES>());
    let header = header.and_then(|header| Header::decode(header).ok());
    let header = header.ok_or(Damaged("it does not begin as a segment does"))?;
    let identity = ShardIdentity {
        site: header.site,
        segment: header.segment,
        segment_bytes: segment.iter().map(|piece| piece.len() as u64).sum(),
        data,
        parity,
        index: 0,
    };
    let mut checksums = vec![Vec::new(); usize::from(data) + usize::from(parity)];
    let mut shards = encode(segment, data, parity, |shard, bytes| {
        let of: &mut Vec<Checksum> = &mut checksums[shard];
        let region = u32::try_from(of.len()).expect("a shard has few regions");
        let index = u8::try_from(shard).expect("there are few shards");
        of.push(region_checksum(identity.segment, index, region, bytes));
    });
    for ((index, shard), checksums) in (0..).zip(&mut shards).zip(checksums) {
        let trailer = ShardTrailer { identity: ShardIdentity { index, ..identity }, checksums };
        shard.push(trailer.encode().into());
    }
    Ok(shards)
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice was cut to the array's length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{Entropy, SeededEntropy};
    use proptest::prelude::*;

    fn identity(segment_bytes: u64) -> ShardIdentity {
        ShardIdentity {
            site: SiteId::from_bytes([1; 16]),
            segment: SegmentId::from_bytes([2; 16]),
            segment_bytes,
            data: 2,
            parity: 1,
            index: 1,
        }
    }

    /// A shard of a segment of so many bytes, as an object.
    fn object(segment_bytes: u64) -> (Vec<u8>, usize) {
        let identity = identity(segment_bytes);
        let mut bytes = vec![0; usize::try_from(identity.shard_bytes()).unwrap()];
        SeededEntropy::new(segment_bytes).fill(&mut bytes);
        let trailer = ShardTrailer::of(identity, &bytes).encode();
        assert_eq!(trailer.len() as u64, trailer_bytes(identity.shard_bytes()));
        let at = bytes.len();
        bytes.extend_from_slice(&trailer);
        (bytes, at)
    }

    #[test]
    fn a_trailer_is_read_as_it_was_written() {
        for segment_bytes in [1, 64, 1000, 2 * REGION_BYTES, 2 * REGION_BYTES + 1, 700_000] {
            let (object, at) = object(segment_bytes);
            let trailer = ShardTrailer::decode(&object[at..], object.len() as u64).unwrap();
            assert_eq!(trailer.identity, identity(segment_bytes));
            assert!(trailer.verify(0, &object[..at]));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_trailer_is_noticed() {
        let (object, at) = object(300_000);
        for bit in 8 * at..8 * object.len() {
            let mut damaged = object.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(ShardTrailer::decode(&damaged[at..], object.len() as u64).is_err(), "bit {bit}");
        }
        for length in [0, 10, 40, object.len() - at - 1] {
            assert!(ShardTrailer::decode(&object[at..at + length], (at + length) as u64).is_err());
        }
        assert!(ShardTrailer::decode(&object[at..], object.len() as u64 + 1).is_err(), "of another length");
    }

    #[test]
    fn a_newer_version_is_told_from_damage_by_the_checksum() {
        let (mut object, at) = object(300_000);
        object[at] = 2;
        let size = object.len() as u64;
        let decode = |object: &[u8]| ShardTrailer::decode(&object[at..], size).unwrap_err();
        assert!(matches!(decode(&object), HeaderError::Damaged(_)), "{:?}", decode(&object));
        let end = object.len() - 16;
        let sum = blake3::hash(&object[at..end]);
        object[end..end + 8].copy_from_slice(&sum.as_bytes()[..8]);
        assert_eq!(decode(&object), HeaderError::Newer(2));
    }

    #[test]
    fn regions_elsewhere_or_of_others_are_refused() {
        let (object, at) = object(500_000);
        let trailer = ShardTrailer::decode(&object[at..], object.len() as u64).unwrap();
        let region = STRIPE_BYTES;
        assert!(trailer.verify(REGION_BYTES, &object[region..2 * region]));
        assert!(!trailer.verify(0, &object[region..2 * region]), "in another place");
        assert!(!trailer.verify(REGION_BYTES, &object[region..2 * region - 64]), "a part of a region");
        assert!(!trailer.verify(64, &object[64..region]), "a part of a region");
        assert!(trailer.verify(3 * REGION_BYTES, &object[3 * region..at]), "the last one is shorter");
        assert!(!trailer.verify(4 * REGION_BYTES, &object[..region]), "behind the end");
        let other = ShardIdentity { index: 0, ..trailer.identity };
        assert_ne!(ShardTrailer::of(other, &object[..at]).checksums, trailer.checksums);
    }

    proptest! {
        #[test]
        fn a_flipped_byte_fails_its_region_alone(at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let (mut object, end) = object(500_000);
            let trailer = ShardTrailer::decode(&object[end..], object.len() as u64).unwrap();
            let at = at.index(end);
            object[at] ^= flip;
            for start in (0..end).step_by(STRIPE_BYTES) {
                let region = start..(start + STRIPE_BYTES).min(end);
                prop_assert_eq!(trailer.verify(start as u64, &object[region.clone()]), !region.contains(&at));
            }
        }
    }
}
