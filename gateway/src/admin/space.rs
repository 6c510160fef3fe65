//! Whose space: asked for beside what is told anyway, because it takes a while. The catalog alone answers; no guest waits for it.

use super::Service;
use super::types::{Snapshot, Space, SpaceQuery, Volume};
use crate::error::GatewayError;
use cairn_metadata::{CatalogError, SpaceOf};
use cairn_model::SnapshotId;

type Result<T> = std::result::Result<T, GatewayError>;

impl Service {
    /// [`Service::volume`], and whose space.
    pub async fn volume_with(&self, name: &str, query: SpaceQuery) -> Result<Volume> {
        let mut volume = self.volume(name).await?;
        if query.space {
            let id = self.row(name).await?.id;
            let head = self.answered(SpaceOf::Head(id)).await?;
            let whole = self.answered(SpaceOf::Volume(id)).await?;
            volume.space = head.zip(whole).map(|(head, whole)| {
                let told = space(volume.usage.logical_bytes, &head);
                Space { freed_bytes: whole.freed_bytes, ..told }
            });
        }
        Ok(volume)
    }

    /// [`Service::all_snapshots`], and whose space.
    pub async fn all_snapshots_with(&self, query: SpaceQuery) -> Result<Vec<Snapshot>> {
        self.with_space(self.all_snapshots().await?, query).await
    }

    /// [`Service::snapshots`], and whose space.
    pub async fn snapshots_with(&self, volume: &str, query: SpaceQuery) -> Result<Vec<Snapshot>> {
        self.with_space(self.snapshots(volume).await?, query).await
    }

    /// [`Service::snapshot`], and whose space.
    pub async fn snapshot_with(&self, volume: &str, name: &str, query: SpaceQuery) -> Result<Snapshot> {
        let mut told = self.with_space(vec![self.snapshot(volume, name).await?], query).await?;
        Ok(told.pop().expect("as many as before"))
    }

    async fn with_space(&self, mut snapshots: Vec<Snapshot>, query: SpaceQuery) -> Result<Vec<Snapshot>> {
        for snapshot in snapshots.iter_mut().filter(|_| query.space) {
            if let (Some(logical_bytes), Ok(id)) = (snapshot.logical_bytes, snapshot.id.parse::<SnapshotId>())
            {
                let answer = self.answered(SpaceOf::Snapshot(id)).await?;
                snapshot.space = answer.map(|answer| space(logical_bytes, &answer));
            }
        }
        Ok(snapshots)
    }

    /// `None`: it went meanwhile.
    async fn answered(&self, of: SpaceOf) -> Result<Option<cairn_metadata::Space>> {
        match cairn_metadata::space(&*self.site.catalog, of).await {
            Ok(space) => Ok(Some(space)),
            Err(CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn space(logical_bytes: u64, answer: &cairn_metadata::Space) -> Space {
    Space {
        unique_bytes: answer.unique_bytes,
        // What a volume holds may have grown between the two looks.
        shared_bytes: logical_bytes.saturating_sub(answer.unique_bytes),
        freed_bytes: answer.freed_bytes,
    }
}
