//! Chunks decoded and kept in RAM, from flash or from the pool.
//!
//! The unit of a fetch is a *region*: the chunks of a container whose first byte lies in one aligned window of it, because what was
//! written together is read together. Concurrent misses on a region share one fetch. Every chunk is authenticated before
//! anyone sees it; a reader that stops waiting does not stop the fetch for the others.
//!
//! A container may move while somebody reads it: reclaim puts survivors of sparse segments together, healing gives segments other shards, and both delete the old
//! objects. Whoever does not find what it located before asks the catalog again; only what is not where the catalog says now is gone. The same holds for whoever waits
//! for nodes that do not answer: other nodes may have it by now.
//!
//! Flash is asked before the pool and believed only after authentication: what fails there is counted, and the pool is asked. It is filled with
//! what the pool returned, in its stored form, once that is verified.

mod streams;

pub(crate) use streams::ReadStreams;

use crate::cache::{Cache, cache};
use crate::domains::Domains;
use crate::error::EngineError;
use crate::patience::patiently;
use crate::tasks::Tasks;
use bytes::{Bytes, BytesMut};
use cairn_flash::{SealedCache, Source};
use cairn_metadata::Catalog;
use cairn_model::planted::{Bug, is_planted};
use cairn_model::{ChunkId, ChunkIndex, ContainerId, ErrorKind, Kinded, ObjectPlace, Ports, SegmentId};
use cairn_segment_writer::{ContainerCipher, ContainerDirectory, ContainerLocation, Pool, StoredSink};
use foldhash::fast::FixedState;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use quick_cache::Weighter;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Streams read ahead at the same time; beyond it, streams do without.
const READ_AHEADS_MAX: usize = 16;
/// Scattered writes make chunks of one block, sequential ones of eight.
const CHUNK_BYTES_EXPECTED: u64 = 8 << 10;

/// A window of a container as it is in one place: its segment, and a hash of where the segment is. A fetch from an old place is not joined.
type RegionKey = (SegmentId, u64, ContainerId, u32);
type Region = Arc<Vec<(ChunkIndex, Bytes)>>;
type Flight = Shared<BoxFuture<'static, Result<Region, EngineError>>>;

/// Where a container is and how its chunks are opened.
#[derive(Debug)]
pub(crate) struct Container {
    id: ContainerId,
    segment: SegmentId,
    /// Of [`ContainerLocation::place`].
    place_hash: u64,
    location: ContainerLocation,
    directory: ContainerDirectory,
    cipher: ContainerCipher,
}

impl Container {
    /// Whether it is in the same place as `other`.
    fn is_where(&self, other: &Self) -> bool {
        self.segment == other.segment && self.location == other.location
    }

    const fn region_key(&self, region: u32) -> RegionKey {
        (self.segment, self.place_hash, self.id, region)
    }
}

fn hash_of(place: &ObjectPlace) -> u64 {
    FixedState::default().hash_one(place)
}

#[derive(Clone, Debug)]
struct ChunkWeight;

impl Weighter<ChunkId, Bytes> for ChunkWeight {
    fn weight(&self, _key: &ChunkId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + 128
    }
}

#[derive(Clone, Debug)]
struct ContainerWeight;

impl Weighter<ContainerId, Arc<Container>> for ContainerWeight {
    fn weight(&self, _key: &ContainerId, container: &Arc<Container>) -> u64 {
        container.directory.len() as u64 * 8 + 512
    }
}

/// Part of the cache that only chunks which were read more than once may fill. The rest takes what comes in, neighbours in a
/// region and what went to the pool lately included, and must be large enough for a chunk to be read again before it leaves.
const HOT_CHUNKS: f64 = 0.6;
/// Less than this, or a sixteenth, is no room for a stream that is written: large chunks leave an eighth of the smallest cache's shards empty.
const ROOM_BYTES: u64 = 4 << 20;
/// Directories are small and all alike.
const HOT_DIRECTORIES: f64 = 0.97;
const DIRECTORY_BYTES_EXPECTED: u64 = 4 << 10;

