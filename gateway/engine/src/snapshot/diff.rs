//! What changed between two states of a volume, by their maps alone: no data is read.
//!
//! Leaves in the same version are equal and are not looked at: the cost is that of what changed.

use super::settled;
use crate::engine::{Engine, Shared, until_known};
use crate::error::EngineError;
use cairn_metadata::{LeafIndex, LeafVersion, MapLeaf, MapPoint, SnapshotName};
use cairn_model::{Lba, LbaRange, MapTarget, RangeValue, boxed};
use std::collections::BTreeMap;

/// Versions of leaves asked for at once.
const VERSIONS_AT_ONCE: u32 = 256;
/// Leaves of each state compared at once.
const LEAVES_AT_ONCE: usize = 16;

/// A run of blocks that one state maps otherwise than the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    pub range: LbaRange,
    /// Whether the later state has data there; otherwise it reads as zeros.
    pub allocated: bool,
}

/// Part of the differences, in address order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DifferencePage {
    pub differences: Vec<Difference>,
    /// Where the next page begins; `None` when this is the last.
    pub next: Option<Lba>,
}

impl Engine {
    /// What reading `to` gives otherwise than reading `from`, in blocks from `start` on; at least one leaf is looked at, and from about `limit` differences on the
    /// page ends. Blocks that were written again with what they held may be among them. Beyond the end of the smaller one the other
    /// counts as compared with zeros.
    #[boxed]
    pub async fn snapshot_differences(
        &self,
        volume: &str,
        from: &SnapshotName,
        to: &SnapshotName,
        start: Lba,
        limit: usize,
    ) -> Result<DifferencePage, EngineError> {
        let shared = self.shared();
        // Whoever is open is not deleted, and its leaves are not purged.
        let _open = (self.open_snapshot(volume, from).await?, self.open_snapshot(volume, to).await?);
        let volume = shared.registry.named(volume)?;
        let (from, to) = (settled(shared, &volume, from).await?, settled(shared, &volume, to).await?);
        let blocks = from.size_bytes.max(to.size_bytes).div_ceil(u64::from(cairn_model::BLOCK_SIZE));
        differences(
            shared,
            from.at,
            to.at,
            LbaRange::between(start.min(Lba::new(blocks)), Lba::new(blocks)),
            limit,
        )
        .await
    }
}

async fn differences(
    shared: &Shared,
    from: MapPoint,
    to: MapPoint,
    range: LbaRange,
    limit: usize,
) -> Result<DifferencePage, EngineError> {
    let mut page = DifferencePage::default();
    let mut at = range.start();
    while at < range.end() {
        let rest = LbaRange::between(at, range.end());
        let (old, old_end) = versions(shared, from, rest).await?;
        let (new, new_end) = versions(shared, to, rest).await?;
        // Both are complete up to here.
        let end = old_end.min(new_end);
        let changed: Vec<LeafIndex> =
            changed(&old, &new).filter(|index| index.range().start() < end).collect();
        for changed in changed.chunks(LEAVES_AT_ONCE) {
            let (old, new) = (leaves(shared, from, changed).await?, leaves(shared, to, changed).await?);
            for index in changed {
                let part = index.range();
                let part = LbaRange::between(part.start().max(at), part.end().min(end));
                let nothing = MapLeaf::default();
                let (old, new) = (old.get(index).unwrap_or(&nothing), new.get(index).unwrap_or(&nothing));
                compare(part, old, new, &mut page.differences);
                if page.differences.len() >= limit && part.end() < range.end() {
                    page.next = Some(part.end());
                    return Ok(page);
                }
            }
        }
        at = end;
    }
    Ok(page)
}

