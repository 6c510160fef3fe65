//! The volumes that this gateway serves, by name.

use crate::volume::Volume;
use parking_lot::{RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Lock order: the registry before any volume's state; states in the registry's order.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    volumes: RwLock<BTreeMap<String, Arc<Volume>>>,
}

impl Registry {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Volume>> {
        self.volumes.read().get(name).cloned()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.volumes.read().keys().cloned().collect()
    }

    /// All volumes in the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().values().cloned().collect()
    }

    /// Empties the registry. Volumes and engine hold on to each other through it: the end of the one needs this.
    pub(crate) fn take_all(&self) -> Vec<Arc<Volume>> {
        std::mem::take(&mut *self.volumes.write()).into_values().collect()
    }

    pub(crate) fn insert(&self, name: String, volume: Arc<Volume>) {
        self.volumes.write().insert(name, volume);
    }

    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Volume>> {
        self.volumes.write().remove(name)
    }

    pub(crate) fn rename(&self, from: &str, to: String) {
        let mut volumes = self.volumes.write();
        if let Some(volume) = volumes.remove(from) {
            volume.state().lock().name.clone_from(&to);
            volumes.insert(to, volume);
        }
    }

    /// Keeps volumes from coming and going while the guard lives.
    pub(crate) fn freeze(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Volume>>> {
        self.volumes.read()
    }
}
