//! A catalog in memory, for simulations: it outlives the engines that use it, and its calls fail when told to.
//!
//! Invariants:
//! - a change is one critical section that looks first and writes after its last refusal: all or nothing;
//! - every call waits at least twice before and twice after its effect, so that a caller can be dropped on either side of it.
//!
//! Whether it behaves as the other catalogs do is what the conformance suite says.

mod commit;
mod domains;
mod fold;
mod groups;
mod keys;
mod leases;
mod placements;
mod prune;
mod reclaim;
mod site;
mod snapshots;
mod space;
#[cfg(test)]
mod tests;
mod volumes;

use crate::{
    BatchCommit, Catalog, CatalogError, CommitReceipt, ContainerLocation, ContainerMove, ContainerRow,
    ContainerUse, CountedLeaves, DomainName, DomainRow, DoomedObject, EventRow, FoldPlan, GatewayRow,
    GroupChange, GroupName, GroupRow, GroupRunEnd, GroupRunRow, GroupSnapshot, HeldLease, KeyRow, LeafIndex,
    LeafVersion, Lease, LeaseStamp, MapLeaf, MapPoint, NewVolume, NodeChange, NodeRow, NodeUsage,
    PlacementChange, PoolSettings, SegmentPlace, SiteRow, SnapshotName, SnapshotRow, SpaceCursor, SpaceOf,
    SpacePage, Totals, UsePage, VolumeName, VolumeRow, WalState,
};
use async_trait::async_trait;
use cairn_model::crypto::KeyId;
use cairn_model::{
    BatchId, ChunkSet, CommitSeq, ContainerId, DomainId, GatewayId, Generation, GroupId, GroupRunId,
    LbaRange, LineageId, MapDelta, NodeId, ObjectPlace, PassId, Placement, Profile, SegmentId, SnapshotId,
    VolumeId, WallTime, WriteSeq,
};
use commit::Receipt;
use domains::Domains;
use groups::Groups;
use leases::LeaseState;
use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use volumes::{Lineage, Volume};

type Result<T> = std::result::Result<T, CatalogError>;

/// What goes wrong with one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallFault {
    /// `Unavailable`, and nothing happened.
    Refused,
    /// Everything happened, and the answer is `Unavailable`.
    ReplyLost,
    /// Everything happened, and no answer ever comes.
    Silent,
}

/// Says what goes wrong with a call, by the name of its method; may take its time.
pub type CallPlan =
    dyn Fn(&'static str) -> Pin<Box<dyn Future<Output = Option<CallFault>> + Send>> + Send + Sync;

/// See the module. Clones are handles on the same catalog, as several processes would have.
#[derive(Clone, Default)]
pub struct MemoryCatalog {
    tables: Arc<Mutex<Tables>>,
    plan: Option<Arc<CallPlan>>,
}

#[derive(Default)]
struct Tables {
    site: Option<SiteRow>,
    keys: Vec<KeyRow>,
    domains: Domains,
    gateways: BTreeMap<GatewayId, Gateway>,
    nodes: BTreeMap<NodeId, NodeRow>,
    pool: PoolSettings,
    /// Deleted ones too, until they are purged.
    volumes: BTreeMap<VolumeId, Volume>,
    lineages: BTreeMap<LineageId, Lineage>,
    /// Of volumes that are not deleted.
    snapshots: BTreeMap<SnapshotId, SnapshotRow>,
    groups: Groups,
    segments: BTreeMap<SegmentId, ObjectPlace>,
    containers: BTreeMap<ContainerId, ContainerRow>,
    /// No batch may point at them anew.
    closed: BTreeMap<ContainerId, PassId>,
    /// Of containers that chunks were left out of: those that are there.
    thinned: BTreeMap<ContainerId, ChunkSet>,
    /// By their numbers.
    doomed: BTreeMap<u64, DoomedObject>,
    /// The last number of a doomed object.
    last_doomed: u64,
    receipts: BTreeMap<BatchId, Receipt>,
    totals: Totals,
}

/// A term of ownership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryHolder {
    pub gateway: GatewayId,
    pub generation: Generation,
    /// The term in which this gateway's unbroken ownership began.
    pub held_since: Generation,
    /// Ended by its owner.
    pub released: bool,
}

