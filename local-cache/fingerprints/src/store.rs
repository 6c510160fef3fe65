//! The key-value store under the index: fjall, with its ways of failing made into one error.
//!
//! Three keyspaces: `owner` (whose store this is), `anchors`, `lists`. A container's list and anchors are one atomic batch of the
//! store's journal, handed to the operating system: after a crash of the process all are there. The journal is synced when the store flushes a
//! memtable and when it is asked to: after a loss of power the last ones are missing, never half of one.
//!
//! Lists are kept apart from their keys (key-value separation): they are written once, in the order of their keys, and removed in that order, so
//! rewriting them on every level would be for nothing.
//!
//! On damaged files the store may panic instead of returning an error. Every call goes through `guarded`, which makes that an error.

use crate::filter::AnchorKey;
use crate::horizon::Horizon;
use crate::manifest;
use cairn_model::{ContainerId, at_niceness};
use fjall::config::{
    BlockSizePolicy, BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy,
    PinningPolicy,
};
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Slice,
};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

const OWNER_KEY: &str = "owner";
/// Small, because every absent fingerprint is looked for in them, and a skip list has no filter.
const MEMTABLE_BYTES: u64 = 4 << 20;
const LISTS_MEMTABLE_BYTES: u64 = 16 << 20;
const BLOCK_CACHE_BYTES: u64 = 16 << 20;
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const FILES_OPEN_MAX: usize = 128;
const NICENESS: u8 = 10;
/// False positives below 1 %: one in a hundred absent fingerprints reads a block in vain.
const FILTER_BITS: f32 = 10.0;
/// The store stops writers at 4 and at 20, and if its worker died at that moment, or forgot to flush (fjall issue 257), they would wait for
/// ever. It is not written to when it is half there.
const SEALED_MEMTABLES_MAX: usize = 1;
const FRESH_TABLES_MAX: usize = 12;
/// Every write above the memtable's size asks for its rotation, in a queue of 1,000 that the worker must not find full.
const WRITES_OVER_MAX: u32 = 200;

/// A call of the store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct StoreError {
    pub(crate) detail: String,
    pub(crate) severity: Severity,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    Error,
    /// Something in its files or in itself contradicts what it relies on.
    Panic,
    /// It will take no more writes.
    Fatal,
}

/// Runs a call of the store. A lock that a panic left poisoned makes later calls panic too, and so be errors.
fn guarded<T>(call: impl FnOnce() -> fjall::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let poisoned = matches!(error, fjall::Error::Poisoned);
            let severity = if poisoned { Severity::Fatal } else { Severity::Error };
            Err(StoreError { detail: format!("{error:?}"), severity })
        }
        Err(_) => Err(StoreError { detail: "the store panicked".to_owned(), severity: Severity::Panic }),
    }
}

/// Why a store cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// What its owner record says, if it has one.
    Owner(Option<Vec<u8>>),
    Failed(StoreError),
}

struct Parts {
    anchors: Keyspace,
    lists: Keyspace,
    database: Database,
}

pub(crate) struct Store {
    /// Taken by `drop` alone.
    parts: Option<Parts>,
    pub(crate) horizon: Horizon,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// What is written at once.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) anchors: Vec<([u8; 16], Vec<u8>)>,
    pub(crate) anchors_removed: Vec<[u8; 16]>,
    pub(crate) list: Option<(ContainerId, Vec<u8>)>,
    pub(crate) lists_removed: Vec<ContainerId>,
}

/// How large the store is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreSize {
    pub(crate) anchors: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) filter_bytes: u64,
}

impl Store {
    /// Makes the store of `owner`.
    pub(crate) fn create(path: &Path, owner: &[u8]) -> Result<Self, StoreError> {
        guarded(|| {
            let (store, owners) = Self::open_parts(path)?;
            owners.insert(OWNER_KEY, owner)?;
            store.parts().database.persist(PersistMode::SyncAll)?;
            Ok(store)
        })
    }

