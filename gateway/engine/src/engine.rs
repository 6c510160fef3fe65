//! The engine: a gateway's volumes over one log, one catalog and one pool.

use crate::budget::{Governor, govern_until_stopped};
use crate::compute::ComputePool;
use crate::config::EngineConfig;
use crate::dedupe::{Dedupe, learn_until_stopped, relearn_until_stopped};
use crate::destage::{Destage, destage_until_stopped, fold_until_stopped};
use crate::domains::Domains;
use crate::error::EngineError;
use crate::group::{Groups, run_groups_until_stopped};
use crate::heal::{HEAL_LIMIT, Heal, heal_until_stopped, scrub_until_stopped};
use crate::in_flight::InFlight;
use crate::lease::{LeaseWatch, gone, renew_leases};
use crate::patience::patiently;
use crate::pressure::Pressure;
use crate::read::{ChunkReader, ReaderLimits};
use crate::reclaim::{Reclaim, reclaim_until_stopped};
use crate::record::{
    Record, checkpoint, checkpoint_last, look_over, look_over_until_stopped, record_until_stopped,
    watch_owner_until_stopped,
};
use crate::recovery::{OpenVolume, open_volume, recover};
use crate::registry::Registry;
use crate::snapshot::Views;
use crate::status::NotServed;
use crate::tasks::Tasks;
use crate::volume::map::LeafCache;
use crate::volume::{Condition, Volume};
use crate::wal_state::WalStateFlag;
use cairn_fingerprints::FingerprintIndex;
use cairn_flash::SealedCache;
use cairn_metadata::{Catalog, CatalogError, HeldLease, LeaseStamp, NewVolume, VolumeName};
use cairn_model::crypto::SecretKey;
use cairn_model::{ErrorKind, Exports, GatewayId, Kinded, Ports, SiteId, VolumeId, boxed};
use cairn_segment_writer::{Domain, Pool};
use cairn_wal::{Disk, Wal};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Rows of deleted volumes that one transaction takes away.
pub(crate) const PURGE_ROWS: u32 = 1000;
const PURGE_PAUSE: Duration = Duration::from_millis(200);
/// How long shutdown waits for destage before it leaves the rest to the log.
const SHUTDOWN_DESTAGE_LIMIT: Duration = Duration::from_mins(2);
/// How long it waits before that for a group that runs; one that takes longer is ended by the next start.
const RUN_LIMIT: Duration = Duration::from_secs(15);
/// How long the caches may take to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);

/// What an engine is made of.
pub struct EngineParts {
    pub site: SiteId,
    pub gateway: GatewayId,
    pub catalog: Arc<dyn Catalog>,
    pub pool: Arc<Pool>,
    /// Those whose keys are open.
    pub domains: Vec<Domain>,
    /// Seals the log.
    pub wal_key: SecretKey,
    pub wal_disk: Arc<dyn Disk>,
    /// Where blocks are that are stored already.
    pub fingerprints: Arc<FingerprintIndex>,
    /// Chunks on local flash.
    pub flash: Option<Arc<dyn SealedCache>>,
    pub ports: Ports,
}

impl std::fmt::Debug for EngineParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineParts")
            .field("site", &self.site)
            .field("gateway", &self.gateway)
            .finish_non_exhaustive()
    }
}

/// What the engine's tasks and volumes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: EngineConfig,
    pub(crate) site: SiteId,
    pub(crate) gateway: GatewayId,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) domains: Arc<Domains>,
    pub(crate) dedupe: Dedupe,
    pub(crate) flash: Option<Arc<dyn SealedCache>>,
    pub(crate) ports: Ports,
    pub(crate) wal: Wal,
    pub(crate) wal_state: Arc<WalStateFlag>,
    pub(crate) pressure: Pressure,
    pub(crate) leaves: LeafCache,
    pub(crate) chunks: Arc<ChunkReader>,
    pub(crate) compute: ComputePool,
    pub(crate) governor: Governor,
    pub(crate) registry: Registry,
    /// Snapshots that are open.
    pub(crate) views: Views,
    /// Held by whoever changes the set of volumes.
    pub(crate) administration: Arc<tokio::sync::Mutex<()>>,
    pub(crate) destage: Destage,
    /// Held from before a commit until it is shown.
    pub(crate) commit_turn: tokio::sync::Mutex<()>,
    /// Segments that are put and that the catalog does not name yet.
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) reclaim: Reclaim,
    pub(crate) heal: Heal,
    pub(crate) record: Record,
    pub(crate) groups: Groups,
    pub(crate) fold_wake: Notify,
    pub(crate) purge_wake: Notify,
    pub(crate) tasks: Tasks,
    /// No new batches, no renewals; what is in flight may finish.
    pub(crate) stop: CancellationToken,
}

