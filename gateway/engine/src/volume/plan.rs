//! Where the bytes of a range are at this moment.

use super::buffer::Buffered;
use super::map::{MissingLeaf, PinnedLeaves};
use super::{Volume, VolumeState};
use crate::error::EngineError;
use bytes::Bytes;
use cairn_metadata::{LeafIndex, MapLeaf};
use cairn_model::{ChunkId, ChunkRef, LbaRange, Lsn, MapTarget};
use std::sync::Arc;

/// The place of a run of blocks.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// In the write buffer, as record `lsn` wrote it; in memory or only in the log.
    Buffered { lsn: Lsn, skip_blocks: u32, bytes: Option<Bytes> },
    /// Reads as zeros; `lsn` is the discard that made it so, if that is not destaged yet.
    Hole { lsn: Option<Lsn> },
    /// Consecutive blocks of one chunk, the first being this one.
    Chunk(ChunkRef),
}

impl Source {
    /// The same content at the same place; says nothing about equal content elsewhere.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Buffered { lsn, skip_blocks, .. },
                Self::Buffered { lsn: other_lsn, skip_blocks: other_skip, .. },
            ) => (lsn, skip_blocks) == (other_lsn, other_skip),
            (Self::Hole { lsn }, Self::Hole { lsn: other }) => lsn == other,
            (Self::Chunk(chunk), Self::Chunk(other)) => chunk == other,
            _ => false,
        }
    }
}

/// The places of a range: pieces that cover it, in address order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) pieces: Vec<(LbaRange, Source)>,
}

impl Plan {
    /// The source, when the whole range has one.
    pub(super) fn only_source(&self) -> Option<&Source> {
        match &self.pieces[..] {
            [(_, source)] => Some(source),
            _ => None,
        }
    }

    pub(super) fn needs(&self, chunk: ChunkId) -> bool {
        self.pieces.iter().any(|(_, source)| matches!(source, Source::Chunk(place) if place.chunk == chunk))
    }

    /// The last log record that the plan shows; it must be handed to the system before a reader sees it.
    pub(super) fn newest_record(&self) -> Lsn {
        let lsns = self.pieces.iter().map(|(_, source)| match source {
            Source::Buffered { lsn, .. } | Source::Hole { lsn: Some(lsn) } => *lsn,
            Source::Hole { lsn: None } | Source::Chunk(_) => Lsn::ZERO,
        });
        lsns.max().unwrap_or(Lsn::ZERO)
    }
}

impl Volume {
    /// Looks up `range` with the state held. Fails when a leaf of the map must be loaded first.
    pub(super) fn plan_locked(
        &self,
        state: &VolumeState,
        range: LbaRange,
        pinned: &PinnedLeaves,
    ) -> Result<Plan, MissingLeaf> {
        let mut plan = Plan::default();
        let mut missing = None;
        state.buffer.lookup(range, |part, buffered| match buffered {
            Some(Buffered::Data { lsn, skip_blocks, bytes }) => {
                plan.pieces.push((part, Source::Buffered { lsn, skip_blocks, bytes }));
            }
            Some(Buffered::Hole { lsn }) => plan.pieces.push((part, Source::Hole { lsn: Some(lsn) })),
            None if missing.is_some() => {}
            None => {
                let committed = state.map.lookup(part, &self.shared.leaves, pinned, |part, target| {
                    let source = match target {
                        MapTarget::Chunk(chunk) => Source::Chunk(chunk),
                        MapTarget::Hole => Source::Hole { lsn: None },
                    };
                    plan.pieces.push((part, source));
                });
                missing = committed.err();
            }
        });
        if let Some(missing) = missing {
            return Err(missing);
        }
        if plan.pieces.len() > 1 {
            plan.pieces.sort_unstable_by_key(|(part, _)| part.start());
        }
        Ok(plan)
    }

    /// Looks up `range`, loading leaves as needed.
    pub(super) async fn plan(&self, range: LbaRange, pinned: &mut PinnedLeaves) -> Result<Plan, EngineError> {
        loop {
            let (missing, epoch) = {
                let state = self.state.lock();
                state.check_serving()?;
                if pinned.epoch != state.map.epoch() {
                    *pinned = PinnedLeaves { epoch: state.map.epoch(), ..PinnedLeaves::default() };
                }
                match self.plan_locked(&state, range, pinned) {
                    Ok(plan) => return Ok(plan),
                    Err(MissingLeaf(index)) => (index, state.map.epoch()),
                }
            };
            let leaf = self.load_leaf(missing, epoch).await?;
            if pinned.epoch == epoch {
                pinned.leaves.push((missing, leaf));
            }
        }
    }

    /// Loads a leaf from the catalog; shows it to others only if no fold finished meanwhile.
    pub(super) async fn load_leaf(&self, index: LeafIndex, epoch: u64) -> Result<Arc<MapLeaf>, EngineError> {
        let term = self.state.lock().map.term();
        let leaf = self.ask_catalog(|| self.shared.catalog.leaf(term.point, index)).await?;
        let leaf = Arc::new(leaf.unwrap_or_default());
        let state = self.state.lock();
        if state.map.epoch() == epoch && state.map.term() == term {
            self.shared.leaves.insert(state.map.term(), index, Arc::clone(&leaf));
        }
        Ok(leaf)
    }
}
