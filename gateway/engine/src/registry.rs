//! The volumes that this gateway serves, by name.

use crate::error::EngineError;
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

    pub(crate) fn named(&self, name: &str) -> Result<Arc<Volume>, EngineError> {
        self.get(name).ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))
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

    /// Adds a volume. Names are unique in the catalog, so a served volume is never replaced.
    pub(crate) fn insert(&self, name: String, volume: Arc<Volume>) {
        let replaced = self.volumes.write().insert(name, volume);
        assert!(replaced.is_none(), "a volume in service keeps its place");
    }

    pub(crate) fn remove(&self, volume: &Arc<Volume>) {
        self.volumes.write().retain(|_, held| !Arc::ptr_eq(held, volume));
    }

    pub(crate) fn rename(&self, volume: &Arc<Volume>, to: String) {
        let mut volumes = self.volumes.write();
        volumes.retain(|_, held| !Arc::ptr_eq(held, volume));
        volume.state().lock().name.clone_from(&to);
        let replaced = volumes.insert(to, Arc::clone(volume));
        assert!(replaced.is_none(), "a volume in service keeps its place");
    }

    /// Keeps volumes from coming and going while the guard lives.
    pub(crate) fn freeze(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Volume>>> {
        self.volumes.read()
    }
}