struct Gateway {
    row: GatewayRow,
    /// Batches committed so far.
    batches: u64,
}

impl fmt::Debug for MemoryCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryCatalog")
    }
}

impl MemoryCatalog {
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle on the same catalog whose calls ask `plan` first.
    #[must_use]
    pub fn with_plan(&self, plan: Arc<CallPlan>) -> Self {
        Self { tables: Arc::clone(&self.tables), plan: Some(plan) }
    }

    /// Who has the last term of a volume at this moment, seen from outside: asks no plan, takes no time.
    pub fn holder(&self, volume: VolumeId) -> Option<MemoryHolder> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.live(volume).ok()?.lease.as_ref().map(LeaseState::holder)
    }

    /// One call. `work` changes nothing if it fails.
    async fn call<T>(&self, method: &'static str, work: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        yield_twice().await;
        let fault = match &self.plan {
            Some(plan) => plan(method).await,
            None => None,
        };
        if fault == Some(CallFault::Refused) {
            return Err(unavailable(method));
        }
        let done = work(&mut self.tables.lock().unwrap_or_else(PoisonError::into_inner));
        yield_twice().await;
        match fault {
            Some(CallFault::ReplyLost) => Err(unavailable(method)),
            Some(CallFault::Silent) => pending().await,
            _ => done,
        }
    }
}

async fn yield_twice() {
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
}

fn unavailable(doing: &'static str) -> CatalogError {
    CatalogError::Unavailable { doing, source: sqlx::Error::PoolTimedOut }
}

/// A counter as every catalog can hold it.
fn countable(value: u64) -> Result<u64> {
    match i64::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(CatalogError::Invalid(format!("the number {value} is beyond 2^63"))),
    }
}

#[async_trait]
impl Catalog for MemoryCatalog {
    async fn create_site(&self, site: &SiteRow) -> Result<()> {
        self.call("create_site", |tables| tables.create_site(site)).await
    }

    async fn site(&self) -> Result<SiteRow> {
        self.call("site", |tables| tables.site()).await
    }