/// Limits of a [`ChunkReader`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReaderLimits {
    pub(crate) cache_bytes: u64,
    pub(crate) directory_bytes: u64,
    pub(crate) region_bytes: u32,
    pub(crate) deadline: Duration,
}

/// Reads chunks by identity.
pub(crate) struct ChunkReader {
    limits: ReaderLimits,
    catalog: Arc<dyn Catalog>,
    pool: Arc<Pool>,
    flash: Option<Arc<dyn SealedCache>>,
    domains: Arc<Domains>,
    ports: Ports,
    tasks: Tasks,
    chunks: Cache<ChunkId, Bytes, ChunkWeight>,
    containers: Cache<ContainerId, Arc<Container>, ContainerWeight>,
    flights: Mutex<HashMap<RegionKey, Flight>>,
    read_aheads: Arc<Semaphore>,
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Where a flight looks first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Via {
    /// On flash, for all of the region.
    Flash,
    /// Flash was asked and did not have what is wanted.
    Pool,
}

/// Ends a flight however its task ends: the next miss starts another.
struct Landing<'a> {
    reader: &'a ChunkReader,
    key: RegionKey,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.reader.flights.lock().remove(&self.key);
    }
}

impl ChunkReader {
    pub(crate) fn new(
        limits: ReaderLimits,
        catalog: Arc<dyn Catalog>,
        pool: Arc<Pool>,
        flash: Option<Arc<dyn SealedCache>>,
        domains: Arc<Domains>,
        ports: Ports,
        tasks: Tasks,
    ) -> Self {
        Self {
            chunks: cache(limits.cache_bytes, CHUNK_BYTES_EXPECTED, HOT_CHUNKS, ChunkWeight),
            containers: cache(
                limits.directory_bytes,
                DIRECTORY_BYTES_EXPECTED,
                HOT_DIRECTORIES,
                ContainerWeight,
            ),
            flights: Mutex::new(HashMap::new()),
            read_aheads: Arc::new(Semaphore::new(READ_AHEADS_MAX)),
            limits,
            catalog,
            pool,
            flash,
            domains,
            ports,
            tasks,
        }
    }

    /// The chunk, if it is in RAM.
    pub(crate) fn cached(&self, chunk: ChunkId) -> Option<Bytes> {
        let chunk = if is_planted(Bug::ReturnNeighbour) {
            ChunkId { index: ChunkIndex::new(chunk.index.get() ^ 1), ..chunk }
        } else {
            chunk
        };
        self.chunks.get(&chunk)
    }

    /// The chunk, if it is in RAM, for somebody who is no reader: it does not count as asked for.
    pub(crate) fn peek(&self, chunk: ChunkId) -> Option<Bytes> {
        self.chunks.peek(&chunk)
    }

    /// Takes a chunk that was just read or packed.
    pub(crate) fn keep(&self, chunk: ChunkId, bytes: Bytes) {
        self.chunks.insert(chunk, bytes);
    }

    /// Whether what is kept pushes nothing out yet. The cache's shards are never full to the last byte, and not all at once.
    pub(crate) fn has_room(&self) -> bool {
        let rest = (self.limits.cache_bytes / 16).max(ROOM_BYTES);
        self.chunks.weight() + rest < self.limits.cache_bytes
    }

    /// Lets go of where containers are that are not in the catalog any more.
    pub(crate) fn forget(&self, containers: &[ContainerId]) {
        for container in containers {
            self.containers.remove(container);
        }
    }

    /// Lets go of where the containers of these segments are: they have other places now.
    pub(crate) fn forget_segments(&self, segments: &HashSet<SegmentId>) {
        self.containers.retain(|_, container| !segments.contains(&container.segment));
    }

    pub(crate) fn cached_bytes(&self) -> u64 {
        self.chunks.weight()
    }

