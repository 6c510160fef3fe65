//! The cache that the gateway has.

use crate::admission::{Candidate, Gate, Refused, Room};
use crate::config::{FlashConfig, PAYLOAD_BYTES_MAX};
use crate::device::{Device, FileDevice};
use crate::directory::{Directory, DirectoryError, Marker, boot, failed};
use crate::engine::RingConfig;
use crate::headroom::Headroom;
use crate::health::Health;
use crate::key::{Key, KeyHashing};
use crate::recovery::recover;
use crate::ring::Ring;
use crate::status::{Counters, add};
use crate::writer::Writer;
use crate::{FlashStatus, SealedCache, Source};
use bytes::Bytes;
use cairn_model::{ChunkId, Clock, Ports, SiteId, boxed, timeout};
use foyer::{
    Age, EngineConfig, HybridCache, HybridCacheBuilder, HybridCachePolicy, HybridCacheProperties,
    IoEngineConfig, Load, NoopIoEngineConfig,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// A device that hangs does not keep the gateway from ending.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Locks of foyer's store.
const STORE_SHARDS: usize = 16;
const WRITER_NICE: u8 = 5;

type Engine = dyn EngineConfig<Key, Bytes, HybridCacheProperties>;
type Store = HybridCache<Key, Bytes, KeyHashing>;
pub(crate) type Decorate = Box<dyn FnOnce(Arc<dyn Device>) -> Arc<dyn Device> + Send>;

/// Chunks on a local device. One that cannot be used is a cache without anything in it, which says why.
#[derive(Debug)]
pub struct FlashCache {
    config: FlashConfig,
    clock: Arc<dyn Clock>,
    counters: Arc<Counters>,
    health: Arc<Health>,
    closed: AtomicBool,
    pub(crate) live: Option<Live>,
}

/// What there is while the device could be opened.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) ring: Arc<Ring>,
    store: Store,
    gate: Gate,
    headroom: Headroom,
    spoiled: Spoiled,
}

/// The chunks found to be damaged lately. They are not kept: whoever asked for one at the same time may still hold the bad bytes.
#[derive(Debug, Default)]
struct Spoiled(Mutex<VecDeque<u64>>);

impl Spoiled {
    const MAX: usize = 256;

    fn add(&self, hash: u64) {
        let mut latest = self.0.lock();
        if latest.len() == Self::MAX {
            latest.pop_front();
        }
        latest.push_back(hash);
    }

    fn contains(&self, hash: u64) -> bool {
        self.0.lock().contains(&hash)
    }
}

impl FlashCache {
    /// Opens the cache of that site, and finds again what it held. Never fails: a device that cannot be used is retired with
    /// the reason in [`FlashStatus::retired`], and the gateway goes on without.
    ///
    /// Call it on a tokio runtime; its threads are the ports'.
    #[boxed]
    pub async fn open(config: FlashConfig, site: SiteId, ports: Ports) -> Self {
        Self::open_on(config, site, ports, Box::new(|device| device)).await
    }

    pub(crate) async fn open_on(config: FlashConfig, site: SiteId, ports: Ports, decorate: Decorate) -> Self {
        let counters = Arc::<Counters>::default();
        let health = Arc::new(Health::new(&config, ports.clock.clone(), counters.clone()));
        let mut cache = Self {
            config,
            clock: ports.clock.clone(),
            counters,
            health,
            closed: AtomicBool::new(false),
            live: None,
        };
        match cache.start(site, &ports, decorate).await {
            Ok(live) => cache.live = Some(live),
            Err(reason) => cache.health.retire(reason),
        }
        cache
    }

    async fn start(&self, site: SiteId, ports: &Ports, decorate: Decorate) -> Result<Live, String> {
        self.config.validate().map_err(|error| error.to_string())?;
        let (opened, opening) = oneshot::channel();
        let (end, ended) = watch::channel(false);
        let (config, health) = (self.config.clone(), self.health.clone());
        let (counters, clock) = (self.counters.clone(), self.clock.clone());
        let work = async move {
            match prepare(&config, site, decorate, &health, counters, clock) {
                Ok((ring, writer)) => {
                    // Nobody takes it when opening was given up; then its queue is closed and the writer ends.
                    if let Err(Ok(ring)) = opened.send(Ok(ring)) {
                        ring.queue.close();
                    }
                    writer.run().await;
                }
                Err(error) => {
                    let _ = opened.send(Err(error.to_string()));
                }
            }
            end.send_replace(true);
        };
        let spawned = ports.spawn.dedicated("flash-writer", WRITER_NICE, Box::pin(work));
        spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
        let ring = opening.await.map_err(|_| "opening the flash cache was interrupted".to_owned())??;
        let live = self.assemble(ring.clone(), ended, ports).await;
        if live.is_err() {
            ring.queue.close();
        }
        live
    }

