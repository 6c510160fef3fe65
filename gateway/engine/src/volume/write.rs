//! The way of a write: log, buffer, acknowledgement.

use super::buffer::Buffered;
use super::plan::Source;
use super::{Volume, VolumeState};
use crate::error::EngineError;
use bytes::{Bytes, BytesMut};
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{BLOCK_SIZE, Durability, Lba, LbaRange, Lsn, WriteFlags};
use cairn_wal::{Permit, Record, RecordBody};

/// Bytes of one log record. Longer writes become several, each a step of the write order of its own.
const RECORD_BYTES: usize = 512 << 10;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// One step of the write order.
enum Change {
    Write { start: Lba, data: Bytes },
    Discard { range: LbaRange },
}

impl Change {
    fn payload_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Discard { .. } => 0,
        }
    }

    /// Whether the change may need space in the pool.
    fn needs_space(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// Where a byte range meets block boundaries.
struct Split {
    /// Bytes of a partly covered first block.
    head: Option<(Lba, u64, u64)>,
    /// Whole blocks.
    body: LbaRange,
    /// Bytes of a partly covered last block.
    tail: Option<(Lba, u64, u64)>,
}

impl Split {
    /// `offset + length` must not overflow.
    fn of(offset: u64, length: u64) -> Self {
        let end = offset + length;
        let (first_whole, end_whole) = (offset.div_ceil(BLOCK), end / BLOCK);
        if first_whole > end_whole {
            // Inside one block.
            let block = Lba::new(offset / BLOCK);
            let empty = LbaRange::between(block, block);
            return Self { head: Some((block, offset % BLOCK, length)), body: empty, tail: None };
        }
        let head_bytes = (first_whole * BLOCK - offset).min(length);
        let tail_bytes = end - (end_whole * BLOCK);
        Self {
            head: (head_bytes > 0).then(|| (Lba::new(offset / BLOCK), offset % BLOCK, head_bytes)),
            body: LbaRange::between(Lba::new(first_whole), Lba::new(end_whole)),
            tail: (tail_bytes > 0).then(|| (Lba::new(end_whole), 0, tail_bytes)),
        }
    }
}

impl Volume {
    /// Writes bytes of any alignment; returns the last log position they took, to acknowledge by.
    pub(super) async fn write_bytes(&self, offset: u64, data: Bytes) -> Result<Lsn, EngineError> {
        self.admit(offset, data.len() as u64)?;
        let split = Split::of(offset, data.len() as u64);
        let mut rest = data;
        let mut last = Lsn::ZERO;
        if let Some((block, within, length)) = split.head {
            let part = rest.split_to(usize::try_from(length).expect("part of a buffer"));
            last = self.modify_block(block, within, &Patch::Bytes(part)).await?;
        }
        let mut at = split.body.start();
        let mut body = rest.split_to(usize::try_from(split.body.bytes()).expect("part of a buffer"));
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(RECORD_BYTES));
            let blocks = piece.len() as u64 / BLOCK;
            last = self.submit(Change::Write { start: at, data: piece }).await?;
            at = at.plus(blocks);
        }
        if let Some((block, within, _)) = split.tail {
            last = self.modify_block(block, within, &Patch::Bytes(rest)).await?;
        }
        Ok(last)
    }

    /// Zeroes bytes of any alignment.
    pub(super) async fn zero_bytes(&self, offset: u64, length: u64) -> Result<Lsn, EngineError> {
        self.admit(offset, length)?;
        let split = Split::of(offset, length);
        let mut last = Lsn::ZERO;
        for (block, within, length) in [split.head, split.tail].into_iter().flatten() {
            last = last.max(self.modify_block(block, within, &Patch::Zeros(length)).await?);
        }
        if !split.body.is_empty() {
            last = last.max(self.submit(Change::Discard { range: split.body }).await?);
        }
        Ok(last)
    }

    /// Zeroes what lies between the volume's end and `old_size_bytes`, after the volume has shrunk.
    pub(crate) async fn zero_beyond_end(&self, old_size_bytes: u64) -> Result<Lsn, EngineError> {
        let end = self.size_bytes();
        let mut last = Lsn::ZERO;
        if is_planted(Bug::KeepCutOffTail) {
            return Ok(last);
        }
        if !end.is_multiple_of(BLOCK) {
            let within = end % BLOCK;
            last = self.modify_block(Lba::new(end / BLOCK), within, &Patch::Zeros(BLOCK - within)).await?;
        }
        let range =
            LbaRange::between(Lba::new(end.div_ceil(BLOCK)), Lba::new(old_size_bytes.div_ceil(BLOCK)));
        if !range.is_empty() {
            last = last.max(self.submit(Change::Discard { range }).await?);
        }
        Ok(last)
    }

    /// Discards the whole blocks inside a byte range.
    pub(super) async fn discard_bytes(&self, offset: u64, length: u64) -> Result<Lsn, EngineError> {
        self.admit(offset, length)?;
        let body = Split::of(offset, length).body;
        if body.is_empty() {
            return Ok(Lsn::ZERO);
        }
        self.submit(Change::Discard { range: body }).await
    }

    /// Waits until the write order through `last` may be acknowledged.
    pub(super) async fn acknowledge(&self, last: Lsn, flags: WriteFlags) -> Result<(), EngineError> {
        if flags.fua || self.durability == Durability::Always {
            self.durable(last).await?;
        } else if !is_planted(Bug::AcknowledgeUnwritten) {
            self.shared.wal.written(last).await?;
        }
        self.owned().await
    }

    /// Refuses what can be refused before anything happened.
    fn admit(&self, offset: u64, length: u64) -> Result<(), EngineError> {
        let state = self.state.lock();
        state.check_serving()?;
        state.check_writable()?;
        state.check_range(offset, length)
    }

    async fn submit(&self, change: Change) -> Result<Lsn, EngineError> {
        let mut change = change;
        loop {
            let permit = self.reserve(&change).await?;
            let refused = match self.append(&mut self.state.lock(), permit, change)? {
                Appended::At(lsn) => return Ok(lsn),
                Appended::NotNow(refused, same) => {
                    change = same;
                    refused
                }
            };
            self.until_taken(refused).await?;
        }
    }

    /// Waits until the change may be offered again. Its room in the log is for others meanwhile.
    async fn until_taken(&self, refused: NotNow) -> Result<(), EngineError> {
        match refused {
            NotNow::Held => self.until_released().await,
            NotNow::LogIsClean => {
                self.ask_catalog(|| self.shared.wal_state.make_dirty(&*self.shared.catalog)).await?;
            }
        }
        Ok(())
    }

    async fn reserve(&self, change: &Change) -> Result<Permit, EngineError> {
        if change.needs_space() {
            self.shared.pressure.admit(&self.shared.wal, &*self.shared.ports.clock).await?;
        }
        Ok(self.shared.wal.reserve(change.payload_bytes()).await?)
    }

    /// Gives the change its place in the log and in the buffer. The caller holds the state: the order of calls is the write order.
    fn append(
        &self,
        state: &mut VolumeState,
        permit: Permit,
        change: Change,
    ) -> Result<Appended, EngineError> {
        state.check_serving()?;
        if state.held {
            return Ok(Appended::NotNow(NotNow::Held, change));
        }
        if !self.shared.wal_state.is_dirty() {
            return Ok(Appended::NotNow(NotNow::LogIsClean, change));
        }
        let (range, body) = match change {
            Change::Write { start, data } => {
                let range =
                    LbaRange::new(start, data.len() as u64 / BLOCK).expect("checked against the size");
                (range, RecordBody::Write { start, data })
            }
            Change::Discard { range } => (range, RecordBody::Discard { range }),
        };
        // The volume may have shrunk since the request was admitted. What is discarded beyond the end is the shrinking itself.
        let is_write = matches!(body, RecordBody::Write { .. });
        if is_write && range.end().byte_offset() > state.size_bytes.next_multiple_of(BLOCK) {
            let (offset, length) = (range.start().byte_offset(), range.bytes());
            return Err(EngineError::OutOfRange { offset, length, size: state.size_bytes });
        }
        let seq = state.buffer.last_seq().next();
        let kept = match &body {
            RecordBody::Write { data, .. } => Some(data.clone()),
            RecordBody::Discard { .. } | RecordBody::Mark { .. } => None,
        };
        let record = Record { volume: self.id, generation: self.lease.generation(), seq, body };
        let lsn = self.shared.wal.append(permit, record)?;
        let kept_bytes = kept.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let what = match kept {
            Some(bytes) => Buffered::Data { lsn, skip_blocks: 0, bytes: Some(bytes) },
            None => Buffered::Hole { lsn },
        };
        state.buffer.apply(seq, range, what);
        self.shared.pressure.appended(kept_bytes, &*self.shared.ports.clock);
        Ok(Appended::At(lsn))
    }

    /// Changes part of a block: reads it, patches it, writes it whole. If another write reached the block in between, starts over,
    /// so neither write is lost; no lock is held while reading.
    async fn modify_block(&self, block: Lba, within: u64, patch: &Patch) -> Result<Lsn, EngineError> {
        let range = LbaRange::new(block, 1).expect("checked against the size");
        loop {
            let seen = self.read_block(range).await?;
            let mut patched = BytesMut::from(&seen.bytes[..]);
            patch.apply(&mut patched, usize::try_from(within).expect("within a block"));
            let change = Change::Write { start: block, data: patched.freeze() };
            let permit = self.reserve(&change).await?;
            let refused = {
                let mut state = self.state.lock();
                let now = self.plan_locked(&state, range, &seen.pinned);
                let unchanged = now
                    .is_ok_and(|plan| plan.only_source().is_some_and(|now| seen.source.is(now)))
                    || is_planted(Bug::PatchStaleBlock);
                if !unchanged {
                    continue;
                }
                match self.append(&mut state, permit, change)? {
                    Appended::At(lsn) => return Ok(lsn),
                    Appended::NotNow(refused, _) => refused,
                }
            };
            self.until_taken(refused).await?;
        }
    }
}

