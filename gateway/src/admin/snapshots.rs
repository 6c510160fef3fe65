//! What the admin API does with snapshots.

use super::Service;
use super::types::{
    ChangedRange, CloneSnapshot, CreateSnapshot, CreateSnapshots, Difference, DifferenceQuery, RevertVolume,
    Reverted, Snapshot, Volume,
};
use crate::error::GatewayError;
use crate::human::counted;
use crate::names::{SEPARATOR, SnapshotOf, stamped};
use cairn_engine::{EngineError, SnapshotPhase, SnapshotStatus, Volume as EngineVolume};
use cairn_metadata::{SnapshotName, SnapshotRow, VolumeName, VolumeRow};
use cairn_model::{BLOCK_SIZE, ErrorKind, Kinded, Lba, WallTime};
use std::sync::Arc;

/// Ranges from which on a part of the differences ends, unless another number is asked for; and the highest.
const RANGES: usize = 4096;
const RANGES_MAX: usize = 65_536;

/// Names by the time that are tried before giving up.
const ATTEMPTS_MAX: u32 = 1000;

/// What a snapshot without a name is called, and the one that a revert takes.
const AUTOMATIC: &str = "auto";
const BEFORE_REVERT: &str = "before-revert";

type Result<T> = std::result::Result<T, GatewayError>;

