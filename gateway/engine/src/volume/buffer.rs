//! The write buffer: what a volume was told and the catalog does not know yet.
//!
//! Writes go into the *active* layer. A cut freezes it and starts a new one; frozen layers are destaged oldest
//! first and leave when the catalog has them. A block is looked up newest layer first. A frozen layer never changes what it says,
//! so a batch is the volume at its cut whatever is written meanwhile. A snapshot ends a layer: what it shows is what the layers through it say.
//!
//! Layers may be *stripped*: they keep addresses and log positions and let go of the bytes, which are then read
//! back from the log. That is how the log may be larger than RAM.

use bytes::Bytes;
use cairn_metadata::NewSnapshot;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BLOCK_SIZE, LbaRange, Lsn, RangeMap, RangeValue, WriteSeq};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the buffer knows of a run of blocks.
#[derive(Clone, Debug)]
pub(crate) enum Buffered {
    /// Written by record `lsn`; the run starts `skip_blocks` into the record's data.
    Data { lsn: Lsn, skip_blocks: u32, bytes: Option<Bytes> },
    /// Discarded or zeroed by record `lsn`.
    Hole { lsn: Lsn },
}

impl RangeValue for Buffered {
    fn advanced(&self, blocks: u64) -> Self {
        match self {
            Self::Hole { lsn } => Self::Hole { lsn: *lsn },
            Self::Data { lsn, skip_blocks, bytes } => {
                let skipped = usize::try_from(blocks).expect("a record is far below 2^32 blocks");
                let more = u32::try_from(blocks).expect("a record is far below 2^32 blocks");
                Self::Data {
                    lsn: *lsn,
                    skip_blocks: skip_blocks + more,
                    bytes: bytes.as_ref().map(|bytes| bytes.slice(skipped * BLOCK_SIZE as usize..)),
                }
            }
        }
    }
}

/// The writes between two cuts.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Last write before the layer.
    pub(crate) base: WriteSeq,
    /// Last write in it.
    pub(crate) through: WriteSeq,
    pub(crate) runs: RangeMap<Buffered>,
    /// Bytes written into the layer, overwritten ones included: an upper bound of what it holds in memory.
    pub(crate) written_bytes: u64,
    /// Whether the bytes were let go of.
    pub(crate) stripped: bool,
    /// Snapshots of the volume as the layer leaves it. Each is a step of the write order, the last of its layer.
    pub(crate) snapshots: Vec<NewSnapshot>,
}

impl Layer {
    fn after(base: WriteSeq) -> Self {
        Self {
            base,
            through: base,
            runs: RangeMap::new(),
            written_bytes: 0,
            stripped: false,
            snapshots: Vec::new(),
        }
    }

    /// Bytes of memory that the layer's data may hold.
    pub(crate) fn resident_bytes(&self) -> u64 {
        if self.stripped { 0 } else { self.written_bytes }
    }

    fn strip(&mut self) {
        for (_, run) in self.runs.iter_mut() {
            if let Buffered::Data { bytes, .. } = run {
                *bytes = None;
            }
        }
        self.stripped = true;
    }
}

/// All layers of a volume.
#[derive(Debug)]
pub(crate) struct WriteBuffer {
    active: Layer,
    /// Oldest first.
    frozen: VecDeque<Arc<Layer>>,
}

impl WriteBuffer {
    /// An empty buffer after `through`, the last write that the catalog has.
    pub(crate) fn after(through: WriteSeq) -> Self {
        Self { active: Layer::after(through), frozen: VecDeque::new() }
    }

    pub(crate) fn last_seq(&self) -> WriteSeq {
        self.active.through
    }

    /// Records the next write of the order. `seq` must follow [`Self::last_seq`].
    pub(crate) fn apply(&mut self, seq: WriteSeq, range: LbaRange, what: Buffered) {
        self.step(seq);
        if let Buffered::Data { bytes: Some(bytes), .. } = &what {
            self.active.written_bytes += bytes.len() as u64;
        }
        self.active.runs.insert(range, what);
    }

    /// Records that the next step of the order is a snapshot of what was written before it. The layer must be frozen before another write
    /// comes.
    pub(crate) fn mark(&mut self, seq: WriteSeq, snapshot: NewSnapshot) {
        self.active.through = self.active.through.next();
        assert_eq!(seq, self.active.through, "snapshots enter the buffer in the order of writes");
        self.active.snapshots.push(snapshot);
    }

    fn step(&mut self, seq: WriteSeq) {
        assert_eq!(seq, self.active.through.next(), "writes enter the buffer in their order");
        let is_open = self.active.snapshots.is_empty() || is_planted(Bug::SnapshotCutsLate);
        assert!(is_open, "a layer ends with its snapshot");
        self.active.through = seq;
    }

