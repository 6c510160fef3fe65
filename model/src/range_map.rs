//! An ordered map from disjoint block ranges to values that can be cut.

use crate::{Lba, LbaRange};
use std::collections::BTreeMap;

/// A value that covers a run of blocks.
pub trait RangeValue: Clone {
    /// The value of the same run without its first `blocks` blocks.
    #[must_use]
    fn advanced(&self, blocks: u64) -> Self;
}

impl RangeValue for () {
    fn advanced(&self, _blocks: u64) -> Self {}
}

#[derive(Clone, Debug)]
struct Run<V> {
    end: u64,
    value: V,
}

/// Disjoint ranges, the latest insertion winning where they overlap. Costs O(log n) per piece touched,
/// whatever the length of the ranges: a discard of 64 TiB is one entry.
#[derive(Clone, Debug)]
pub struct RangeMap<V> {
    runs: BTreeMap<u64, Run<V>>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

impl<V: RangeValue> RangeMap<V> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Makes `range` mean `value`, replacing what was there.
    pub fn insert(&mut self, range: LbaRange, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range, |_, _| {});
        self.runs.insert(range.start().get(), Run { end: range.end().get(), value });
    }

    /// Empties `range`, showing each removed piece to `removed`.
    pub fn remove(&mut self, range: LbaRange, mut removed: impl FnMut(LbaRange, V)) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start().get(), range.end().get());
        self.split_at(start);
        self.split_at(end);
        while let Some((&piece_start, _)) = self.runs.range(start..end).next() {
            let run = self.runs.remove(&piece_start).expect("the key was just seen");
            removed(LbaRange::between(Lba::new(piece_start), Lba::new(run.end)), run.value);
        }
    }

    fn split_at(&mut self, at: u64) {
        let Some((&start, run)) = self.runs.range_mut(..at).next_back() else { return };
        if run.end <= at {
            return;
        }
        let tail = Run { end: run.end, value: run.value.advanced(at - start) };
        run.end = at;
        self.runs.insert(at, tail);
    }

    /// The pieces of `range` in order, `None` for the gaps between them. Together they cover `range` exactly.
    pub fn lookup(&self, range: LbaRange, mut piece: impl FnMut(LbaRange, Option<V>)) {
        let mut at = range.start().get();
        let end = range.end().get();
        let first =
            self.runs.range(..=at).next_back().filter(|(_, run)| run.end > at).map(|(&start, _)| start);
        for (&start, run) in self.runs.range(first.unwrap_or(at)..end) {
            if start > at {
                piece(LbaRange::between(Lba::new(at), Lba::new(start)), None);
                at = start;
            }
            let piece_end = run.end.min(end);
            let value = if at > start { run.value.advanced(at - start) } else { run.value.clone() };
            piece(LbaRange::between(Lba::new(at), Lba::new(piece_end)), Some(value));
            at = piece_end;
        }
        if at < end {
            piece(LbaRange::between(Lba::new(at), Lba::new(end)), None);
        }
    }

    /// All pieces in address order.
    pub fn iter(&self) -> impl Iterator<Item = (LbaRange, &V)> {
        self.runs
            .iter()
            .map(|(&start, run)| (LbaRange::between(Lba::new(start), Lba::new(run.end)), &run.value))
    }

    /// The pieces from `from` on in address order; the first is cut if `from` lies inside it.
    pub fn iter_from(&self, from: Lba) -> impl Iterator<Item = (LbaRange, V)> {
        let from = from.get();
        let first = self.runs.range(..from).next_back().filter(|(_, run)| run.end > from);
        let cut = first.map(|(&start, run)| (from, run.end, run.value.advanced(from - start)));
        let rest = self.runs.range(from..).map(|(&start, run)| (start, run.end, run.value.clone()));
        cut.into_iter()
            .chain(rest)
            .map(|(start, end, value)| (LbaRange::between(Lba::new(start), Lba::new(end)), value))
    }

    /// All pieces in address order, for changes that keep each piece's range.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (LbaRange, &mut V)> {
        self.runs
            .iter_mut()
            .map(|(&start, run)| (LbaRange::between(Lba::new(start), Lba::new(run.end)), &mut run.value))
    }

    /// Drops the pieces that `keep` refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(LbaRange, &V) -> bool) {
        self.runs
            .retain(|&start, run| keep(LbaRange::between(Lba::new(start), Lba::new(run.end)), &run.value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value that remembers which block of the inserted run it stands for.
    #[derive(Clone, Debug, PartialEq)]
    struct Tag(u32, u64);

    impl RangeValue for Tag {
        fn advanced(&self, blocks: u64) -> Self {
            Tag(self.0, self.1 + blocks)
        }
    }

    fn range(start: u64, blocks: u64) -> LbaRange {
        LbaRange::new(Lba::new(start), blocks).unwrap()
    }

    proptest! {
        #[test]
        fn equals_an_array_of_blocks(operations in prop::collection::vec((0u64..64, 1u64..32, any::<bool>()), 1..60)) {
            let mut map = RangeMap::new();
            let mut blocks: Vec<Option<Tag>> = vec![None; 96];
            for (number, (start, length, insert)) in operations.into_iter().enumerate() {
                let number = u32::try_from(number).unwrap();
                if insert {
                    map.insert(range(start, length), Tag(number, 0));
                } else {
                    map.remove(range(start, length), |_, _| {});
                }
                for offset in 0..length {
                    blocks[usize::try_from(start + offset).unwrap()] = insert.then_some(Tag(number, offset));
                }
                for (look_start, look_length) in [(0, 96), (start, length), (start / 2, length)] {
                    let mut at = look_start;
                    map.lookup(range(look_start, look_length), |piece, value| {
                        assert_eq!(piece.start().get(), at);
                        for block in piece.start().get()..piece.end().get() {
                            let expected = &blocks[usize::try_from(block).unwrap()];
                            assert_eq!(&value.as_ref().map(|v| v.advanced(block - piece.start().get())), expected);
                        }
                        at = piece.end().get();
                    });
                    prop_assert_eq!(at, look_start + look_length);
                    let mut from_there = Vec::new();
                    map.lookup(range(look_start, 96), |piece, value| from_there.extend(value.map(|value| (piece, value))));
                    prop_assert_eq!(map.iter_from(Lba::new(look_start)).collect::<Vec<_>>(), from_there);
                }
            }
        }
    }
}
