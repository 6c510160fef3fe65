//! Snapshots, clones, reverts.

use super::leases::check_held;
use super::volumes::Lineage;
use super::{Result, Tables, countable};
use crate::{
    CatalogError, HeldLease, MapPoint, NewSnapshot, NewVolume, SnapshotName, SnapshotRow, VolumeUsage,
};
use cairn_model::{CommitSeq, GatewayId, LineageId, SnapshotId, VolumeId, WallTime, WriteSeq};

impl Tables {
    pub(super) fn snapshots(&self, volume: VolumeId) -> Vec<SnapshotRow> {
        let of_volume = self.snapshots.values().filter(|snapshot| snapshot.volume == volume);
        let mut rows: Vec<_> = of_volume.map(|snapshot| self.with_children(snapshot)).collect();
        SnapshotRow::sort_oldest_first(&mut rows);
        rows
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Result<SnapshotRow> {
        self.known_snapshot(id).map(|snapshot| self.with_children(snapshot))
    }

    fn known_snapshot(&self, id: SnapshotId) -> Result<&SnapshotRow> {
        self.snapshots.get(&id).ok_or_else(|| CatalogError::not_found("snapshot", &id))
    }

    pub(super) fn snapshot_by_name(&self, volume: VolumeId, name: &SnapshotName) -> Result<SnapshotRow> {
        let of_volume = |snapshot: &&SnapshotRow| snapshot.volume == volume && snapshot.name == *name;
        let found = self.snapshots.values().find(of_volume);
        Ok(self.with_children(found.ok_or_else(|| CatalogError::not_found("snapshot", name))?))
    }

    fn with_children(&self, snapshot: &SnapshotRow) -> SnapshotRow {
        let children = self.lineages.values().filter(|lineage| lineage.parent == Some(snapshot.at)).count();
        let locked_until = self.groups.locked_until(snapshot.id);
        SnapshotRow { children: children as u64, locked_until, ..snapshot.clone() }
    }

    /// Takes the snapshots that come with the commit `at`: they were looked at before.
    pub(super) fn take_snapshots(&mut self, volume: VolumeId, at: MapPoint, snapshots: &[NewSnapshot]) {
        for &NewSnapshot { id, ref name, size_bytes, created_at } in snapshots {
            let is_free = |name: &SnapshotName| self.snapshot_by_name(volume, name).is_err();
            let name = name.candidates(id).find(is_free).expect("candidates have no end");
            let (logical_bytes, children, locked_until) = (None, 0, None);
            let row = SnapshotRow {
                id,
                volume,
                name,
                at,
                size_bytes,
                created_at,
                logical_bytes,
                children,
                locked_until,
            };
            self.snapshots.insert(id, row);
            self.totals.snapshots += 1;
        }
    }

    /// Everything through `folded` is in the leaves of the volume, and nothing else: so what its head maps is what these snapshots map.
    pub(super) fn settle(&mut self, lineage: LineageId, volume: VolumeId, folded: CommitSeq) {
        let logical_bytes = self.volumes[&volume].usage.logical_bytes;
        for snapshot in self.snapshots.values_mut() {
            if snapshot.at.lineage == lineage && snapshot.at.commit <= folded {
                snapshot.logical_bytes.get_or_insert(logical_bytes);
            }
        }
    }

    pub(super) fn delete_snapshot(
        &mut self,
        gateway: GatewayId,
        held: HeldLease,
        id: SnapshotId,
        now: WallTime,
    ) -> Result<()> {
        let volume = self.live(held.volume)?;
        check_held(volume.lease.as_ref(), held.volume, gateway, held.generation)?;
        self.check_unlocked(held.volume, Some(id), now)?;
        if self.known_snapshot(id)?.volume != held.volume {
            return Err(CatalogError::not_found("snapshot", &id));
        }
        self.drop_snapshot(id)
    }

    pub(super) fn drop_snapshot(&mut self, id: SnapshotId) -> Result<()> {
        let lineage = self.known_snapshot(id)?.at.lineage;
        self.snapshots.remove(&id);
        self.groups.snapshot_gone(id);
        self.totals.snapshots -= 1;
        self.mark(lineage);
        Ok(())
    }

    pub(super) fn create_clone(&mut self, volume: &NewVolume, from: SnapshotId) -> Result<()> {
        self.check_new(volume)?;
        let snapshot = self.known_snapshot(from)?;
        if self.volumes[&snapshot.volume].row.domain != volume.domain {
            return Err(CatalogError::other_domain(&snapshot.name, volume));
        }
        let logical_bytes = settled(snapshot)?;
        let lineage = Lineage { parent: Some(snapshot.at), ..Lineage::default() };
        self.insert_volume(volume, lineage, VolumeUsage { logical_bytes, ..VolumeUsage::default() })
    }

    pub(super) fn revert_volume(
        &mut self,
        gateway: GatewayId,
        held: HeldLease,
        through: WriteSeq,
        to: SnapshotId,
        lineage: LineageId,
    ) -> Result<()> {
        let volume = self.live(held.volume)?;
        check_held(volume.lease.as_ref(), held.volume, gateway, held.generation)?;
        let old = volume.row.lineage;
        if old == lineage {
            return Ok(());
        }
        let committed = volume.destaged_through;
        if committed != through {
            return Err(CatalogError::NotNext { volume: held.volume, base: through, committed });
        }
        let snapshot = self.known_snapshot(to)?;
        if snapshot.volume != held.volume {
            return Err(CatalogError::not_found("snapshot", &to));
        }
        if self.lineages[&old].folded_through != self.lineages[&old].last_commit {
            return Err(CatalogError::NotSettled { name: snapshot.name.clone() });
        }
        let (logical_bytes, size_bytes) = (settled(snapshot)?, snapshot.size_bytes);
        if self.lineages.contains_key(&lineage) {
            return Err(CatalogError::AlreadyExists { what: "lineage", id: lineage.to_string() });
        }
        let fresh = Lineage { parent: Some(snapshot.at), ..Lineage::default() };
        self.lineages.insert(lineage, fresh);
        let volume = self.live_mut(held.volume)?;
        (volume.row.lineage, volume.row.size_bytes) = (lineage, size_bytes);
        let before = std::mem::replace(&mut volume.usage.logical_bytes, logical_bytes);
        self.totals.logical_bytes = self.totals.logical_bytes + logical_bytes - before;
        self.mark(old);
        Ok(())
    }

    /// Fails when the snapshot cannot be taken, whatever its name.
    pub(super) fn check_snapshot(&self, snapshot: &NewSnapshot) -> Result<()> {
        if self.snapshots.contains_key(&snapshot.id) {
            return Err(CatalogError::AlreadyExists { what: "snapshot", id: snapshot.id.to_string() });
        }
        countable(snapshot.size_bytes)?;
        countable(snapshot.created_at.unix_millis()).map(drop)
    }
}

/// What the snapshot maps, in bytes.
fn settled(snapshot: &SnapshotRow) -> Result<u64> {
    snapshot.logical_bytes.ok_or_else(|| CatalogError::NotSettled { name: snapshot.name.clone() })
}