    /// Snapshots that the catalog does not have yet, the oldest first.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &NewSnapshot> {
        let frozen = self.frozen.iter().flat_map(|layer| &layer.snapshots);
        frozen.chain(&self.active.snapshots)
    }

    pub(crate) fn active_bytes(&self) -> u64 {
        self.active.written_bytes
    }

    /// Writes wait in the active layer.
    pub(crate) fn has_active(&self) -> bool {
        self.active.through > self.active.base
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.has_active() && self.frozen.is_empty()
    }

    /// Freezes the active layer; `None` when it holds no write. With `strip`, its bytes are let go of.
    pub(crate) fn freeze(&mut self, strip: bool) -> Option<Arc<Layer>> {
        if !self.has_active() {
            return None;
        }
        let next = Layer::after(self.active.through);
        let mut layer = std::mem::replace(&mut self.active, next);
        if strip {
            layer.strip();
        }
        let layer = Arc::new(layer);
        self.frozen.push_back(Arc::clone(&layer));
        Some(layer)
    }

    /// Drops the oldest frozen layer, which the catalog has now. Returns the memory it held.
    pub(crate) fn retire(&mut self, layer: &Arc<Layer>) -> u64 {
        let oldest = self.frozen.pop_front().expect("a retired layer is frozen");
        assert!(Arc::ptr_eq(&oldest, layer), "layers retire in the order of their cuts");
        oldest.resident_bytes()
    }

    /// Drops everything: the volume is gone. Returns the memory it held.
    pub(crate) fn clear(&mut self) -> u64 {
        let held = self.active.resident_bytes()
            + self.frozen.iter().map(|layer| layer.resident_bytes()).sum::<u64>();
        let through = self.active.through;
        *self = Self::after(through);
        held
    }

    /// Where the buffer says anything of `range`, in no particular order; parts may come several times.
    pub(crate) fn touched(&self, range: LbaRange, mut piece: impl FnMut(LbaRange)) {
        for layer in self.frozen.iter().map(|layer| &**layer).chain([&self.active]) {
            layer.runs.lookup(range, |part, value| {
                if value.is_some() {
                    piece(part);
                }
            });
        }
    }

    /// The pieces of `range`, in no particular order: what the buffer says, or `None` where it says nothing.
    pub(crate) fn lookup(&self, range: LbaRange, mut piece: impl FnMut(LbaRange, Option<Buffered>)) {
        let mut unknown = Gaps::default();
        self.active.runs.lookup(range, |part, value| match value {
            Some(value) => piece(part, Some(value)),
            None => unknown.push(part),
        });
        for layer in self.frozen.iter().rev() {
            if unknown.is_empty() {
                return;
            }
            let mut still = Gaps::default();
            for gap in unknown.drain() {
                layer.runs.lookup(gap, |part, value| match value {
                    Some(value) => piece(part, Some(value)),
                    None => still.push(part),
                });
            }
            unknown = still;
        }
        for gap in unknown.drain() {
            piece(gap, None);
        }
    }
}

/// Ranges left to look up. One is the common case and costs no allocation.
#[derive(Default)]
struct Gaps {
    first: Option<LbaRange>,
    more: Vec<LbaRange>,
}

impl Gaps {
    fn push(&mut self, gap: LbaRange) {
        if self.first.is_none() {
            self.first = Some(gap);
        } else {
            self.more.push(gap);
        }
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn drain(self) -> impl Iterator<Item = LbaRange> {
        self.first.into_iter().chain(self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::Lba;

    fn blocks(start: u64, count: u64) -> LbaRange {
        LbaRange::new(Lba::new(start), count).unwrap()
    }

    fn data(lsn: u64, count: u64, fill: u8) -> Buffered {
        let bytes = Bytes::from(vec![fill; usize::try_from(count).unwrap() * BLOCK_SIZE as usize]);
        Buffered::Data { lsn: Lsn::new(lsn), skip_blocks: 0, bytes: Some(bytes) }
    }

    fn lsn_of(buffered: &Buffered) -> Lsn {
        match buffered {
            Buffered::Data { lsn, .. } | Buffered::Hole { lsn } => *lsn,
        }
    }

    fn lsns(buffer: &WriteBuffer, range: LbaRange) -> Vec<(u64, u64, Option<u64>)> {
        let mut pieces = Vec::new();
        buffer.lookup(range, |part, value| {
            pieces.push((part.start().get(), part.blocks(), value.map(|value| lsn_of(&value).get())));
        });
        pieces.sort_unstable();
        pieces
    }

    #[test]
    fn the_newest_layer_wins_and_frozen_layers_show_through() {
        let mut buffer = WriteBuffer::after(WriteSeq::new(4));
        buffer.apply(WriteSeq::new(5), blocks(0, 8), data(1, 8, 1));
        let first = buffer.freeze(false).unwrap();
        buffer.apply(WriteSeq::new(6), blocks(2, 2), data(2, 2, 2));
        assert!(buffer.freeze(true).is_some());
        buffer.apply(WriteSeq::new(7), blocks(3, 3), Buffered::Hole { lsn: Lsn::new(3) });
        assert_eq!(
            lsns(&buffer, blocks(0, 10)),
            vec![(0, 2, Some(1)), (2, 1, Some(2)), (3, 3, Some(3)), (6, 2, Some(1)), (8, 2, None)]
        );
        assert_eq!((first.base, first.through), (WriteSeq::new(4), WriteSeq::new(5)));
        buffer.retire(&first);
        assert_eq!(lsns(&buffer, blocks(0, 3)), vec![(0, 2, None), (2, 1, Some(2))]);
    }

    #[test]
    fn a_frozen_layer_keeps_its_say_while_writes_go_on() {
        let mut buffer = WriteBuffer::after(WriteSeq::ZERO);
        buffer.apply(WriteSeq::new(1), blocks(0, 1), data(1, 1, 1));
        let layer = buffer.freeze(false).unwrap();
        buffer.apply(WriteSeq::new(2), blocks(0, 1), data(2, 1, 2));
        layer.runs.lookup(blocks(0, 1), |_, value| assert_eq!(lsn_of(&value.unwrap()), Lsn::new(1)));
    }

    #[test]
    #[should_panic(expected = "in their order")]
    fn a_skipped_write_is_a_broken_invariant() {
        let mut buffer = WriteBuffer::after(WriteSeq::ZERO);
        buffer.apply(WriteSeq::new(2), blocks(0, 1), data(1, 1, 1));
    }
}
