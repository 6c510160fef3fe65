//! Snapshots: a volume at a moment of its write order.
//!
//! ```text
//! take ─► every volume's state held: mark in the log, layers frozen ─► log synced: taken
//!                                            └─► destage: batch and snapshot, one commit ─► folded: settled
//! ```
//!
//! - A snapshot is a step of the write order: a record of the log, so it is there after a crash if what was written before it is, and
//!   where it was. It is taken when that record is durable: that takes no longer for a large volume, and no pool is waited for.
//! - Its commit is the batch that ends with it. Whoever needs its map waits for that, and until the leaves hold it ([`settled`]): then it
//!   is one row of the catalog, and what it shows never changes.
//! - A revert gives the volume a new lineage that begins at the snapshot; see [`revert`].
//!
//! Crash cases: before the record is durable there is no snapshot, and nobody was told of one. After it, the next start cuts where the
//! record says. A commit whose reply was lost is repeated as it was, with its snapshots.

mod clone;
mod diff;
mod each;
mod earlier;
mod mark;
mod revert;
mod views;

pub use diff::{Difference, DifferencePage};
pub(crate) use diff::{changed, compare, leaves, versions};
pub(crate) use each::{Taken, take_each};
pub(crate) use mark::{decode_note, encode_note};
pub(crate) use views::Views;

use crate::destage::Mark;
use crate::engine::{Engine, Shared, administer, destage_in_time, until_known};
use crate::error::EngineError;
use crate::volume::Volume;
use cairn_metadata::{CatalogError, HeldLease, MapPoint, NewSnapshot, SnapshotName, SnapshotRow};
use cairn_model::{ErrorKind, Kinded, Lsn, SnapshotId, WallTime, boxed};
use std::sync::Arc;
use std::time::Duration;

/// Snapshots of a volume that may wait to be destaged and folded: each is a level that look-ups go through.
const UNSETTLED_MAX: usize = 32;
/// How long another one waits for that.
const CROWDED_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// How far a snapshot has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnapshotPhase {
    /// In the log alone.
    Logged,
    /// In the catalog, and not wholly in the leaves of its map.
    Committed,
    /// Its map is in the leaves.
    Settled,
}

/// A snapshot as `list` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotStatus {
    pub id: SnapshotId,
    pub name: SnapshotName,
    pub size_bytes: u64,
    pub created_at: WallTime,
    pub phase: SnapshotPhase,
    /// Blocks that it maps, in bytes, when it is settled.
    pub logical_bytes: Option<u64>,
    /// Volumes that began as it and live on.
    pub children: u64,
    /// Nobody can delete it before that.
    pub locked_until: Option<WallTime>,
}

impl Engine {
    /// Takes a snapshot. When this returns it survives what a flushed write survives.
    #[boxed]
    pub async fn create_snapshot(
        &self,
        volume: &str,
        name: &SnapshotName,
    ) -> Result<SnapshotId, EngineError> {
        let taken = self.create_snapshots(&[(volume.to_owned(), name.clone())]).await?;
        Ok(taken[0])
    }

    /// Takes snapshots of several volumes at one moment: a write that was begun after another was answered is in none of them unless that
    /// other one is, whatever volumes they went to. Crash or not, all of them are taken or none. Each volume can be named once.
    #[boxed]
    pub async fn create_snapshots(
        &self,
        wanted: &[(String, SnapshotName)],
    ) -> Result<Vec<SnapshotId>, EngineError> {
        let wanted = wanted.to_vec();
        self.administer(move |shared| async move {
            let mut of = Vec::with_capacity(wanted.len());
            for (volume, name) in wanted {
                let volume = shared.registry.named(&volume)?;
                if of.iter().any(|(other, _)| Arc::ptr_eq(other, &volume)) {
                    return Err(EngineError::NamedTwice(volume.name()));
                }
                of.push((volume, name));
            }
            take(&shared, &of).await
        })
        .await
    }

    /// The snapshots of a volume, the oldest first.
    #[boxed]
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotStatus>, EngineError> {
        let shared = self.shared();
        let volume = shared.registry.named(volume)?;
        let logged: Vec<NewSnapshot> = volume.state().lock().buffer.snapshots().cloned().collect();
        let committed = shared.catalog.snapshots(volume.id()).await?;
        // Committed in between.
        let logged = logged.into_iter().filter(|new| committed.iter().all(|row| row.id != new.id));
        let mut logged: Vec<_> = logged.map(SnapshotStatus::logged).collect();
        if !logged.is_empty() {
            let locks = shared.catalog.snapshot_locks(volume.id()).await?;
            for new in &mut logged {
                new.locked_until = locks.iter().find(|(id, _)| *id == new.id).map(|(_, until)| *until);
            }
        }
        Ok(committed.into_iter().map(SnapshotStatus::committed).chain(logged).collect())
    }

