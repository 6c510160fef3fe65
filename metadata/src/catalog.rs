//! The port to the catalog.

use crate::{
    BatchCommit, CatalogError, CheckSource, CommitReceipt, ContainerLocation, ContainerMove, ContainerUse,
    CountedLeaves, DomainName, DomainRow, DoomedObject, EventRow, FoldPlan, GatewayRow, GroupChange,
    GroupName, GroupRow, GroupRunEnd, GroupRunRow, GroupSnapshot, HeldLease, KeyRow, LeafIndex, LeafVersion,
    Lease, LeaseStamp, MapLeaf, MapPoint, NewVolume, NodeChange, NodeRow, NodeUsage, PlacementChange,
    PoolSettings, RecordSource, SegmentPlace, SiteRow, SnapshotName, SnapshotRow, SpaceCursor, SpaceOf,
    SpacePage, Totals, UsePage, VolumeName, VolumeRow, WalState,
};
use async_trait::async_trait;
use cairn_model::crypto::KeyId;
use cairn_model::{
    CommitSeq, ContainerId, DomainId, GatewayId, Generation, GroupId, GroupRunId, LbaRange, LineageId,
    MapDelta, NodeId, ObjectPlace, PassId, Profile, SegmentId, SnapshotId, VolumeId, WallTime, WriteSeq,
};
use std::fmt::Debug;
use std::time::Duration;

type Result<T> = std::result::Result<T, CatalogError>;

/// The catalog of a site.
///
/// - Every change is one transaction, durable before the call returns.
/// - Dropping a returned future leaves either nothing or everything of its change.
/// - After an error of kind `Unavailable` a change may have happened or not; [`Catalog::commit_batch`] may simply be called again.
/// - Times are the caller's: the catalog has no clock.
#[async_trait]
pub trait Catalog: Send + Sync + Debug {
    // ---- site and keys

    /// Makes the catalog that of `site`. Fails with `AlreadyExists` when it is some site's already.
    async fn create_site(&self, site: &SiteRow) -> Result<()>;

    /// The site; `NotFound` before [`Catalog::create_site`].
    async fn site(&self) -> Result<SiteRow>;

    /// Adds a wrapped key. The same key may be there several times, wrapped by different keys.
    async fn put_key(&self, key: &KeyRow) -> Result<()>;

    /// All keys, oldest first.
    async fn keys(&self) -> Result<Vec<KeyRow>>;

    /// Puts `rows`, all of them wrapped by `keep`, over those that are there, and deletes what is wrapped by any other key: in one transaction,
    /// so that whoever has the one key or the other always opens everything or is told so. Refused when a key would have no row any
    /// more (`KeyLost`): somebody added it since the caller read them.
    async fn replace_keys(&self, rows: &[KeyRow], keep: KeyId) -> Result<()>;

    // ---- domains

    /// Adds a domain with its key, whose purpose is [`DomainRow::key_purpose`].
    async fn create_domain(&self, domain: &DomainRow, key: &KeyRow) -> Result<()>;

    /// All domains in the order of their names. [`DomainId::DEFAULT`] is one of them, as old as the site.
    async fn domains(&self) -> Result<Vec<DomainRow>>;

    async fn domain_by_name(&self, name: &DomainName) -> Result<DomainRow>;

    /// Fails where [`Catalog::delete_domain`] would, and changes nothing.
    async fn check_domain_unused(&self, id: DomainId) -> Result<()>;

    /// Deletes a domain with its keys. `DomainInUse` when a volume or a container is of it, `DefaultDomain` for that one.
    async fn delete_domain(&self, id: DomainId) -> Result<()>;

    // ---- gateways

    /// Adds a gateway, whose log is clean, or gives a known one its name.
    async fn register_gateway(&self, id: GatewayId, name: &str, now: WallTime) -> Result<()>;

    async fn gateway(&self, id: GatewayId) -> Result<GatewayRow>;

    async fn gateways(&self) -> Result<Vec<GatewayRow>>;

    async fn set_wal_state(&self, id: GatewayId, state: WalState) -> Result<()>;

    // ---- nodes

