//! The catalog in one SQLite file.
//!
//! Invariants:
//! - WAL mode and `synchronous=FULL` on the one writing connection: a transaction that committed survives a power cut;
//! - changes begin with `BEGIN IMMEDIATE`, so what a transaction has read cannot change before it writes;
//! - readers never wait for the writer, nor it for them.
//!
//! Crash cases:
//! - before the commit record is synced: nothing of the transaction is there when the file is opened again;
//! - after it: everything is;
//! - a future dropped before its `COMMIT` was handed over rolls back; one dropped later commits. A connection that an
//!   error left inside a transaction is closed, never used again.
//!
//! The SQL is numbered (`$1`) and plain, so that another database needs little more than other column types.

mod check;
mod columns;
mod commit;
mod containers;
mod domains;
mod doomed;
mod events;
mod fold;
mod group_runs;
mod groups;
mod keys;
mod leases;
mod maps;
mod moves;
mod nodes;
mod open;
mod placements;
mod prune;
mod reclaim;
mod record;
mod segments;
mod site;
mod snapshots;
mod space;
mod tally;
mod uncounted;
mod usage;
mod uses;
mod versions;
mod volumes;

#[cfg(test)]
mod tests;

use crate::{
    BatchCommit, Catalog, CatalogError, CheckSource, CommitReceipt, ContainerLocation, ContainerMove,
    ContainerUse, CountedLeaves, DomainName, DomainRow, DoomedObject, EventRow, FoldPlan, GatewayRow,
    GroupChange, GroupName, GroupRow, GroupRunEnd, GroupRunRow, GroupSnapshot, HeldLease, KeyRow, LeafIndex,
    LeafVersion, Lease, LeaseStamp, MapLeaf, MapPoint, NewVolume, NodeChange, NodeRow, NodeUsage,
    PlacementChange, PoolSettings, RecordChanges, RecordSource, SegmentPlace, SiteRow, SnapshotName,
    SnapshotRow, SpaceCursor, SpaceOf, SpacePage, Totals, UsePage, VolumeName, VolumeRow, WalState,
};
use async_trait::async_trait;
use cairn_model::crypto::KeyId;
use cairn_model::{
    CommitSeq, ContainerId, DomainId, GatewayId, Generation, GroupId, GroupRunId, LbaRange, LineageId,
    MapDelta, NodeId, PassId, Profile, SegmentId, SnapshotId, VolumeId, WallTime, WriteSeq, boxed,
};
use sqlx::{Sqlite, SqlitePool, Transaction};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use record::RecordWriter;

type Result<T> = std::result::Result<T, CatalogError>;

/// A [`Catalog`] in one SQLite file.
#[derive(Debug)]
pub struct SqliteCatalog {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
    changes: Changes,
}

/// Counts changes, for whoever records what the catalog has.
#[derive(Debug, Default)]
struct Changes {
    rare: AtomicU64,
    batches: AtomicU64,
}

impl Changes {
    fn now(&self) -> RecordChanges {
        RecordChanges {
            rare: self.rare.load(Ordering::Acquire),
            batches: self.batches.load(Ordering::Acquire),
        }
    }

    /// A change that no batch tells. It counts also if it failed or was dropped: it may have happened.
    async fn rare<T>(&self, change: impl Future<Output = T>) -> T {
        struct Counted<'a>(&'a AtomicU64);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Release);
            }
        }
        let _counted = Counted(&self.rare);
        change.await
    }
}

impl SqliteCatalog {
    /// Opens the catalog at `path`, bringing an older schema up to date. A missing file is an error: it never makes a fresh
    /// catalog where an old one is lost.
    #[boxed]
    pub async fn open(path: &Path) -> Result<Self> {
        open::open(path, false).await
    }

    /// As [`SqliteCatalog::open`], but makes the file if it is missing. Goes on where an earlier creation was cut short.
    #[boxed]
    pub async fn create(path: &Path) -> Result<Self> {
        open::open(path, true).await
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A transaction that may write.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed("beginning a change"))
    }
}

