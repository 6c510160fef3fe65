//! Volumes that come and go: clones, from the call that makes one to the call that deletes it.

use crate::limits::Part;
use crate::site::SimSite;
use crate::volume::{Existence, SimVolume};
use cairn_metadata::{Catalog, VolumeName};
use cairn_model::{GatewayId, VolumeId};
use parking_lot::Mutex;
use std::sync::Arc;
use system_tests::oracle::stamp::Seen;

/// Clones that a run may ask for.
const CLONES_MAX: u64 = 3;
/// Clones that are there at the same time.
const CLONES_AT_ONCE: usize = 2;

/// Of a site.
#[derive(Debug, Default)]
pub(crate) struct Clones {
    asked: u64,
    /// Whose calls have not been answered well.
    unknown: Vec<AskedClone>,
}

#[derive(Debug)]
struct AskedClone {
    parent: Arc<SimVolume>,
    number: u64,
    base: Arc<Vec<Seen>>,
    by: GatewayId,
    /// It is there by now, or never.
    is_over: bool,
}

impl AskedClone {
    fn name(&self) -> VolumeName {
        VolumeName::new(format!("volume-{}", self.number)).expect("a plain name")
    }
}

impl SimSite {
    /// Volumes that somebody made; some may be gone.
    pub(crate) fn volumes(&self) -> Vec<Arc<SimVolume>> {
        self.volumes.lock().clone()
    }

    /// A clone is about to be asked for: its number and its name, if there may be one more.
    pub(crate) fn clone_begins(
        &self,
        parent: &Arc<SimVolume>,
        base: Arc<Vec<Seen>>,
        by: GatewayId,
    ) -> Option<(u64, VolumeName)> {
        let volumes = self.volumes();
        let present = volumes.iter().filter(|volume| volume.is_clone && volume.is_there()).count();
        let mut clones = self.clones.lock();
        let is_room = clones.asked < CLONES_MAX && present + clones.unknown.len() < CLONES_AT_ONCE;
        if !is_room || !self.limits.allow(Part::Clones) {
            return None;
        }
        clones.asked += 1;
        let number = self.first_clone + clones.asked;
        let clone = AskedClone { parent: Arc::clone(parent), number, base, by, is_over: false };
        let name = clone.name();
        clones.unknown.push(clone);
        Some((number, name))
    }

    /// The clone is there.
    pub(crate) fn clone_made(&self, number: u64, id: VolumeId) -> Option<Arc<SimVolume>> {
        let asked = {
            let mut clones = self.clones.lock();
            let at = clones.unknown.iter().position(|clone| clone.number == number)?;
            clones.unknown.remove(at)
        };
        Some(self.adopt(&asked, id))
    }

    fn adopt(&self, asked: &AskedClone, id: VolumeId) -> Arc<SimVolume> {
        let clone = Arc::new(SimVolume::clone_of(&asked.parent, id, asked.number, asked.base.to_vec()));
        self.volumes.lock().push(Arc::clone(&clone));
        clone
    }

    /// Whether clones of the volume are there.
    pub(crate) fn has_clones(&self, volume: &SimVolume) -> bool {
        let volumes = self.volumes.lock();
        let mut clones = volumes.iter().filter(|clone| clone.is_clone && clone.number != volume.number);
        clones.any(|clone| clone.is_there() && Arc::ptr_eq(&clone.family, &volume.family))
    }

    /// The call has failed: the clone is there, or it will never be.
    pub(crate) fn clone_failed(&self, number: u64) {
        let mut clones = self.clones.lock();
        let asked = clones.unknown.iter_mut().find(|clone| clone.number == number);
        if let Some(asked) = asked {
            asked.is_over = true;
        }
    }

    /// What the process of a gateway was doing is over.
    pub(crate) fn process_ended(&self, gateway: GatewayId) {
        for asked in self.clones.lock().unknown.iter_mut().filter(|clone| clone.by == gateway) {
            asked.is_over = true;
        }
        for volume in self.volumes() {
            volume.snapshots.lock().process_ended(gateway);
            let mut existence = volume.existence.lock();
            if *existence == Existence::Deleting(gateway) {
                *existence = Existence::Unknown;
            }
        }
    }

    /// Looks which clones are there of those that nobody knows of. An error is a finding.
    pub(crate) async fn find_clones(&self) -> Result<(), String> {
        let over: Vec<_> = self.clones.lock().unknown.extract_if(.., |clone| clone.is_over).collect();
        for asked in over {
            if let Ok(row) = self.catalog.volume_by_name(&asked.name()).await {
                self.adopt(&asked, row.id);
            }
        }
        for volume in self.volumes() {
            let existence = *volume.existence.lock();
            if existence == Existence::There {
                continue;
            }
            let is_there = self.catalog.volume(volume.id).await.is_ok();
            match existence {
                Existence::Unknown if is_there => *volume.existence.lock() = Existence::There,
                Existence::Unknown => *volume.existence.lock() = Existence::Deleted,
                Existence::Deleted if is_there => {
                    return Err(format!("{} was deleted and is back", volume.name()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// All volumes of a site.
pub(crate) type Volumes = Mutex<Vec<Arc<SimVolume>>>;