    /// One snapshot of a volume, in a time that does not depend on how many there are.
    #[boxed]
    pub async fn snapshot(&self, volume: &str, name: &SnapshotName) -> Result<SnapshotStatus, EngineError> {
        let shared = self.shared();
        let volume = shared.registry.named(volume)?;
        let logged = volume.state().lock().buffer.snapshots().find(|new| new.name == *name).cloned();
        match (shared.catalog.snapshot_by_name(volume.id(), name).await, logged) {
            // Perhaps committed in between.
            (Ok(row), _) => Ok(SnapshotStatus::committed(row)),
            (Err(error), Some(new)) if error.kind() == ErrorKind::NotFound => {
                let locks = shared.catalog.snapshot_locks(volume.id()).await?;
                let locked_until = locks.into_iter().find(|(id, _)| *id == new.id).map(|(_, until)| until);
                Ok(SnapshotStatus { locked_until, ..SnapshotStatus::logged(new) })
            }
            (Err(error), _) => Err(absent(error.into(), &volume, name)),
        }
    }

    /// Deletes a snapshot, unless somebody reads it. Clones of it live on.
    #[boxed]
    pub async fn delete_snapshot(&self, volume: &str, name: &SnapshotName) -> Result<(), EngineError> {
        // Nobody else's turn waits for the pool.
        let id = committed(self.shared(), &*self.shared().registry.named(volume)?, name).await?.id;
        let (volume, name) = (volume.to_owned(), name.clone());
        self.administer(move |shared| async move {
            let volume = shared.registry.named(&volume)?;
            delete(&shared, &volume, id, &name).await
        })
        .await
    }

    /// Opens a snapshot for reading.
    #[boxed]
    pub async fn open_snapshot(&self, volume: &str, name: &SnapshotName) -> Result<Arc<Volume>, EngineError> {
        open(self.shared_arc(), self.shared().registry.named(volume)?, name).await
    }
}

/// Opens a snapshot of a volume in service: nobody can delete it while somebody holds what this returns.
async fn open(
    shared: &Arc<Shared>,
    served: Arc<Volume>,
    name: &SnapshotName,
) -> Result<Arc<Volume>, EngineError> {
    // Who reads piece by piece opens it for each.
    if let Some(open) = shared.views.get(&served, name) {
        return Ok(open);
    }
    // Nobody else's turn waits for the pool.
    let id = settled(shared, &served, name).await?.id;
    let name = name.clone();
    administer(shared, move |shared| async move {
        if let Some(open) = shared.views.get(&served, &name) {
            return Ok(open);
        }
        let snapshot = known(&shared, &served, id, &name).await?;
        served.state().lock().check_serving()?;
        let view = Arc::new(served.view(&snapshot));
        shared.views.insert(served.id(), name, &view);
        Ok(view)
    })
    .await
}

/// Deletes a snapshot of the catalog, unless somebody reads it. The caller has the turn of administration.
pub(crate) async fn delete(
    shared: &Shared,
    volume: &Volume,
    id: SnapshotId,
    name: &SnapshotName,
) -> Result<(), EngineError> {
    volume.state().lock().check_serving()?;
    if !shared.views.close(volume.id(), name) {
        return Err(EngineError::SnapshotInUse(format!("{}@{name}", volume.name())));
    }
    let held = HeldLease { volume: volume.id(), generation: volume.generation() };
    let now = shared.ports.clock.wall();
    match until_known(shared, || shared.catalog.delete_snapshot(shared.gateway, held, id, now)).await {
        // Deleted before, by an attempt whose answer was lost perhaps.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        done => done?,
    }
    shared.purge_wake.notify_one();
    Ok(())
}

impl SnapshotStatus {
    fn logged(new: NewSnapshot) -> Self {
        Self {
            id: new.id,
            name: new.name,
            size_bytes: new.size_bytes,
            created_at: new.created_at,
            phase: SnapshotPhase::Logged,
            logical_bytes: None,
            children: 0,
            locked_until: None,
        }
    }

    fn committed(row: SnapshotRow) -> Self {
        let is_settled = row.logical_bytes.is_some();
        Self {
            id: row.id,
            name: row.name,
            size_bytes: row.size_bytes,
            created_at: row.created_at,
            phase: if is_settled { SnapshotPhase::Settled } else { SnapshotPhase::Committed },
            logical_bytes: row.logical_bytes,
            children: row.children,
            locked_until: row.locked_until,
        }
    }
}

/// Takes snapshots of different volumes in service at one moment. The caller has the turn of administration: nobody else takes the names.
async fn take(
    shared: &Shared,
    wanted: &[(Arc<Volume>, SnapshotName)],
) -> Result<Vec<SnapshotId>, EngineError> {
    for (volume, name) in wanted {
        check_free(shared, volume, name).await?;
        uncrowded(shared, volume).await?;
    }
    let limit = shared.config.read_deadline;
    let done = cairn_model::timeout(&*shared.ports.clock, limit, mark(shared, wanted));
    done.await.unwrap_or(Err(EngineError::SnapshotLate))
}

/// Whether a volume has as many snapshots on their way as it may have.
fn is_crowded(volume: &Volume) -> bool {
    let state = volume.state().lock();
    state.map.unsettled() + state.buffer.snapshots().count() >= UNSETTLED_MAX
}

