//! The index as the engine sees it.

use crate::counters::{DiskCounters, count};
use crate::disk::Disk;
use crate::ram::{Ram, Stage};
use crate::store::StoreSize;
use crate::{IndexConfig, IndexError, IndexStatus, Opened};
use cairn_model::crypto::SecretKey;
use cairn_model::{ChunkRef, ContainerFingerprints, ContainerId, DomainId, Fingerprint, SiteId};
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Where content is that is stored already.
///
/// Everything it says is a hint: the commit decides. It does not fail: what goes wrong on disk is a miss and is counted.
///
/// All calls may come from many threads at once. A look-up that memory answers takes a shared lock; one that reads the disk holds no lock that
/// another look-up waits for.
#[derive(Debug)]
pub struct FingerprintIndex {
    ram: RwLock<Ram>,
    /// Shared by all who use the disk, so that `close` waits for them.
    disk: RwLock<Option<Disk>>,
    counters: Counters,
    /// Those of the disk, also when it is closed.
    of_disk: Option<Arc<DiskCounters>>,
    wiped: Option<String>,
    /// Why there is no disk, unless it is given up later.
    no_disk: OnceLock<String>,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    loads: AtomicU64,
}

impl FingerprintIndex {
    /// Opens the index in `config.path`. What is there and is damaged, of another site, key or version is replaced by an empty index.
    ///
    /// # Errors
    /// When the directory cannot be used at all, or has something else in it: then [`Self::without_disk`] is what is left.
    pub fn open(config: &IndexConfig, site: SiteId, key: &SecretKey) -> Result<(Self, Opened), IndexError> {
        let (disk, opened) = Disk::open(config, site, key)?;
        let mut index = Self::new(config.cache_bytes, Some(disk), None);
        if let Opened::Wiped { reason } = &opened {
            index.wiped = Some(reason.to_string());
        }
        Ok((index, opened))
    }

    /// Nothing on disk, no threads; the same calls give the same answers.
    pub fn in_memory(cache_bytes: u64) -> Self {
        Self::without_disk(cache_bytes, "no directory is configured")
    }

    /// Nothing on disk, because of `reason`.
    pub fn without_disk(cache_bytes: u64, reason: impl Into<String>) -> Self {
        Self::new(cache_bytes, None, Some(reason.into()))
    }

    fn new(cache_bytes: u64, disk: Option<Disk>, no_disk: Option<String>) -> Self {
        Self {
            ram: RwLock::new(Ram::new(cache_bytes)),
            of_disk: disk.as_ref().map(Disk::counters),
            disk: RwLock::new(disk),
            counters: Counters::default(),
            wiped: None,
            no_disk: no_disk.map(OnceLock::from).unwrap_or_default(),
        }
    }

    /// Where a block of that content may be. Reads the disk only for an anchor of a container that is not in memory (and, below once in a
    /// hundred times, because a filter errs).
    pub fn find(&self, domain: DomainId, print: &Fingerprint) -> Option<ChunkRef> {
        let in_memory = self.ram.read().find(domain, print);
        let found = in_memory.or_else(|| self.load(domain, print));
        count(if found.is_some() { &self.counters.hits } else { &self.counters.misses });
        found
    }

    /// Answers from the container that `print` is an anchor of, and keeps its list: what surrounds the block is probably asked for next.
    fn load(&self, domain: DomainId, print: &Fingerprint) -> Option<ChunkRef> {
        let prints = self.disk.read().as_ref()?.load(domain, print)?;
        count(&self.counters.loads);
        let (_, place) = prints.refs().find(|(found, _)| found == print)?;
        self.ram.write().insert(domain, Arc::new(prints), Stage::Committed);
        Some(place)
    }

    /// The container is packed and on its way: its blocks are found from now on. It stays in memory until [`Self::committed`],
    /// [`Self::release`] or [`Self::forget`].
    pub fn add_in_flight(&self, domain: DomainId, prints: Arc<ContainerFingerprints>) {
        self.ram.write().insert(domain, prints, Stage::InFlight);
    }

    /// The container is in the catalog. The operating system has its record when this returns, unless the store is behind or the disk
    /// fails.
    pub fn committed(&self, domain: DomainId, prints: &ContainerFingerprints) {
        let stage = self.ram.write().commit(prints.container());
        let disk = self.disk.read();
        match disk.as_ref().filter(|disk| disk.given_up().is_none()) {
            Some(disk) => disk.commit(domain, prints, stage == Some(Stage::InFlight)),
            None if stage.is_some() => {}
            None => self.ram.write().insert(domain, Arc::new(prints.clone()), Stage::Committed),
        }
    }

