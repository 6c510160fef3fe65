//! The segment: an immutable object of the pool that says everything about itself.
//!
//! Version 2. Integers are little-endian; `varint` is LEB128.
//!
//! ```text
//! header, 64 bytes
//!    0   8  magic "CAIRNSEG"
//!    8   2  version, 2
//!   10   1  protection: 0 AES-256-GCM, 1 none
//!   11   5  zeros
//!   16   8  id of the domain key (public)
//!   24   8  zeros
//!   32  16  site id
//!   48  16  segment id
//! containers, one behind the other
//!            stored chunks one behind the other (see `seal`)
//! footer     ciphertext | tag (16); without encryption plaintext | checksum (16)
//! trailer, 32 bytes
//!    0   8  offset of the footer
//!    8   4  length of the footer with its tag
//!   12   4  zeros
//!   16   8  first 8 bytes of BLAKE3(header | footer | trailer bytes 0..16)
//!   24   8  magic "CAIRNEND"
//!
//! footer plaintext
//!   batch id (16) | gateway id (16) | has previous (u8: 0, 1) | previous batch id (16, if so)
//!   varint attempt at the batch, from 1 | varint index of the segment in its batch | last (u8: 0, 1)
//!   varint containers, at most 65536; per container:
//!     container id (16) | varint offset in the object | varint length of directory | directory (see `container`)
//!     varint fingerprints: 0, or the blocks of all chunks that are there | fingerprint (16) each, in the order of the blocks
//!   varint volumes, at most 65536; per volume:
//!     volume id (16) | lineage id (16) | varint generation | varint base | varint through
//!     varint length of delta | delta (`MapDelta::encode`)
//! ```
//!
//! Version 1, which is still read, has zero as its protection, and in its footer neither an attempt nor fingerprints, not even
//! their number. A later version may change what is between header and trailer, but neither their sizes nor what the trailer's checksum is of: what
//! fails it is damaged, and what passes it and has a version that is not known is of a newer program.
//!
//! What authenticates what: each chunk has its own tag (see `seal`). The footer is AES-256-GCM under the domain key
//! derived with "cairn 2026-11 segment footer" and the segment id, nonce 0, AAD the header: both are genuine or
//! refused. A segment id is fresh at every attempt and its footer is sealed once. Without encryption the tag is the first 16 bytes of
//! keyed BLAKE3(footer | header) under the segment id derived with "cairn 2026-11 segment footer checksum". The reader's domain says
//! which of both must be there; the header only confirms it. The trailer is checked by its
//! checksum, which also lets the header and footer be checked without keys, and by what it points at.
//!
//! A segment is of one domain: its containers are, and so are the volumes that its footer tells of. A batch is one or more
//! segments of one attempt numbered from 0; the one marked last tells how many there are. A batch counts only when all are there. Of several attempts
//! that are complete the highest counts of those that point at nothing which is not there: what a commit refuses for that is packed again.
//! The union of the deltas of a volume over them is what the catalog was told; they are disjoint.
//!
//! What reclaim makes of sparse segments is such a batch too, of one segment, which changes no volume: its containers were there before,
//! and some of their chunks may be left out (see `container`). Where two segments hold a container, either is its place, but for chunks
//! that one of them has left out: nothing pointed at those when the later one was made.
//!
//! A reader that knows the object's size finds the footer with one read of its tail.

mod footer;
mod frame;
mod open;
mod own;
mod packer;
mod pending;
mod regrouped;
mod volume;

pub use footer::{Footer, SegmentContainer, VolumeDelta};
pub(crate) use frame::{
    FOOTER_BYTES_MAX, Header, HeaderError, Trailer, VERSION, VERSION_1, check_frame, open_footer, seal_footer,
};
pub use frame::{HEADER_BYTES, TRAILER_BYTES};
pub use packer::{
    Check, Checker, ChunkSink, Dedupe, Finder, PackConfig, PackStats, PackedBatch, PackedDelta, Packer,
    VolumePacking,
};
pub use regrouped::Regrouped;

use bytes::Bytes;
use cairn_model::{
    BatchId, ChunkId, GatewayId, Generation, LineageId, SegmentId, SiteId, VolumeId, WriteSeq,
};

/// Who packs, and the place of the batch in the gateway's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    pub site: SiteId,
    pub gateway: GatewayId,
    pub batch: BatchId,
    /// Which attempt at the batch this is, from 1. What an attempt that was given up has left in the pool is no part of the next one.
    pub attempt: u32,
    /// The gateway's batch before this one; `None` for its first.
    pub previous: Option<BatchId>,
}

/// What part of a volume's history a batch carries: the writes after `base` up to `through`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolumeHeader {
    pub volume: VolumeId,
    pub lineage: LineageId,
    pub generation: Generation,
    pub base: WriteSeq,
    pub through: WriteSeq,
}

/// A segment that is complete and in memory only. [`Pool::put`](crate::Pool::put) makes it durable.
#[derive(Clone, Debug)]
pub struct SealedSegment {
    id: SegmentId,
    key: String,
    index: u32,
    body: Bytes,
    tail: Bytes,
    containers: Vec<SegmentContainer>,
}

impl SealedSegment {
    pub const fn id(&self) -> SegmentId {
        self.id
    }

    /// Object key inside a node's prefix; no other attempt has the same.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Position in the batch.
    pub const fn index(&self) -> u32 {
        self.index
    }

    pub fn length_bytes(&self) -> u64 {
        self.body.len() as u64 + self.tail.len() as u64
    }

    /// The containers it holds: one, or none when the batch stores no data; several when reclaim made it.
    pub fn containers(&self) -> &[SegmentContainer] {
        &self.containers
    }

    /// The stored bytes of every chunk, for a cache. They share the segment's memory.
    pub fn stored_chunks(&self) -> impl Iterator<Item = (ChunkId, Bytes)> {
        self.containers.iter().flat_map(|container| {
            container.directory.iter().map(|(index, entry)| {
                let start = usize::try_from(container.offset).expect("a segment is in memory")
                    + entry.offset as usize;
                let stored = self.body.slice(start..start + entry.stored_bytes as usize);
                (ChunkId { container: container.id, index }, stored)
            })
        })
    }

    /// The object's bytes, in order.
    pub fn pieces(&self) -> [Bytes; 2] {
        [self.body.clone(), self.tail.clone()]
    }
}

/// Keys are spread over 256 prefixes by a random byte of the id, so that directories stay small and stores that
/// split load by prefix can.
pub(crate) fn segment_key(id: SegmentId) -> String {
    let text = id.to_string();
    format!("{SEGMENTS_PREFIX}/{}/{text}", &text[12..14])
}

/// All segments are below this.
pub const SEGMENTS_PREFIX: &str = "segments";