/// Makes a database error ours: what it means, and what was being done.
fn failed(doing: &'static str) -> impl Fn(sqlx::Error) -> CatalogError {
    move |source| match &source {
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Io(_) => CatalogError::Unavailable { doing, source },
        // IOERR_SHMSIZE: no room for the index of SQLite's own log, of which the primary code says nothing.
        sqlx::Error::Database(database) if database.code().as_deref() == Some("4874") => {
            CatalogError::OutOfSpace { doing, source }
        }
        sqlx::Error::Database(database) => match primary_code(&**database) {
            // PERM, BUSY, LOCKED, READONLY, IOERR, CANTOPEN, PROTOCOL
            Some(3 | 5 | 6 | 8 | 10 | 14 | 15) => CatalogError::Unavailable { doing, source },
            // FULL
            Some(13) => CatalogError::OutOfSpace { doing, source },
            // CORRUPT, NOTADB
            Some(11 | 26) => CatalogError::Damaged { doing, source },
            _ => CatalogError::Database { doing, source },
        },
        _ => CatalogError::Database { doing, source },
    }
}

/// SQLite's result code without what extends it (<https://www.sqlite.org/rescode.html>).
fn primary_code(error: &dyn sqlx::error::DatabaseError) -> Option<i32> {
    error.code()?.parse::<i32>().ok().map(|code| code & 0xff)
}

fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

#[async_trait]
impl Catalog for SqliteCatalog {
    async fn create_site(&self, site: &SiteRow) -> Result<()> {
        self.changes.rare(site::create(self, site)).await
    }

    async fn site(&self) -> Result<SiteRow> {
        site::get(self).await
    }

    async fn put_key(&self, key: &KeyRow) -> Result<()> {
        self.changes.rare(keys::put(self, key)).await
    }

    async fn keys(&self) -> Result<Vec<KeyRow>> {
        keys::all(self).await
    }

    async fn replace_keys(&self, rows: &[KeyRow], keep: KeyId) -> Result<()> {
        self.changes.rare(keys::replace(self, rows, keep)).await
    }

    async fn create_domain(&self, domain: &DomainRow, key: &KeyRow) -> Result<()> {
        self.changes.rare(domains::create(self, domain, key)).await
    }

    async fn domains(&self) -> Result<Vec<DomainRow>> {
        domains::all(self).await
    }

    async fn domain_by_name(&self, name: &DomainName) -> Result<DomainRow> {
        domains::by_name(self, name).await
    }

    async fn check_domain_unused(&self, id: DomainId) -> Result<()> {
        domains::check_unused(self, id).await
    }

    async fn delete_domain(&self, id: DomainId) -> Result<()> {
        self.changes.rare(domains::delete(self, id)).await
    }

    async fn register_gateway(&self, id: GatewayId, name: &str, now: WallTime) -> Result<()> {
        self.changes.rare(site::register_gateway(self, id, name, now)).await
    }

    async fn gateway(&self, id: GatewayId) -> Result<GatewayRow> {
        site::gateway(self, id).await
    }

    async fn gateways(&self) -> Result<Vec<GatewayRow>> {
        site::gateways(self).await
    }

    async fn set_wal_state(&self, id: GatewayId, state: WalState) -> Result<()> {
        site::set_wal_state(self, id, state).await
    }

    async fn add_node(&self, node: &NodeRow) -> Result<()> {
        self.changes.rare(nodes::add(self, node)).await
    }

    async fn nodes(&self) -> Result<Vec<NodeRow>> {
        nodes::all(self).await
    }

    async fn node(&self, id: NodeId) -> Result<NodeRow> {
        nodes::by_id(self, id).await
    }

    async fn node_by_name(&self, name: &str) -> Result<NodeRow> {
        nodes::by_name(self, name).await
    }

    async fn update_node(&self, id: NodeId, change: &NodeChange) -> Result<()> {
        self.changes.rare(nodes::update(self, id, change)).await
    }

    async fn node_usage(&self) -> Result<Vec<NodeUsage>> {
        nodes::usage(self).await
    }

    async fn remove_node(&self, id: NodeId, force: bool) -> Result<()> {
        self.changes.rare(nodes::remove(self, id, force)).await
    }

    async fn pool_settings(&self) -> Result<PoolSettings> {
        site::pool_settings(self).await
    }

    async fn set_pool_settings(&self, settings: &PoolSettings) -> Result<()> {
        self.changes.rare(site::set_pool_settings(self, settings)).await
    }

