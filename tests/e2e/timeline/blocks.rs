//! Blocks that say what they are.

use super::Broken;
use anyhow::anyhow;
use std::sync::atomic::{AtomicU64, Ordering};
use system_tests::export::Export;
use system_tests::random::Random;

pub(crate) const BLOCK: usize = 4096;

/// What a block holds: zeroes if it is 0, or else noise that follows from the number and begins with it.
pub(crate) type Content = u64;

/// Contents that come again and again: runs of that many blocks, each of which may be shared at the moment at which it is taken back.
const REPEATED_RUNS: u64 = 8;
const RUN_BLOCKS: u64 = 64;

/// Contents that nobody has used yet.
#[derive(Debug)]
pub(crate) struct Fresh(AtomicU64);

impl Default for Fresh {
    fn default() -> Self {
        Self(AtomicU64::new(REPEATED_RUNS * RUN_BLOCKS + 1))
    }
}

impl Fresh {
    pub(crate) fn take(&self, blocks: u64) -> Vec<Content> {
        let first = self.0.fetch_add(blocks, Ordering::SeqCst);
        (first..first + blocks).collect()
    }

    /// What one write writes: zeroes, something that was written before, or something new.
    pub(crate) fn some(&self, random: &mut Random) -> Vec<Content> {
        let blocks = if random.chance(4) { RUN_BLOCKS } else { 1 + random.below(16) };
        match random.below(8) {
            0 => vec![0; random.index(256) + 1],
            1..=3 => {
                let first = 1 + random.below(REPEATED_RUNS) * RUN_BLOCKS;
                (first..first + blocks).collect()
            }
            _ => self.take(blocks),
        }
    }
}

fn fill(content: Content, block: &mut [u8]) {
    if content == 0 {
        block.fill(0);
        return;
    }
    Random::seeded(content).fill(block);
    block[..8].copy_from_slice(&content.to_le_bytes());
}

pub(crate) fn bytes_of(contents: &[Content]) -> Vec<u8> {
    let mut bytes = vec![0; contents.len() * BLOCK];
    for (content, block) in contents.iter().zip(bytes.chunks_exact_mut(BLOCK)) {
        fill(*content, block);
    }
    bytes
}

/// What each block of the export holds. A block that nobody ever wrote is wrong.
pub(crate) fn read(export: &Export) -> Result<Vec<Content>, Broken> {
    const PIECE: usize = 1 << 20;
    let unanswered = |error: anyhow::Error| Broken::Unanswered(error.context(export.name.clone()));
    let mut client = export.connect().map_err(unanswered)?;
    let size = usize::try_from(client.size()).expect("a size of memory");
    let mut contents = Vec::with_capacity(size / BLOCK);
    let mut expected = vec![0; BLOCK];
    for at in (0..size).step_by(PIECE) {
        let piece = client.read(at as u64, PIECE.min(size - at)).map_err(unanswered)?;
        for block in piece.chunks(BLOCK) {
            let (first, _) = block.split_first_chunk::<8>().expect("a block");
            let content = Content::from_le_bytes(*first);
            fill(content, &mut expected);
            if block != expected {
                let number = contents.len();
                return Err(Broken::Wrong(anyhow!(
                    "block {number} of {} holds what nobody wrote",
                    export.name
                )));
            }
            contents.push(content);
        }
    }
    client.disconnect().map_err(unanswered)?;
    Ok(contents)
}
