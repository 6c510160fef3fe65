//! The way of a read: write buffer, decoded chunks in RAM, log, pool.

use super::Volume;
use super::map::{MissingLeaf, PinnedLeaves};
use super::plan::{Plan, Source};
use super::write::SeenBlock;
use crate::error::EngineError;
use bytes::Bytes;
use cairn_metadata::LeafIndex;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{AllocationExtent, BLOCK_SIZE, ChunkId, Lba, LbaRange, Lsn, ReadBuffer};
use cairn_wal::WalError;
use futures::StreamExt;
use futures::stream::FuturesOrdered;

pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Plans of one read that may go stale, each by a commit while it was carried out.
const PLANS_MAX: u32 = 1000;

/// The whole blocks that cover a byte range.
pub(super) fn covering(offset: u64, length: u64) -> LbaRange {
    LbaRange::between(Lba::new(offset / BLOCK), Lba::new((offset + length).div_ceil(BLOCK)))
}

impl Volume {
    pub(super) async fn read_bytes(&self, offset: u64, length: u32) -> Result<ReadBuffer, EngineError> {
        self.state.lock().check_range(offset, u64::from(length))?;
        if length == 0 {
            return Ok(ReadBuffer::default());
        }
        let range = covering(offset, u64::from(length));
        self.read_ahead(range);
        let blocks = self.read_blocks(range).await?;
        self.owned().await?;
        let skip = usize::try_from(offset % BLOCK).expect("less than a block");
        Ok(trimmed(blocks, skip, length as usize))
    }

    /// Whole blocks. Starts over when a piece that was only in the log has left it for the pool meanwhile.
    async fn read_blocks(&self, range: LbaRange) -> Result<ReadBuffer, EngineError> {
        let mut pinned = PinnedLeaves::default();
        let mut missing = Missing::default();
        for _ in 0..PLANS_MAX {
            let plan = self.plan(range, &mut pinned).await?;
            if self.is_behind(&mut missing, &plan).await? {
                continue;
            }
            self.visible(plan.newest_record()).await?;
            match self.gather(plan).await? {
                Gathered::All(buffer) => return Ok(buffer),
                Gathered::Stale => {}
                Gathered::Missing(chunk, error) => missing.found(chunk, error)?,
            }
        }
        Err(EngineError::Astray(self.name()))
    }

    /// Whether a chunk that was missing is still needed because a commit that does without it is not shown yet: then it is shown when this returns, and
    /// another plan is due. If that needs the chunk too, it is lost.
    async fn is_behind(&self, missing: &mut Missing, plan: &Plan) -> Result<bool, EngineError> {
        let Some((chunk, error)) = missing.0.take() else { return Ok(false) };
        if !plan.needs(chunk) {
            return Ok(false);
        }
        if missing.1 == Some(chunk) {
            return Err(error);
        }
        let (clock, limit) = (&*self.shared.ports.clock, self.shared.config.read_deadline);
        if cairn_model::timeout(clock, limit, self.shared.commit_turn.lock()).await.is_err() {
            return Err(EngineError::CatalogSilent);
        }
        *missing = Missing(Some((chunk, error)), Some(chunk));
        Ok(true)
    }

    /// Waits until record `lsn` is in the system's hands: what a reader saw must not vanish with this process.
    async fn visible(&self, lsn: Lsn) -> Result<(), EngineError> {
        if self.shared.wal.written_through() < lsn {
            self.shared.wal.written(lsn).await?;
        }
        Ok(())
    }

    /// The bytes of a plan, if it still holds.
    async fn gather(&self, plan: Plan) -> Result<Gathered, EngineError> {
        let mut buffer = ReadBuffer::default();
        // Most reads are all in memory: no future, no allocation per piece.
        if plan.pieces.iter().all(|(range, source)| self.at_hand(*range, source, &mut buffer)) {
            return Ok(Gathered::All(buffer));
        }
        let mut fetches: FuturesOrdered<_> =
            plan.pieces.into_iter().map(|(range, source)| self.fetch(range, source)).collect();
        let mut buffer = ReadBuffer::default();
        while let Some(fetched) = fetches.next().await {
            match fetched? {
                Gathered::All(piece) => piece.into_pieces().into_iter().for_each(|bytes| buffer.push(bytes)),
                stale => return Ok(stale),
            }
        }
        Ok(Gathered::All(buffer))
    }

    /// Appends the piece if it is in memory.
    fn at_hand(&self, range: LbaRange, source: &Source, buffer: &mut ReadBuffer) -> bool {
        let length = usize::try_from(range.bytes()).expect("a read is bounded");
        match source {
            Source::Hole { .. } => buffer.push_zeros(length),
            Source::Buffered { bytes: Some(bytes), .. } => buffer.push(bytes.slice(..length)),
            Source::Buffered { bytes: None, .. } => return false,
            Source::Chunk(chunk) => match self.shared.chunks.cached(chunk.chunk) {
                Some(bytes) => buffer.push(blocks_of(&bytes, chunk.block, length)),
                None => return false,
            },
        }
        true
    }

