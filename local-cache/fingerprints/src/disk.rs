//! The part of the index that is on disk: which records it trusts, when it forgets, when it gives up.
//!
//! # What never happens
//! An answer that was not given to the index for that domain and fingerprint. An anchor only names a container; what is answered comes from that
//! container's list, which is under a tag over its id, its domain and all its fingerprints. Whatever else is damaged, old or lost makes a miss.
//!
//! # What a crash leaves
//! - Before the batch of `commit` is in the store's journal: nothing of the container. The next run learns it from the segment's footer.
//! - After: list and anchors, all of them; a loss of power may take the last batches, from the end. A batch also removes the lists it makes room
//!   with, so the number of lists stays bounded.
//! - Anchors of removed lists stay until they are found to name nothing, are written anew, or are compacted away (`horizon`): misses.
//! - Within `forget`: the list is there or not. What waited to be forgotten is forgotten when the next run compares with the catalog.
//! - Within the opening or a wipe: see `place`.
//!
//! # When it is full
//! Each commit beyond `containers_max` forgets a container, and one more as long as there are too many (after the limit was lowered): see `room`.
//!
//! # When the disk fails
//! A failure is a miss, or a container that is not kept, and is counted; the first is logged. After too many (`failures`), or when the store says
//! that it takes no more writes or does not catch up, the disk is not used again, and the next run begins with an empty index: damaged files do not
//! get better.

mod room;

use crate::config::WipeReason;
use crate::counters::{DiskCounters, count};
use crate::failures::{Failures, Operation};
use crate::filter::AnchorFilter;
use crate::format::{Damaged, Records, anchor_key};
use crate::place::Place;
use crate::store::{Changes, Store, StoreError, Unusable};
use crate::{IndexConfig, IndexError, Opened};
use cairn_model::crypto::SecretKey;
use cairn_model::{ContainerFingerprints, ContainerId, DomainId, Fingerprint, SiteId};
use fjall::Slice;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Containers skipped in a row after which the disk is given up: tens of gigabytes of new data were written meanwhile.
const SKIPPED_MAX: u32 = 4096;
/// Containers that one commit forgets at most of those that wait for it.
const FORGETS_MAX: usize = 32;
/// Anchors that are gathered for the filter in one go: some milliseconds, and more than a commit adds.
const GATHERED_AT_ONCE: usize = 1 << 14;

#[derive(Debug)]
pub(crate) struct Disk {
    store: Store,
    records: Records,
    filter: AnchorFilter,
    place: Place,
    /// Held by whoever writes: what is read before a write is still so when it is written. Nobody waits for it to look something up.
    writer: Mutex<Writer>,
    /// To be forgotten when the store takes writes again; not there for anybody who asks.
    waiting: RwLock<BTreeSet<ContainerId>>,
    counters: Arc<DiskCounters>,
    failures: Failures,
}

/// A look-up failed, and that was counted.
#[derive(Debug)]
struct Failed;

#[derive(Debug, Default)]
struct Writer {
    /// Writes since a memtable of the store is full.
    writes_over: u32,
    skipped_in_a_row: u32,
    /// No container that is listed is later, where it is known.
    latest: Option<ContainerId>,
}

impl Disk {
    pub(crate) fn open(
        config: &IndexConfig,
        site: SiteId,
        key: &SecretKey,
    ) -> Result<(Self, Opened), IndexError> {
        config.check()?;
        let place = Place::claim(&config.path)?;
        let records = Records::new(site, key);
        let (store, opened) = open_store(&place, &records)?;
        let filter = match opened {
            Opened::Found { .. } => AnchorFilter::to_gather(store.anchors()),
            Opened::Created | Opened::Wiped { .. } => AnchorFilter::of_nothing(),
        };
        let disk = Self {
            store,
            records,
            filter,
            place,
            writer: Mutex::default(),
            waiting: RwLock::default(),
            counters: Arc::new(DiskCounters::new(config.containers_max)),
            failures: Failures::default(),
        };
        if let Opened::Found { containers } = opened {
            disk.counters.containers.store(containers, Ordering::Relaxed);
        }
        disk.measure();
        Ok((disk, opened))
    }