    /// Opens the store of `owner`; returns the number of lists in it.
    pub(crate) fn open(path: &Path, owner: &[u8]) -> Result<(Self, u64), Unusable> {
        let opened = guarded(|| {
            manifest::check(path)?;
            let (store, owners) = Self::open_parts(path)?;
            let found = owners.get(OWNER_KEY)?;
            Ok((store, found))
        });
        let (store, found) = opened.map_err(Unusable::Failed)?;
        if found.as_deref() != Some(owner) {
            return Err(Unusable::Owner(found.map(|owner| owner.to_vec())));
        }
        let mut count = 0;
        let mut oldest = None;
        let count = store
            .each_list(|container| {
                oldest = oldest.or(Some(container));
                count += 1;
            })
            .map_err(Unusable::Failed)
            .map(|()| count)?;
        store.horizon.set(oldest);
        Ok((store, count))
    }

    fn open_parts(path: &Path) -> fjall::Result<(Self, Keyspace)> {
        let horizon = Horizon::unknown();
        let filter = horizon.clone();
        let builder = Database::builder(path)
            // A second worker would turn round the queue for as long as the first compacts.
            .worker_threads(1)
            .cache_size(BLOCK_CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .max_cached_files(Some(FILES_OPEN_MAX))
            .with_compaction_filter_factories(Arc::new(move |keyspace| {
                (keyspace == "anchors").then(|| Arc::new(filter.clone()) as _)
            }));
        // Its worker sorts and compacts: guests come first.
        let database = at_niceness(NICENESS, || builder.open())??;
        let owners = database.keyspace("owner", KeyspaceCreateOptions::default)?;
        let anchors = database.keyspace("anchors", anchors_options)?;
        let lists = database.keyspace("lists", lists_options)?;
        Ok((Self { parts: Some(Parts { anchors, lists, database }), horizon }, owners))
    }

    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("they are there until the store is dropped")
    }

    pub(crate) fn anchor(&self, key: &[u8; 16]) -> Result<Option<Slice>, StoreError> {
        guarded(|| self.parts().anchors.get(key))
    }

    pub(crate) fn list(&self, container: ContainerId) -> Result<Option<Slice>, StoreError> {
        guarded(|| self.parts().lists.get(container.as_bytes()))
    }

    pub(crate) fn has_list(&self, container: ContainerId) -> Result<bool, StoreError> {
        guarded(|| self.parts().lists.contains_key(container.as_bytes()))
    }

    /// The first container after `container` that has a list.
    pub(crate) fn list_after(&self, container: ContainerId) -> Result<Option<ContainerId>, StoreError> {
        guarded(|| {
            let after = (Bound::Excluded(*container.as_bytes()), Bound::Unbounded);
            for entry in self.parts().lists.range::<[u8; 16], _>(after) {
                if let Ok(id) = <[u8; 16]>::try_from(&*entry.key()?) {
                    return Ok(Some(ContainerId::from_bytes(id)));
                }
            }
            Ok(None)
        })
    }

    /// The last container up to `up_to` that has a list.
    pub(crate) fn last_list(&self, up_to: Bound<ContainerId>) -> Result<Option<ContainerId>, StoreError> {
        guarded(|| {
            let range = (Bound::Unbounded, up_to.map(|container| *container.as_bytes()));
            for entry in self.parts().lists.range::<[u8; 16], _>(range).rev() {
                if let Ok(id) = <[u8; 16]>::try_from(&*entry.key()?) {
                    return Ok(Some(ContainerId::from_bytes(id)));
                }
            }
            Ok(None)
        })
    }

    /// The containers that have a list, in the order of their ids. The lists are not read.
    pub(crate) fn each_list(&self, mut each: impl FnMut(ContainerId)) -> Result<(), StoreError> {
        guarded(|| {
            for entry in self.parts().lists.iter() {
                if let Ok(id) = <[u8; 16]>::try_from(&*entry.key()?) {
                    each(ContainerId::from_bytes(id));
                }
            }
            Ok(())
        })
    }