    async fn put_key(&self, key: &KeyRow) -> Result<()> {
        self.call("put_key", |tables| tables.put_key(key)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRow>> {
        self.call("keys", |tables| Ok(tables.keys())).await
    }

    async fn replace_keys(&self, rows: &[KeyRow], keep: KeyId) -> Result<()> {
        self.call("replace_keys", |tables| tables.replace_keys(rows, keep)).await
    }

    async fn create_domain(&self, domain: &DomainRow, key: &KeyRow) -> Result<()> {
        self.call("create_domain", |tables| tables.create_domain(domain, key)).await
    }

    async fn domains(&self) -> Result<Vec<DomainRow>> {
        self.call("domains", |tables| Ok(tables.domains())).await
    }

    async fn domain_by_name(&self, name: &DomainName) -> Result<DomainRow> {
        self.call("domain_by_name", |tables| tables.domain_by_name(name)).await
    }

    async fn check_domain_unused(&self, id: DomainId) -> Result<()> {
        self.call("check_domain_unused", |tables| tables.check_domain_unused(id)).await
    }

    async fn delete_domain(&self, id: DomainId) -> Result<()> {
        self.call("delete_domain", |tables| tables.delete_domain(id)).await
    }

    async fn register_gateway(&self, id: GatewayId, name: &str, now: WallTime) -> Result<()> {
        self.call("register_gateway", |tables| tables.register_gateway(id, name, now)).await
    }

    async fn gateway(&self, id: GatewayId) -> Result<GatewayRow> {
        self.call("gateway", |tables| Ok(tables.gateway(id)?.row.clone())).await
    }

    async fn gateways(&self) -> Result<Vec<GatewayRow>> {
        self.call("gateways", |tables| Ok(tables.gateways())).await
    }

    async fn set_wal_state(&self, id: GatewayId, state: WalState) -> Result<()> {
        self.call("set_wal_state", |tables| tables.set_wal_state(id, state)).await
    }

    async fn add_node(&self, node: &NodeRow) -> Result<()> {
        self.call("add_node", |tables| tables.add_node(node)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>> {
        self.call("nodes", |tables| Ok(tables.nodes())).await
    }

    async fn node(&self, id: NodeId) -> Result<NodeRow> {
        self.call("node", |tables| tables.node(id).cloned()).await
    }

    async fn node_by_name(&self, name: &str) -> Result<NodeRow> {
        self.call("node_by_name", |tables| tables.node_by_name(name)).await
    }

    async fn update_node(&self, id: NodeId, change: &NodeChange) -> Result<()> {
        self.call("update_node", |tables| tables.update_node(id, change)).await
    }

    async fn node_usage(&self) -> Result<Vec<NodeUsage>> {
        self.call("node_usage", |tables| Ok(tables.node_usage())).await
    }

    async fn remove_node(&self, id: NodeId, force: bool) -> Result<()> {
        self.call("remove_node", |tables| tables.remove_node(id, force)).await
    }

    async fn pool_settings(&self) -> Result<PoolSettings> {
        self.call("pool_settings", |tables| Ok(tables.pool.clone())).await
    }

    async fn set_pool_settings(&self, settings: &PoolSettings) -> Result<()> {
        self.call("set_pool_settings", |tables| {
            tables.pool = settings.clone();
            Ok(())
        })
        .await
    }

    async fn create_volume(&self, volume: &NewVolume) -> Result<()> {
        self.call("create_volume", |tables| tables.create_volume(volume)).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeRow>> {
        self.call("volumes", |tables| tables.all_volumes()).await
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeRow> {
        self.call("volume", |tables| tables.volume_row(id)).await
    }

    async fn volume_by_name(&self, name: &VolumeName) -> Result<VolumeRow> {
        self.call("volume_by_name", |tables| tables.volume_by_name(name)).await
    }

    async fn resize_volume(&self, gateway: GatewayId, held: HeldLease, size_bytes: u64) -> Result<()> {
        self.call("resize_volume", |tables| tables.resize_volume(gateway, held, size_bytes)).await
    }

    async fn rename_volume(&self, id: VolumeId, name: &VolumeName) -> Result<()> {
        self.call("rename_volume", |tables| tables.rename_volume(id, name)).await
    }

    async fn set_read_only(&self, id: VolumeId, read_only: bool) -> Result<()> {
        self.call("set_read_only", |tables| tables.set_read_only(id, read_only)).await
    }

    async fn delete_volume(&self, id: VolumeId, with_snapshots: bool, now: WallTime) -> Result<()> {
        self.call("delete_volume", |tables| tables.delete_volume(id, with_snapshots, now)).await
    }

    async fn purge_deleted(&self, rows_max: u32) -> Result<bool> {
        self.call("purge_deleted", |tables| Ok(tables.purge_deleted(rows_max))).await
    }

    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotRow>> {
        self.call("snapshots", |tables| Ok(tables.snapshots(volume))).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotRow> {
        self.call("snapshot", |tables| tables.snapshot(id)).await
    }

    async fn snapshot_by_name(&self, volume: VolumeId, name: &SnapshotName) -> Result<SnapshotRow> {
        self.call("snapshot_by_name", |tables| tables.snapshot_by_name(volume, name)).await
    }

    async fn delete_snapshot(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        id: SnapshotId,
        now: WallTime,
    ) -> Result<()> {
        self.call("delete_snapshot", |tables| tables.delete_snapshot(gateway, held, id, now)).await
    }

    async fn create_clone(&self, volume: &NewVolume, from: SnapshotId) -> Result<()> {
        self.call("create_clone", |tables| tables.create_clone(volume, from)).await
    }

    async fn revert_volume(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        through: WriteSeq,
        to: SnapshotId,
        lineage: LineageId,
    ) -> Result<()> {
        self.call("revert_volume", |tables| tables.revert_volume(gateway, held, through, to, lineage)).await
    }

    async fn create_group(&self, group: &GroupRow) -> Result<()> {
        self.call("create_group", |tables| tables.create_group(group)).await
    }

    async fn groups(&self) -> Result<Vec<GroupRow>> {
        self.call("groups", |tables| Ok(tables.all_groups())).await
    }

    async fn group_by_name(&self, name: &GroupName) -> Result<GroupRow> {
        self.call("group_by_name", |tables| tables.group_by_name(name)).await
    }

    async fn update_group(&self, id: GroupId, change: &GroupChange) -> Result<()> {
        self.call("update_group", |tables| tables.update_group(id, change)).await
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.call("delete_group", |tables| tables.delete_group(id)).await
    }

    async fn begin_group_run(
        &self,
        run: &GroupRunRow,
        locked_until: Option<WallTime>,
        handled_through: WallTime,
    ) -> Result<()> {
        self.call("begin_group_run", |tables| tables.begin_group_run(run, locked_until, handled_through))
            .await
    }

    async fn end_group_run(&self, end: &GroupRunEnd, event: &EventRow) -> Result<()> {
        self.call("end_group_run", |tables| tables.end_group_run(end, event)).await
    }

    async fn record_pruning(&self, run: GroupRunId, pruned: u64, error: Option<&str>) -> Result<()> {
        self.call("record_pruning", |tables| tables.record_pruning(run, pruned, error)).await
    }

    async fn group_runs(&self, group: GroupId, limit: u32) -> Result<Vec<GroupRunRow>> {
        self.call("group_runs", |tables| Ok(tables.last_group_runs(group, limit))).await
    }

    async fn unfinished_group_runs(&self) -> Result<Vec<GroupRunRow>> {
        self.call("unfinished_group_runs", |tables| Ok(tables.unfinished_group_runs())).await
    }

    async fn group_snapshots(&self, group: GroupId) -> Result<Vec<GroupSnapshot>> {
        self.call("group_snapshots", |tables| Ok(tables.group_snapshots(group))).await
    }

    async fn forget_group_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.call("forget_group_snapshot", |tables| {
            tables.forget_group_snapshot(snapshot);
            Ok(())
        })
        .await
    }

    async fn snapshot_locks(&self, volume: VolumeId) -> Result<Vec<(SnapshotId, WallTime)>> {
        self.call("snapshot_locks", |tables| Ok(tables.snapshot_locks(volume))).await
    }

    async fn add_event(&self, event: &EventRow) -> Result<()> {
        self.call("add_event", |tables| tables.add_event(event)).await
    }

    async fn events(&self, limit: u32) -> Result<Vec<EventRow>> {
        self.call("events", |tables| Ok(tables.last_events(limit))).await
    }

    async fn space_page(
        &self,
        of: SpaceOf,
        from: Option<SpaceCursor>,
        counted: &CountedLeaves,
        leaves_max: u32,
    ) -> Result<SpacePage> {
        self.call("space_page", |tables| tables.space_page(of, from, counted, leaves_max)).await
    }

    async fn acquire_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        now: WallTime,
        ttl: Duration,
        unrenewed: Option<LeaseStamp>,
    ) -> Result<Lease> {
        self.call("acquire_lease", |tables| tables.acquire_lease(volume, gateway, now, ttl, unrenewed)).await
    }

    async fn renew_leases(
        &self,
        gateway: GatewayId,
        leases: &[HeldLease],
        now: WallTime,
        ttl: Duration,
    ) -> Result<Vec<Result<WallTime>>> {
        self.call("renew_leases", |tables| Ok(tables.renew_leases(gateway, leases, now, ttl))).await
    }

    async fn release_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
    ) -> Result<()> {
        self.call("release_lease", |tables| tables.release_lease(volume, gateway, generation)).await
    }

    async fn commit_batch(&self, batch: &BatchCommit) -> Result<CommitReceipt> {
        self.call("commit_batch", |tables| tables.commit_batch(batch)).await
    }

    async fn containers(&self, ids: &[ContainerId]) -> Result<Vec<ContainerLocation>> {
        self.call("containers", |tables| Ok(tables.locate(ids))).await
    }

    async fn containers_before(
        &self,
        before: Option<ContainerId>,
        limit: u32,
    ) -> Result<Vec<ContainerLocation>> {
        self.call("containers_before", |tables| Ok(tables.containers_before(before, limit))).await
    }

    async fn unfolded_deltas(&self, lineage: LineageId) -> Result<Vec<(CommitSeq, MapDelta)>> {
        self.call("unfolded_deltas", |tables| Ok(tables.unfolded_deltas(lineage))).await
    }

    async fn leaf(&self, at: MapPoint, index: LeafIndex) -> Result<Option<MapLeaf>> {
        self.call("leaf", |tables| Ok(tables.leaf(at, index))).await
    }

    async fn leaves(&self, at: MapPoint, indices: &[LeafIndex]) -> Result<Vec<(LeafIndex, MapLeaf)>> {
        self.call("leaves", |tables| Ok(tables.leaves(at, indices))).await
    }

    async fn leaf_versions(&self, at: MapPoint, range: LbaRange, limit: u32) -> Result<Vec<LeafVersion>> {
        self.call("leaf_versions", |tables| Ok(tables.leaf_versions(at, range, limit))).await
    }

    async fn fold(&self, plan: &FoldPlan) -> Result<()> {
        self.call("fold", |tables| tables.fold(plan)).await
    }

    async fn segment_uses(&self, after: Option<SegmentId>, containers_max: u32) -> Result<UsePage> {
        self.call("segment_uses", |tables| Ok(tables.segment_uses(after, containers_max))).await
    }

    async fn container_uses(&self, ids: &[ContainerId]) -> Result<Vec<ContainerUse>> {
        self.call("container_uses", |tables| Ok(tables.container_uses(ids))).await
    }

    async fn close_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()> {
        self.call("close_containers", |tables| {
            tables.close_containers(pass, ids);
            Ok(())
        })
        .await
    }

    async fn open_containers(&self, pass: Option<PassId>) -> Result<()> {
        self.call("open_containers", |tables| {
            tables.open_containers(pass);
            Ok(())
        })
        .await
    }

    async fn remove_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()> {
        self.call("remove_containers", |tables| tables.remove_containers(pass, ids)).await
    }

    async fn move_containers(&self, moved: &ContainerMove) -> Result<()> {
        self.call("move_containers", |tables| tables.move_containers(moved)).await
    }

    async fn doomed_objects(&self, after: Option<u64>, limit: u32) -> Result<Vec<DoomedObject>> {
        self.call("doomed_objects", |tables| Ok(tables.doomed_objects(after, limit))).await
    }

    async fn forget_doomed(&self, id: u64) -> Result<()> {
        self.call("forget_doomed", |tables| {
            tables.doomed.remove(&id);
            Ok(())
        })
        .await
    }

    async fn place_shards(&self, change: &PlacementChange) -> Result<()> {
        self.call("place_shards", |tables| tables.place_shards(change)).await
    }

    async fn segment_places(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>> {
        self.call("segment_places", |tables| Ok(tables.segments_where(after, limit, |_| true))).await
    }

    async fn last_segment(&self) -> Result<Option<SegmentId>> {
        self.call("last_segment", |tables| Ok(tables.segments.last_key_value().map(|(id, _)| *id))).await
    }

    async fn segments_on(
        &self,
        node: NodeId,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>> {
        let is_on = |placement: &Placement| placement.present().any(|(_, shard)| shard.node == node);
        self.call("segments_on", |tables| Ok(tables.segments_where(after, limit, is_on))).await
    }

    async fn degraded_segments(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>> {
        let is_degraded = |placement: &Placement| placement.missing() > 0;
        self.call("degraded_segments", |tables| Ok(tables.segments_where(after, limit, is_degraded))).await
    }

    async fn segments_of_other_profile(
        &self,
        than: Profile,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>> {
        let is_other = |placement: &Placement| placement.profile() != than;
        self.call("segments_of_other_profile", |tables| Ok(tables.segments_where(after, limit, is_other)))
            .await
    }

    async fn totals(&self) -> Result<Totals> {
        self.call("totals", |tables| Ok(tables.totals())).await
    }

    async fn close(&self) {}
}
