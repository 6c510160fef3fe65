//! What cannot be read any more, as the guests' bytes that it is: of which volume and snapshot, and where.
//!
//! Maps are gone through once more, and only when something is lost. A range is told for each volume and snapshot that shows it. Nothing is zeroed or dropped: it reads as an I/O error until what
//! is missing comes back.

use super::report::LostRange;
use super::{Checker, PAGE_BYTES};
use crate::error::EngineError;
use cairn_metadata::{LeafIndex, MapKind, MapPoint, VolumeRow};
use cairn_model::{
    BLOCK_SIZE, ChunkId, CommitSeq, ContainerId, ErrorKind, Kinded, LbaRange, LineageId, MapDelta, MapOp,
    MapTarget,
};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// Of each kind that are remembered. Beyond it ranges are missing from the report, and it says so.
const REMEMBERED_MAX: usize = 100_000;

/// What is lost.
#[derive(Debug, Default)]
pub(super) struct LostData {
    containers: BTreeMap<ContainerId, String>,
    chunks: BTreeMap<ChunkId, String>,
    /// Leaves of any map that have a version that cannot be read.
    leaves: BTreeMap<LeafIndex, String>,
    /// Changes of maps that cannot be read.
    deltas: BTreeMap<(LineageId, CommitSeq), String>,
    is_cut_short: bool,
}

impl LostData {
    pub(super) fn container(&mut self, id: ContainerId, reason: &str) {
        let room = self.containers.len() < REMEMBERED_MAX;
        remember(&mut self.containers, id, reason, room, &mut self.is_cut_short);
    }

    pub(super) fn chunk(&mut self, id: ChunkId, reason: &str) {
        let room = self.chunks.len() < REMEMBERED_MAX;
        remember(&mut self.chunks, id, reason, room, &mut self.is_cut_short);
    }

    pub(super) fn leaf(&mut self, index: LeafIndex, reason: &str) {
        let room = self.leaves.len() < REMEMBERED_MAX;
        remember(&mut self.leaves, index, reason, room, &mut self.is_cut_short);
    }

    pub(super) fn delta(&mut self, lineage: LineageId, commit: CommitSeq, reason: &str) {
        let room = self.deltas.len() < REMEMBERED_MAX;
        remember(&mut self.deltas, (lineage, commit), reason, room, &mut self.is_cut_short);
    }

    fn is_empty(&self) -> bool {
        self.containers.is_empty()
            && self.chunks.is_empty()
            && self.leaves.is_empty()
            && self.deltas.is_empty()
    }

    /// Why what a point shows is not known, when a change through it cannot be read.
    fn bad_delta(&self, at: MapPoint) -> Option<&str> {
        let through = (at.lineage, CommitSeq::new(0))..=(at.lineage, at.commit);
        self.deltas.range(through).next().map(|(_, reason)| reason.as_str())
    }

    fn reason(&self, target: MapTarget) -> Option<&str> {
        let MapTarget::Chunk(target) = target else { return None };
        let of_container = self.containers.get(&target.chunk.container);
        of_container.or_else(|| self.chunks.get(&target.chunk)).map(String::as_str)
    }
}

fn remember<K: Ord>(
    known: &mut BTreeMap<K, String>,
    key: K,
    reason: &str,
    has_room: bool,
    is_cut_short: &mut bool,
) {
    if has_room {
        known.entry(key).or_insert_with(|| reason.to_owned());
    } else if !known.contains_key(&key) {
        *is_cut_short = true;
    }
}

/// A volume as it is now, or one of its snapshots.
struct View<'a> {
    volume: &'a VolumeRow,
    snapshot: Option<String>,
    at: MapPoint,
    size_bytes: u64,
    /// Changes through it that are not in the leaves yet.
    deltas: Vec<MapDelta>,
}

/// Changes of a map by their commits, but for those that cannot be read.
type Deltas = Vec<(CommitSeq, MapDelta)>;