/// What happened to a change offered to the log.
enum Appended {
    At(Lsn),
    NotNow(NotNow, Change),
}

/// Why a change was not taken yet.
#[derive(Clone, Copy)]
enum NotNow {
    /// The catalog believes the log to be empty and must be told otherwise first.
    LogIsClean,
    /// The volume is being reverted.
    Held,
}

/// New bytes of part of a block.
enum Patch {
    Bytes(Bytes),
    Zeros(u64),
}

impl Patch {
    fn apply(&self, block: &mut [u8], within: usize) {
        match self {
            Self::Bytes(bytes) => block[within..within + bytes.len()].copy_from_slice(bytes),
            Self::Zeros(length) => {
                block[within..within + usize::try_from(*length).expect("within a block")].fill(0);
            }
        }
    }
}

/// A block as it was read for modification.
pub(super) struct SeenBlock {
    pub(super) source: Source,
    pub(super) bytes: Bytes,
    pub(super) pinned: super::map::PinnedLeaves,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_split_covers_exactly_the_bytes(offset in 0u64..40_000, length in 0u64..40_000) {
            let split = Split::of(offset, length);
            let mut at = offset;
            if let Some((block, within, bytes)) = split.head {
                prop_assert_eq!(block.byte_offset() + within, at);
                prop_assert!(within + bytes <= BLOCK && bytes < BLOCK);
                at += bytes;
            }
            if !split.body.is_empty() {
                prop_assert_eq!(split.body.start().byte_offset(), at);
                at += split.body.bytes();
            }
            if let Some((block, within, bytes)) = split.tail {
                prop_assert_eq!(block.byte_offset() + within, at);
                prop_assert!(bytes < BLOCK);
                at += bytes;
            }
            prop_assert_eq!(at, offset + length);
        }
    }
}