    async fn fetch(&self, range: LbaRange, source: Source) -> Result<Gathered, EngineError> {
        let mut buffer = ReadBuffer::default();
        if self.at_hand(range, &source, &mut buffer) {
            return Ok(Gathered::All(buffer));
        }
        let length = usize::try_from(range.bytes()).expect("a read is bounded");
        match source {
            Source::Chunk(chunk) => match self.shared.chunks.fetch(chunk.chunk).await {
                Ok(bytes) => Ok(Gathered::All(blocks_of(&bytes, chunk.block, length).into())),
                Err(error) if error.is_absence() => Ok(Gathered::Missing(chunk.chunk, error)),
                Err(error) => Err(error),
            },
            Source::Buffered { lsn, skip_blocks, .. } => match self.shared.wal.read(lsn).await {
                Ok(record) => {
                    let skip = skip_blocks as usize * BLOCK_SIZE as usize;
                    Ok(Gathered::All(record.slice(skip..skip + length).into()))
                }
                Err(WalError::Freed { .. }) => Ok(Gathered::Stale),
                Err(error) => Err(error.into()),
            },
            Source::Hole { .. } => unreachable!("a hole is always at hand"),
        }
    }

    /// One block and where it was found, for a change of part of it.
    pub(super) async fn read_block(&self, block: LbaRange) -> Result<SeenBlock, EngineError> {
        let mut pinned = PinnedLeaves::default();
        let mut missing = Missing::default();
        for _ in 0..PLANS_MAX {
            let plan = self.plan(block, &mut pinned).await?;
            if self.is_behind(&mut missing, &plan).await? {
                continue;
            }
            let source = plan.only_source().expect("a block has one source").clone();
            match self.gather(plan).await? {
                Gathered::All(buffer) => {
                    return Ok(SeenBlock { source, bytes: Bytes::from(buffer.to_vec()), pinned });
                }
                Gathered::Stale => {}
                Gathered::Missing(chunk, error) => missing.found(chunk, error)?,
            }
        }
        Err(EngineError::Astray(self.name()))
    }

    /// Recognises sequential streams and brings what follows into the cache, beside the read.
    fn read_ahead(&self, range: LbaRange) {
        let end = Lba::new(self.state.lock().size_bytes.div_ceil(BLOCK));
        let Some(ahead) = self.streams.observe(range, end, self.shared.config.read_ahead_bytes) else {
            return;
        };
        let mut chunks = Vec::new();
        {
            let state = self.state.lock();
            // Only what the map in memory knows: reading ahead never waits for the catalog.
            let Ok(plan) = self.plan_locked(&state, ahead, &PinnedLeaves::default()) else { return };
            chunks.extend(plan.pieces.into_iter().filter_map(|(_, source)| match source {
                Source::Chunk(chunk) => Some(chunk.chunk),
                Source::Buffered { .. } | Source::Hole { .. } => None,
            }));
        }
        self.shared.chunks.read_ahead(&chunks);
    }

    pub(super) async fn prefetch_bytes(&self, offset: u64, length: u64) -> Result<(), EngineError> {
        let range = covering(offset, length);
        let mut at = range.start();
        // Never more than half of the cache: the rest would push out what was just brought in.
        let limit = at.plus(self.shared.config.block_cache_bytes / BLOCK / 2);
        while at < range.end().min(limit) {
            let part = LbaRange::between(at, at.plus(1024).min(range.end()));
            let plan = self.plan(part, &mut PinnedLeaves::default()).await?;
            for (_, source) in plan.pieces {
                if let Source::Chunk(chunk) = source {
                    match self.shared.chunks.fetch(chunk.chunk).await {
                        // Overwritten meanwhile, or for the read itself to tell.
                        Err(error) if error.is_absence() => {}
                        fetched => drop(fetched?),
                    }
                }
            }
            at = part.end();
        }
        Ok(())
    }

