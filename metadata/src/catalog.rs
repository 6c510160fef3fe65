//! The port to the catalog.

use crate::{
    BatchCommit, CatalogError, CommitReceipt, ContainerLocation, DomainName, DomainRow, FoldPlan, GatewayRow,
    HeldLease, KeyRow, LeafIndex, Lease, LeaseStamp, MapLeaf, NewVolume, NodeRow, NodeState, SiteRow, Totals,
    VolumeName, VolumeRow, WalState,
};
use async_trait::async_trait;
use cairn_model::crypto::KeyId;
use cairn_model::{
    CommitSeq, ContainerId, DomainId, GatewayId, Generation, LbaRange, LineageId, MapDelta, NodeId, VolumeId,
    WallTime,
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

    async fn set_node_state(&self, id: NodeId, state: NodeState) -> Result<()>;

    /// Forgets a node that holds no segment; `NodeInUse` otherwise.
    async fn remove_node(&self, id: NodeId) -> Result<()>;

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
    /// catalog goes in steps, by [`Catalog::purge_deleted`].
    async fn delete_volume(&self, id: VolumeId) -> Result<()>;

    /// Takes away at most `rows_max` rows of deleted volumes. Returns whether any are left.
    async fn purge_deleted(&self, rows_max: u32) -> Result<bool>;

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
    /// (`NotNext`), or when a map would point at a container that nobody has or that is of another domain than the volume
    /// (`UnknownContainer`).
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

    /// Deltas that are not wholly in the leaves yet, oldest first. Laid in this order over the leaves they give the map.
    async fn unfolded_deltas(&self, lineage: LineageId) -> Result<Vec<(CommitSeq, MapDelta)>>;

    /// One leaf; `None` is a leaf of holes.
    async fn leaf(&self, lineage: LineageId, index: LeafIndex) -> Result<Option<MapLeaf>>;

    /// Several leaves in few round trips, those that exist, by index.
    async fn leaves(&self, lineage: LineageId, indices: &[LeafIndex]) -> Result<Vec<(LeafIndex, MapLeaf)>>;

    /// The first `limit` leaves that exist and touch `range`, by index. The rest of the range up to the last one returned
    /// (all of it, if fewer than `limit` are) has no leaf.
    async fn leaves_present(&self, lineage: LineageId, range: LbaRange, limit: u32)
    -> Result<Vec<LeafIndex>>;

    /// Writes new versions of leaves. Refused when the gateway does not hold the lineage's volume in that term.
    async fn fold(&self, plan: &FoldPlan) -> Result<()>;

    // ---- the whole

    async fn totals(&self) -> Result<Totals>;

    /// Waits for what runs and closes the connections. Everything durable already is; this only leaves the files tidy.
    async fn close(&self);
}