    async fn create_volume(&self, volume: &NewVolume) -> Result<()> {
        self.changes.rare(volumes::create(self, volume)).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeRow>> {
        volumes::all(self).await
    }

    async fn volume(&self, id: VolumeId) -> Result<VolumeRow> {
        volumes::by_id(self, id).await
    }

    async fn volume_by_name(&self, name: &VolumeName) -> Result<VolumeRow> {
        volumes::by_name(self, name).await
    }

    async fn resize_volume(&self, gateway: GatewayId, held: HeldLease, size_bytes: u64) -> Result<()> {
        self.changes.rare(volumes::resize(self, gateway, held, size_bytes)).await
    }

    async fn rename_volume(&self, id: VolumeId, name: &VolumeName) -> Result<()> {
        self.changes.rare(volumes::rename(self, id, name)).await
    }

    async fn set_read_only(&self, id: VolumeId, read_only: bool) -> Result<()> {
        self.changes.rare(volumes::set_read_only(self, id, read_only)).await
    }

    async fn delete_volume(&self, id: VolumeId, with_snapshots: bool, now: WallTime) -> Result<()> {
        self.changes.rare(volumes::delete(self, id, with_snapshots, now)).await
    }

    async fn purge_deleted(&self, rows_max: u32) -> Result<bool> {
        prune::purge(self, rows_max).await
    }

    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotRow>> {
        snapshots::all(self, volume).await
    }

    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotRow> {
        snapshots::by_id(self, id).await
    }

    async fn snapshot_by_name(&self, volume: VolumeId, name: &SnapshotName) -> Result<SnapshotRow> {
        snapshots::by_name(self, volume, name).await
    }

    async fn delete_snapshot(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        id: SnapshotId,
        now: WallTime,
    ) -> Result<()> {
        self.changes.rare(snapshots::delete(self, gateway, held, id, now)).await
    }

    async fn create_clone(&self, volume: &NewVolume, from: SnapshotId) -> Result<()> {
        self.changes.rare(snapshots::clone(self, volume, from)).await
    }

    async fn revert_volume(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        through: WriteSeq,
        to: SnapshotId,
        lineage: LineageId,
    ) -> Result<()> {
        self.changes.rare(snapshots::revert(self, gateway, held, through, to, lineage)).await
    }

    async fn create_group(&self, group: &GroupRow) -> Result<()> {
        self.changes.rare(groups::create(self, group)).await
    }

    async fn groups(&self) -> Result<Vec<GroupRow>> {
        groups::all(self).await
    }

    async fn group_by_name(&self, name: &GroupName) -> Result<GroupRow> {
        groups::by_name(self, name).await
    }

    async fn update_group(&self, id: GroupId, change: &GroupChange) -> Result<()> {
        self.changes.rare(groups::update(self, id, change)).await
    }

    async fn delete_group(&self, id: GroupId) -> Result<()> {
        self.changes.rare(groups::delete(self, id)).await
    }

    async fn begin_group_run(
        &self,
        run: &GroupRunRow,
        locked_until: Option<WallTime>,
        handled_through: WallTime,
    ) -> Result<()> {
        self.changes.rare(group_runs::begin(self, run, locked_until, handled_through)).await
    }

    async fn end_group_run(&self, end: &GroupRunEnd, event: &EventRow) -> Result<()> {
        self.changes.rare(group_runs::end(self, end, event)).await
    }

    async fn record_pruning(&self, run: GroupRunId, pruned: u64, error: Option<&str>) -> Result<()> {
        group_runs::record_pruning(self, run, pruned, error).await
    }

    async fn group_runs(&self, group: GroupId, limit: u32) -> Result<Vec<GroupRunRow>> {
        group_runs::last(self, group, limit).await
    }

    async fn unfinished_group_runs(&self) -> Result<Vec<GroupRunRow>> {
        group_runs::unfinished(self).await
    }

    async fn group_snapshots(&self, group: GroupId) -> Result<Vec<GroupSnapshot>> {
        group_runs::snapshots(self, group).await
    }

    async fn forget_group_snapshot(&self, snapshot: SnapshotId) -> Result<()> {
        self.changes.rare(group_runs::forget(self, snapshot)).await
    }

    async fn snapshot_locks(&self, volume: VolumeId) -> Result<Vec<(SnapshotId, WallTime)>> {
        snapshots::locks(self, volume).await
    }

    async fn add_event(&self, event: &EventRow) -> Result<()> {
        events::add(self, event).await
    }

    async fn events(&self, limit: u32) -> Result<Vec<EventRow>> {
        events::last(self, limit).await
    }

    async fn space_page(
        &self,
        of: SpaceOf,
        from: Option<SpaceCursor>,
        counted: &CountedLeaves,
        leaves_max: u32,
    ) -> Result<SpacePage> {
        space::page(self, of, from, counted, leaves_max).await
    }

    async fn acquire_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        now: WallTime,
        ttl: Duration,
        unrenewed: Option<LeaseStamp>,
    ) -> Result<Lease> {
        leases::acquire(self, volume, gateway, now, ttl, unrenewed).await
    }

