//! What one way of cutting made of the images.

use crate::levels::Levels;
use cairn_model::{BLOCK_SIZE, ChunkRef, Fingerprint, Lba};

/// Bytes of an index entry: a fingerprint and the identity of a container.
const ENTRY_BYTES: u64 = Fingerprint::BYTES as u64 + 16;

/// One image's share. Blocks of zeros are not counted.
#[derive(Clone, Copy, Default, Debug)]
#[expect(clippy::struct_field_names, reason = "units come last")]
pub(crate) struct ImageTally {
    pub(crate) written_bytes: u64,
    pub(crate) unique_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl ImageTally {
    pub(crate) const fn shared_bytes(&self) -> u64 {
        self.written_bytes - self.unique_bytes
    }
}

pub(crate) struct Tally {
    pub(crate) name: String,
    pub(crate) images: Vec<ImageTally>,
    pub(crate) levels: Levels,
    /// Entries of the durable index.
    pub(crate) entries: u64,
    /// Bytes of the lists beside them: all fingerprints of each container.
    pub(crate) list_bytes: u64,
    /// Chunks stored, and their plaintext.
    pub(crate) chunks: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) map: MapTally,
}

/// What reads will meet.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct MapTally {
    blocks: u64,
    /// Sums over the blocks, of the chunk that each is in.
    raw_bytes: u64,
    stored_bytes: u64,
    /// Stretches of a map that stay within one chunk.
    runs: u64,
    /// Places where the data that follows in the volume does not follow in the container.
    jumps: u64,
    last: Option<(Lba, ChunkRef)>,
}

impl MapTally {
    /// `blocks` blocks at `at` are in a chunk of these sizes from block `to` on. Given in the order of the volume.
    pub(crate) fn add(&mut self, at: Lba, blocks: u64, to: ChunkRef, chunk: ChunkSize) {
        self.blocks += blocks;
        self.raw_bytes += blocks * chunk.raw_bytes;
        self.stored_bytes += blocks * chunk.stored_bytes;
        let end = self.last.filter(|(end, _)| *end == at).map(|(_, next)| next);
        let same = end.is_some_and(|end| end == to);
        let next = end.is_some_and(|end| {
            end.chunk.container == to.chunk.container
                && end.chunk.index.get() + 1 == to.chunk.index.get()
                && to.block == 0
        });
        self.runs += u64::from(!same);
        self.jumps += u64::from(!same && !next);
        let behind = to.block + u8::try_from(blocks).expect("a run stays within its chunk");
        self.last = Some((at.plus(blocks), ChunkRef { block: behind, ..to }));
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkSize {
    pub(crate) raw_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl Tally {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            images: Vec::new(),
            levels: Levels::new(),
            entries: 0,
            list_bytes: 0,
            chunks: 0,
            chunk_bytes: 0,
            map: MapTally::default(),
        }
    }

    fn sum(&self, of: impl Fn(&ImageTally) -> u64) -> f64 {
        float(self.images.iter().map(of).sum())
    }

    pub(crate) fn dedupe(&self) -> f64 {
        self.sum(|image| image.written_bytes) / self.sum(|image| image.unique_bytes)
    }

    pub(crate) fn shared(&self) -> f64 {
        self.sum(ImageTally::shared_bytes)
    }

    /// Of what is stored, tags counted.
    pub(crate) fn compression(&self) -> f64 {
        self.sum(|image| image.unique_bytes) / self.sum(|image| image.stored_bytes)
    }

    pub(crate) fn written_gib(&self) -> f64 {
        self.sum(|image| image.written_bytes) / f64::from(1 << 30)
    }

    pub(crate) fn unique_gib(&self) -> f64 {
        self.sum(|image| image.unique_bytes) / f64::from(1 << 30)
    }

    pub(crate) fn entries(&self) -> f64 {
        float(self.entries)
    }

    pub(crate) fn index_bytes(&self) -> f64 {
        float(self.entries * ENTRY_BYTES + self.list_bytes)
    }

    pub(crate) fn average_chunk_kib(&self) -> f64 {
        float(self.chunk_bytes) / float(self.chunks) / 1024.0
    }

    pub(crate) fn read_raw_kib(&self) -> f64 {
        float(self.map.raw_bytes) / float(self.map.blocks) / 1024.0
    }

    pub(crate) fn read_stored_kib(&self) -> f64 {
        float(self.map.stored_bytes) / float(self.map.blocks) / 1024.0
    }

    pub(crate) fn map_runs(&self) -> f64 {
        float(self.map.runs)
    }

    pub(crate) fn map_jumps(&self) -> f64 {
        float(self.map.jumps)
    }
}

pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn float(value: u64) -> f64 {
    value as f64
}