    /// For whoever asks how the disk is without waiting for it.
    pub(crate) fn counters(&self) -> Arc<DiskCounters> {
        self.counters.clone()
    }

    /// Why the disk is no longer used.
    pub(crate) fn given_up(&self) -> Option<&str> {
        self.counters.given_up()
    }

    /// Waits for the store where that syncs.
    fn measure(&self) {
        if let Some(mut size) = self.tried(Operation::Measure, self.store.size()) {
            size.filter_bytes += self.filter.bytes();
            self.counters.set_size(size);
        }
    }

    /// Gathers some of the store's anchors for the filter, where that is to be done. Whether there is more.
    pub(crate) fn gather(&self) -> bool {
        self.given_up().is_none() && self.gather_some(&mut self.writer.lock())
    }

    /// Damage that one of these reads meets is met by each of them: it is not to be counted again and again, until the disk is given up.
    fn gather_some(&self, _: &mut Writer) -> bool {
        let Some(after) = self.filter.gathers_after() else { return false };
        let read = self.store.anchors_after(after, GATHERED_AT_ONCE);
        let Some(keys) = self.tried(Operation::ReadKeys, read) else {
            self.filter.give_up();
            return false;
        };
        self.filter.gathered(&keys);
        !keys.is_empty()
    }

    /// Counts a failure; `None` for one.
    fn tried<T>(&self, operation: Operation, result: Result<T, StoreError>) -> Option<T> {
        result
            .inspect(|_| self.failures.succeeded(operation))
            .map_err(|error| self.failed(operation, &error))
            .ok()
    }

