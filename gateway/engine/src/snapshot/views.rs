//! Snapshots that are open for reading.

use crate::volume::Volume;
use cairn_metadata::SnapshotName;
use cairn_model::VolumeId;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// Views that are kept for whoever comes next.
const RECENT_MAX: usize = 8;

/// Views by the snapshot's name. In one term of ownership a name means another snapshot only after the one that had it was deleted, by this
/// gateway, which deletes none that is here.
#[derive(Debug, Default)]
pub(crate) struct Views(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    views: HashMap<(VolumeId, SnapshotName), Weak<Volume>>,
    /// The newest last. They are nobody's: whoever deletes a snapshot takes them out.
    recent: VecDeque<Arc<Volume>>,
}

impl Views {
    /// The view of a volume as it is served now: one of an earlier term of ownership answers nobody any more.
    pub(super) fn get(&self, volume: &Volume, name: &SnapshotName) -> Option<Arc<Volume>> {
        let view = self.0.lock().views.get(&(volume.id(), name.clone())).and_then(Weak::upgrade)?;
        view.shares_lease_with(volume).then_some(view)
    }

    pub(super) fn insert(&self, volume: VolumeId, name: SnapshotName, view: &Arc<Volume>) {
        let mut open = self.0.lock();
        open.views.retain(|_, view| view.strong_count() > 0);
        open.views.insert((volume, name), Arc::downgrade(view));
        open.recent.push_back(Arc::clone(view));
        if open.recent.len() > RECENT_MAX {
            open.recent.pop_front();
        }
    }

    /// Lets go of the view of a snapshot that is to be deleted. `false`: somebody reads it.
    pub(super) fn close(&self, volume: VolumeId, name: &SnapshotName) -> bool {
        let mut open = self.0.lock();
        let key = (volume, name.clone());
        let Some(view) = open.views.get(&key).map(Weak::as_ptr) else { return true };
        open.recent.retain(|recent| !std::ptr::eq(Arc::as_ptr(recent), view));
        let is_unused = open.views.get(&key).is_some_and(|view| view.strong_count() == 0);
        if is_unused {
            open.views.remove(&key);
        }
        is_unused
    }

    /// Takes out those of a volume.
    pub(crate) fn take(&self, volume: VolumeId) -> Vec<Arc<Volume>> {
        let mut open = self.0.lock();
        let of_volume = |(of, _): &(VolumeId, SnapshotName)| *of == volume;
        let views = open
            .views
            .iter()
            .filter(|(key, _)| of_volume(key))
            .filter_map(|(_, view)| view.upgrade())
            .collect();
        open.views.retain(|key, _| !of_volume(key));
        open.recent.retain(|view| view.id() != volume);
        views
    }

    /// Lets go of all: views and engine hold on to each other.
    pub(crate) fn clear(&self) {
        let recent = std::mem::take(&mut self.0.lock().recent);
        drop(recent);
    }
}