    async fn renew_leases(
        &self,
        gateway: GatewayId,
        held: &[HeldLease],
        now: WallTime,
        ttl: Duration,
    ) -> Result<Vec<Result<WallTime>>> {
        leases::renew(self, gateway, held, now, ttl).await
    }

    async fn release_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
    ) -> Result<()> {
        leases::release(self, volume, gateway, generation).await
    }

    async fn commit_batch(&self, batch: &BatchCommit) -> Result<CommitReceipt> {
        let receipt = commit::commit(self, batch).await;
        self.changes.batches.fetch_add(1, Ordering::Release);
        // No footer tells of them.
        if batch.volumes.iter().any(|part| !part.snapshots.is_empty()) {
            self.changes.rare.fetch_add(1, Ordering::Release);
        }
        receipt
    }

    async fn containers(&self, ids: &[ContainerId]) -> Result<Vec<ContainerLocation>> {
        containers::locate(self, ids).await
    }

    async fn containers_before(
        &self,
        before: Option<ContainerId>,
        limit: u32,
    ) -> Result<Vec<ContainerLocation>> {
        containers::before(self, before, limit).await
    }

    async fn unfolded_deltas(&self, lineage: LineageId) -> Result<Vec<(CommitSeq, MapDelta)>> {
        maps::unfolded(self, lineage).await
    }

    async fn leaf(&self, at: MapPoint, index: LeafIndex) -> Result<Option<MapLeaf>> {
        maps::leaf(self, at, index).await
    }

    async fn leaves(&self, at: MapPoint, indices: &[LeafIndex]) -> Result<Vec<(LeafIndex, MapLeaf)>> {
        maps::leaves(self, at, indices).await
    }

    async fn leaf_versions(&self, at: MapPoint, range: LbaRange, limit: u32) -> Result<Vec<LeafVersion>> {
        maps::leaf_versions(self, at, range, limit).await
    }

    async fn fold(&self, plan: &FoldPlan) -> Result<()> {
        fold::fold(self, plan).await
    }

    async fn segment_uses(&self, after: Option<SegmentId>, containers_max: u32) -> Result<UsePage> {
        uses::of_segments(self, after, containers_max).await
    }

    async fn container_uses(&self, ids: &[ContainerId]) -> Result<Vec<ContainerUse>> {
        uses::of_containers(self, ids).await
    }

    async fn close_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()> {
        reclaim::close(self, pass, ids).await
    }

    async fn open_containers(&self, pass: Option<PassId>) -> Result<()> {
        reclaim::open(self, pass).await
    }

    async fn remove_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()> {
        reclaim::remove(self, pass, ids).await
    }

    async fn move_containers(&self, moved: &ContainerMove) -> Result<()> {
        moves::move_containers(self, moved).await
    }

    async fn doomed_objects(&self, after: Option<u64>, limit: u32) -> Result<Vec<DoomedObject>> {
        doomed::after(self, after, limit).await
    }

    async fn forget_doomed(&self, id: u64) -> Result<()> {
        doomed::forget(self, id).await
    }

    async fn place_shards(&self, change: &PlacementChange) -> Result<()> {
        // Its old objects stay until a checkpoint knows of the change: it can wait for one as a batch does.
        let placed = placements::change(self, change).await;
        self.changes.batches.fetch_add(1, Ordering::Release);
        placed
    }

    async fn segment_places(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>> {
        segments::all(self, after, limit).await
    }

    async fn last_segment(&self) -> Result<Option<SegmentId>> {
        segments::last(self).await
    }

    async fn segments_on(
        &self,
        node: NodeId,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>> {
        segments::on_node(self, node, after, limit).await
    }

    async fn degraded_segments(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>> {
        segments::degraded(self, after, limit).await
    }

    async fn segments_of_other_profile(
        &self,
        than: Profile,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>> {
        segments::of_other_profile(self, than, after, limit).await
    }

    async fn totals(&self) -> Result<Totals> {
        site::totals(self).await
    }

    fn record(&self) -> Option<&dyn RecordSource> {
        Some(self)
    }

    fn check(&self) -> Option<&dyn CheckSource> {
        Some(self)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
