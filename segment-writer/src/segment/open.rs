//! The segment that is being filled.

use super::frame::{HEADER_BYTES, Header};
use crate::compress::{Codec, Compressor};
use crate::container::{CONTAINER_BYTES_MAX, ContainerDirectory};
use crate::domain::Domain;
use crate::seal::ContainerCipher;
use cairn_model::crypto::TAG_BYTES;
use cairn_model::{CHUNKS_PER_CONTAINER_MAX, ChunkId, ChunkIndex, ContainerId, Ports, SegmentId, SiteId};

/// First size of the buffer of the first segment of a batch or a domain, which then doubles: most batches of an idle volume are small.
const BUFFER_BYTES_FIRST: usize = 256 << 10;

/// A segment with one container.
pub(super) struct Open {
    pub(super) container: ContainerId,
    cipher: ContainerCipher,
    pub(super) directory: ContainerDirectory,
    pub(super) segment: SegmentId,
    /// The object from its header on.
    pub(super) buffer: Vec<u8>,
    /// All blocks of the container are fingerprinted, or none.
    pub(super) fingerprinted: bool,
}

/// How a chunk was stored.
pub(super) struct Stored {
    pub(super) chunk: ChunkId,
    pub(super) codec: Codec,
    pub(super) bytes: u32,
}

impl Open {
    /// An empty one, with room for an object of `bytes`.
    pub(super) fn new(
        domain: &Domain,
        fingerprinted: bool,
        bytes: usize,
        site: SiteId,
        ports: &Ports,
    ) -> Self {
        let container = ContainerId::fresh(&*ports.clock, &*ports.entropy);
        let segment = SegmentId::fresh(&*ports.clock, &*ports.entropy);
        let header = Header::new(domain, site, segment).encode();
        let mut buffer = Vec::with_capacity(bytes.max(header.len()));
        buffer.extend_from_slice(&header);
        Self {
            container,
            cipher: ContainerCipher::new(domain, container),
            directory: ContainerDirectory::new(),
            segment,
            buffer,
            fingerprinted,
        }
    }

    /// Whether a chunk of `raw_bytes` might make the container larger than `container_bytes_max`.
    pub(super) fn is_full(&self, raw_bytes: usize, container_bytes_max: u32) -> bool {
        let limit = container_bytes_max.min(CONTAINER_BYTES_MAX) as usize;
        self.directory.len() == CHUNKS_PER_CONTAINER_MAX
            || self.directory.stored_bytes() as usize + raw_bytes + TAG_BYTES > limit
    }

    /// Compresses and seals a chunk behind the others.
    pub(super) fn add(
        &mut self,
        raw_blocks: u8,
        raw: &[u8],
        compressor: &mut Compressor,
        container_bytes_max: u32,
    ) -> Stored {
        let index =
            ChunkIndex::new(u32::try_from(self.directory.len()).expect("a container's chunks are counted"));
        self.reserve(raw.len(), container_bytes_max);
        let start = self.buffer.len();
        let codec = compressor.compress(raw, &mut self.buffer);
        let raw_bytes = u32::try_from(raw.len()).expect("a chunk is at most 64 KiB");
        let tag = self.cipher.seal(index, raw_bytes, codec, &mut self.buffer[start..]);
        self.buffer.extend_from_slice(&tag);
        let bytes =
            u32::try_from(self.buffer.len() - start).expect("a stored chunk is at most 64 KiB and a tag");
        self.directory.push(bytes, raw_blocks, codec).expect("a chunk that fits was made");
        Stored { chunk: ChunkId { container: self.container, index }, codec, bytes }
    }

    /// Makes room for a chunk. The buffer doubles, but never beyond what a full container needs.
    fn reserve(&mut self, raw_bytes: usize, container_bytes_max: u32) {
        let chunk = Compressor::bound(raw_bytes) + TAG_BYTES;
        if self.buffer.capacity() - self.buffer.len() < chunk {
            let full = HEADER_BYTES + container_bytes_max.min(CONTAINER_BYTES_MAX) as usize + chunk;
            let wanted = (self.buffer.capacity() * 2).clamp(BUFFER_BYTES_FIRST, full.max(BUFFER_BYTES_FIRST));
            self.buffer.reserve_exact(wanted.saturating_sub(self.buffer.len()).max(chunk));
        }
    }
}