    async fn add_node(&self, node: &NodeRow) -> Result<()>;

    /// All nodes in the order of their names.
    async fn nodes(&self) -> Result<Vec<NodeRow>>;

    async fn node(&self, id: NodeId) -> Result<NodeRow>;

    async fn node_by_name(&self, name: &str) -> Result<NodeRow>;

    async fn update_node(&self, id: NodeId, change: &NodeChange) -> Result<()>;

    /// What each node holds, by identity: kept by every change, so as cheap to read as the nodes.
    async fn node_usage(&self) -> Result<Vec<NodeUsage>>;

    /// Forgets a node that holds no shard and no doomed object; `NodeInUse` otherwise. With `force` its shards are missing from then on, and what was doomed on
    /// it stays on it; but not when a segment would be left with too few shards to read, where those on failed nodes count only if the node is failed itself: `SegmentsLost`, and nothing happens. That is one
    /// transaction, which takes time for a node that holds much: move its shards to other nodes first where there are any.
    async fn remove_node(&self, id: NodeId, force: bool) -> Result<()>;

    // ---- the pool

    async fn pool_settings(&self) -> Result<PoolSettings>;

    async fn set_pool_settings(&self, settings: &PoolSettings) -> Result<()>;

    // ---- volumes

    async fn create_volume(&self, volume: &NewVolume) -> Result<()>;

    /// All volumes in the order of their names.
    async fn volumes(&self) -> Result<Vec<VolumeRow>>;

    async fn volume(&self, id: VolumeId) -> Result<VolumeRow>;

    async fn volume_by_name(&self, name: &VolumeName) -> Result<VolumeRow>;

    /// Gives the volume of `held` another size. Only its owner can: `Fenced` otherwise.
    async fn resize_volume(&self, gateway: GatewayId, held: HeldLease, size_bytes: u64) -> Result<()>;

    async fn rename_volume(&self, id: VolumeId, name: &VolumeName) -> Result<()>;

    async fn set_read_only(&self, id: VolumeId, read_only: bool) -> Result<()>;

    /// Deletes the volume, whoever holds it, at once and whatever its size: its name is free, its lease is void. What it had in the
    /// catalog goes in steps, by [`Catalog::purge_deleted`]. `HasSnapshots` when it has some, unless these are to go too. What clones of
    /// it show stays. `Locked` when one of its snapshots is locked at `now`, also one that is in the log alone.
    async fn delete_volume(&self, id: VolumeId, with_snapshots: bool, now: WallTime) -> Result<()>;

    /// Takes away rows of the map that nothing shows any more after a volume or a snapshot was deleted or a volume was reverted, looking at
    /// about `rows_max` of them. Returns whether there is more to do.
    async fn purge_deleted(&self, rows_max: u32) -> Result<bool>;

    // ---- snapshots, clones

    /// The snapshots of a volume, the oldest first; of a volume that is not there, none.
    async fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotRow>>;

    async fn snapshot(&self, id: SnapshotId) -> Result<SnapshotRow>;

    async fn snapshot_by_name(&self, volume: VolumeId, name: &SnapshotName) -> Result<SnapshotRow>;

    /// Deletes a snapshot of the volume of `held` at once. Only its owner can, who knows who reads it: `Fenced` otherwise. Clones of it live on,
    /// with what they show. `Locked` when it is at `now`.
    async fn delete_snapshot(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        id: SnapshotId,
        now: WallTime,
    ) -> Result<()>;

    /// Creates a volume that shows what the snapshot shows and is its own from there on. Takes no longer for a large volume, or one of many
    /// snapshots. `NotSettled` while the snapshot is not wholly in the leaves. The domain must be that of the snapshot's volume.
    async fn create_clone(&self, volume: &NewVolume, from: SnapshotId) -> Result<()>;

    /// Makes the volume of `held` show what one of its snapshots shows, in a fresh lineage and with the snapshot's size. Only its owner can,
    /// and only when everything is committed and folded: `through` must be what is destaged (`NotNext`), and the lineage's deltas
    /// all folded, and the snapshot settled (`NotSettled`). Doing it again with the same lineage is no error.
    async fn revert_volume(
        &self,
        gateway: GatewayId,
        held: HeldLease,
        through: WriteSeq,
        to: SnapshotId,
        lineage: LineageId,
    ) -> Result<()>;