    /// Allocation leaf by leaf, skipping in one step the leaves that the catalog does not have.
    pub(super) async fn allocation_bytes(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<AllocationExtent>, EngineError> {
        self.state.lock().check_range(offset, length)?;
        let mut extents = Extents::new(extents_max);
        let range = covering(offset, length);
        let mut pinned = PinnedLeaves::default();
        let (mut at, mut newest) = (range.start(), Lsn::ZERO);
        while at < range.end() && !extents.is_full() {
            let (missing, epoch) = {
                let state = self.state.lock();
                state.check_serving()?;
                if pinned.epoch != state.map.epoch() {
                    pinned = PinnedLeaves { epoch: state.map.epoch(), ..PinnedLeaves::default() };
                }
                let part = pinned.step(at, range.end());
                match self.plan_locked(&state, part, &pinned) {
                    Ok(plan) => {
                        newest = newest.max(plan.newest_record());
                        for (piece, source) in plan.pieces {
                            extents.push(piece.bytes(), !matches!(source, Source::Hole { .. }));
                        }
                        at = part.end();
                        continue;
                    }
                    Err(MissingLeaf(index)) => (index, state.map.epoch()),
                }
            };
            self.pin_from(missing, range.end(), epoch, &mut pinned).await?;
        }
        // As with a read: a copy that skips a hole has read zeroes.
        self.visible(newest).await?;
        self.owned().await?;
        let extent = |(length_bytes, allocated)| AllocationExtent { length_bytes, allocated };
        Ok(extents.clipped(offset, length).map(extent).collect())
    }

    /// Pins leaf `index`, or, when the catalog does not have it, the run of absent leaves that starts there.
    async fn pin_from(
        &self,
        index: LeafIndex,
        end: Lba,
        epoch: u64,
        pinned: &mut PinnedLeaves,
    ) -> Result<(), EngineError> {
        let wanted = LbaRange::between(index.range().start(), end);
        let point = self.state.lock().map.term().point;
        let present = self.ask_catalog(|| self.shared.catalog.leaf_versions(point, wanted, 1)).await?;
        let first = present.first().map(|version| version.index);
        if first == Some(index) {
            pinned.leaves = vec![(index, self.load_leaf(index, epoch).await?)];
        } else {
            let absent_end = first.map_or(end, |first| first.range().start());
            pinned.absent = Some(LbaRange::between(index.range().start(), absent_end));
        }
        Ok(())
    }
}

/// What became of a plan.
enum Gathered {
    All(ReadBuffer),
    /// A piece that was only in the log has left it for the pool.
    Stale,
    /// A chunk is nowhere. Overwritten and taken back since the plan was made, and then another plan does without it; or lost.
    Missing(ChunkId, EngineError),
}

/// A chunk that the last plan needed and that is nowhere, and one that was waited for already.
#[derive(Default)]
struct Missing(Option<(ChunkId, EngineError)>, Option<ChunkId>);

impl Missing {
    fn found(&mut self, chunk: ChunkId, error: EngineError) -> Result<(), EngineError> {
        if is_planted(Bug::GiveUpOnMissingChunk) {
            return Err(error);
        }
        self.0 = Some((chunk, error));
        Ok(())
    }
}

/// Lengths in bytes, and what is said of them; equal neighbours merged.
pub(super) struct Extents {
    merged: Vec<(u64, bool)>,
    extents_max: usize,
}

impl Extents {
    pub(super) fn new(extents_max: usize) -> Self {
        Self { merged: Vec::new(), extents_max: extents_max.max(1) }
    }

    /// One more than asked for is kept, so that the last one is as long as it can be.
    pub(super) fn is_full(&self) -> bool {
        self.merged.len() > self.extents_max
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.merged.len()
    }

    pub(super) fn push(&mut self, length_bytes: u64, said: bool) {
        match self.merged.last_mut() {
            Some((length, last)) if *last == said => *length += length_bytes,
            _ => self.merged.push((length_bytes, said)),
        }
    }

    /// The extents of the bytes asked for, not of the blocks that cover them.
    pub(super) fn clipped(mut self, offset: u64, length: u64) -> impl Iterator<Item = (u64, bool)> {
        let mut left = length;
        let mut skip = offset % BLOCK;
        self.merged.truncate(self.extents_max);
        for (extent_bytes, _) in &mut self.merged {
            *extent_bytes = (*extent_bytes - skip).min(left);
            left -= *extent_bytes;
            skip = 0;
        }
        self.merged.into_iter().filter(|(extent_bytes, _)| *extent_bytes > 0)
    }
}

/// The part of a chunk from block `first`, `length` bytes long.
fn blocks_of(chunk: &Bytes, first: u8, length: usize) -> Bytes {
    let start = usize::from(first) * BLOCK_SIZE as usize;
    chunk.slice(start..start + length)
}

/// Bytes `[skip, skip + length)` of whole blocks.
fn trimmed(blocks: ReadBuffer, skip: usize, length: usize) -> ReadBuffer {
    if skip == 0 && blocks.len() == length {
        return blocks;
    }
    let (mut skip, mut left) = (skip, length);
    let mut out = ReadBuffer::default();
    for piece in blocks.into_pieces() {
        let dropped = skip.min(piece.len());
        skip -= dropped;
        let taken = left.min(piece.len() - dropped);
        left -= taken;
        out.push(piece.slice(dropped..dropped + taken));
    }
    out
}