/// A running engine. Ended by [`Engine::shutdown`].
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    not_served: Vec<NotServed>,
    /// See [`Engine::release`].
    is_held: AtomicBool,
}

impl Engine {
    /// Takes the volumes' leases, replays the log into their write buffers, and starts destage. When it
    /// returns, every volume that can be served is.
    #[boxed]
    pub async fn start(config: EngineConfig, parts: EngineParts) -> Result<Arc<Self>, EngineError> {
        let tasks = Tasks::default();
        let recovered = recover(config, parts, tasks).await?;
        let shared = recovered.shared;
        shared.tasks.spawn(destage_until_stopped(Arc::clone(&shared), recovered.destage_requests));
        shared.tasks.spawn(learn_until_stopped(Arc::clone(&shared), recovered.lessons));
        shared.tasks.spawn(relearn_until_stopped(Arc::clone(&shared)));
        shared.tasks.spawn(govern_until_stopped(Arc::clone(&shared)));
        shared.tasks.spawn(renew_leases(Arc::clone(&shared)));
        let engine =
            Arc::new(Self { shared, not_served: recovered.not_served, is_held: AtomicBool::new(true) });
        if !engine.shared.config.held {
            engine.release();
        }
        Ok(engine)
    }

    /// Begins what an engine does by itself: reclaim, healing, checkpoints, schedules. See [`EngineConfig::held`].
    pub fn release(&self) {
        if !self.is_held.swap(false, Ordering::AcqRel) {
            return;
        }
        let shared = &self.shared;
        shared.tasks.spawn(fold_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(purge_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(reclaim_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(heal_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(scrub_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(record_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(look_over_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(watch_owner_until_stopped(Arc::clone(shared)));
        shared.tasks.spawn(run_groups_until_stopped(Arc::clone(shared)));
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn shared_arc(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Volumes that could not be opened at the start and are not served by now, and why.
    pub fn not_served(&self) -> impl Iterator<Item = &NotServed> {
        self.not_served.iter().filter(|refused| self.shared.registry.get(&refused.name).is_none())
    }

    /// Opens a domain that was made after the start.
    pub fn add_domain(&self, domain: Domain) {
        self.shared.domains.add(domain);
    }

    pub fn volume(&self, name: &str) -> Option<Arc<Volume>> {
        self.shared.registry.get(name)
    }

    pub fn volumes(&self) -> Vec<Arc<Volume>> {
        self.shared.registry.all()
    }

    /// Creates a volume and serves it.
    #[boxed]
    pub async fn create_volume(&self, new: &NewVolume) -> Result<Arc<Volume>, EngineError> {
        let new = new.clone();
        self.administer(move |shared| async move { create(&shared, &new).await }).await
    }

    /// Serves a volume of the catalog that this gateway does not serve. When another gateway holds it, waits until that one has released it
    /// or has not renewed its lease for the lease's whole term; what the other had acknowledged and not destaged is not in the volume then.
    #[boxed]
    pub async fn take_volume(&self, name: &VolumeName) -> Result<Arc<Volume>, EngineError> {
        let id = self.shared.catalog.volume_by_name(name).await?.id;
        let mut watch = LeaseWatch::default();
        loop {
            let unrenewed = watch.unrenewed(self.shared.ports.clock.now());
            let taken =
                self.administer(move |shared| async move { take(&shared, id, unrenewed).await }).await;
            let Some(pause) = watch.look(&taken, self.shared.ports.clock.now()) else { return taken };
            self.shared.ports.clock.sleep(pause).await;
        }
    }

    /// Changes a volume's size while it is in use. What a smaller size cuts off is zeroed first, in the pool as well, so that a later
    /// larger size shows zeros there whatever was lost meanwhile. If that fails, the size stays and the part may be zeroed already.
    #[boxed]
    pub async fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.administer(move |shared| async move { resize(&shared, &name, size_bytes).await }).await
    }

    #[boxed]
    pub async fn rename_volume(&self, name: &str, to: &VolumeName) -> Result<(), EngineError> {
        let (name, to) = (name.to_owned(), to.clone());
        self.administer(move |shared| async move {
            let volume = shared.registry.named(&name)?;
            until_known(&shared, || shared.catalog.rename_volume(volume.id(), &to)).await?;
            shared.registry.rename(&volume, to.to_string())
        })
        .await
    }

    /// Deletes a volume and everything in it, with its snapshots if it has some and that is wanted. There is no way back. Clones of it live on.
    #[boxed]
    pub async fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<(), EngineError> {
        let name = name.to_owned();
        self.administer(move |shared| async move {
            let volume = shared.registry.named(&name)?;
            if !with_snapshots && volume.state().lock().buffer.snapshots().next().is_some() {
                // The log's snapshots are the catalog's before they are counted.
                destage_in_time(&shared).await?;
            }
            let now = shared.ports.clock.wall();
            let delete = || shared.catalog.delete_volume(volume.id(), with_snapshots, now);
            match until_known(&shared, delete).await {
                // Deleted before, by an attempt whose answer was lost perhaps.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done?,
            }
            gone(&shared, &volume);
            shared.registry.remove(&volume);
            shared.purge_wake.notify_one();
            Ok(())
        })
        .await
    }

    /// See [`administer`].
    pub(crate) async fn administer<T, F>(
        &self,
        change: impl FnOnce(Arc<Shared>) -> F,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        administer(&self.shared, change).await
    }

    /// Everything acknowledged before the call is in the pool and in the catalog when it returns.
    #[boxed]
    pub async fn destage(&self) -> Result<(), EngineError> {
        self.shared.destage.all().await
    }

    /// Records everything that the catalog has in the pool: it and the key are enough to have it again when this returns.
    #[boxed]
    pub async fn checkpoint(&self) -> Result<(), EngineError> {
        checkpoint(&self.shared).await
    }

    /// Reads what the newest checkpoint is made of, as is done every day. Returns how many of its objects were damaged or missing: the next checkpoint puts them again, and is due.
    #[boxed]
    pub async fn check_record(&self) -> Result<u64, EngineError> {
        look_over(&self.shared).await
    }

    /// Destages, closes the log, gives the volumes back. What cannot be destaged in time stays in the log for the next
    /// start; the error says so. Of a gateway whose site was taken over the log is left as it is.
    #[boxed]
    pub async fn shutdown(&self) -> Result<(), EngineError> {
        let shared = &self.shared;
        if let Err(error) = shared.record.check_owner() {
            // What was acknowledged and not destaged is in the log alone, and stays there.
            self.abandon().await;
            return Err(error);
        }
        // No group runs from here on: what it took would be in the log alone.
        shared.groups.close();
        let _turn = cairn_model::timeout(&*shared.ports.clock, RUN_LIMIT, shared.groups.own_turn()).await;
        let destaged =
            cairn_model::timeout(&*shared.ports.clock, SHUTDOWN_DESTAGE_LIMIT, shared.destage.all()).await;
        checkpoint_last(shared).await;
        shared.stop.cancel();
        let closed = shared.wal.close().await;
        // What is made for a segment under way would be left in the pool.
        drop(cairn_model::timeout(&*shared.ports.clock, HEAL_LIMIT, shared.heal.own_turn()).await);
        shared.tasks.end().await;
        shared.views.clear();
        for volume in shared.registry.take_all() {
            let is_empty = {
                let state = volume.state().lock();
                state.condition == Condition::Serving && state.buffer.is_empty()
            };
            volume.lease().lose();
            if !is_empty {
                // Whoever took the volume now would make these writes part of a history that ended.
                tracing::warn!(
                    volume = volume.name(),
                    "its last writes are in this gateway's log alone; the lease is kept"
                );
                continue;
            }
            let released =
                shared.catalog.release_lease(volume.id(), shared.gateway, volume.generation()).await;
            if let Err(error) = released {
                tracing::debug!(volume = volume.name(), %error, "the lease runs out by itself");
            }
        }
        close_caches(shared).await;
        shared.compute.end().await;
        closed?;
        destaged.unwrap_or(Err(EngineError::PoolSilent(SHUTDOWN_DESTAGE_LIMIT.as_secs())))
    }
}

impl Engine {
    /// Ends everything at once, without destage: what a crash of the process leaves, for tests and for a gateway that must not
    /// touch the volumes any more.
    #[boxed]
    pub async fn abandon(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.end().await;
        self.shared.views.clear();
        self.shared.registry.take_all();
        // Its files are free for the next engine of this process; a real death would leave as much.
        self.shared.dedupe.index().close();
        self.shared.compute.end().await;
        let closed = self.shared.wal.close().await;
        if let Err(error) = closed {
            tracing::debug!(%error, "the log had stopped before");
        }
        self.shared.catalog.close().await;
    }
}

impl Exports for Engine {
    type Device = Volume;

    fn names(&self) -> Vec<String> {
        self.shared.registry.names()
    }

    /// `VOLUME@SNAPSHOT` is a snapshot. The empty name means the only volume, when there is only one.
    async fn open(&self, name: &str) -> Option<Arc<Volume>> {
        if let Some((volume, snapshot)) = name.split_once('@') {
            let opened = self.open_snapshot(volume, &snapshot.parse().ok()?).await;
            return opened
                .inspect_err(|error| tracing::info!(export = name, %error, "a snapshot cannot be opened"))
                .ok();
        }
        if !name.is_empty() {
            return self.volume(name);
        }
        match &self.volumes()[..] {
            [only] => Some(Arc::clone(only)),
            _ => None,
        }
    }
}

/// What is local and only helps: written out, its files free for the next start. A disk that hangs does not hold up the end.
async fn close_caches(shared: &Shared) {
    let close = async {
        if let Some(flash) = &shared.flash {
            flash.close().await;
        }
        shared.dedupe.close().await;
    };
    if cairn_model::timeout(&*shared.ports.clock, CLOSE_LIMIT, close).await.is_err() {
        tracing::warn!(
            "the flash cache or the index of fingerprints does not close; they are left as they are"
        );
    }
}

async fn create(shared: &Arc<Shared>, new: &NewVolume) -> Result<Arc<Volume>, EngineError> {
    shared.catalog.create_volume(new).await?;
    serve_new(shared, new.id, &new.name).await
}

/// Serves a volume that was created just now.
pub(crate) async fn serve_new(
    shared: &Arc<Shared>,
    id: VolumeId,
    name: &VolumeName,
) -> Result<Arc<Volume>, EngineError> {
    let opened = async {
        // A name that is free in the catalog may still be in use here, after a change whose answer was lost.
        shared.registry.check_free(name.as_str())?;
        open_here(shared, id, None).await
    };
    let opened = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody has seen it: a volume that is there and not served would only be in the way.
            if let Err(left) = shared.catalog.delete_volume(id, false, shared.ports.clock.wall()).await {
                tracing::warn!(volume = %name, error = %left, "a volume that could not be opened is left in the catalog");
            }
            return Err(error);
        }
    };
    let volume = Arc::new(Volume::new(opened, Arc::clone(shared)));
    shared.registry.insert(volume.name(), Arc::clone(&volume))?;
    Ok(volume)
}

/// Opens a volume of the catalog, in place of one that this gateway had to stop serving.
async fn take(
    shared: &Arc<Shared>,
    id: VolumeId,
    unrenewed: Option<LeaseStamp>,
) -> Result<Arc<Volume>, EngineError> {
    let served = shared.registry.all().into_iter().find(|volume| volume.id() == id);
    if let Some(volume) = &served
        && volume.state().lock().condition == Condition::Serving
    {
        return Ok(Arc::clone(volume));
    }
    let volume = Arc::new(Volume::new(open_here(shared, id, unrenewed).await?, Arc::clone(shared)));
    if let Some(ended) = served {
        shared.registry.remove(&ended);
    }
    shared.registry.insert(volume.name(), Arc::clone(&volume))?;
    Ok(volume)
}

async fn open_here(
    shared: &Shared,
    id: VolumeId,
    unrenewed: Option<LeaseStamp>,
) -> Result<OpenVolume, EngineError> {
    let (catalog, ttl) = (&*shared.catalog, shared.config.lease_ttl);
    open_volume(catalog, &shared.domains, &shared.ports, shared.gateway, ttl, id, unrenewed).await
}

async fn resize(shared: &Shared, name: &str, size_bytes: u64) -> Result<(), EngineError> {
    let volume = shared.registry.named(name)?;
    let old = volume.size_bytes();
    if size_bytes < old {
        // From here no write goes beyond the new end. What is there is zeroed, in the catalog's maps too, before the catalog has the new size:
        // the size survives the loss of the log, so the zeroes must, or a later larger size would bring the old bytes back.
        volume.state().lock().size_bytes = size_bytes;
        let zeroed = async {
            volume.zero_beyond_end(old).await?;
            shared.destage.all().await
        };
        let limit = shared.config.read_deadline;
        let zeroed = cairn_model::timeout(&*shared.ports.clock, limit, zeroed).await;
        if let Err(error) = zeroed.unwrap_or(Err(EngineError::PoolSilent(limit.as_secs()))) {
            volume.state().lock().size_bytes = old;
            return Err(error);
        }
    }
    let held = HeldLease { volume: volume.id(), generation: volume.generation() };
    let resized =
        until_known(shared, || shared.catalog.resize_volume(shared.gateway, held, size_bytes)).await;
    volume.state().lock().size_bytes = match &resized {
        Ok(()) => size_bytes,
        // The catalog may have either: nothing is accepted that only the larger one has room for.
        Err(error) if error.kind() == ErrorKind::Unavailable => old.min(size_bytes),
        Err(_) => old,
    };
    resized
}

/// Runs a change of the set of volumes: one at a time, and to its end even if the caller stops waiting, so that
/// the registry and the catalog cannot come apart. A volume that is served and not in the registry would be left out of cuts, and the
/// log would forget its writes.
pub(crate) async fn administer<T, F>(
    shared: &Arc<Shared>,
    change: impl FnOnce(Arc<Shared>) -> F,
) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, EngineError>> + Send + 'static,
{
    let turn = Arc::clone(&shared.administration);
    let change = change(Arc::clone(shared));
    let shared_too = Arc::clone(shared);
    let task = shared.tasks.spawn(async move {
        let _turn = turn.lock_owned().await;
        shared_too.record.check_owner()?;
        change.await
    });
    task.await.ok().flatten().unwrap_or(Err(EngineError::Stopped))
}

/// Makes a change of the catalog that may be repeated until its answer comes: an answer that was lost says nothing about the change.
pub(crate) async fn until_known<T, F>(shared: &Shared, change: impl FnMut() -> F) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, CatalogError>>,
{
    let (clock, limit) = (&*shared.ports.clock, shared.config.read_deadline);
    patiently(clock, limit, "a change of a volume waits for the catalog", EngineError::CatalogSilent, change)
        .await
}

/// Destages everything written so far, within the time that a guest would wait.
pub(crate) async fn destage_in_time(shared: &Shared) -> Result<(), EngineError> {
    let limit = shared.config.read_deadline;
    let destaged = cairn_model::timeout(&*shared.ports.clock, limit, shared.destage.all()).await;
    destaged.unwrap_or(Err(EngineError::PoolSilent(limit.as_secs())))
}

/// Takes the rows of deleted volumes out of the catalog, a few at a time so that commits get their turn; at the start, what an earlier
/// run left.
async fn purge_until_stopped(shared: Arc<Shared>) {
    loop {
        shared.reclaim.changed();
        let more = shared.catalog.purge_deleted(PURGE_ROWS).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot take away what deleted volumes left in the catalog; will try again");
            true
        });
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = shared.purge_wake.notified() => {}
            () = shared.ports.clock.sleep(PURGE_PAUSE), if more => {}
        }
    }
}

/// What recovery opened.
pub(crate) struct Opened {
    pub(crate) wal: Wal,
    pub(crate) wal_state: Arc<WalStateFlag>,
    pub(crate) destage: Destage,
    pub(crate) dedupe: Dedupe,
    pub(crate) domains: Domains,
}

/// Builds what the engine shares around an open log.
pub(crate) fn assemble(
    config: EngineConfig,
    parts: EngineParts,
    tasks: Tasks,
    opened: Opened,
) -> Result<Arc<Shared>, EngineError> {
    let Opened { wal, wal_state, destage, dedupe, domains } = opened;
    let domains = Arc::new(domains);
    let limits = ReaderLimits {
        cache_bytes: config.block_cache_bytes,
        directory_bytes: config.map_cache_bytes / 2,
        region_bytes: config.fetch_region_bytes,
        deadline: config.read_deadline,
    };
    let chunks = ChunkReader::new(
        limits,
        Arc::clone(&parts.catalog),
        Arc::clone(&parts.pool),
        parts.flash.clone(),
        Arc::clone(&domains),
        parts.ports.clone(),
        tasks.clone(),
    );
    let (governor, threads) = Governor::new(config.cpu_budget, config.cores);
    Ok(Arc::new(Shared {
        site: parts.site,
        gateway: parts.gateway,
        catalog: parts.catalog,
        pool: parts.pool,
        domains,
        dedupe,
        flash: parts.flash,
        wal,
        wal_state,
        pressure: Pressure::new(config.write_buffer_bytes, config.batch_bytes),
        leaves: LeafCache::new(config.map_cache_bytes / 2),
        chunks: Arc::new(chunks),
        compute: ComputePool::start("cairn-compute", threads, Arc::clone(&parts.ports.spawn))?,
        governor,
        registry: Registry::default(),
        views: Views::default(),
        administration: Arc::default(),
        destage,
        commit_turn: tokio::sync::Mutex::default(),
        in_flight: Arc::default(),
        reclaim: Reclaim::default(),
        heal: Heal::new(&config),
        record: Record::default(),
        groups: Groups::default(),
        fold_wake: Notify::new(),
        purge_wake: Notify::new(),
        tasks,
        stop: CancellationToken::new(),
        ports: parts.ports,
        config,
    }))
}
