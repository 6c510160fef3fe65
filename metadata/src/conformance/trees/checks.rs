//! What the catalog says against what the model knows.

use super::{Disk, LEAVES, Model, State, bytes_of, index, leaf_of};
use crate::conformance::blocks;
use crate::{LeafIndex, MapLeaf, MapPoint};
use cairn_model::{CommitSeq, LineageId, VOLUME_BLOCKS_MAX};
use std::collections::{BTreeMap, BTreeSet};

impl Model {
    /// What `at` shows under the deltas of its lineage through `through`.
    async fn assert_shows(&self, at: MapPoint, through: CommitSeq, state: &State) {
        let indices: Vec<LeafIndex> = (0..LEAVES).map(index).collect();
        let found = self.world.catalog.leaves(at, &indices).await.unwrap();
        let found: BTreeMap<LeafIndex, MapLeaf> = found.into_iter().collect();
        let everything = blocks(0, VOLUME_BLOCKS_MAX);
        let versions = self.world.catalog.leaf_versions(at, everything, 100).await.unwrap();
        assert!(versions.iter().map(|version| &version.index).eq(found.keys()), "{versions:?}");
        if let Some(version) = versions.get(self.below(LEAVES)) {
            let same = self.world.catalog.leaf(version.at, version.index).await.unwrap();
            assert_eq!(same.as_ref(), found.get(&version.index));
        }
        let limit = self.below(LEAVES);
        let first = self.world.catalog.leaf_versions(at, everything, u32::try_from(limit).unwrap()).await;
        assert_eq!(first.unwrap(), versions[..limit.min(versions.len())]);
        let some = index(self.below(LEAVES));
        assert_eq!(self.world.catalog.leaf(at, some).await.unwrap().as_ref(), found.get(&some));

        let deltas = self.world.catalog.unfolded_deltas(at.lineage).await.unwrap();
        for number in 0..LEAVES {
            let mut leaf = found.get(&index(number)).cloned().unwrap_or_default();
            for (_, delta) in deltas.iter().filter(|(commit, _)| *commit <= through) {
                leaf.apply(index(number), delta.overlapping(index(number).range()).iter().copied());
            }
            assert_eq!(leaf, leaf_of(state, number), "leaf {number} at {at:?}");
        }
    }

    pub(super) async fn check(&self) {
        let mut logical = 0;
        for Disk { held, folded, .. } in &self.disks {
            let states = &self.branches[&held.lineage].states;
            self.assert_shows(held.head(), held.commit, &states[states.len() - 1]).await;
            let shown =
                self.world.catalog.leaves(held.head(), &(0..LEAVES).map(index).collect::<Vec<_>>()).await;
            let mapped: u64 = shown.unwrap().iter().map(|(_, leaf)| leaf.blocks()).sum();
            let row = self.world.catalog.volume(held.volume).await.unwrap();
            assert_eq!((row.usage.logical_bytes, row.folded_through.get()), (mapped * 4096, *folded as u64));
            logical += row.usage.logical_bytes;
        }
        let totals = self.world.catalog.totals().await.unwrap();
        let sums = (totals.volumes, totals.snapshots, totals.logical_bytes);
        assert_eq!(sums, (self.disks.len() as u64, self.snapshots.len() as u64, logical));
        for taken in &self.snapshots {
            let row = self.world.catalog.snapshot(taken.id).await.unwrap();
            let settled = taken.is_settled.then(|| bytes_of(&taken.state));
            assert_eq!((row.volume, row.at, row.logical_bytes), (taken.volume, taken.at, settled));
            let through = if taken.is_settled { CommitSeq::ZERO } else { taken.at.commit };
            self.assert_shows(taken.at, through, &taken.state).await;
        }
    }

    /// Lineages that something shows, with their pins: commits, and `u64::MAX` for a head.
    fn pins(&self) -> BTreeMap<LineageId, BTreeSet<u64>> {
        let mut pins: BTreeMap<LineageId, BTreeSet<u64>> = BTreeMap::new();
        for disk in &self.disks {
            pins.entry(disk.held.lineage).or_default().insert(u64::MAX);
        }
        for taken in &self.snapshots {
            pins.entry(taken.at.lineage).or_default().insert(taken.at.commit.get());
        }
        let mut to_visit: Vec<LineageId> = pins.keys().copied().collect();
        while let Some(lineage) = to_visit.pop() {
            if let Some(parent) = self.branches[&lineage].parent {
                if !pins.contains_key(&parent.lineage) {
                    to_visit.push(parent.lineage);
                }
                pins.entry(parent.lineage).or_default().insert(parent.commit.get());
            }
        }
        pins
    }

    /// When nothing waits to be purged, every version is needed, and every hole hides something.
    pub(super) async fn check_purged(&self) {
        self.world.purge().await;
        assert!(!self.world.catalog.purge_deleted(1).await.unwrap());
        self.check().await;
        let pins = self.pins();
        for (lineage, branch) in &self.branches {
            let last = CommitSeq::new(branch.states.len() as u64);
            let versions = self.world.versions(*lineage, last).await;
            let none = BTreeSet::new();
            let pins = pins.get(lineage).unwrap_or(&none);
            for (at, (leaf, commit)) in versions.iter().enumerate() {
                let next = versions.get(at + 1).filter(|next| next.0 == *leaf).map(|next| next.1);
                let needs = |pin: &u64| pin >= commit && next.is_none_or(|next| *pin < next);
                assert!(pins.iter().any(needs), "version {leaf}, {commit} of {lineage}, pins {pins:?}");
                let point = MapPoint { lineage: *lineage, commit: CommitSeq::new(*commit) };
                let index = index(*leaf as usize);
                let is_oldest = at == 0 || versions[at - 1].0 != *leaf;
                if is_oldest && self.world.catalog.leaf(point, index).await.unwrap().unwrap().is_empty() {
                    let inherited = self.world.catalog.leaf(branch.parent.unwrap(), index).await.unwrap();
                    assert!(!inherited.unwrap().is_empty());
                }
            }
        }
        for taken in &self.snapshots {
            let row = self.world.catalog.snapshot(taken.id).await.unwrap();
            let live = self
                .branches
                .iter()
                .filter(|(lineage, branch)| branch.parent == Some(taken.at) && pins.contains_key(lineage));
            assert_eq!(row.children, live.count() as u64);
        }
    }
}