    async fn assemble(
        &self,
        ring: Arc<Ring>,
        ended: watch::Receiver<bool>,
        ports: &Ports,
    ) -> Result<Live, String> {
        for _ in 0..self.config.readers {
            let work = ring.readers.clone().run(ring.device.clone());
            let spawned = ports.spawn.dedicated("flash-reader", 0, Box::pin(work));
            spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        let engine: Box<Engine> = Box::new(RingConfig { ring: ring.clone(), ended });
        // Nothing is kept in foyer's own memory: the engine of the gateway has decoded chunks there.
        let store = HybridCacheBuilder::new()
            .with_name("flash")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            .memory(STORE_SHARDS)
            .with_shards(STORE_SHARDS)
            .with_hash_builder(KeyHashing)
            .storage()
            .with_io_engine_config(Box::new(NoopIoEngineConfig) as Box<dyn IoEngineConfig>)
            .with_engine_config(engine)
            .build()
            .await
            .map_err(|error| error.to_string())?;
        let gate = Gate::new(&self.config, self.clock.now());
        let headroom = Headroom::new(self.config.capacity_bytes);
        Ok(Live { ring, store, gate, headroom, spoiled: Spoiled::default() })
    }

    /// None once the device is retired or the cache closed.
    fn live(&self) -> Option<&Live> {
        let usable = !self.health.is_retired() && !self.closed.load(Ordering::Relaxed);
        self.live.as_ref().filter(|_| usable)
    }
}

/// Opens the directory and recovers, on the writer's thread: it reads.
fn prepare(
    config: &FlashConfig,
    site: SiteId,
    decorate: Decorate,
    health: &Arc<Health>,
    counters: Arc<Counters>,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Ring>, Writer), DirectoryError> {
    let (directory, marker) = Directory::open(&config.path, site)?;
    let this_boot = boot();
    let same_boot = marker.as_ref().is_some_and(|marker| this_boot.as_deref() == Some(marker.boot.as_str()));
    let kept_size = marker.as_ref().map(|marker| marker.region_bytes).filter(|&bytes| config.keeps(bytes));
    let region_bytes = kept_size.unwrap_or_else(|| config.region_bytes());
    let chunks = directory.chunks();
    let failed = |operation| failed(operation, &chunks);
    let marker_now = Marker { site, region_bytes, boot: this_boot.unwrap_or_default() };
    if marker.is_none() {
        directory.mark(&marker_now)?;
    }
    let (device, existed) = FileDevice::open(&chunks).map_err(failed("open"))?;
    let device = decorate(Arc::new(device));
    if marker.is_some() && !existed {
        health.damage("the file of chunks is missing");
    }
    if marker.is_some() && kept_size.is_none() {
        device.truncate(0).map_err(failed("empty"))?;
    }
    let ring = Ring::new(config, region_bytes, device, clock, health.clone(), counters);
    let regions = recover(&ring, site, same_boot, config.entries_max()).map_err(failed("read"))?;
    // Before the first write of this boot, and after what an earlier boot left half done was made void.
    // Not for nothing: a disk that is full has no space for another marker.
    if marker.as_ref().is_some_and(|marker| *marker != marker_now) {
        directory.mark(&marker_now)?;
    }
    tracing::info!(
        path = %config.path.display(),
        chunks = ring.index.entries(),
        bytes = ring.used_bytes(),
        "the flash cache is open"
    );
    let ring = Arc::new(ring);
    let writer = Writer::new(ring.clone(), regions, site, config.entries_max(), directory);
    Ok((ring, writer))
}

impl Live {
    fn room(&self) -> Room {
        Room { queued_bytes: self.ring.queue.bytes(), full: self.ring.is_full() }
    }

    /// Hands a copy to the store, whose engine queues it. A copy, because the chunk is a slice of a whole fetched region or
    /// segment, which would stay in memory with it.
    fn write(&self, key: Key, stored: &Bytes) {
        let _ = self.store.storage_writer(key).force().insert(Bytes::copy_from_slice(stored));
    }