    /// About how many anchors there are: what is not compacted away yet is counted too.
    pub(crate) fn anchors(&self) -> u64 {
        guarded(|| Ok(self.parts().anchors.approximate_len() as u64)).unwrap_or(0)
    }

    /// The keys of up to `count` anchors behind `after`, in their order.
    pub(crate) fn anchors_after(
        &self,
        after: Bound<AnchorKey>,
        count: usize,
    ) -> Result<Vec<AnchorKey>, StoreError> {
        guarded(|| {
            let mut keys = Vec::with_capacity(count);
            for entry in self.parts().anchors.range::<AnchorKey, _>((after, Bound::Unbounded)).take(count) {
                keys.extend(AnchorKey::try_from(&*entry.key()?));
            }
            Ok(keys)
        })
    }

    /// Writes all of `changes` or nothing.
    pub(crate) fn write(&self, changes: Changes) -> Result<(), StoreError> {
        guarded(|| {
            let Parts { anchors, lists, database } = self.parts();
            let mut batch = database.batch();
            for (key, value) in changes.anchors {
                batch.insert(anchors, key, value);
            }
            for key in changes.anchors_removed {
                batch.remove(anchors, key);
            }
            if let Some((container, list)) = changes.list {
                batch.insert(lists, *container.as_bytes(), list);
            }
            for container in changes.lists_removed {
                batch.remove(lists, *container.as_bytes());
            }
            batch.commit()
        })
    }

    /// Whether the store has not yet put away what was written, and a write might have to wait for it. `writes_over` counts the writes since a
    /// memtable is full.
    pub(crate) fn is_behind(&self, writes_over: &mut u32) -> Result<bool, StoreError> {
        guarded(|| {
            let parts = self.parts();
            let full = |keyspace: &Keyspace, max| keyspace.tree.active_memtable().size() > max;
            if full(&parts.anchors, MEMTABLE_BYTES) || full(&parts.lists, LISTS_MEMTABLE_BYTES) {
                *writes_over += 1;
            } else {
                *writes_over = 0;
            }
            let busy = |keyspace: &Keyspace| {
                keyspace.sealed_memtable_count() > SEALED_MEMTABLES_MAX
                    || keyspace.l0_table_count() > FRESH_TABLES_MAX
            };
            Ok(*writes_over > WRITES_OVER_MAX || busy(&parts.anchors) || busy(&parts.lists))
        })
    }

    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        guarded(|| self.parts().database.persist(PersistMode::SyncData))
    }

    /// Reads no directory, but takes the journal's lock, which is held while it is synced.
    pub(crate) fn size(&self) -> Result<StoreSize, StoreError> {
        guarded(|| {
            let Parts { anchors, lists, database } = self.parts();
            let filters = anchors.tree.pinned_filter_size() + lists.tree.pinned_filter_size();
            Ok(StoreSize {
                anchors: anchors.approximate_len() as u64,
                disk_bytes: database.disk_space()?,
                filter_bytes: filters as u64,
            })
        })
    }
}

impl Drop for Store {
    /// Ends the store's thread. It does not sync: `sync` does.
    fn drop(&mut self) {
        let parts = self.parts.take();
        let _ = guarded(move || {
            drop(parts);
            Ok(())
        });
    }
}

/// All filters and indexes of blocks stay in memory: what is absent is answered without a read.
fn anchors_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES)
        .data_block_size_policy(BlockSizePolicy::all(4096))
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
            FILTER_BITS,
        ))))
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(false))
}

fn lists_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(LISTS_MEMTABLE_BYTES)
        .filter_block_pinning_policy(PinningPolicy::all(true))
        .filter_block_partitioning_policy(PartitioningPolicy::all(false))
        .with_kv_separation(Some(KvSeparationOptions::default()))
}
