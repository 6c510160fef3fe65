//! Volumes, from creation to deletion.

use super::leases::{LeaseState, check_held};
use super::prune::Pass;
use super::{Result, Tables, countable};
use crate::{
    CatalogError, HeldLease, LeafIndex, LeaseHolder, MapLeaf, MapPoint, NewVolume, VolumeName, VolumeRow,
    VolumeUsage,
};
use cairn_model::{CommitSeq, GatewayId, Generation, MapDelta, VolumeId, WallTime, WriteSeq};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) struct Volume {
    pub(super) row: NewVolume,
    pub(super) deleted: bool,
    pub(super) destaged_through: WriteSeq,
    /// The last lease, also after a release.
    pub(super) lease: Option<LeaseState>,
    pub(super) usage: VolumeUsage,
}

#[derive(Default)]
pub(super) struct Lineage {
    pub(super) last_commit: CommitSeq,
    pub(super) folded_through: CommitSeq,
    pub(super) deltas: BTreeMap<CommitSeq, MapDelta>,
    /// Versions of leaves. One that is empty hides what is older or inherited.
    pub(super) leaves: BTreeMap<(LeafIndex, CommitSeq), Arc<MapLeaf>>,
    /// Where it branched off.
    pub(super) parent: Option<MapPoint>,
    /// What is to be looked at for what may not be needed any more.
    pub(super) pass: Option<Pass>,
}

impl Tables {
    pub(super) fn create_volume(&mut self, volume: &NewVolume) -> Result<()> {
        self.check_new(volume)?;
        self.insert_volume(volume, Lineage::default(), VolumeUsage::default())
    }

    /// Fails when there can be no such volume, whatever its identities.
    pub(super) fn check_new(&self, volume: &NewVolume) -> Result<()> {
        self.refuse_namesake(&volume.name, None)?;
        countable(volume.size_bytes)?;
        if !self.domains.contains(volume.domain) {
            return Err(CatalogError::not_found("domain", &volume.domain));
        }
        Ok(())
    }

    pub(super) fn insert_volume(
        &mut self,
        volume: &NewVolume,
        lineage: Lineage,
        usage: VolumeUsage,
    ) -> Result<()> {
        if self.volumes.contains_key(&volume.id) || self.lineages.contains_key(&volume.lineage) {
            return Err(CatalogError::AlreadyExists { what: "volume or lineage", id: volume.id.to_string() });
        }
        self.lineages.insert(volume.lineage, lineage);
        let (row, destaged_through) = (volume.clone(), WriteSeq::ZERO);
        let fresh = Volume { row, deleted: false, destaged_through, lease: None, usage };
        self.volumes.insert(volume.id, fresh);
        self.totals.volumes += 1;
        self.totals.logical_bytes += usage.logical_bytes;
        Ok(())
    }

    /// Fails when another live volume than `except` has the name.
    fn refuse_namesake(&self, name: &VolumeName, except: Option<VolumeId>) -> Result<()> {
        let is_namesake =
            |volume: &Volume| !volume.deleted && volume.row.name == *name && Some(volume.row.id) != except;
        if self.volumes.values().any(is_namesake) {
            return Err(CatalogError::NameTaken { what: "volume", name: name.to_string() });
        }
        Ok(())
    }

    /// The volume, unless it is deleted.
    pub(super) fn live(&self, id: VolumeId) -> Result<&Volume> {
        let volume = self.volumes.get(&id).filter(|volume| !volume.deleted);
        volume.ok_or_else(|| CatalogError::not_found("volume", &id))
    }

    pub(super) fn live_mut(&mut self, id: VolumeId) -> Result<&mut Volume> {
        let volume = self.volumes.get_mut(&id).filter(|volume| !volume.deleted);
        volume.ok_or_else(|| CatalogError::not_found("volume", &id))
    }

    pub(super) fn all_volumes(&self) -> Result<Vec<VolumeRow>> {
        let live = self.volumes.values().filter(|volume| !volume.deleted);
        let mut rows: Vec<_> = live.map(|volume| self.row_of(volume)).collect::<Result<_>>()?;
        rows.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        Ok(rows)
    }

    pub(super) fn volume_row(&self, id: VolumeId) -> Result<VolumeRow> {
        self.row_of(self.live(id)?)
    }

    pub(super) fn volume_by_name(&self, name: &VolumeName) -> Result<VolumeRow> {
        let found = self.volumes.values().find(|volume| !volume.deleted && volume.row.name == *name);
        self.row_of(found.ok_or_else(|| CatalogError::not_found("volume", name))?)
    }

    fn row_of(&self, volume: &Volume) -> Result<VolumeRow> {
        let lineage = &self.lineages[&volume.row.lineage];
        let holder = match volume.lease.as_ref().filter(|lease| !lease.released) {
            Some(lease) => {
                let name = self.gateway(lease.gateway)?.row.name.clone();
                Some(LeaseHolder { gateway: lease.gateway, name, expires_at: lease.expires_at })
            }
            None => None,
        };
        let row = volume.row.clone();
        Ok(VolumeRow {
            id: row.id,
            name: row.name,
            size_bytes: row.size_bytes,
            durability: row.durability,
            lineage: row.lineage,
            domain: row.domain,
            compress: row.compress,
            dedupe: row.dedupe,
            read_only: row.read_only,
            options: row.options,
            created_at: row.created_at,
            destaged_through: volume.destaged_through,
            commit: lineage.last_commit,
            folded_through: lineage.folded_through,
            generation: volume.lease.as_ref().map_or(Generation::ZERO, |lease| lease.generation),
            holder,
            usage: volume.usage,
        })
    }

    pub(super) fn resize_volume(
        &mut self,
        gateway: GatewayId,
        held: HeldLease,
        size_bytes: u64,
    ) -> Result<()> {
        let size_bytes = countable(size_bytes)?;
        let volume = self.live_mut(held.volume)?;
        check_held(volume.lease.as_ref(), held.volume, gateway, held.generation)?;
        volume.row.size_bytes = size_bytes;
        Ok(())
    }

    pub(super) fn rename_volume(&mut self, id: VolumeId, name: &VolumeName) -> Result<()> {
        self.refuse_namesake(name, Some(id))?;
        self.live_mut(id)?.row.name = name.clone();
        Ok(())
    }

    pub(super) fn set_read_only(&mut self, id: VolumeId, read_only: bool) -> Result<()> {
        self.live_mut(id)?.row.read_only = read_only;
        Ok(())
    }

    pub(super) fn delete_volume(&mut self, id: VolumeId, with_snapshots: bool, now: WallTime) -> Result<()> {
        let name = self.live(id)?.row.name.clone();
        let snapshots: Vec<_> = self.snapshots(id);
        if !snapshots.is_empty() && !with_snapshots {
            return Err(CatalogError::HasSnapshots { name, snapshots: snapshots.len() as u64 });
        }
        self.check_unlocked(id, None, now)?;
        for snapshot in snapshots {
            self.drop_snapshot(snapshot.id)?;
        }
        self.groups.volume_gone(id);
        let volume = self.live_mut(id)?;
        volume.deleted = true;
        let logical_bytes = volume.usage.logical_bytes;
        self.totals.logical_bytes -= logical_bytes;
        self.totals.volumes -= 1;
        Ok(())
    }
}
