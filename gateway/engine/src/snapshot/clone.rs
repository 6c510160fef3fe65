//! Clones: a volume that begins as a snapshot of another.

use super::settled;
use crate::engine::{Engine, serve_new, until_known};
use crate::error::EngineError;
use crate::volume::Volume;
use cairn_metadata::{NewVolume, SnapshotName, VolumeName};
use cairn_model::{ErrorKind, Kinded, LineageId, VolumeId, boxed};
use std::sync::Arc;

impl Engine {
    /// Creates a volume that shows what the snapshot shows, with the settings of its volume, and serves it. Takes no longer for a large volume.
    #[boxed]
    pub async fn clone_snapshot(
        &self,
        volume: &str,
        snapshot: &SnapshotName,
        name: &VolumeName,
    ) -> Result<Arc<Volume>, EngineError> {
        let source = self.shared().registry.named(volume)?;
        // Nobody else's turn waits for the pool.
        let snapshot = settled(self.shared(), &source, snapshot).await?;
        let name = name.clone();
        self.administer(move |shared| async move {
            let row = shared.catalog.volume(source.id()).await?;
            let (clock, entropy) = (&*shared.ports.clock, &*shared.ports.entropy);
            let new = NewVolume {
                id: VolumeId::fresh(clock, entropy),
                name,
                size_bytes: snapshot.size_bytes,
                durability: row.durability,
                lineage: LineageId::fresh(clock, entropy),
                domain: row.domain,
                compress: row.compress,
                dedupe: row.dedupe,
                read_only: false,
                options: row.options,
                created_at: clock.wall(),
            };
            let created = until_known(&shared, || shared.catalog.create_clone(&new, snapshot.id)).await;
            if let Err(error) = created {
                // By an attempt whose answer was lost, if it is there.
                let there =
                    error.kind() == ErrorKind::Conflict && shared.catalog.volume(new.id).await.is_ok();
                if !there {
                    return Err(error);
                }
            }
            serve_new(&shared, new.id, &new.name).await
        })
        .await
    }
}