    /// The chunk, from RAM, flash or the pool.
    pub(crate) async fn fetch(self: &Arc<Self>, chunk: ChunkId) -> Result<Bytes, EngineError> {
        if let Some(bytes) = self.cached(chunk) {
            return Ok(bytes);
        }
        let mut container = self.container(chunk.container).await?;
        loop {
            match self.fetch_from(&container, chunk).await {
                Err(error) if error.may_have_moved() && !is_planted(Bug::GiveUpOnMovedContainer) => {
                    let now = self.locate(chunk.container).await?;
                    if now.is_where(&container) {
                        return Err(error);
                    }
                    container = now;
                }
                fetched => return fetched,
            }
        }
    }

    async fn fetch_from(
        self: &Arc<Self>,
        container: &Arc<Container>,
        chunk: ChunkId,
    ) -> Result<Bytes, EngineError> {
        if let Some(bytes) = self.on_flash(container, chunk.index).await {
            self.keep(chunk, bytes.clone());
            return Ok(bytes);
        }
        let region = self.region_of(container, chunk.index)?;
        let chunks = self.flight(Arc::clone(container), region, Via::Pool).await?;
        let position = chunks.binary_search_by_key(&chunk.index, |(index, _)| *index);
        position
            .map(|position| chunks[position].1.clone())
            .map_err(|_| EngineError::NoSuchContainer(chunk.container))
    }

