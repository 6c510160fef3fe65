//! Reverting: the volume becomes what a snapshot of it shows.
//!
//! Order: (1) changes are held; (2) a snapshot of the volume as it is, so that the way back is open; (3) everything is destaged and folded, the
//! wanted snapshot too; (4) one transaction gives the volume a new lineage that begins at the snapshot; (5) the map in memory is that of
//! the new lineage; (6) changes go on. A failure before (4) leaves the volume as it was, with one snapshot more. A crash after (4) is found
//! done by the next start: the log holds nothing that was not destaged before, and what is written later follows in the new lineage.

use super::{SnapshotStatus, folded, settled, take};
use crate::engine::{Engine, Shared, destage_in_time, until_known};
use crate::error::EngineError;
use crate::lease::stop_serving;
use crate::volume::Volume;
use cairn_metadata::{HeldLease, MapPoint, SnapshotName};
use cairn_model::{ErrorKind, Kinded, LineageId, boxed};
use std::sync::Arc;

impl Engine {
    /// Makes the volume what the snapshot shows, its size included, after a snapshot of it as it is under the name `safety`. Returns that one.
    /// Whoever has the volume open sees it change under its feet: of the requests on the way some parts may be before and some after.
    #[boxed]
    pub async fn revert_volume(
        &self,
        volume: &str,
        to: &SnapshotName,
        safety: &SnapshotName,
    ) -> Result<SnapshotStatus, EngineError> {
        let (volume, to, safety) = (volume.to_owned(), to.clone(), safety.clone());
        self.administer(move |shared| async move {
            let volume = shared.registry.named(&volume)?;
            // Before anything is held: it may take a while. What comes in meanwhile is little.
            settled(&shared, &volume, &to).await?;
            destage_in_time(&shared).await?;
            let head = {
                let state = volume.state().lock();
                MapPoint { lineage: state.map.lineage(), commit: state.map.last_commit() }
            };
            folded(&shared, &volume, head).await?;
            volume.hold();
            let _released = Released(&volume);
            revert(&shared, &volume, &to, &safety).await
        })
        .await
    }
}

/// Changes go on when it is dropped.
struct Released<'a>(&'a Volume);

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Whether the catalog has made the change for which it answered with an error at last: an attempt before may have succeeded and its answer
/// may have been lost. If nobody knows, the volume must not go on with either map.
async fn is_reverted(shared: &Shared, volume: &Volume, lineage: LineageId, error: &EngineError) -> bool {
    if error.kind() != ErrorKind::Unavailable {
        // No attempt is on its way: what the catalog says now stays.
        match until_known(shared, || shared.catalog.volume(volume.id())).await {
            Ok(row) => return row.lineage == lineage,
            Err(unknown) => tracing::warn!(%unknown, "the catalog does not tell which map the volume has"),
        }
    }
    stop_serving(shared, volume, error);
    false
}

async fn revert(
    shared: &Shared,
    volume: &Arc<Volume>,
    to: &SnapshotName,
    safety: &SnapshotName,
) -> Result<SnapshotStatus, EngineError> {
    let taken = take(shared, &[(Arc::clone(volume), safety.clone())]).await?;
    let before = settled(shared, volume, safety).await?;
    debug_assert_eq!(vec![before.id], taken, "the name was free");
    let to = settled(shared, volume, to).await?;
    let lineage = LineageId::fresh(&*shared.ports.clock, &*shared.ports.entropy);
    let held = HeldLease { volume: volume.id(), generation: volume.generation() };
    let through = volume.state().lock().buffer.last_seq();
    let (catalog, gateway) = (&*shared.catalog, shared.gateway);
    let reverted =
        until_known(shared, || catalog.revert_volume(gateway, held, through, to.id, lineage)).await;
    if let Err(error) = reverted
        && !is_reverted(shared, volume, lineage, &error).await
    {
        return Err(error);
    }
    let mut state = volume.state().lock();
    state.check_serving()?;
    debug_assert!(state.buffer.is_empty(), "changes are held, and the last snapshot is destaged");
    state.map = state.map.reverted(lineage);
    state.size_bytes = to.size_bytes;
    drop(state);
    shared.purge_wake.notify_one();
    Ok(SnapshotStatus::committed(before))
}