    /// A chunk that is in use is about to be overwritten: it moves to the other end. Its bytes are not authenticated yet;
    /// [`SealedCache::damaged`] calls them back.
    fn keep(&self, key: Key, stored: &Bytes, clock: &dyn Clock, counters: &Counters) {
        let hash = key.hash64();
        if self.spoiled.contains(hash) {
            return;
        }
        if self.gate.keep(stored.len() as u64, self.room(), clock.now()) {
            self.write(key, stored);
            add(&counters.kept, 1);
        }
        // Another who read the same bytes may have found out before they were in the queue.
        if self.spoiled.contains(hash) {
            self.ring.forget(hash);
        }
    }
}

#[async_trait::async_trait]
impl SealedCache for FlashCache {
    async fn get(&self, chunk: ChunkId) -> Option<Bytes> {
        let live = self.live()?;
        let key = Key(chunk);
        let hash = key.hash64();
        live.headroom.asked(hash);
        live.gate.recent.asked(hash, key.group64());
        // What is on its way to the device is found by the store, also while it is called back.
        if live.ring.queue.is_spoiled(hash) {
            add(&self.counters.misses, 1);
            return None;
        }
        let found = match live.store.storage().load(&key).await {
            Ok(Load::Entry { value, populated, .. }) => {
                if populated.age == Age::Old {
                    live.keep(key, &value, &*self.clock, &self.counters);
                }
                Some(value)
            }
            Ok(Load::Piece { piece, .. }) => Some(piece.value().clone()),
            Ok(Load::Miss | Load::Throttled) | Err(_) => None,
        };
        add(if found.is_some() { &self.counters.hits } else { &self.counters.misses }, 1);
        found
    }

    fn insert(&self, chunk: ChunkId, stored: Bytes, source: Source) {
        let Some(live) = self.live() else { return };
        let key = Key(chunk);
        if stored.is_empty() || stored.len() > PAYLOAD_BYTES_MAX {
            return;
        }
        let hash = key.hash64();
        if live.store.storage().may_contains(&key) && !live.ring.queue.is_spoiled(hash) {
            return;
        }
        let candidate = Candidate { hash, group: key.group64(), bytes: stored.len() as u64 };
        match live.gate.admit(source, candidate, live.room(), self.clock.now()) {
            Ok(()) => live.write(key, &stored),
            Err(Refused::Unwanted) => add(&self.counters.rejected, 1),
            Err(Refused::Busy) => add(&self.counters.dropped, 1),
        }
    }

    fn damaged(&self, chunk: ChunkId) {
        let Some(live) = self.live() else { return };
        let hash = Key(chunk).hash64();
        // In this order: a copy that is queued to be kept is found by one or the other.
        live.spoiled.add(hash);
        // Who reports what another has reported already found nothing new.
        if live.ring.forget(hash) {
            self.health.damage("a chunk failed its authentication");
        }
    }

    fn status(&self) -> FlashStatus {
        let mut status = self.counters.status();
        status.retired = self.health.reason().map(str::to_owned);
        status.capacity_bytes = self.config.capacity_bytes;
        let Some(live) = &self.live else { return status };
        let ring = &live.ring;
        status.used_bytes = ring.used_bytes();
        status.chunks = ring.index.entries();
        status.queued_bytes = ring.queue.bytes();
        // What the memory of the index allows, when that is less than the device has room for.
        let entries_max = self.config.entries_max();
        let indexed = ring.average_bytes().map_or(u64::MAX, |average| entries_max.saturating_mul(average));
        status.capacity_bytes = ring.capacity_bytes().min(indexed.max(status.used_bytes));
        // A guess while there is nothing.
        let average = ring.average_bytes().unwrap_or(8 << 10);
        status.working_set_bytes =
            live.headroom.working_set_chunks().map(|chunks| chunks.saturating_mul(average));
        status.shortfall_bytes =
            status.working_set_bytes.map(|bytes| bytes.saturating_sub(status.capacity_bytes));
        status
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let Some(live) = &self.live else { return };
        let closing = timeout(&*self.clock, CLOSE_TIMEOUT, live.store.close());
        if closing.await.is_err() {
            live.ring.queue.close();
            tracing::warn!(path = %self.config.path.display(), "the flash cache does not finish writing; leaving it");
        }
    }
}
