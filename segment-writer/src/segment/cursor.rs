//! Blocks that lie in several pieces of memory, read as if in one.

use bytes::Bytes;
use cairn_model::{BLOCK_SIZE, BLOCKS_PER_CHUNK_MAX};

const BLOCK: usize = BLOCK_SIZE as usize;

/// Walks over the blocks of consecutive pieces.
pub(super) struct Cursor<'a> {
    pieces: &'a [Bytes],
    /// Offset in the first piece.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(pieces: &'a [Bytes]) -> Self {
        Self { pieces, at: 0 }
    }

    /// The first piece that has bytes left.
    fn piece(&mut self) -> &'a Bytes {
        while self.at == self.pieces[0].len() {
            self.pieces = &self.pieces[1..];
            self.at = 0;
        }
        &self.pieces[0]
    }

    /// The next block.
    pub(super) fn block(&mut self) -> &'a [u8] {
        let piece = self.piece();
        self.at += BLOCK;
        &piece[self.at - BLOCK..self.at]
    }

    pub(super) fn skip(&mut self, blocks: u64) {
        let mut bytes = usize::try_from(blocks).expect("a run is in memory") * BLOCK;
        while bytes > 0 {
            let step = bytes.min(self.piece().len() - self.at);
            self.at += step;
            bytes -= step;
        }
    }

    /// The next `length` bytes: where they are, with their shared form, when one piece has them; else gathered.
    pub(super) fn take<'b>(&mut self, length: usize, gathered: &'b mut Vec<u8>) -> (&'b [u8], Option<Bytes>)
    where
        'a: 'b,
    {
        let piece = self.piece();
        if piece.len() - self.at >= length {
            let range = self.at..self.at + length;
            self.at += length;
            return (&piece[range.clone()], Some(piece.slice(range)));
        }
        gathered.clear();
        gathered.reserve_exact(usize::from(BLOCKS_PER_CHUNK_MAX) * BLOCK);
        while gathered.len() < length {
            let piece = self.piece();
            let end = piece.len().min(self.at + length - gathered.len());
            gathered.extend_from_slice(&piece[self.at..end]);
            self.at = end;
        }
        (gathered, None)
    }
}
