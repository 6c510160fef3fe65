//! A catalog with a site's usual inhabitants, and what they do all day.

use super::{
    CatalogStore, TTL, at, blocks, key_row, node_row, outcomes, packed, placed_segment, segment_row, written,
};
use crate::{
    BatchCommit, Catalog, CatalogError, ContainerRow, DomainName, DomainRow, FoldPlan, HeldLease, KeyRow,
    LEAF_BLOCKS, LeafIndex, Lease, MapLeaf, MapPoint, NewSnapshot, NewVolume, SegmentRow, SnapshotName,
    SnapshotRow, Totals, VolumeCommit, VolumeName, VolumeOutcome,
};
use bytes::Bytes;
use cairn_model::crypto::Encryption;
use cairn_model::{
    BatchId, CommitSeq, ContainerId, DomainId, Durability, GatewayId, Lba, LbaRange, LineageId, MapOp,
    NodeId, Placement, SegmentId, SnapshotId, VOLUME_BLOCKS_MAX, VolumeId, WriteSeq,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A catalog with a site's usual inhabitants.
#[derive(Debug)]
pub struct World {
    pub catalog: Arc<dyn Catalog>,
    pub node: NodeId,
    pub gateway: GatewayId,
    pub other: GatewayId,
    identities: AtomicU64,
}

/// A volume that the world's gateway holds, and how far it has come.
#[derive(Clone, Debug)]
pub struct Held {
    pub volume: VolumeId,
    pub lineage: LineageId,
    pub domain: DomainId,
    pub lease: Lease,
    pub through: WriteSeq,
    pub commit: CommitSeq,
}

impl Held {
    pub fn head(&self) -> MapPoint {
        MapPoint::head(self.lineage)
    }

    pub fn lease(&self) -> HeldLease {
        HeldLease { volume: self.volume, generation: self.lease.generation }
    }
}

impl World {
    /// One node, the gateways `first` and `second`.
    pub async fn new(store: &dyn CatalogStore) -> Self {
        let catalog = store.open().await;
        let node = NodeId::from_bytes([1; 16]);
        let (gateway, other) = (GatewayId::from_bytes([2; 16]), GatewayId::from_bytes([3; 16]));
        catalog.register_gateway(gateway, "first", at(1)).await.unwrap();
        catalog.register_gateway(other, "second", at(1)).await.unwrap();
        catalog.add_node(&node_row(node, "disk")).await.unwrap();
        Self { catalog, node, gateway, other, identities: AtomicU64::new(0) }
    }

    /// The same catalog as another process sees it.
    pub async fn reopened(self, store: &dyn CatalogStore) -> Self {
        Self { catalog: store.open().await, ..self }
    }

    /// Sixteen bytes that no other identity of this world has.
    pub fn identity(&self) -> [u8; 16] {
        let number = self.identities.fetch_add(1, Ordering::Relaxed);
        let mut bytes = [9; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    pub fn new_volume(&self, name: &str) -> NewVolume {
        NewVolume {
            id: VolumeId::from_bytes(self.identity()),
            name: VolumeName::new(name).unwrap(),
            size_bytes: 1 << 40,
            durability: Durability::Flush,
            lineage: LineageId::from_bytes(self.identity()),
            domain: DomainId::DEFAULT,
            compress: true,
            dedupe: true,
            read_only: false,
            options: "{}".to_owned(),
            created_at: at(1),
        }
    }

    /// A new volume, held by the first gateway since time 1000.
    pub async fn held_volume(&self, name: &str) -> Held {
        self.held_volume_of(DomainId::DEFAULT, name).await
    }

    pub async fn held_volume_of(&self, domain: DomainId, name: &str) -> Held {
        let volume = NewVolume { domain, ..self.new_volume(name) };
        self.catalog.create_volume(&volume).await.unwrap();
        self.hold(&volume).await
    }

    /// A clone, held as other volumes are.
    pub async fn held_clone(&self, from: SnapshotId, name: &str) -> Held {
        let volume = self.new_volume(name);
        self.catalog.create_clone(&volume, from).await.unwrap();
        self.hold(&volume).await
    }

    /// Takes a volume that is new.
    pub async fn hold(&self, volume: &NewVolume) -> Held {
        let lease = self.catalog.acquire_lease(volume.id, self.gateway, at(1000), TTL, None).await.unwrap();
        Held {
            volume: volume.id,
            lineage: volume.lineage,
            domain: volume.domain,
            lease,
            through: WriteSeq::ZERO,
            commit: CommitSeq::ZERO,
        }
    }

    /// A domain with its key.
    pub async fn domain(&self, name: &str) -> DomainId {
        let (row, key) = self.new_domain(name);
        self.catalog.create_domain(&row, &key).await.unwrap();
        row.id
    }

    pub fn new_domain(&self, name: &str) -> (DomainRow, KeyRow) {
        let id = DomainId::from_bytes(self.identity());
        let name = DomainName::new(name).unwrap();
        let row = DomainRow { id, name, encryption: Encryption::Off, created_at: at(3) };
        (row, key_row(&DomainRow::key_purpose(id), 5))
    }

    /// Takes a volume for `gateway` as one that has watched the holder's lease for long enough.
    pub async fn take(&self, volume: VolumeId, gateway: GatewayId, now: u64) -> Lease {
        let acquire = |unrenewed| self.catalog.acquire_lease(volume, gateway, at(now), TTL, unrenewed);
        match acquire(None).await {
            Err(CatalogError::LeaseHeld { stamp, .. }) => acquire(Some(stamp)).await.unwrap(),
            free => free.unwrap(),
        }
    }

    /// A segment with one container of `domain`, as the pool would have acknowledged it.
    pub fn sealed(&self, domain: DomainId) -> (SegmentRow, ContainerRow) {
        let (segment, id) =
            (SegmentId::from_bytes(self.identity()), ContainerId::from_bytes(self.identity()));
        let container = ContainerRow {
            id,
            segment,
            offset: 64,
            length: 4000,
            raw_bytes: 8192,
            domain,
            directory: Bytes::from_static(b"directory"),
        };
        (segment_row(segment, self.node, 4096), container)
    }

    /// So many nodes more.
    pub async fn more_nodes(&self, count: u8) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        for _ in 0..count {
            let id = NodeId::from_bytes(self.identity());
            self.catalog.add_node(&node_row(id, &format!("node-{id}"))).await.unwrap();
            nodes.push(id);
        }
        nodes
    }

    /// Commits a batch of one volume whose segment is at `placement`.
    pub async fn commit_at(&self, held: &mut Held, blocks: LbaRange, placement: Placement) -> BatchCommit {
        let mut batch = self.batch(&[(held, blocks)]);
        let segment = batch.containers[0].segment;
        batch.segments = vec![placed_segment(segment, placement, 4096)];
        self.commit_batch(held, &batch).await;
        batch
    }

    /// The batch that writes `blocks` of each volume, all of one domain, ten writes each, into one fresh container.
    pub fn batch(&self, volumes: &[(&Held, LbaRange)]) -> BatchCommit {
        let domain = volumes.first().map_or(DomainId::DEFAULT, |(held, _)| held.domain);
        let (segment, container) = self.sealed(domain);
        let part = |(held, blocks): &(&Held, LbaRange)| VolumeCommit {
            volume: held.volume,
            lineage: held.lineage,
            generation: held.lease.generation,
            base: held.through,
            through: WriteSeq::new(held.through.get() + 10),
            delta: written(*blocks, container.id),
            reduction: packed(blocks.blocks()),
            snapshots: Vec::new(),
        };
        let volumes = volumes.iter().map(part).collect();
        BatchCommit {
            batch: BatchId::from_bytes(self.identity()),
            gateway: self.gateway,
            segments: vec![segment],
            containers: vec![container],
            volumes,
        }
    }

    /// Commits a batch of one volume.
    pub async fn commit(&self, held: &mut Held, blocks: LbaRange) -> BatchCommit {
        self.commit_with(held, blocks, &[]).await
    }

    /// Commits a batch of one volume, and snapshots of what it leaves.
    pub async fn commit_with(
        &self,
        held: &mut Held,
        blocks: LbaRange,
        snapshots: &[NewSnapshot],
    ) -> BatchCommit {
        let mut batch = self.batch(&[(held, blocks)]);
        batch.volumes[0].snapshots = snapshots.to_vec();
        self.commit_batch(held, &batch).await;
        batch
    }

    /// Commits a batch of one volume.
    pub async fn commit_batch(&self, held: &mut Held, batch: &BatchCommit) {
        let receipt = self.catalog.commit_batch(batch).await.unwrap();
        held.commit = held.commit.next();
        held.through = batch.volumes[0].through;
        assert_eq!(outcomes(&receipt), [VolumeOutcome::Committed(held.commit)]);
    }

    /// A snapshot to be taken, created after all that were made before.
    pub fn new_snapshot(&self, name: &str) -> NewSnapshot {
        let id = self.identity();
        let number = u64::from_be_bytes(*id.last_chunk().unwrap());
        let name = SnapshotName::new(name).unwrap();
        NewSnapshot { id: SnapshotId::from_bytes(id), name, size_bytes: 1 << 40, created_at: at(number) }
    }

    /// Writes `blocks`, takes a snapshot and folds through it.
    pub async fn settled_snapshot(&self, held: &mut Held, blocks: LbaRange, name: &str) -> SnapshotRow {
        let snapshot = self.new_snapshot(name);
        self.commit_with(held, blocks, std::slice::from_ref(&snapshot)).await;
        self.fold(held).await;
        self.catalog.snapshot(snapshot.id).await.unwrap()
    }

    /// Folds everything, from snapshot to snapshot.
    pub async fn fold(&self, held: &Held) {
        let snapshots = self.catalog.snapshots(held.volume).await.unwrap();
        let unsettled = snapshots.iter().filter(|snapshot| snapshot.logical_bytes.is_none());
        for goal in unsettled.map(|snapshot| snapshot.at.commit).chain([held.commit]) {
            let mut deltas = self.catalog.unfolded_deltas(held.lineage).await.unwrap();
            deltas.retain(|(commit, _)| *commit <= goal);
            if deltas.is_empty() {
                continue;
            }
            let touched = |op: &MapOp| {
                let (first, end) = (op.range.start().get(), op.range.end().get());
                (first / LEAF_BLOCKS..end.div_ceil(LEAF_BLOCKS)).map(|number| number * LEAF_BLOCKS)
            };
            let touched = deltas.iter().flat_map(|(_, delta)| &delta.ops).flat_map(touched);
            let leaves: BTreeSet<LeafIndex> = touched.map(|block| LeafIndex::of(Lba::new(block))).collect();
            let mut plan = FoldPlan { through: goal, forget: Some(goal), ..self.fold_plan(held, Vec::new()) };
            for index in leaves {
                let mut leaf = self.catalog.leaf(held.head(), index).await.unwrap().unwrap_or_default();
                for (_, delta) in &deltas {
                    leaf.apply(index, delta.overlapping(index.range()).iter().copied());
                }
                plan.leaves.push((index, Arc::new(leaf)));
            }
            self.catalog.fold(&plan).await.unwrap();
        }
    }

    /// A leaf of a volume that never forgot a delta it did not fold, as it is through `commit`.
    pub async fn leaf_at(&self, held: &Held, number: u32, commit: u64) -> (LeafIndex, Arc<MapLeaf>) {
        let index = LeafIndex::new(number).unwrap();
        let mut leaf = self.catalog.leaf(held.head(), index).await.unwrap().unwrap_or_default();
        for (at, delta) in self.catalog.unfolded_deltas(held.lineage).await.unwrap() {
            if at.get() <= commit {
                leaf.apply(index, delta.overlapping(index.range()).iter().copied());
            }
        }
        (index, Arc::new(leaf))
    }

    /// Deletes a snapshot as the owner of its volume does.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), CatalogError> {
        let volume = self.catalog.snapshot(id).await?.volume;
        let row = self.catalog.volume(volume).await?;
        let gateway = row.holder.map_or(self.gateway, |holder| holder.gateway);
        let held = HeldLease { volume, generation: row.generation };
        self.catalog.delete_snapshot(gateway, held, id, at(5000)).await
    }

    /// The volume after it was reverted to one of its snapshots.
    pub async fn reverted(&self, held: Held, to: SnapshotId) -> Held {
        let lineage = LineageId::from_bytes(self.identity());
        self.catalog.revert_volume(self.gateway, held.lease(), held.through, to, lineage).await.unwrap();
        Held { lineage, commit: CommitSeq::ZERO, ..held }
    }

    /// The leaves that map something at a point, by number: every way to ask gives the same.
    pub async fn shown(&self, at: MapPoint) -> BTreeMap<u32, MapLeaf> {
        let versions = self.catalog.leaf_versions(at, blocks(0, VOLUME_BLOCKS_MAX), u32::MAX).await.unwrap();
        let indices: Vec<LeafIndex> = versions.iter().map(|version| version.index).collect();
        assert!(indices.is_sorted_by(|one, next| one < next), "{indices:?}");
        let leaves = self.catalog.leaves(at, &indices).await.unwrap();
        assert_eq!(leaves.iter().map(|(index, _)| *index).collect::<Vec<_>>(), indices);
        for (version, (index, leaf)) in versions.iter().zip(&leaves) {
            assert_eq!(self.catalog.leaf(at, *index).await.unwrap().as_ref(), Some(leaf));
            assert_eq!(self.catalog.leaf(version.at, *index).await.unwrap().as_ref(), Some(leaf));
        }
        let mapped = leaves.into_iter().filter(|(_, leaf)| !leaf.is_empty());
        mapped.map(|(index, leaf)| (index.get(), leaf)).collect()
    }

    /// Every version of every leaf that the lineage itself has, of commits through `last`: leaf and commit.
    pub async fn versions(&self, lineage: LineageId, last: CommitSeq) -> Vec<(u32, u64)> {
        let mut versions = BTreeSet::new();
        for commit in (0..=last.get()).map(CommitSeq::new) {
            let at = MapPoint { lineage, commit };
            let shown = self.catalog.leaf_versions(at, blocks(0, VOLUME_BLOCKS_MAX), u32::MAX).await.unwrap();
            let own = shown.iter().filter(|version| version.at.lineage == lineage);
            versions.extend(own.map(|version| (version.index.get(), version.at.commit.get())));
        }
        versions.into_iter().collect()
    }

    pub async fn purge(&self) {
        while self.catalog.purge_deleted(7).await.unwrap() {}
    }

    /// A step that makes `leaves` what the volume has through its last commit.
    pub fn fold_plan(&self, held: &Held, leaves: Vec<(LeafIndex, Arc<MapLeaf>)>) -> FoldPlan {
        FoldPlan {
            lineage: held.lineage,
            gateway: self.gateway,
            generation: held.lease.generation,
            through: held.commit,
            leaves,
            emptied: Vec::new(),
            forget: None,
        }
    }

    /// The totals after so many commits of one fresh container each, when nothing is folded.
    pub fn totals(volumes: u64, commits: u64) -> Totals {
        Totals {
            volumes,
            snapshots: 0,
            segments: commits,
            segment_bytes: commits * 4096,
            containers: commits,
            logical_bytes: 0,
            container_bytes: commits * 4000,
            container_raw_bytes: commits * 8192,
            degraded_segments: 0,
            at_risk_segments: 0,
        }
    }

    /// The volume as far as batches move it.
    pub async fn progress(&self, held: &Held) -> (WriteSeq, CommitSeq) {
        let row = self.catalog.volume(held.volume).await.unwrap();
        (row.destaged_through, row.commit)
    }
}