    /// The container is packed and will never be committed: memory lets go of it. The disk, which knows nothing of it, is not asked.
    pub fn release(&self, container: ContainerId) {
        self.ram.write().remove(container);
    }

    /// The container is not there after all, or no longer: it leaves memory and disk.
    pub fn forget(&self, container: ContainerId) {
        self.ram.write().remove(container);
        if let Some(disk) = self.disk.read().as_ref() {
            disk.forget(container);
        }
    }

    /// Every container that is kept, in the order of ids: on disk, or in memory where that is all there is.
    pub fn containers(&self) -> Vec<ContainerId> {
        match self.disk.read().as_ref().filter(|disk| disk.given_up().is_none()) {
            Some(disk) => disk.containers(),
            None => self.ram.read().committed(),
        }
    }

    /// Whether the container is among [`Self::containers`].
    pub fn contains(&self, container: ContainerId) -> bool {
        match self.disk.read().as_ref().filter(|disk| disk.given_up().is_none()) {
            Some(disk) => disk.contains(container),
            None => self.ram.read().is_committed(container),
        }
    }

    /// Whether it is worth while to learn a container again: it is not kept, and is not older than all that the full index keeps.
    pub fn wants(&self, container: ContainerId) -> bool {
        self.disk.read().as_ref().is_some_and(|disk| disk.wants(container))
    }

    /// A step towards answering for absent fingerprints from memory, which a start begins without: some milliseconds. Whether there is another
    /// one to do; commits do them too.
    pub fn gather(&self) -> bool {
        self.disk.read().as_ref().is_some_and(Disk::gather)
    }

    /// Whether [`Self::committed`] would skip the disk at the moment. Who learns many containers waits while it is so.
    pub fn is_behind(&self) -> bool {
        self.disk.read().as_ref().is_some_and(Disk::is_catching_up)
    }

    /// From numbers in memory. It waits for nothing that the disk does; the sizes are those after the last commit or flush.
    pub fn status(&self) -> IndexStatus {
        let of_disk = |counter: fn(&DiskCounters) -> &AtomicU64| {
            self.of_disk.as_deref().map_or(0, |disk| load(counter(disk)))
        };
        let given_up = self.of_disk.as_deref().and_then(DiskCounters::given_up);
        let in_memory_only = given_up.or(self.no_disk.get().map(String::as_str)).map(str::to_owned);
        let used = self.of_disk.as_deref().filter(|_| in_memory_only.is_none());
        let size = used.map_or_else(StoreSize::default, DiskCounters::size);
        let ram = self.ram.read();
        IndexStatus {
            containers: used.map_or(ram.committed_count() as u64, |disk| load(&disk.containers)),
            containers_max: used.map_or(0, DiskCounters::containers_max),
            anchors: size.anchors,
            disk_bytes: size.disk_bytes,
            filter_bytes: size.filter_bytes,
            cache_bytes: ram.bytes() as u64,
            cache_bytes_max: ram.bytes_max() as u64,
            containers_cached: ram.committed_count() as u64,
            containers_in_flight: ram.in_flight_count() as u64,
            hits: load(&self.counters.hits),
            misses: load(&self.counters.misses),
            loads: load(&self.counters.loads),
            damaged: of_disk(|disk| &disk.damaged),
            stale: of_disk(|disk| &disk.stale),
            evicted: of_disk(|disk| &disk.evicted),
            skipped: of_disk(|disk| &disk.skipped),
            refused: of_disk(|disk| &disk.refused),
            errors: of_disk(|disk| &disk.errors),
            wiped: self.wiped.clone(),
            in_memory_only,
        }
    }

    /// Makes what was committed survive a loss of power.
    pub fn flush(&self) {
        if let Some(disk) = self.disk.read().as_ref() {
            disk.sync();
        }
    }

    /// Syncs the disk and lets go of it: its thread has ended and its directory is free when this returns. What is in memory still answers.
    pub fn close(&self) {
        let disk = self.disk.write().take();
        if let Some(disk) = disk {
            self.no_disk.get_or_init(|| "it is closed".to_owned());
            disk.sync();
        }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_waits_for_nobody_who_uses_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let config = IndexConfig { path: folder.path().to_owned(), cache_bytes: 1 << 20, containers_max: 9 };
        let (index, _) =
            FingerprintIndex::open(&config, SiteId::from_bytes([1; 16]), &SecretKey::from_bytes([2; 32]))
                .unwrap();
        let closing = index.disk.write();
        let status = index.status();
        assert_eq!((status.containers_max, status.in_memory_only), (9, None));
        assert!(status.disk_bytes > 0, "measured when it was opened");
        drop(closing);
    }
}