    /// A part of the answer to whose space something is, from one state of the catalog: what about `leaves_max` versions of leaves behind `from` say.
    /// [`crate::space`] puts them together. Leaves that have `counted` do not count again. Costs what the pins asked for do not share with those beside them, whatever else there is; in
    /// the background, and when somebody asks. Of a snapshot that is not settled, `NotSettled`.
    async fn space_page(
        &self,
        of: SpaceOf,
        from: Option<SpaceCursor>,
        counted: &CountedLeaves,
        leaves_max: u32,
    ) -> Result<SpacePage>;

    // ---- protection groups, locks, events

    /// Adds a group. `NameTaken` when another one is called so.
    async fn create_group(&self, group: &GroupRow) -> Result<()>;

    /// All groups in the order of their names.
    async fn groups(&self) -> Result<Vec<GroupRow>>;

    async fn group_by_name(&self, name: &GroupName) -> Result<GroupRow>;

    async fn update_group(&self, id: GroupId, change: &GroupChange) -> Result<()>;

    /// Deletes a group with what is known of its runs. Its snapshots stay, and their locks. `RunUnderWay` while one has not ended.
    async fn delete_group(&self, id: GroupId) -> Result<()>;

    /// Writes down a run that is about to take snapshots; those of its planned members are locked from here on, until `locked_until`. Its group has
    /// dealt with its schedule up to `handled_through`. `RunUnderWay` while another one of the group has not ended; `NameTaken` when another
    /// one has the label. The same run again is no error.
    async fn begin_group_run(
        &self,
        run: &GroupRunRow,
        locked_until: Option<WallTime>,
        handled_through: WallTime,
    ) -> Result<()>;

    /// Writes down what became of a run, with an event for it. Of a run that has ended nothing changes. The group's oldest runs are forgotten,
    /// as far as nothing of them is left.
    async fn end_group_run(&self, end: &GroupRunEnd, event: &EventRow) -> Result<()>;

    /// Writes down what retention did after a run.
    async fn record_pruning(&self, run: GroupRunId, pruned: u64, error: Option<&str>) -> Result<()>;

    /// The last `limit` runs of a group, the newest first.
    async fn group_runs(&self, group: GroupId, limit: u32) -> Result<Vec<GroupRunRow>>;

    /// Runs of any group that have not ended, the oldest first.
    async fn unfinished_group_runs(&self) -> Result<Vec<GroupRunRow>>;

    /// The snapshots of a group's ended runs that are not known to be gone, in the order in which their runs began.
    async fn group_snapshots(&self, group: GroupId) -> Result<Vec<GroupSnapshot>>;

    /// A snapshot that a group counts on is not there, nor in any log: it counts on it no more. One that is in the catalog stays counted on.
    async fn forget_group_snapshot(&self, snapshot: SnapshotId) -> Result<()>;

    /// The locks of a volume's snapshots, also of those that are in the log alone.
    async fn snapshot_locks(&self, volume: VolumeId) -> Result<Vec<(SnapshotId, WallTime)>>;

    /// Adds an event. The oldest of its kind go beyond [`crate::EVENTS_MAX`].
    async fn add_event(&self, event: &EventRow) -> Result<()>;

    /// The last `limit` events, the newest first.
    async fn events(&self, limit: u32) -> Result<Vec<EventRow>>;

    // ---- leases

