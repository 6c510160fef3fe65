//! The common way, as a model: a chunk is found when the index has a name for the whole of it.

use crate::images::{Image, is_zero};
use crate::levels::stored_bytes;
use crate::tally::{BLOCK, ChunkSize, ImageTally, Tally};
use cairn_model::crypto::{Encryption, SecretKey};
use cairn_model::{
    BLOCKS_PER_CHUNK_MAX, ChunkId, ChunkIndex, ChunkRef, ContainerId, DomainId, Fingerprint, Lba,
};
use cairn_segment_writer::{ChunkShape, Domain, FingerprintKey};
use std::collections::HashMap;

/// Where a chunk ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// At addresses that are multiples of so many blocks.
    Fixed(u8),
    Content(ChunkShape),
}

impl Cut {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Fixed(blocks) => format!("fixed {} KiB", u32::from(blocks) * 4),
            Self::Content(shape) => format!("{}/{}, whole chunks found", shape.target(), shape.max()),
        }
    }

    fn ends(self, key: &FingerprintKey, at: Lba, blocks: u64, block: &[u8]) -> bool {
        match self {
            Self::Fixed(size) => at.plus(1).get().is_multiple_of(u64::from(size)),
            Self::Content(shape) => blocks == u64::from(shape.max()) || shape.ends(&key.of(block), block),
        }
    }
}

struct Model {
    cut: Cut,
    key: FingerprintKey,
    known: HashMap<Fingerprint, (ChunkRef, ChunkSize)>,
    zstd: zstd::bulk::Compressor<'static>,
    tally: Tally,
    image: ImageTally,
    /// The chunk at hand.
    start: Lba,
    chunk: Vec<u8>,
}

pub(crate) fn measure(images: &[Image], cut: Cut) -> Tally {
    let domain = Domain::new(DomainId::DEFAULT, SecretKey::from_bytes([7; 32]), Encryption::Aes256Gcm);
    let mut model = Model {
        cut,
        key: domain.fingerprints(),
        known: HashMap::new(),
        zstd: zstd::bulk::Compressor::new(1).unwrap(),
        tally: Tally::new(cut.name()),
        image: ImageTally::default(),
        start: Lba::ZERO,
        chunk: Vec::with_capacity(usize::from(BLOCKS_PER_CHUNK_MAX) * 4096),
    };
    for image in images {
        for (at, piece) in image.pieces() {
            for (at, block) in (0..).map(|offset| at.plus(offset)).zip(piece.chunks(4096)) {
                model.block(at, block);
            }
        }
        model.end();
        let image = std::mem::take(&mut model.image);
        model.tally.images.push(image);
    }
    model.tally.entries = model.known.len() as u64;
    model.tally
}

impl Model {
    fn block(&mut self, at: Lba, block: &[u8]) {
        // A fixed chunk keeps the zeros that it has among other blocks, as it must: they are part of its name.
        let hole = is_zero(block);
        if hole && matches!(self.cut, Cut::Content(_)) {
            self.end();
            return;
        }
        if self.chunk.is_empty() {
            self.start = at;
        }
        self.image.written_bytes += if hole { 0 } else { BLOCK };
        self.chunk.extend_from_slice(block);
        if self.cut.ends(&self.key, at, self.chunk.len() as u64 / BLOCK, block) {
            self.end();
        }
    }

    fn end(&mut self) {
        let data_blocks = self.chunk.chunks(4096).filter(|block| !is_zero(block)).count() as u64;
        if data_blocks > 0 {
            self.store(data_blocks);
        }
        self.chunk.clear();
    }

    fn store(&mut self, data_blocks: u64) {
        let name = self.key.of(&self.chunk);
        let number = u32::try_from(self.known.len()).unwrap();
        let (to, size) = *self.known.entry(name).or_insert_with(|| {
            let raw_bytes = self.chunk.len() as u64;
            let stored_bytes = stored_bytes(&mut self.zstd, &self.chunk);
            self.tally.levels.see(&self.chunk);
            self.tally.chunks += 1;
            self.tally.chunk_bytes += raw_bytes;
            self.image.unique_bytes += data_blocks * BLOCK;
            self.image.stored_bytes += stored_bytes;
            let chunk =
                ChunkId { container: ContainerId::from_bytes([0; 16]), index: ChunkIndex::new(number) };
            (ChunkRef { chunk, block: 0 }, ChunkSize { raw_bytes, stored_bytes })
        });
        self.tally.map.add(self.start, self.chunk.len() as u64 / BLOCK, to, size);
    }
}