/// Waits a little until the volume may have another snapshot on its way.
async fn uncrowded(shared: &Shared, volume: &Volume) -> Result<(), EngineError> {
    let wait = cairn_model::timeout(&*shared.ports.clock, CROWDED_LIMIT, async {
        while is_crowded(volume) {
            shared.fold_wake.notify_one();
            shared.ports.clock.sleep(PAUSE).await;
        }
    });
    wait.await.map_err(|_| EngineError::TooManySnapshots(volume.name()))
}

async fn mark(
    shared: &Shared,
    wanted: &[(Arc<Volume>, SnapshotName)],
) -> Result<Vec<SnapshotId>, EngineError> {
    let (clock, entropy) = (&*shared.ports.clock, &*shared.ports.entropy);
    let created_at = clock.wall();
    let snapshots: Vec<(Arc<Volume>, NewSnapshot)> = wanted
        .iter()
        .map(|(volume, name)| {
            let (id, size_bytes) = (SnapshotId::fresh(clock, entropy), volume.size_bytes());
            (Arc::clone(volume), NewSnapshot { id, name: name.clone(), size_bytes, created_at })
        })
        .collect();
    let lsn = append(shared, &snapshots).await?;
    let receipt = shared.wal.synced(lsn).await?;
    debug_assert!(receipt.durable_through() >= lsn, "a receipt covers what was asked");
    for (volume, _) in wanted {
        volume.owned().await?;
    }
    Ok(snapshots.into_iter().map(|(_, snapshot)| snapshot.id).collect())
}

/// Brings the marks of snapshots into the log at one moment; returns where it must be synced through.
async fn append(shared: &Shared, snapshots: &[(Arc<Volume>, NewSnapshot)]) -> Result<Lsn, EngineError> {
    let dirty = until_known(shared, || shared.wal_state.pin_dirty(&*shared.catalog)).await?;
    let mut marks = Vec::with_capacity(snapshots.len());
    for (volume, snapshot) in snapshots {
        let permit = shared.wal.reserve(encode_note(snapshot).len()).await?;
        marks.push(Mark { volume: Arc::clone(volume), snapshot: snapshot.clone(), permit });
    }
    shared.destage.snapshot(marks, dirty).await
}

/// Fails when the volume has a snapshot of that name.
async fn check_free(shared: &Shared, volume: &Volume, name: &SnapshotName) -> Result<(), EngineError> {
    let taken = || EngineError::SnapshotExists(format!("{}@{name}", volume.name()));
    let is_logged = volume.state().lock().buffer.snapshots().any(|logged| logged.name == *name);
    if is_logged {
        return Err(taken());
    }
    match until_known(shared, || shared.catalog.snapshot_by_name(volume.id(), name)).await {
        Ok(_) => Err(taken()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The snapshot's row, after destage if it is in the log alone.
async fn committed(
    shared: &Shared,
    volume: &Volume,
    name: &SnapshotName,
) -> Result<SnapshotRow, EngineError> {
    let logged =
        volume.state().lock().buffer.snapshots().find(|logged| logged.name == *name).map(|logged| logged.id);
    if let Some(id) = logged {
        destage_in_time(shared).await?;
        return known(shared, volume, id, name).await;
    }
    let found = until_known(shared, || shared.catalog.snapshot_by_name(volume.id(), name)).await;
    found.map_err(|error| absent(error, volume, name))
}

async fn known(
    shared: &Shared,
    volume: &Volume,
    id: SnapshotId,
    name: &SnapshotName,
) -> Result<SnapshotRow, EngineError> {
    let found = until_known(shared, || shared.catalog.snapshot(id)).await;
    found.map_err(|error| absent(error, volume, name))
}

fn absent(error: EngineError, volume: &Volume, name: &SnapshotName) -> EngineError {
    match error.kind() {
        ErrorKind::NotFound => EngineError::NoSuchSnapshot(format!("{}@{name}", volume.name())),
        _ => error,
    }
}

/// The row of a snapshot whose map is in the leaves: waits for destage and for folding.
async fn settled(shared: &Shared, volume: &Volume, name: &SnapshotName) -> Result<SnapshotRow, EngineError> {
    let row = committed(shared, volume, name).await?;
    if row.logical_bytes.is_some() {
        return Ok(row);
    }
    folded(shared, volume, row.at).await?;
    let row = known(shared, volume, row.id, name).await?;
    if row.logical_bytes.is_none() {
        return Err(CatalogError::NotSettled { name: row.name }.into());
    }
    Ok(row)
}

/// Waits until the volume is folded through a point of its map, if that is its map.
async fn folded(shared: &Shared, volume: &Volume, at: MapPoint) -> Result<(), EngineError> {
    let limit = shared.config.read_deadline;
    let fold = cairn_model::timeout(&*shared.ports.clock, limit, async {
        loop {
            {
                let state = volume.state().lock();
                state.check_serving()?;
                if state.map.folded_through() >= at.commit || state.map.lineage() != at.lineage {
                    return Ok(());
                }
            }
            shared.fold_wake.notify_one();
            shared.ports.clock.sleep(PAUSE).await;
        }
    });
    fold.await.unwrap_or(Err(EngineError::CatalogSilent))
}
