//! What zstd makes of chunks at several levels.

use cairn_model::crypto::TAG_BYTES;

pub(crate) const LEVELS: [i32; 5] = [-5, -3, -1, 1, 3];

/// All levels look at one chunk in so many.
const SAMPLE_ONE_IN: u64 = 16;

/// Sums over a sample of chunks.
pub(crate) struct Levels {
    contexts: [zstd::bulk::Compressor<'static>; LEVELS.len()],
    seen: u64,
    raw_bytes: u64,
    stored_bytes: [u64; LEVELS.len()],
}

impl Levels {
    pub(crate) fn new() -> Self {
        let contexts = LEVELS.map(|level| zstd::bulk::Compressor::new(level).unwrap());
        Self { contexts, seen: 0, raw_bytes: 0, stored_bytes: [0; LEVELS.len()] }
    }

    pub(crate) fn see(&mut self, chunk: &[u8]) {
        self.seen += 1;
        if !self.seen.is_multiple_of(SAMPLE_ONE_IN) {
            return;
        }
        self.raw_bytes += chunk.len() as u64;
        for (context, stored) in self.contexts.iter_mut().zip(&mut self.stored_bytes) {
            *stored += stored_bytes(context, chunk);
        }
    }

    pub(crate) fn ratios(&self) -> [f64; LEVELS.len()] {
        self.stored_bytes.map(|stored| crate::tally::float(self.raw_bytes) / crate::tally::float(stored))
    }
}

/// Bytes of the chunk as it is stored: with its tag, and not compressed where that saves less than one byte in twenty.
pub(crate) fn stored_bytes(context: &mut zstd::bulk::Compressor<'static>, chunk: &[u8]) -> u64 {
    let compressed = context.compress(chunk).unwrap().len();
    let stored = if compressed <= chunk.len() - chunk.len() / 20 { compressed } else { chunk.len() };
    (stored + TAG_BYTES) as u64
}