impl Service {
    /// The snapshots of all volumes, by volume, the oldest first.
    pub async fn all_snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut all = Vec::new();
        for row in self.site.catalog.volumes().await? {
            all.extend(self.told(&row, self.statuses(&row).await?));
        }
        Ok(all)
    }

    /// The snapshots of a volume, the oldest first.
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>> {
        let row = self.row(volume).await?;
        let statuses = self.statuses(&row).await?;
        Ok(self.told(&row, statuses).collect())
    }

    pub async fn snapshot(&self, volume: &str, name: &str) -> Result<Snapshot> {
        let name = SnapshotName::new(name)?;
        let row = self.row(volume).await?;
        if let Some((engine, _)) = &self.engine {
            match engine.snapshot(volume, &name).await {
                Err(EngineError::NoSuchVolume(_)) => {}
                found => return Ok(self.tell(&row, found?)),
            }
        }
        match self.site.catalog.snapshot_by_name(row.id, &name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(no_such_snapshot(volume, &name)),
            found => Ok(self.tell(&row, status_of(found?))),
        }
    }

    pub async fn create_snapshot(&self, volume: &str, asked: &CreateSnapshot) -> Result<Snapshot> {
        self.open_volume(volume)?;
        let name = match asked.name.as_deref().map(SnapshotName::new).transpose()? {
            Some(name) => self.engine()?.create_snapshot(volume, &name).await.map(|_| name)?,
            None => self.take_by_the_time(volume).await?,
        };
        tracing::info!(volume, snapshot = name.as_str(), "snapshot taken");
        self.snapshot(volume, name.as_str()).await
    }

    async fn take_by_the_time(&self, volume: &str) -> Result<SnapshotName> {
        let engine = self.engine()?;
        let mut attempt = 1;
        loop {
            let name = self.by_the_time(AUTOMATIC, attempt)?;
            match engine.create_snapshot(volume, &name).await {
                Err(EngineError::SnapshotExists(_)) if attempt < ATTEMPTS_MAX => attempt += 1,
                taken => return Ok(taken.map(|_| name)?),
            }
        }
    }

    /// Takes snapshots of several volumes at one moment: all of them, or none.
    pub async fn create_snapshots(&self, asked: &CreateSnapshots) -> Result<Vec<Snapshot>> {
        if asked.snapshots.is_empty() {
            return Err(GatewayError::refused(
                ErrorKind::Unsupported,
                "no volume is named",
                "name those that are to be snapshotted together",
            ));
        }
        let mut attempt = 1;
        let taken = loop {
            let automatic = self.by_the_time(AUTOMATIC, attempt)?;
            let mut wanted = Vec::with_capacity(asked.snapshots.len());
            let mut given = Vec::new();
            for one in &asked.snapshots {
                self.open_volume(&one.volume)?;
                let name = match &one.name {
                    Some(name) => SnapshotName::new(name.as_str())?,
                    None => automatic.clone(),
                };
                given.extend(one.name.as_ref().map(|name| format!("{}{SEPARATOR}{name}", one.volume)));
                wanted.push((one.volume.clone(), name));
            }
            match self.engine()?.create_snapshots(&wanted).await {
                // A name that tells the time and is taken: the next one.
                Err(EngineError::SnapshotExists(which))
                    if !given.contains(&which) && attempt < ATTEMPTS_MAX =>
                {
                    attempt += 1;
                }
                taken => break taken.map(|_| wanted)?,
            }
        };
        tracing::info!(volumes = taken.len(), "snapshots taken at one moment");
        let mut snapshots = Vec::with_capacity(taken.len());
        for (volume, name) in taken {
            snapshots.push(self.snapshot(&volume, name.as_str()).await?);
        }
        Ok(snapshots)
    }

    pub async fn delete_snapshot(&self, volume: &str, name: &str) -> Result<()> {
        self.open_volume(volume)?;
        let name = SnapshotName::new(name)?;
        self.engine()?.delete_snapshot(volume, &name).await?;
        tracing::info!(volume, snapshot = name.as_str(), "snapshot deleted");
        Ok(())
    }

    pub async fn clone_snapshot(&self, volume: &str, name: &str, asked: &CloneSnapshot) -> Result<Volume> {
        self.open_volume(volume)?;
        let (name, clone) = (SnapshotName::new(name)?, VolumeName::new(asked.name.as_str())?);
        self.engine()?.clone_snapshot(volume, &name, &clone).await?;
        tracing::info!(volume, snapshot = name.as_str(), clone = clone.as_str(), "snapshot cloned");
        self.volume(clone.as_str()).await
    }

    pub async fn revert_volume(&self, volume: &str, name: &str, asked: RevertVolume) -> Result<Reverted> {
        let open = self.open_volume(volume)?;
        let name = SnapshotName::new(name)?;
        let attachments = self.serving.as_ref().map_or(0, |serving| serving.sessions.of(open.id()));
        if attachments > 0 && !asked.force {
            return Err(GatewayError::refused(
                ErrorKind::Conflict,
                format!(
                    "volume {volume} is in use by {}, whose content would change under them",
                    counted(attachments, "client connection")
                ),
                "disconnect them first, or revert it all the same with --force",
            ));
        }
        let engine = self.engine()?;
        let mut attempt = 1;
        let before = loop {
            let safety = self.by_the_time(BEFORE_REVERT, attempt)?;
            match engine.revert_volume(volume, &name, &safety).await {
                Err(EngineError::SnapshotExists(_)) if attempt < ATTEMPTS_MAX => attempt += 1,
                reverted => break reverted?,
            }
        };
        tracing::info!(volume, snapshot = name.as_str(), before = before.name.as_str(), "volume reverted");
        let row = self.row(volume).await?;
        Ok(Reverted { volume: self.volume(volume).await?, before: self.tell(&row, before) })
    }

    pub async fn difference(&self, volume: &str, query: &DifferenceQuery) -> Result<Difference> {
        self.open_volume(volume)?;
        let (from, to) = (SnapshotName::new(query.from.as_str())?, SnapshotName::new(query.to.as_str())?);
        let statuses = self.engine()?.snapshots(volume).await?;
        let size_of = |name: &SnapshotName| {
            let found = statuses.iter().find(|status| status.name == *name);
            found.map(|status| status.size_bytes).ok_or_else(|| no_such_snapshot(volume, name))
        };
        let size_bytes = size_of(&from)?.max(size_of(&to)?);
        let limit = query.limit.unwrap_or(RANGES).clamp(1, RANGES_MAX);
        let start = Lba::new(query.start / u64::from(BLOCK_SIZE));
        let page = self.engine()?.snapshot_differences(volume, &from, &to, start, limit).await?;
        let place = |difference: &cairn_engine::Difference| {
            let offset_bytes = difference.range.start().byte_offset();
            // The last block may be longer than what is left of the volume.
            let length_bytes = difference.range.bytes().min(size_bytes.saturating_sub(offset_bytes));
            ChangedRange { offset_bytes, length_bytes, allocated: difference.allocated }
        };
        Ok(Difference {
            size_bytes,
            ranges: page.differences.iter().map(place).collect(),
            next_offset_bytes: page.next.map(Lba::byte_offset),
        })
    }

    /// The volume, or as `VOLUME@SNAPSHOT` the snapshot, to be read.
    pub(super) async fn open_device(&self, name: &str) -> Result<Arc<EngineVolume>> {
        let Some((volume, snapshot)) = name.split_once(SEPARATOR) else { return self.open_volume(name) };
        self.open_volume(volume)?;
        Ok(self.engine()?.open_snapshot(volume, &SnapshotName::new(snapshot)?).await?)
    }

    /// How many snapshots a volume has.
    pub(super) async fn snapshots_of(&self, row: &VolumeRow) -> Result<u64> {
        Ok(self.statuses(row).await?.len() as u64)
    }

    /// Those that are in the log alone too, where there is an engine that knows.
    async fn statuses(&self, row: &VolumeRow) -> Result<Vec<SnapshotStatus>> {
        if let Some((engine, _)) = &self.engine {
            match engine.snapshots(row.name.as_str()).await {
                Err(EngineError::NoSuchVolume(_)) => {}
                found => return Ok(found?),
            }
        }
        Ok(self.site.catalog.snapshots(row.id).await?.into_iter().map(status_of).collect())
    }

    fn told(&self, row: &VolumeRow, statuses: Vec<SnapshotStatus>) -> impl Iterator<Item = Snapshot> {
        statuses.into_iter().map(|status| self.tell(row, status))
    }

    fn tell(&self, row: &VolumeRow, status: SnapshotStatus) -> Snapshot {
        let sessions = self.serving.as_ref().map(|serving| &serving.sessions);
        let attachments = sessions.map(|sessions| sessions.of_snapshot(row.id, status.name.as_str()));
        let named = SnapshotOf { volume: row.name.clone(), snapshot: status.name };
        Snapshot {
            snapshot: named.to_string(),
            volume: named.volume.to_string(),
            name: named.snapshot.to_string(),
            id: status.id.to_string(),
            size_bytes: status.size_bytes,
            created_at_ms: status.created_at.unix_millis(),
            state: match status.phase {
                SnapshotPhase::Logged => "logged",
                SnapshotPhase::Committed => "committed",
                SnapshotPhase::Settled => "settled",
            }
            .to_owned(),
            logical_bytes: status.logical_bytes,
            clones: status.children,
            attachments,
            locked_until_ms: status.locked_until.map(WallTime::unix_millis),
            space: None,
        }
    }

    fn by_the_time(&self, stem: &str, attempt: u32) -> Result<SnapshotName> {
        Ok(stamped(stem, self.site.ports.clock.wall(), attempt)?)
    }
}

/// A snapshot as the catalog has it.
fn status_of(row: SnapshotRow) -> SnapshotStatus {
    let is_settled = row.logical_bytes.is_some();
    SnapshotStatus {
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

fn no_such_snapshot(volume: &str, name: &SnapshotName) -> GatewayError {
    EngineError::NoSuchSnapshot(format!("{volume}{SEPARATOR}{name}")).into()
}