    /// Starts bringing `chunks` into RAM, if there is room for another stream. Does not wait.
    pub(crate) fn read_ahead(self: &Arc<Self>, chunks: &[ChunkId]) {
        let mut absent: Vec<ChunkId> =
            chunks.iter().copied().filter(|chunk| !self.chunks.contains_key(chunk)).collect();
        absent.dedup();
        if absent.is_empty() || self.tasks.is_ending() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.read_aheads).try_acquire_owned() else { return };
        let reader = Arc::clone(self);
        self.tasks.spawn(async move {
            let mut flights = Vec::new();
            for chunk in absent {
                // Errors belong to whoever really reads the chunk.
                let Ok(container) = reader.container(chunk.container).await else { return };
                let Ok(region) = reader.region_of(&container, chunk.index) else { return };
                let key = container.region_key(region);
                if flights.last().is_none_or(|(last, _)| *last != key) && !reader.chunks.contains_key(&chunk)
                {
                    flights.push((key, reader.flight(container, region, Via::Flash)));
                }
            }
            for (_, flight) in flights {
                drop(flight.await);
            }
            drop(permit);
        });
    }

    fn region_of(&self, container: &Container, index: ChunkIndex) -> Result<u32, EngineError> {
        let entry = container.directory.get(index).ok_or(EngineError::NoSuchContainer(container.id))?;
        Ok(entry.offset / self.limits.region_bytes)
    }

    /// Where the container is, from RAM or from the catalog.
    async fn container(&self, id: ContainerId) -> Result<Arc<Container>, EngineError> {
        match self.containers.get(&id) {
            Some(container) => Ok(container),
            None => self.locate(id).await,
        }
    }

    /// Where the container is, as the catalog says now.
    async fn locate(&self, id: ContainerId) -> Result<Arc<Container>, EngineError> {
        let (clock, limit) = (&*self.ports.clock, self.limits.deadline);
        let found =
            patiently(clock, limit, "a read waits for the catalog", EngineError::CatalogSilent, || {
                self.catalog.containers(std::slice::from_ref(&id))
            });
        let found = found.await?.into_iter().find(|location| location.id == id);
        let found = found.ok_or(EngineError::NoSuchContainer(id))?;
        let directory =
            ContainerDirectory::decode(&found.directory).map_err(|_| EngineError::NoSuchContainer(id))?;
        let location = ContainerLocation { place: found.place, offset: found.offset };
        let cipher = ContainerCipher::new(&self.domains.get(found.domain)?, id);
        let place_hash = hash_of(&location.place);
        let segment = found.segment;
        let container = Arc::new(Container { id, segment, place_hash, location, directory, cipher });
        self.containers.insert(id, Arc::clone(&container));
        Ok(container)
    }

    /// The fetch of a region that is under way, or a new one.
    fn flight(self: &Arc<Self>, container: Arc<Container>, region: u32, via: Via) -> Flight {
        let key = container.region_key(region);
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let reader = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let _landing = Landing { reader: &reader, key };
            let fetched = match reader.region_from_flash(&container, region, via).await {
                Some(chunks) => Ok(chunks),
                None => reader.fetch_region(&container, region).await,
            };
            if let Ok(chunks) = &fetched {
                for (index, bytes) in chunks.iter() {
                    reader.keep(ChunkId { container: key.2, index: *index }, bytes.clone());
                }
            }
            fetched
        });
        let flight =
            task.map(|joined| joined.ok().flatten().unwrap_or(Err(EngineError::Stopped))).boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }

    /// Asks the pool until it answers or the deadline passes; only silence is asked again, and not of nodes that do not have it any more.
    async fn fetch_region(&self, container: &Container, region: u32) -> Result<Region, EngineError> {
        let (clock, limit) = (&*self.ports.clock, self.limits.deadline);
        let silence = EngineError::PoolSilent(limit.as_secs());
        let fetched = patiently(clock, limit, "a read waits for the pool", silence, || async {
            match self.fetch_region_once(container, region).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    let now = self.locate(container.id).await?;
                    // Whoever reads it finds out where it is now.
                    Err(if now.is_where(container) {
                        error
                    } else {
                        EngineError::NoSuchContainer(container.id)
                    })
                }
                fetched => fetched,
            }
        });
        fetched.await
    }

    async fn fetch_region_once(&self, container: &Container, region: u32) -> Result<Region, EngineError> {
        let chunks = self.chunks_of(container, region)?;
        let (location, directory, cipher) = (&container.location, &container.directory, &container.cipher);
        let verified = |index, stored: Bytes| {
            if let Some(flash) = &self.flash {
                flash.insert(ChunkId { container: container.id, index }, stored, Source::Fetch);
            }
        };
        let stored_too = self.flash.is_some().then_some(&verified as StoredSink<'_>);
        let read = self.pool.read_chunks(location, directory, cipher, chunks, stored_too);
        Ok(Arc::new(read.await?))
    }

    /// The chunks whose first byte lies in the region.
    fn chunks_of(&self, container: &Container, region: u32) -> Result<Range<u32>, EngineError> {
        let start = u64::from(region) * u64::from(self.limits.region_bytes);
        let window = start..start + u64::from(self.limits.region_bytes);
        let overlapping = container.directory.chunks_overlapping(window);
        let begins_here = |index: &u32| {
            let entry = container.directory.get(ChunkIndex::new(*index));
            entry.is_some_and(|entry| u64::from(entry.offset) >= start)
        };
        let first =
            overlapping.clone().find(begins_here).ok_or(EngineError::NoSuchContainer(container.id))?;
        Ok(first..overlapping.end)
    }

    /// A region whose chunks are all on flash.
    async fn region_from_flash(&self, container: &Container, region: u32, via: Via) -> Option<Region> {
        if via == Via::Pool || self.flash.is_none() {
            return None;
        }
        let mut chunks = Vec::new();
        for (index, _) in container.directory.iter_within(self.chunks_of(container, region).ok()?) {
            let chunk = ChunkId { container: container.id, index };
            let bytes = match self.chunks.get(&chunk) {
                Some(bytes) => bytes,
                None => self.on_flash(container, index).await?,
            };
            chunks.push((index, bytes));
        }
        Some(Arc::new(chunks))
    }

    /// The chunk, if flash has it and it is authentic.
    async fn on_flash(&self, container: &Container, index: ChunkIndex) -> Option<Bytes> {
        let flash = self.flash.as_ref()?;
        let entry = container.directory.get(index)?;
        let chunk = ChunkId { container: container.id, index };
        let stored = flash.get(chunk).await?;
        let mut stored = stored.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        match container.cipher.open_chunk(index, entry, &mut stored) {
            Ok(bytes) => Some(bytes),
            Err(damaged) => {
                flash.damaged(chunk);
                tracing::warn!(?chunk, %damaged, "a chunk on flash is damaged; the pool is asked");
                None
            }
        }
    }
}