    /// Takes the volume for `gateway` in a new term of `ttl`. Its own it may take again at once, and what was released. Another's lease
    /// is `LeaseHeld`, unless it is still in the state `unrenewed`: that is the caller's word that it saw this very state at least the
    /// lease's term ago on its own monotonic clock. No wall clock decides: they jump, and gateways' differ.
    async fn acquire_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        now: WallTime,
        ttl: Duration,
        unrenewed: Option<LeaseStamp>,
    ) -> Result<Lease>;

    /// Extends leases of `gateway` in one transaction, one result per lease in the same order: the new end, or `Fenced`, or `NotFound`
    /// when the volume was deleted. A lease that has expired and that nobody has taken since is renewed. The end always grows, so that
    /// whoever watches sees the renewal even if this gateway's wall clock has jumped back.
    async fn renew_leases(
        &self,
        gateway: GatewayId,
        leases: &[HeldLease],
        now: WallTime,
        ttl: Duration,
    ) -> Result<Vec<Result<WallTime>>>;

    /// [`Catalog::renew_leases`] for one.
    async fn renew_lease(
        &self,
        volume: VolumeId,
        gateway: GatewayId,
        generation: Generation,
        now: WallTime,
        ttl: Duration,
    ) -> Result<WallTime> {
        let held = [HeldLease { volume, generation }];
        let mut renewals = self.renew_leases(gateway, &held, now, ttl).await?;
        renewals.pop().expect("one result per lease")
    }

    /// Ends the term: nothing more can be committed in it, and any gateway can acquire the volume. Doing it again is no error.
    async fn release_lease(&self, volume: VolumeId, gateway: GatewayId, generation: Generation)
    -> Result<()>;

    // ---- batches

    /// Commits a destaged batch, once: the same batch id again returns the first receipt. Refused whole
    /// when a volume is not held by the gateway in the given term (`Fenced`), when a batch is not the one that follows
    /// (`NotNext`), or when a map would point at a container that nobody has, at a chunk that was left out of it, or at one of another domain than the volume's
    /// (`UnknownContainer`), or when an object of one of its segments is doomed (`ObjectDoomed`). The state of a node does not matter for segments: they were put while it was another.
    async fn commit_batch(&self, batch: &BatchCommit) -> Result<CommitReceipt>;

    /// Where containers are; those that the catalog does not know are left out. In no particular order, each once.
    async fn containers(&self, ids: &[ContainerId]) -> Result<Vec<ContainerLocation>>;

    /// The last `limit` containers before `before`, the newest first (identities grow with time): page by page they are all.
    async fn containers_before(
        &self,
        before: Option<ContainerId>,
        limit: u32,
    ) -> Result<Vec<ContainerLocation>>;

    // ---- maps

    /// The lineage's own deltas that are not wholly in the leaves yet, oldest first. Laid in this order over the leaves they give the map.
    async fn unfolded_deltas(&self, lineage: LineageId) -> Result<Vec<(CommitSeq, MapDelta)>>;

    /// One leaf: the newest version through the point's commit, of the lineage or else, at the commit where it branched off, of the one that it
    /// descends from, and so on. `None` is a leaf of holes.
    async fn leaf(&self, at: MapPoint, index: LeafIndex) -> Result<Option<MapLeaf>>;

    /// Several leaves in few round trips, those that exist, by index.
    async fn leaves(&self, at: MapPoint, indices: &[LeafIndex]) -> Result<Vec<(LeafIndex, MapLeaf)>>;

    /// The first `limit` leaves that exist and touch `range`, by index, in the version that [`Catalog::leaf`] gives. The rest of the range up
    /// to the last one returned (all of it, if fewer than `limit` are) has no leaf. One that is returned may be all holes.
    async fn leaf_versions(&self, at: MapPoint, range: LbaRange, limit: u32) -> Result<Vec<LeafVersion>>;

    /// Writes new versions of leaves. Refused when the gateway does not hold the lineage's volume in that term, and when it would pass a
    /// snapshot (`FoldAcross`).
    async fn fold(&self, plan: &FoldPlan) -> Result<()>;

    // ---- reclaim

    /// The segments after `after`, in the order of their identities and whole, until they have `containers_max` containers or more; and which chunks
    /// of these any leaf of any lineage, or a delta, points at, all looked at in one moment. Reads every map, however small the page, and takes
    /// memory for the page: in the background, and not often.
    async fn segment_uses(&self, after: Option<SegmentId>, containers_max: u32) -> Result<UsePage>;

    /// The same of these containers alone, without those that the catalog does not have, in the order of their identities.
    async fn container_uses(&self, ids: &[ContainerId]) -> Result<Vec<ContainerUse>>;

    /// From here on a batch that points at one of them is refused with `UnknownContainer`: nothing points at them but what did before. Unknown
    /// ones are left out. What another pass had closed is this one's now.
    async fn close_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()>;

    /// Batches may point at what the pass has closed, or, without one, at every container again.
    async fn open_containers(&self, pass: Option<PassId>) -> Result<()>;

    /// Removes containers of which the caller has seen, since it closed them, that nothing points at them. `ContainerOpen`, and nothing is removed, if one was
    /// opened or closed by another pass in between: something may point at it by now. Segments that are empty then become doomed objects. Those
    /// that are gone already are left out.
    async fn remove_containers(&self, pass: PassId, ids: &[ContainerId]) -> Result<()>;

    /// Gives containers a new place, without the chunks of which the caller has seen, since it closed them, that nothing points at them: a batch that points at one of
    /// those anew is refused with `UnknownContainer` from here on. `ContainerOpen`, and nothing is moved, as with `remove_containers`. Containers that are gone are left
    /// out. Segments that are empty then become doomed objects. The same move again changes nothing. `ObjectDoomed` as of [`Catalog::commit_batch`].
    async fn move_containers(&self, moved: &ContainerMove) -> Result<()>;

    /// The first `limit` objects that are to be deleted after number `after`, in the order of their numbers.
    async fn doomed_objects(&self, after: Option<u64>, limit: u32) -> Result<Vec<DoomedObject>>;

    /// The object of that number is deleted.
    async fn forget_doomed(&self, id: u64) -> Result<()>;

    // ---- where segments are

    /// Gives a segment another place, if it is exactly where the change says; `PlacementChanged`, and nothing happens, if it is elsewhere or gone. What it
    /// needs no more is doomed in the same transaction. The same change again is no error as long as nothing else changed the segment since.
    ///
    /// After `PlacementChanged` objects that were put for the change may be in the pool without anything that knows them, or may be shards of the
    /// segment after all, if this was the second attempt and others changed it in between: look where the segment is before deleting them.
    async fn place_shards(&self, change: &PlacementChange) -> Result<()>;

    /// The shard is not there, or damaged: it is missing from then on, and its object doomed. Otherwise as [`Catalog::place_shards`].
    ///
    /// `LastShards` when too few would be left to read the segment: the shard stays on record. What is damaged may be a few chunks of it, and the
    /// rest can be read yet; what a node does not show today it may show when it is back. A segment that is on record with too few shards
    /// could not be told from one that never was. That something is lost is for the caller to say, who knows what.
    async fn lose_shard(&self, segment: SegmentId, from: ObjectPlace, shard: usize) -> Result<()> {
        self.place_shards(&PlacementChange::without(segment, from, shard)?).await
    }

    /// The first `limit` segments after `after`, in the order of their identities.
    async fn segment_places(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>>;

    /// The last of all segments in the order of their identities.
    async fn last_segment(&self) -> Result<Option<SegmentId>>;

    /// Of these, those with a shard on the node.
    async fn segments_on(
        &self,
        node: NodeId,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>>;

    /// Of these, those of which a shard is missing.
    async fn degraded_segments(&self, after: Option<SegmentId>, limit: u32) -> Result<Vec<SegmentPlace>>;

    /// Of these, those with another profile.
    async fn segments_of_other_profile(
        &self,
        than: Profile,
        after: Option<SegmentId>,
        limit: u32,
    ) -> Result<Vec<SegmentPlace>>;

    // ---- the whole

    async fn totals(&self) -> Result<Totals>;

    /// All of its rows, if they can be read: whoever keeps a record of the catalog elsewhere does so then.
    fn record(&self) -> Option<&dyn RecordSource> {
        None
    }

    /// What a check asks, if there is anything to check.
    fn check(&self) -> Option<&dyn CheckSource> {
        None
    }

    /// Waits for what runs and closes the connections. Everything durable already is; this only leaves the files tidy.
    async fn close(&self);
}
