//! What a piece may be: as its own shard says, or as others say together.
//!
//! They come one after the other as shards are read: each that is new is tried with those that were there. What a consistent lie is told from is for `distrust`.

use super::erasure::{columns, decode};
use super::pieces::Piece;
use super::shard::regions_of;
use bytes::Bytes;
use std::ops::Range;

/// Combinations of shards that are tried.
pub(super) const COMBINATIONS_MAX: usize = 64;

/// Whole regions that are read of every shard.
pub(super) struct Span {
    pub(super) range: Range<u64>,
    /// Those of the shards that pass their checksums.
    pub(super) good: Vec<(usize, Bytes)>,
    /// Shards that have not answered.
    pub(super) awaited: Vec<usize>,
}

impl Span {
    pub(super) fn bytes(&self, shard: usize) -> Option<&Bytes> {
        self.good.iter().find(|(index, _)| *index == shard).map(|(_, bytes)| bytes)
    }
}

/// The regions that have the pieces; those that overlap are read once.
pub(super) fn spans_of(pieces: &[Piece], shard_bytes: u64) -> Vec<Span> {
    let mut regions: Vec<_> = pieces.iter().map(|piece| regions_of(&piece.bytes, shard_bytes)).collect();
    regions.sort_by_key(|regions| regions.start);
    let mut spans: Vec<Span> = Vec::with_capacity(regions.len());
    for range in regions {
        match spans.last_mut() {
            Some(last) if range.start < last.range.end => last.range.end = last.range.end.max(range.end),
            _ => spans.push(Span { range, good: Vec::new(), awaited: Vec::new() }),
        }
    }
    spans
}

/// A way to have a piece.
pub(super) struct Candidate {
    pub(super) bytes: Bytes,
    /// The shards that say so.
    pub(super) of: Vec<usize>,
}

/// A piece and what it may be.
pub(super) struct Known {
    pub(super) piece: Piece,
    /// Which of the spans has it.
    pub(super) span: usize,
    pub(super) candidates: Vec<Candidate>,
    combinations: usize,
}

impl Known {
    pub(super) fn new(piece: Piece, spans: &[Span]) -> Self {
        let span = spans.iter().position(|span| span.range.contains(&piece.bytes.start));
        let span = span.expect("the spans were made to have it");
        Self { piece, span, candidates: Vec::new(), combinations: 0 }
    }

    /// The shards that the piece can be made of now that `added` is there too, in as many ways as are tried.
    pub(super) fn ways(&mut self, span: &Span, added: usize, data: u8) -> Vec<Vec<usize>> {
        if added == self.piece.shard {
            return vec![vec![added]];
        }
        let others: Vec<_> = span.good.iter().map(|(index, _)| *index).collect();
        let others: Vec<_> =
            others.into_iter().filter(|index| ![added, self.piece.shard].contains(index)).collect();
        let way = |chosen: Vec<usize>| chosen.iter().map(|at| others[*at]).chain([added]).collect();
        let left = COMBINATIONS_MAX - self.combinations;
        let ways: Vec<_> = combinations(others.len(), usize::from(data) - 1).take(left).map(way).collect();
        self.combinations += ways.len();
        ways
    }

    /// Makes the piece of these shards, as one more candidate: its number. `None` when one says the same. CPU work.
    pub(super) fn make(&mut self, span: &Span, of: Vec<usize>, data: u8, parity: u8) -> Option<usize> {
        let shard = self.piece.shard;
        let bytes = if of == [shard] {
            cut(span.bytes(shard)?, span.range.start, &self.piece.bytes)
        } else {
            let wide = columns(&self.piece.bytes);
            let source = |index: &usize| Some((*index, cut(span.bytes(*index)?, span.range.start, &wide)));
            let sources: Vec<_> = of.iter().filter_map(source).collect();
            let sources: Vec<_> = sources.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
            let decoded = decode(data, parity, &[shard], &sources).ok()?.remove(0);
            cut(&decoded, wide.start, &self.piece.bytes)
        };
        if self.candidates.iter().any(|candidate| candidate.bytes == bytes) {
            return None;
        }
        self.candidates.push(Candidate { bytes, of });
        Some(self.candidates.len() - 1)
    }
}

/// A range out of bytes that begin at `start`.
fn cut(bytes: &Bytes, start: u64, range: &Range<u64>) -> Bytes {
    let from = usize::try_from(range.start - start).expect("a shard of a segment is in memory");
    let length = usize::try_from(range.end - range.start).expect("at most GET_BYTES_MAX");
    bytes.slice(from..from + length)
}

/// All ways to choose `chosen` of `total`, in lexical order.
pub(super) fn combinations(total: usize, chosen: usize) -> impl Iterator<Item = Vec<usize>> {
    let first: Option<Vec<_>> = (chosen <= total).then(|| (0..chosen).collect());
    std::iter::successors(first, move |last| {
        let at = (0..chosen).rev().find(|at| last[*at] < total - chosen + at)?;
        let mut next = last.clone();
        next[at] += 1;
        for behind in at + 1..chosen {
            next[behind] = next[behind - 1] + 1;
        }
        Some(next)
    })
}

/// One of each, in all ways; the first ones first.
pub(super) fn choices(counts: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let first = counts.iter().all(|count| *count > 0).then(|| vec![0; counts.len()]);
    let counts = counts.to_vec();
    std::iter::successors(first, move |last| {
        let mut next = last.clone();
        for (at, count) in next.iter_mut().zip(&counts) {
            *at += 1;
            if *at < *count {
                return Some(next);
            }
            *at = 0;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_all_there_once() {
        let all: Vec<_> = combinations(4, 2).collect();
        assert_eq!(all, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
        assert_eq!(combinations(3, 3).count(), 1);
        assert_eq!(combinations(2, 3).count(), 0);
        assert_eq!(combinations(10, 4).count(), 210);
    }

    #[test]
    fn choices_are_one_of_each() {
        let all: Vec<_> = choices(&[2, 3]).collect();
        assert_eq!(all, [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]);
        assert_eq!(choices(&[2, 0]).count(), 0);
    }

    #[test]
    fn regions_that_overlap_are_read_once() {
        let piece = |shard, bytes| Piece { shard, bytes };
        let spans = |pieces: &[Piece]| {
            spans_of(pieces, 1 << 20).into_iter().map(|span| span.range).collect::<Vec<_>>()
        };
        let whole = 0..1 << 20;
        let all: Vec<_> = (0..4).map(|shard| piece(shard, whole.clone())).collect();
        assert_eq!(spans(&all), [whole]);
        let border = [piece(1, (1 << 20) - 10..1 << 20), piece(2, 0..10)];
        assert_eq!(spans(&border), [0..65536, (1 << 20) - 65536..1 << 20]);
    }
}