    /// The same for a look-up. That something is not there is what filters say without the disk, and proves nothing about it.
    fn looked_up<T>(
        &self,
        operation: Operation,
        result: Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, Failed> {
        match result {
            Ok(None) => Ok(None),
            other => self.tried(operation, other).ok_or(Failed),
        }
    }

    fn failed(&self, operation: Operation, error: &StoreError) {
        count(&self.counters.errors);
        let verdict = self.failures.failed(operation, error);
        if verdict.first {
            let path = self.place.store();
            tracing::warn!(path = %path.display(), ?operation, %error, "the disk of the fingerprint index failed");
        }
        if verdict.give_up {
            self.give_up(&error.detail);
        }
    }

    fn anchor(&self, key: &[u8; 16]) -> Result<Option<Slice>, Failed> {
        self.looked_up(Operation::ReadAnchor, self.store.anchor(key))
    }

    fn list(&self, container: ContainerId) -> Result<Option<Slice>, Failed> {
        self.looked_up(Operation::ReadList, self.store.list(container))
    }

    fn has_list(&self, container: ContainerId) -> Option<bool> {
        let found = self.store.has_list(container).map(|found| found.then_some(()));
        self.looked_up(Operation::ReadKeys, found).map(|found| found.is_some()).ok()
    }

    fn give_up(&self, reason: &str) {
        if !self.counters.give_up(reason) {
            return;
        }
        let path = self.place.store();
        tracing::warn!(path = %path.display(), reason, "the fingerprint index goes on in memory only");
        if let Err(error) = self.place.mark(&self.records.given_up()) {
            tracing::warn!(%error, "the next start does not know that the fingerprint index was given up");
        }
    }

    /// The list of the container that `print` is an anchor of, when it is one.
    pub(crate) fn load(&self, domain: DomainId, print: &Fingerprint) -> Option<ContainerFingerprints> {
        if self.given_up().is_some() {
            return None;
        }
        let key = anchor_key(domain, print);
        if !self.filter.may_have(&key) {
            return None;
        }
        let anchor = self.anchor(&key).ok()??;
        let Ok(container) = self.records.read_anchor(domain, print, &anchor) else {
            count(&self.counters.damaged);
            self.remove_anchor(key, &anchor);
            return None;
        };
        let dead = self.store.horizon.get().is_none_or(|oldest| container < oldest);
        let list = if dead || self.waiting.read().contains(&container) {
            None
        } else {
            self.list(container).ok()?
        };
        let Some(list) = list else {
            count(&self.counters.stale);
            self.remove_anchor(key, &anchor);
            return None;
        };
        match self.records.read_list(container, &list) {
            Ok((found, prints)) if found == domain && prints.blocks().contains(print) => Some(prints),
            Ok(_) => {
                count(&self.counters.damaged);
                self.remove_anchor(key, &anchor);
                None
            }
            Err(Damaged) => {
                count(&self.counters.damaged);
                self.remove_list(container, &list);
                self.remove_anchor(key, &anchor);
                None
            }
        }
    }

    /// Removes an anchor that is of no use, if it is still the same and nobody writes: who finds it again tries again.
    fn remove_anchor(&self, key: [u8; 16], seen: &[u8]) {
        let Some(mut writer) = self.writer.try_lock() else { return };
        if self.is_behind(&mut writer) != Some(false) {
            return;
        }
        if self.anchor(&key).ok().flatten().as_deref() == Some(seen) {
            self.tried(
                Operation::Write,
                self.store.write(Changes { anchors_removed: vec![key], ..Changes::default() }),
            );
        }
    }

    fn remove_list(&self, container: ContainerId, seen: &[u8]) {
        let Some(mut writer) = self.writer.try_lock() else { return };
        if self.is_behind(&mut writer) != Some(false) {
            return;
        }
        if self.list(container).ok().flatten().as_deref() == Some(seen) {
            self.write_list_removal(container);
        }
    }

    /// Its anchors stay: they name nothing now, and to know which of them still name it each had to be read.
    fn write_list_removal(&self, container: ContainerId) -> Option<()> {
        let changes = Changes { lists_removed: vec![container], ..Changes::default() };
        self.tried(Operation::Write, self.store.write(changes))?;
        self.counters.containers.fetch_sub(1, Ordering::Relaxed);
        Some(())
    }

    fn is_behind(&self, writer: &mut Writer) -> Option<bool> {
        self.tried(Operation::Measure, self.store.is_behind(&mut writer.writes_over))
    }

    /// Keeps a container: its list, and an anchor for each of its chunks. A fresh one was packed in this run.
    pub(crate) fn commit(&self, domain: DomainId, prints: &ContainerFingerprints, is_fresh: bool) {
        if self.given_up().is_some() {
            return;
        }
        let mut writer = self.writer.lock();
        match self.is_behind(&mut writer) {
            Some(false) => writer.skipped_in_a_row = 0,
            Some(true) => return self.skip(&mut writer),
            None => return,
        }
        self.forget_waiting();
        self.write_container(domain, prints, is_fresh, &mut writer);
        self.filter.renew_if_full(|| self.store.anchors());
        self.gather_some(&mut writer);
        self.measure();
    }

    fn skip(&self, writer: &mut Writer) {
        count(&self.counters.skipped);
        writer.skipped_in_a_row += 1;
        if writer.skipped_in_a_row >= SKIPPED_MAX {
            self.give_up("the store does not catch up with what is written");
        }
    }

    fn write_container(
        &self,
        domain: DomainId,
        prints: &ContainerFingerprints,
        is_fresh: bool,
        writer: &mut Writer,
    ) -> Option<()> {
        let container = prints.container();
        if self.has_list(container)? {
            return None;
        }
        let leaving = self.room_for(container, is_fresh, writer)?;
        let evicted = leaving.containers.len() as u64;
        let anchors = prints.anchors().map(|print| {
            (anchor_key(domain, &print), self.records.anchor(domain, &print, container).to_vec())
        });
        let anchors: Vec<_> = anchors.collect();
        // Before it is written: what is there is never missed.
        self.filter.take(anchors.iter().map(|(key, _)| key));
        let changes = Changes {
            anchors,
            list: Some((container, self.records.list(domain, prints))),
            lists_removed: leaving.containers,
            ..Changes::default()
        };
        // Before it is written: no compaction may take its anchors for dead ones.
        self.store.horizon.include(container);
        self.tried(Operation::Write, self.store.write(changes))?;
        let containers = self.counters.containers.load(Ordering::Relaxed) + 1 - evicted;
        self.counters.containers.store(containers, Ordering::Relaxed);
        writer.latest = writer.latest.map(|latest| latest.max(container));
        self.counters.evicted.fetch_add(evicted, Ordering::Relaxed);
        if leaving.oldest.is_some() {
            self.store.horizon.set(leaving.oldest);
        }
        Some(())
    }

    /// Forgets a container: at once for those who ask, on disk when the store takes writes. One look-up and one small record.
    pub(crate) fn forget(&self, container: ContainerId) {
        if self.given_up().is_some() {
            return;
        }
        self.waiting.write().insert(container);
        let mut writer = self.writer.lock();
        if self.is_behind(&mut writer) == Some(false) {
            self.forget_waiting();
        }
    }

    fn forget_waiting(&self) {
        for _ in 0..FORGETS_MAX {
            let Some(container) = self.waiting.read().first().copied() else { return };
            let Some(listed) = self.has_list(container) else { return };
            if listed && self.write_list_removal(container).is_none() {
                return;
            }
            self.waiting.write().remove(&container);
        }
    }

    pub(crate) fn contains(&self, container: ContainerId) -> bool {
        self.given_up().is_none()
            && !self.waiting.read().contains(&container)
            && self.has_list(container).unwrap_or(false)
    }

    pub(crate) fn containers(&self) -> Vec<ContainerId> {
        if self.given_up().is_some() {
            return Vec::new();
        }
        let mut containers = Vec::new();
        self.tried(Operation::ReadKeys, self.store.each_list(|container| containers.push(container)));
        let waiting = self.waiting.read();
        containers.retain(|container| !waiting.contains(container));
        containers
    }

    /// Whether commits are skipped at the moment, because the store has not yet put away those before.
    pub(crate) fn is_catching_up(&self) -> bool {
        let over = self.writer.try_lock().map_or(0, |writer| writer.writes_over);
        self.given_up().is_none()
            && self.tried(Operation::Measure, self.store.is_behind(&mut { over })).unwrap_or(false)
    }

    pub(crate) fn sync(&self) {
        if self.given_up().is_none() {
            self.tried(Operation::Sync, self.store.sync());
            self.measure();
        }
    }
}

/// Opens the store that the marker names, or makes an empty one in its place.
fn open_store(place: &Place, records: &Records) -> Result<(Store, Opened), IndexError> {
    let owner = records.owner();
    let path = place.store();
    let damaged = |detail: &str| WipeReason::Damaged { detail: detail.to_owned() };
    let reason = match place.marker()? {
        None if !path.exists() => None,
        None => Some(damaged("its marker is missing")),
        Some(marker) => match records.check_owner(&marker) {
            Err(reason) => Some(reason),
            Ok(()) if !path.exists() => Some(damaged("its store is missing")),
            Ok(()) => match Store::open(&path, &owner) {
                Ok((store, containers)) => return Ok((store, Opened::Found { containers })),
                Err(Unusable::Failed(error)) => Some(damaged(&error.detail)),
                Err(Unusable::Owner(None)) => Some(damaged("its store does not say whose it is")),
                Err(Unusable::Owner(Some(found))) => records.check_owner(&found).err(),
            },
        },
    };
    place.wipe(&owner)?;
    let store = Store::create(&path, &owner)
        .map_err(|error| IndexError::Store { path: path.clone(), detail: error.detail })?;
    let Some(reason) = reason else { return Ok((store, Opened::Created)) };
    tracing::warn!(path = %path.display(), %reason, "the fingerprint index begins empty");
    Ok((store, Opened::Wiped { reason }))
}