/// The first versions of leaves in `range`, and up to where these are all.
pub(crate) async fn versions(
    shared: &Shared,
    point: MapPoint,
    range: LbaRange,
) -> Result<(BTreeMap<LeafIndex, LeafVersion>, Lba), EngineError> {
    let found = until_known(shared, || shared.catalog.leaf_versions(point, range, VERSIONS_AT_ONCE)).await?;
    let end = match found.last() {
        Some(last) if found.len() >= VERSIONS_AT_ONCE as usize => last.index.range().end().min(range.end()),
        _ => range.end(),
    };
    Ok((found.into_iter().map(|version| (version.index, version)).collect(), end))
}

/// Leaves that are there in one version before and in another, or not at all, after.
pub(crate) fn changed(
    old: &BTreeMap<LeafIndex, LeafVersion>,
    new: &BTreeMap<LeafIndex, LeafVersion>,
) -> impl Iterator<Item = LeafIndex> {
    let mut indices: Vec<_> = old.keys().chain(new.keys()).copied().collect();
    indices.sort_unstable();
    indices.dedup();
    indices.into_iter().filter(|index| old.get(index) != new.get(index))
}

pub(crate) async fn leaves(
    shared: &Shared,
    point: MapPoint,
    indices: &[LeafIndex],
) -> Result<BTreeMap<LeafIndex, MapLeaf>, EngineError> {
    if indices.is_empty() {
        return Ok(BTreeMap::new());
    }
    let found = until_known(shared, || shared.catalog.leaves(point, indices)).await?;
    Ok(found.into_iter().collect())
}

/// Appends where two leaves differ in `range`, which lies in them.
pub(crate) fn compare(range: LbaRange, old: &MapLeaf, new: &MapLeaf, differences: &mut Vec<Difference>) {
    let mut before = Vec::new();
    old.lookup(range, |part, target| before.push((part, target)));
    let mut before = before.into_iter().peekable();
    new.lookup(range, |part, target| {
        let mut at = part.start();
        while at < part.end() {
            let (held, old) = *before.peek().expect("both cover the range");
            let end = part.end().min(held.end());
            let piece = LbaRange::between(at, end);
            let now = target.advanced(at.get() - part.start().get());
            if now != old.advanced(at.get() - held.start().get()) {
                push(differences, Difference { range: piece, allocated: !matches!(now, MapTarget::Hole) });
            }
            if held.end() == end {
                before.next();
            }
            at = end;
        }
    });
}

fn push(differences: &mut Vec<Difference>, next: Difference) {
    if let Some(last) = differences.last_mut()
        && last.range.end() == next.range.start()
        && last.allocated == next.allocated
    {
        last.range = LbaRange::between(last.range.start(), next.range.end());
        return;
    }
    differences.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_model::{ChunkId, ChunkIndex, ChunkRef, ContainerId, MapOp};

    fn leaf(runs: &[(u64, u64, u32)]) -> MapLeaf {
        let ops = runs.iter().map(|(start, blocks, chunk)| {
            let chunk =
                ChunkId { container: ContainerId::from_bytes([1; 16]), index: ChunkIndex::new(*chunk) };
            let range = LbaRange::new(Lba::new(*start), *blocks).unwrap();
            MapOp { range, target: MapTarget::Chunk(ChunkRef { chunk, block: 0 }) }
        });
        MapLeaf::from_ops(LeafIndex::new(0).unwrap(), ops)
    }

    #[test]
    fn only_what_differs_is_told_and_neighbours_are_one() {
        let (old, new) =
            (leaf(&[(0, 4, 1), (4, 4, 2), (20, 2, 3)]), leaf(&[(0, 3, 1), (4, 2, 2), (6, 2, 9), (8, 2, 8)]));
        let mut found = Vec::new();
        let range = LbaRange::between(Lba::new(0), Lba::new(100));
        compare(range, &old, &new, &mut found);
        let found: Vec<_> =
            found.iter().map(|d| (d.range.start().get(), d.range.blocks(), d.allocated)).collect();
        assert_eq!(found, [(3, 1, false), (6, 4, true), (20, 2, false)]);
        let mut none = Vec::new();
        compare(range, &old, &old, &mut none);
        assert_eq!(none, []);
    }
}
