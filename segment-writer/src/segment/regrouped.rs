//! Survivors of sparse segments, put together in a new one.
//!
//! Stored bytes are taken over as they are: a chunk keeps its name, and with it the key and the nonce that it is sealed with. Only the footer
//! is sealed anew, under the new segment's identity.

use super::frame::{HEADER_BYTES, Header, seal_tail};
use super::{BatchHeader, Footer, SealedSegment, SegmentContainer, segment_key};
use crate::container::ContainerDirectory;
use crate::domain::Domain;
use bytes::Bytes;
use cairn_model::{
    BLOCKS_PER_CHUNK_MAX, CHUNKS_PER_CONTAINER_MAX, ChunkIndex, ChunkSet, ContainerFingerprints, ContainerId,
    Fingerprint, Ports, SegmentId,
};
use std::sync::Arc;

/// What a container takes in a footer beside its chunks.
const CONTAINER_FOOTER_BYTES: usize = 16 + 10 + 10 + 4 + 10;
/// What a chunk takes there, with a run of others that were left out before it, and without its fingerprints.
const CHUNK_FOOTER_BYTES: usize = 4 + 4;

const _: () = assert!(
    Regrouped::CONTAINERS_MAX * CONTAINER_FOOTER_BYTES
        + CHUNKS_PER_CONTAINER_MAX
            * (CHUNK_FOOTER_BYTES + BLOCKS_PER_CHUNK_MAX as usize * Fingerprint::BYTES)
        < super::FOOTER_BYTES_MAX as usize / 2,
    "a footer is never larger than what readers accept"
);

/// A segment of survivors that is being filled.
#[derive(Debug)]
pub struct Regrouped {
    segment: SegmentId,
    domain: Domain,
    batch: BatchHeader,
    /// The object from its header on.
    buffer: Vec<u8>,
    containers: Vec<SegmentContainer>,
    chunks: usize,
}

impl Regrouped {
    /// Containers in one segment at most: survivors of very sparse ones would make a footer of names.
    pub const CONTAINERS_MAX: usize = 256;

    /// An empty one. `batch` is a fresh batch of its own. `bytes_expected` is how much will be added.
    pub fn new(domain: &Domain, batch: BatchHeader, bytes_expected: usize, ports: &Ports) -> Self {
        let segment = SegmentId::fresh(&*ports.clock, &*ports.entropy);
        let mut buffer = Vec::with_capacity(HEADER_BYTES + bytes_expected);
        buffer.extend_from_slice(&Header::new(domain, batch.site, segment).encode());
        Self { segment, domain: domain.clone(), batch, buffer, containers: Vec::new(), chunks: 0 }
    }

    /// What a segment of one container with these chunks of `directory` would take: survivors of it cost so much at most.
    pub fn bytes_of(directory: &ContainerDirectory, kept: &ChunkSet) -> u64 {
        let entries = kept.iter().filter_map(|index| directory.get(index));
        let (chunks, blocks) = entries
            .fold((0, 0), |(chunks, blocks), entry| (chunks + 1, blocks + usize::from(entry.raw_blocks)));
        let footer = CONTAINER_FOOTER_BYTES + chunks * CHUNK_FOOTER_BYTES + blocks * Fingerprint::BYTES;
        directory.stored_bytes_of(kept) + footer as u64
    }

    /// Whether a container with so many chunks and stored bytes may be added to a segment of `container_bytes_max` bytes. The first may.
    pub fn has_room(&self, chunks: usize, stored_bytes: u64, container_bytes_max: u32) -> bool {
        let bytes = (self.buffer.len() - HEADER_BYTES) as u64 + stored_bytes;
        self.containers.is_empty()
            || (self.containers.len() < Self::CONTAINERS_MAX
                && self.chunks + chunks <= CHUNKS_PER_CONTAINER_MAX
                && bytes <= u64::from(container_bytes_max))
    }

    /// Adds a container with those of its chunks that are in `kept`; `directory` is of the place where they come from, `stored` has the
    /// verified stored bytes of each in order. Panics when a chunk is not what the directory says.
    pub fn add<'a>(
        &mut self,
        container: ContainerId,
        directory: &ContainerDirectory,
        kept: &ChunkSet,
        fingerprints: Option<&ContainerFingerprints>,
        stored: impl IntoIterator<Item = (ChunkIndex, &'a [u8])>,
    ) {
        let thin = directory.thinned(kept);
        let offset = self.buffer.len();
        self.chunks += kept.len();
        let mut stored = stored.into_iter();
        for (index, entry) in thin.iter() {
            let (at, bytes) = stored.next().expect("every chunk that is kept comes with its bytes");
            assert!(at == index && bytes.len() == entry.stored_bytes as usize, "the bytes are the chunk's");
            self.buffer.extend_from_slice(bytes);
        }
        self.containers.push(SegmentContainer {
            id: container,
            offset: offset as u64,
            directory: Arc::new(thin),
            domain: self.domain.id(),
            fingerprints: fingerprints.map(|prints| Arc::new(prints.thinned(kept))),
        });
    }

    pub const fn is_empty(&self) -> bool {
        self.containers.is_empty()
    }

    /// The segment, complete.
    pub fn seal(self) -> SealedSegment {
        let footer = Footer {
            batch: self.batch,
            domain: self.domain.id(),
            segment: self.segment,
            index: 0,
            last: true,
            containers: self.containers,
            volumes: Vec::new(),
        };
        let offset = self.buffer.len() as u64;
        let tail = seal_tail(&self.domain, self.segment, &self.buffer[..HEADER_BYTES], &footer, offset);
        SealedSegment {
            id: self.segment,
            key: segment_key(self.segment),
            index: 0,
            body: Bytes::from(self.buffer),
            tail: tail.into(),
            containers: footer.containers,
        }
    }
}