impl Checker<'_> {
    pub(super) async fn locate_lost(&mut self) -> Result<(), EngineError> {
        let lost = std::mem::take(&mut self.lost);
        if lost.is_empty() {
            return Ok(());
        }
        if lost.is_cut_short {
            let text = "not all that is lost is told: there is too much of it";
            self.findings.unchecked("parts of the check", text.to_owned());
        }
        let leaves = self.affected_leaves(&lost).await?;
        for volume in self.catalog.volumes().await? {
            let mut points = vec![(None, MapPoint::head(volume.lineage), volume.size_bytes)];
            for snapshot in self.catalog.snapshots(volume.id).await? {
                points.push((Some(snapshot.name.to_string()), snapshot.at, snapshot.size_bytes));
            }
            // Snapshots of the time before a revert are of another one.
            let mut changes: BTreeMap<LineageId, Deltas> = BTreeMap::new();
            for (snapshot, at, size_bytes) in points {
                if let Some(reason) = lost.bad_delta(at) {
                    // What changed is not known, so nothing of it is.
                    self.lost_range(&volume, snapshot, (0, size_bytes), reason);
                    continue;
                }
                let known = match changes.entry(at.lineage) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => unknown.insert(self.deltas_of(at.lineage).await?),
                };
                let deltas = known.iter().filter(|(commit, _)| *commit <= at.commit);
                let deltas = deltas.map(|(_, delta)| delta.clone()).collect();
                let view = View { volume: &volume, snapshot, at, size_bytes, deltas };
                self.lost_of_view(&view, &lost, &leaves).await?;
            }
        }
        Ok(())
    }

    async fn deltas_of(&self, lineage: LineageId) -> Result<Deltas, EngineError> {
        match self.catalog.unfolded_deltas(lineage).await {
            Ok(deltas) => return Ok(deltas),
            Err(error) if error.kind() == ErrorKind::Corrupt => {}
            Err(error) => return Err(error.into()),
        }
        let (mut deltas, mut after) = (Deltas::new(), 0);
        let through = self.source.last_map_row(MapKind::Deltas).await?;
        loop {
            let page = self.source.map_rows(MapKind::Deltas, after, through, &|_| true, &mut drop).await?;
            let Some(last) = page.last else { break };
            after = last;
            let own = page.rows.into_iter().filter(|row| row.lineage == lineage);
            deltas.extend(own.filter_map(|row| Some((row.commit, MapDelta { ops: row.content.ok()? }))));
        }
        deltas.sort_by_key(|(commit, _)| *commit);
        Ok(deltas)
    }

    /// Leaves of any map that point at something that is lost, or cannot be read.
    async fn affected_leaves(&self, gone: &LostData) -> Result<BTreeSet<LeafIndex>, EngineError> {
        let mut leaves: BTreeSet<LeafIndex> = gone.leaves.keys().copied().collect();
        for kind in [MapKind::Leaves, MapKind::Deltas] {
            let through = self.source.last_map_row(kind).await?;
            let mut after = 0;
            loop {
                // What they point at was looked at before.
                let page = self.source.map_rows(kind, after, through, &|_| true, &mut drop).await?;
                let Some(last) = page.last else { break };
                let ops = page.rows.iter().flat_map(|row| row.content.iter().flatten());
                for op in ops.filter(|op| gone.reason(op.target).is_some()) {
                    let end = op.range.start().plus(op.range.blocks().saturating_sub(1));
                    let (first, last) = (LeafIndex::of(op.range.start()).get(), LeafIndex::of(end).get());
                    leaves.extend((first..=last).filter_map(LeafIndex::new));
                }
                after = last;
                self.rest(PAGE_BYTES).await?;
            }
        }
        Ok(leaves)
    }

    async fn lost_of_view(
        &mut self,
        view: &View<'_>,
        lost: &LostData,
        leaves: &BTreeSet<LeafIndex>,
    ) -> Result<(), EngineError> {
        let mut ranges: Vec<(u64, u64, String)> = Vec::new();
        for index in leaves {
            let range = index.range();
            if range.start().get() * u64::from(BLOCK_SIZE) >= view.size_bytes {
                continue;
            }
            let mut leaf = match self.catalog.leaf(view.at, *index).await {
                Ok(leaf) => leaf.unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    add(&mut ranges, range, &error.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for delta in &view.deltas {
                leaf.apply(*index, delta.overlapping(range).iter().map(clipped(range)).collect::<Vec<_>>());
            }
            leaf.lookup(range, |part, target| {
                if let Some(reason) = lost.reason(target) {
                    add(&mut ranges, part, reason);
                }
            });
        }
        for (offset, length, reason) in ranges {
            self.lost_range(
                view.volume,
                view.snapshot.clone(),
                (offset, length.min(view.size_bytes.saturating_sub(offset))),
                &reason,
            );
        }
        Ok(())
    }

    fn lost_range(
        &mut self,
        volume: &VolumeRow,
        snapshot: Option<String>,
        (offset, length): (u64, u64),
        reason: &str,
    ) {
        if length > 0 {
            let (volume, reason) = (volume.name.to_string(), reason.to_owned());
            self.findings.lost(LostRange { volume, snapshot, offset, length, reason });
        }
    }
}

fn clipped(range: LbaRange) -> impl Fn(&MapOp) -> MapOp {
    move |op| op.clipped(range).expect("it overlaps the range")
}

/// Adds a range in address order, to the one before it when it follows on and is lost for the same reason.
fn add(ranges: &mut Vec<(u64, u64, String)>, range: LbaRange, reason: &str) {
    let (offset, length) = (range.start().get() * u64::from(BLOCK_SIZE), range.bytes());
    match ranges.last_mut() {
        Some((start, so_far, why)) if *start + *so_far == offset && why == reason => *so_far += length,
        _ => ranges.push((offset, length, reason.to_owned())),
    }
}
